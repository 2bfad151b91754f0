"""nanochat, from its first release of October 2025 on: model_NNNNNN.pt with meta_NNNNNN.json.

The model file is a bare state dict, the settings are in the JSON beside it, the tokenizer lies two
directories up. The architecture changed over the months without a word in the files, so it is read
off the tensors: a part is there when its tensors are, and with them the numbers that only that
month's code says (nanochat/eras.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tui_chat.checkpoint.description import Description, agree
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import Damaged, refused, shown_path
from tui_chat.checkpoint.gpt2 import matrix, stripped, untied, weight_keys
from tui_chat.checkpoint.hints import TIKTOKEN_NAMES
from tui_chat.checkpoint.info import TemplateHint, TokenizerHint
from tui_chat.checkpoint.names import Table, cat, count, optional, partial
from tui_chat.checkpoint.nanochat.encodings import (
    TURN_TOKENS,
    begin_and_ends,
    read_added,
    read_encoding,
)
from tui_chat.checkpoint.nanochat.eras import (
    FIRST,
    PATTERN,
    Era,
    check_parts,
    era_of,
    whole,
    windows,
    without_padding,
)
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

NAME = "nanochat"
READS_CONFIG_FILE = True  # a meta_NNNNNN.json from elsewhere

# Parameters of the model itself: their names have no ".weight", but the tables have room for that.
_PARAMETERS = (
    "resid_lambdas", "x0_lambdas", "smear_gate", "smear_lambda", "backout_lambda", "bigram_lambdas",
)  # fmt: skip
NAMES: Table = {
    "embed": "transformer.wte",
    "blocks.{i}.attn.qkv": cat(
        *(f"transformer.h.{{i}}.attn.{name}" for name in ("c_q", "c_k", "c_v"))
    ),
    "blocks.{i}.attn.value_embed": partial("value_embeds.{i}"),
    "blocks.{i}.attn.value_gate": partial("transformer.h.{i}.attn.ve_gate"),
    "blocks.{i}.attn.out": "transformer.h.{i}.attn.c_proj",
    "blocks.{i}.mlp.up": "transformer.h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.down": "transformer.h.{i}.mlp.c_proj",
    "head": optional("lm_head"),
    "bigram_embed": optional("bigram_embed.embed"),
    **{name: optional(name) for name in _PARAMETERS},
}
IGNORED = ("cos", "sin")  # rotary tables, kept as buffers by some copies of the code

_WORDS = {
    "n_layer": "n_layer",
    "n_embd": "n_embd",
    "n_head": "n_head",
    "n_kv_head": "n_kv_head",
    "vocab_size": "vocab_size",
    "context_length": "sequence_len",
}
_SEQUENCE_LEN = 2048  # of its training script
_HEAD_DIM = 128  # likewise
_STAGES = {
    "base_checkpoints": "base",
    "mid_checkpoints": "mid",
    "chatsft_checkpoints": "sft",
    "chatrl_checkpoints": "rl",
}


def recognise(source: Source) -> float:
    if source.is_dir:
        return 0.0
    tensors = stripped(source)[0]
    first = "transformer.h.0."
    known = (f"{first}attn.c_q.weight", f"{first}attn.c_k.weight", f"{first}mlp.c_fc.weight")
    if not all(isinstance(tensors.get(name), TensorRef) for name in known):
        return 0.0
    if "transformer.wpe.weight" in tensors or f"{first}ln_1.weight" in tensors:
        return 0.0
    return 0.95 if "transformer.wte.weight" in tensors else 0.6


def describe(source: Source) -> Description:
    raw, removed = stripped(source)
    tensors = {f"{name}.weight" if name in _PARAMETERS else name: raw[name] for name in raw}
    tensors = untied(tensors, "lm_head.weight", "transformer.wte.weight")
    meta, where = _meta(source)
    notes = Notes(source.config)
    notes.removed(removed)
    notes.tensors(tensors, IGNORED)
    said = mapping(meta.get("model_config"))
    spec = _sizes(source, tensors, said, notes)
    tokenizer, special = _tokenizer(source, _rows(said, spec), notes)
    tensors = _trimmed(tensors, spec, said, tokenizer, notes)
    era, why = era_of(tensors)
    notes.inferred.extend(era.notes(why))
    stage = _stage(source, meta, notes)
    check_parts(tensors, spec)
    begin, ends = begin_and_ends(special or {})
    chat = stage != "base" and (special is None or all(text in special for text in TURN_TOKENS))
    if stage != "base" and not chat:
        notes.warnings.append(
            "its tokenizer has none of the tokens that nanochat puts around turns: it can only go "
            "on with a text"
        )
    used = {"model_config", "step", "val_bpb", "val_loss", *weight_keys(source)}
    notes.keys(meta, used, where)
    notes.keys(said, (*_WORDS.values(), PATTERN), "the model_config")
    if where != "the file":
        notes.keys(source.root, used, "the file")
    fixed = {"rope_sign": -1, "activation": "relu2", "logit_softcap": 15.0}
    notes.fixed(fixed)
    return Description(
        format=NAME,
        spec={
            **spec,
            **fixed,
            "family": NAME,
            "norm": "rmsnorm",
            "norm_eps": None,
            "embed_norm": True,
            "position": "rope",
            "rope_theta": era.rope_theta,
            "qk_norm": "after_rope",
            "qk_scale": era.qk_scale,
            "window": _windows(spec, said, era, notes),
            "options": {
                "value_gate": era.value_gate,
                "backout_layer": whole(spec["n_layer"]) // 2,
                "bfloat16_angles": era.bfloat16_angles,
            },
        },
        tensors=tensors,
        names=NAMES,
        ignored=IGNORED,
        archives=(source.archive,),
        tokenizer=tokenizer,
        run=_run(source, stage),
        step=_step(source, meta),
        losses=_losses(meta),
        template=TemplateHint(name=NAME, source="the trainer's own") if chat else TemplateHint(),
        stop_ids=ends,
        text_start=begin,
        mode="chat" if chat else "raw",
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
    )


# ---- the settings


def _meta(source: Source) -> tuple[Mapping[str, object], str]:
    """The settings of the training, and the name of the file they stand in: the one that was
    named, else the JSON with the model's number, else the only one there is, else what someone put
    into the model file."""
    if source.config_file:
        meta, name = mapping(read_json(source.config_file)), shown_path(source.config_file)
        if not mapping(meta.get("model_config")):
            raise CheckpointError(f"{name} says nothing of the model", "it has no model_config")
        return meta, name
    number = re.search(r"(\d+)\.\w+$", os.path.basename(source.path))
    metas = sorted(name for name in source.files if re.fullmatch(r"meta_\d+\.json", name))
    names = [f"meta_{number.group(1)}.json"] if number else []
    names += metas if len(metas) == 1 and not number else []
    for name in names:
        path = source.near(name)
        if path:
            return mapping(read_json(path)), name
    for value in (source.root, mapping(source.root.get("meta"))):
        if mapping(value.get("model_config")):
            return {k: v for k, v in value.items() if not isinstance(v, TensorRef)}, "the file"
    config = mapping(source.root.get("config"))
    return ({"model_config": config} if "sequence_len" in config else {}), "the file"


def _sizes(
    source: Source,
    tensors: Mapping[str, object],
    said: Mapping[str, object],
    notes: Notes,
) -> dict[str, object]:
    """The sizes, from the tensors where they show them."""
    embed = matrix(tensors, "transformer.wte.weight")
    query = matrix(tensors, "transformer.h.0.attn.c_q.weight").shape[0]
    keys = matrix(tensors, "transformer.h.0.attn.c_k.weight").shape[0]
    shown: dict[str, object] = {
        "n_embd": embed.shape[1],
        "n_layer": count(tensors, "transformer.h.{n}."),
    }
    agree(shown, said, {ours: _WORDS[ours] for ours in shown if ours not in source.config})
    notes.shapes(shown)
    notes.head("lm_head.weight" not in tensors, "lm_head.weight", stripped(source)[0])
    n_head = source.config.get("n_head", said.get("n_head"))
    gates = [
        ref.shape[0]
        for name, ref in tensors.items()
        if name.endswith("ve_gate.weight") and isinstance(ref, TensorRef) and len(ref.shape) == 2
    ]
    if n_head is None and gates and gates[0] and keys % gates[0] == 0:
        n_head = query // max(keys // gates[0], 1)
        notes.inferred.append(f"n_head {n_head}: the value gates show {gates[0]} heads for values")
    if n_head is None and query % -(-query // _HEAD_DIM) == 0:
        n_head = -(-query // _HEAD_DIM)
        notes.warnings.append(
            f"the settings (meta_*.json) are not beside the file: n_head {n_head} is what the "
            f"trainer makes of width {query}; if the text is broken, give it with --config n_head=N"
        )
    heads = whole(n_head) or 1
    kv_head = source.config.get("n_kv_head", said.get("n_kv_head"))
    if kv_head is None and n_head is not None:
        kv_head = max(1, keys // max(query // heads, 1))
    length = source.config.get("context_length", said.get("sequence_len"))
    if length is None:
        length = _SEQUENCE_LEN
        notes.defaults.append(f"context_length {length}, the trainer's own: no settings were found")
    return {
        **shown,
        "vocab_size": embed.shape[0],
        "n_head": n_head,
        "n_kv_head": kv_head,
        "context_length": length,
    }


def _windows(
    spec: Mapping[str, object], said: Mapping[str, object], era: Era, notes: Notes
) -> tuple[int, ...]:
    """How many positions each layer sees; empty where all see all."""
    pattern = said.get(PATTERN)
    if pattern is None:
        if said or era is FIRST:
            notes.defaults.append("every layer sees all positions: there is no window_pattern")
            return ()
        pattern = "SSSL"
        notes.warnings.append(
            "the settings (meta_*.json) are not beside the file: windows are taken to be SSSL, the "
            "trainer's default"
        )
    context = whole(spec["context_length"])
    length = whole(said.get("sequence_len", context))
    found, short = windows(str(pattern), whole(spec["n_layer"]), length, context, era)
    if not any(found):
        return ()
    notes.inferred.append(
        f"short windows reach {short} positions back: 1/{era.short} of {length}"
        + (", rounded up to a multiple of 128" if era.rounded else "")
    )
    return found


def _rows(said: Mapping[str, object], spec: Mapping[str, object]) -> tuple[int, bool]:
    """How many ids there are, and whether the settings say so: else it is that of the rows."""
    ids = said.get("vocab_size")
    if isinstance(ids, int) and not isinstance(ids, bool):
        return ids, True
    return whole(spec["vocab_size"]), False


def _trimmed(
    tensors: dict[str, object],
    spec: dict[str, object],
    said: Mapping[str, object],
    tokenizer: TokenizerHint,
    notes: Notes,
) -> dict[str, object]:
    """The tensors without the rows that only fill up to a multiple of 64; `spec` gets the rest."""
    rows = whole(spec["vocab_size"])
    ids, exact = _rows(said, spec)
    if not exact and tokenizer.vocab_size:
        ids = tokenizer.vocab_size
    if ids == rows:
        return tensors
    if not 0 < ids < rows:
        raise CheckpointError(
            "the file contradicts itself",
            f"its settings say vocab_size = {ids}, its tensors {rows}",
        )
    found = without_padding(tensors, rows, ids)
    if found is None:
        return tensors
    spec["vocab_size"] = ids
    notes.inferred.append(f"{rows - ids} of the {rows:,} rows are padding: there are {ids:,} ids")
    return found


# ---- where it comes from


def _stage(source: Source, meta: Mapping[str, object], notes: Notes) -> str:
    """base, mid, sft or rl: from the directory, else from what only the base training notes."""
    stage = _STAGES.get(os.path.basename(os.path.dirname(source.folder)), "")
    if stage:
        return stage
    if "depth" in mapping(meta.get("user_config")):
        notes.inferred.append("a base model, since its settings name a depth: it continues texts")
        return "base"
    notes.inferred.append(
        "a chat model: it lies in no base_checkpoints directory, and its settings name no depth"
    )
    return ""


def _run(source: Source, stage: str) -> str:
    """ "d20-sft": all stages of a model lie in directories of the same name."""
    return f"{os.path.basename(source.folder)}-{stage}" if stage else ""


def _step(source: Source, meta: Mapping[str, object]) -> int | None:
    step = meta.get("step")
    if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 2**53:
        return step
    number = re.fullmatch(r"model_(\d{1,9})\.\w+", os.path.basename(source.path))
    return int(number.group(1)) if number else None


def _losses(meta: Mapping[str, object]) -> dict[str, float]:
    """Bits a byte of the base and chat trainings; older chat trainings note nats a token."""
    found = {}
    for ours, word in (("val", "val_loss"), ("val_bpb", "val_bpb")):
        value = meta.get(word)
        if isinstance(value, float) and abs(value) < 1e8:
            found[ours] = float(value)
    return found


# ---- the tokenizer: <base>/tokenizer, two directories above the model, or wherever it was put

_PLACES = ("", "tokenizer", "../../tokenizer", "../tokenizer", "..")


def _tokenizer(
    source: Source, rows: tuple[int, bool], notes: Notes
) -> tuple[TokenizerHint, Mapping[str, int] | None]:
    """The tokenizer, and its control tokens where it was found."""
    ids, exact = rows
    others: list[str] = []
    for folder in _PLACES:
        for name in ("tokenizer.pkl", "tokenizer.json"):
            path = source.near(folder, name)
            if not path:
                continue
            try:
                hint, special = _read(path)
            except CheckpointError as error:
                others.append(f"{shown_path(path)} cannot be read: {error.found}")
                continue
            count = hint.vocab_size
            if hint.kind == "tiktoken" or count == ids or (not exact and ids - 64 < count < ids):
                return hint, special
            others.append(f"{shown_path(path)} has {count:,} ids")
    notes.warnings.append(
        f"no tokenizer found for {ids:,} ids"
        + (f" ({'; '.join(others)[:300]})" if others else "")
        + ": put the training's tokenizer.pkl beside the checkpoint, or name it with --tokenizer; "
        "until then only ids are shown"
    )
    return TokenizerHint(kind="none", source="no tokenizer.pkl found", vocab_size=ids), None


def _read(path: str) -> tuple[TokenizerHint, Mapping[str, int]]:
    """A tokenizer.pkl, or the tokenizer.json of nanochat's other tokenizer class. Raises
    CheckpointError."""
    where = f"{shown_path(path)} has as many ids as the model"
    if path.endswith(".json"):
        special, count = read_added(path)
        return (
            TokenizerHint(kind="tokenizer.json", path=path, source=where, vocab_size=count),
            special,
        )
    found = read_encoding(path)
    if not found.registered:
        kept = TokenizerHint(
            kind="nanochat", name=found.name, path=path, source=where, vocab_size=found.vocab_size
        )
        return kept, found.special
    if found.name not in TIKTOKEN_NAMES:
        raise refused(path, Damaged(f"it names the encoding {found.name!r}, which is not known"))
    named = f"{shown_path(path)} names it"
    return TokenizerHint(kind="tiktoken", name=found.name, source=named), found.known_special
