"""tui-chat's own format: safetensors whose metadata says everything, under canonical names.

Written by checkpoints/train_demo.py. All metadata values are texts, as safetensors demands; `spec`,
`losses` and `template` are JSON. The tokenizer lies beside the file under the name that `tokenizer`
gives.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import fields

from tui_chat.checkpoint.archive import parse_json
from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import Damaged, refused
from tui_chat.checkpoint.info import TemplateHint, TokenizerHint
from tui_chat.checkpoint.names import Row, Table, optional
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec

NAME = "tui-chat"
VERSION = "1"
DOCUMENT_END = "<|endoftext|>"

_BLOCK: tuple[tuple[str, bool], ...] = (
    ("attn_norm", False),
    ("attn.qkv", False),
    ("attn.q_norm", True),
    ("attn.k_norm", True),
    ("attn.out", False),
    ("mlp_norm", False),
    ("mlp.up", True),
    ("mlp.gate_up", True),
    ("mlp.down", False),
)
NAMES: Table = {
    "embed": "embed",
    "position": optional("position"),
    "embed_norm": optional("embed_norm"),
    **{
        f"blocks.{{i}}.{name}": Row((f"blocks.{{i}}.{name}",), optional=may_miss)
        for name, may_miss in _BLOCK
    },
    "final_norm": "final_norm",
    "head": optional("head"),
}

SPEC_FIELDS = (
    "vocab_size", "n_layer", "n_head", "n_kv_head", "head_dim", "n_embd", "context_length",
    "norm", "norm_eps", "position", "rope_theta", "rope_layout", "activation", "gated", "qk_norm",
)  # fmt: skip


_KNOWN = (
    "format", "format_version", "spec", "losses", "template", "tokenizer", "run", "step", "mode",
    "description",
)  # fmt: skip
# What is taken where the spec leaves it out, of the fields that make a difference to any model.
_DEFAULTS = {
    field.name: field.default
    for field in fields(ModelSpec)
    if field.name in ("norm", "norm_eps", "position", "activation", "gated")
}


def recognise(source: Source) -> float:
    if source.is_dir or source.archive.kind != "safetensors":
        return 0.0
    return 1.0 if source.archive.metadata.get("format") == NAME else 0.0


def describe(source: Source) -> Description:
    said = source.archive.metadata
    if said.get("format_version", VERSION) != VERSION:
        raise CheckpointError(
            "the file is newer than this program",
            f"its format is {said['format_version'][:20]!r}",
            "Update tui-chat",
        )
    notes = Notes(source.config)
    spec = _table(source, "spec")
    notes.keys(spec, SPEC_FIELDS, "its spec")
    notes.keys(said, _KNOWN, "its metadata")
    notes.fixed({name: _DEFAULTS[name] for name in _DEFAULTS if name not in spec}, "the format")
    tokenizer, special = _tokenizer(source, said)
    template = _template(source)
    losses = {
        name: float(value)
        for name, value in _table(source, "losses").items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    step = said.get("step", "")
    return Description(
        format=NAME,
        spec={name: spec[name] for name in SPEC_FIELDS if name in spec},
        tensors=source.root,
        names=NAMES,
        archives=(source.archive,),
        tokenizer=tokenizer,
        run=said.get("run", ""),
        step=int(step) if step.isascii() and step.isdigit() and len(step) < 16 else None,
        losses=losses,
        template=template,
        stop_ids=tuple(
            sorted(special[stop] for stop in template.stop or (DOCUMENT_END,) if stop in special)
        ),
        mode="chat" if said.get("mode") == "chat" else "raw",
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
        description=said.get("description", ""),
    )


def _table(source: Source, key: str) -> Mapping[str, object]:
    text = source.archive.metadata.get(key, "")
    try:
        return mapping(parse_json(text.encode("utf-8", "surrogatepass"))) if text else {}
    except Damaged:
        raise refused(source.path, Damaged(f"its metadata {key!r} is not JSON")) from None


def _tokenizer(source: Source, said: Mapping[str, str]) -> tuple[TokenizerHint, Mapping[str, int]]:
    """The hint, and the control tokens. A tokenizer that cannot be read says so later."""
    name = said.get("tokenizer", "")
    if not name or name != os.path.basename(name) or "\\" in name:
        raise refused(source.path, Damaged("it does not name a tokenizer file beside it"))
    path = os.path.join(source.folder, name)
    try:
        file = mapping(read_json(path))
    except CheckpointError:
        file = {}
    added = file.get("added_tokens")
    special: dict[str, int] = {}
    for row in added if isinstance(added, list) else []:
        text, token = mapping(row).get("content"), mapping(row).get("id")
        if isinstance(text, str) and isinstance(token, int):
            special[text] = token
    pieces = mapping(mapping(file.get("model")).get("vocab"))
    hint = TokenizerHint(
        kind="tokenizer.json",
        path=path,
        source="named in the file",
        vocab_size=len(pieces.keys() | special.keys()),
    )
    return hint, special


def _template(source: Source) -> TemplateHint:
    said = _table(source, "template")
    if not said:
        return TemplateHint()
    turns: dict[str, tuple[str, str]] = {}
    for role in ("system", "user", "assistant"):
        around = said.get(role)
        if (
            isinstance(around, list)
            and len(around) == 2
            and all(isinstance(part, str) for part in around)
        ):
            turns[role] = (around[0], around[1])
    stop = said.get("stop")
    stops = tuple(text for text in stop if isinstance(text, str)) if isinstance(stop, list) else ()
    if not {"user", "assistant"} <= turns.keys():
        raise refused(
            source.path, Damaged("its template does not say how user and assistant are marked")
        )
    return TemplateHint(
        name=str(said.get("name") or "own"), source="named in the file", turns=turns, stop=stops
    )
