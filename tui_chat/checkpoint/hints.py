"""What a user says about sizes, tokenizer and template in place of what the file says."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Literal

from tui_chat.checkpoint.archive import read_pickle_file
from tui_chat.checkpoint.files import shown_name, shown_path
from tui_chat.checkpoint.hf_tokenizer import hf_tokenizer, read_template
from tui_chat.checkpoint.hipgpt.tokenizer import is_word_pieces
from tui_chat.checkpoint.info import TemplateHint, TokenizerHint
from tui_chat.checkpoint.named_templates import NAMES, named_template
from tui_chat.checkpoint.nanochat.encodings import is_encoding
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import read_json, read_toml
from tui_chat.checkpoint.vocabularies import is_llmc_tokenizer
from tui_chat.checkpoint.yaml_file import read_yaml
from tui_chat.errors import CheckpointError, UsageError

TIKTOKEN_NAMES = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base")
TEMPLATE_NAMES = ("none", "plain", *NAMES, "train-llm", "nanochat")
_USER = "given by the user"


def tokenizer_hint(said: str, hint: TokenizerHint) -> TokenizerHint:
    """`hint` replaced by what the user named: a file, a directory, an encoding, "none". Raises on
    anything else."""
    if not said:
        return hint
    if said == "none":
        return TokenizerHint(kind="none", source=_USER)
    path = os.path.abspath(os.path.expanduser(said))
    if os.path.isdir(path):
        for name in ("tokenizer.json", "tokenizer.pkl", "meta.pkl", "tokenizer.model"):
            if os.path.isfile(os.path.join(path, name)):
                return _by_file(os.path.join(path, name), hint)
        found = hf_tokenizer(path).hint
        if found.kind != "none":
            return replace(found, source=_USER)
        raise CheckpointError(
            f"there is no tokenizer in {shown_path(path)}",
            "it has neither tokenizer.json nor tokenizer.model nor tokenizer.pkl nor meta.pkl",
        )
    if os.path.exists(path):
        return _by_file(path, hint)
    if said in TIKTOKEN_NAMES:
        same = hint.kind == "tiktoken"
        return TokenizerHint(
            kind="tiktoken",
            name=said,
            source=_USER,
            drop_special=same and hint.drop_special,
            text_specials=hint.text_specials if same else (),
        )
    raise UsageError(
        f"there is no tokenizer {said[:80]!r}",
        "",
        f"Give a file, or one of {', '.join(TIKTOKEN_NAMES)}",
    )


# How trainers call the sizes that ModelSpec has under the field's names.
_WORDS = {
    "block_size": "context_length",
    "sequence_len": "context_length",
    "max_seq_len": "context_length",
    "n_embed": "n_embd",
    "n_blocks": "n_layer",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "n_kv_heads": "n_kv_head",
    "n_query_groups": "n_kv_head",
    "head_size": "head_dim",
    "embed_dim": "n_embd",
    "num_heads": "n_head",
    "num_layers": "n_layer",
}
_SIZES = ("vocab_size", "n_layer", "n_head", "n_kv_head", "head_dim", "n_embd", "context_length")


def settings_file(path: str) -> dict[str, object]:
    """The sizes that a TOML, JSON or YAML file of the training says, under ModelSpec's names.

    They may stand at the top or in a section. Raises CheckpointError.
    """
    if not path:
        return {}
    full = os.path.abspath(os.path.expanduser(path))
    if full.endswith((".yaml", ".yml")):
        said = read_yaml(full)
    else:
        said = read_toml(full) if full.endswith(".toml") else read_json(full)
    sections = [said, *mapping(said).values()]
    found: dict[str, object] = {}
    for section in reversed(sections):
        for word, value in mapping(section).items():
            name = _WORDS.get(word, word)
            if name in _SIZES and value not in (None, 0):  # HipGPT: 0 ids are the tokenizer's
                found[name] = value
        if (rows := mapping(section).get("padded_vocab_size")) is not None:
            found["vocab_size"] = rows
    if not found:
        raise CheckpointError(
            f"{shown_path(full)} says nothing of the model", f"none of {', '.join(_SIZES)} is in it"
        )
    return found


def _by_file(path: str, hint: TokenizerHint) -> TokenizerHint:
    if path.endswith(".json"):
        found: Literal["hipgpt", "tokenizer.json"] = (
            "hipgpt" if is_word_pieces(path) else "tokenizer.json"
        )
        return TokenizerHint(kind=found, path=path, source=_USER)
    if path.endswith((".pkl", ".pickle")):
        kind: Literal["nanochat", "chars"] = (
            "nanochat" if is_encoding(read_pickle_file(path)) else "chars"
        )
        return TokenizerHint(kind=kind, path=path, source=_USER)
    if path.endswith(".tiktoken"):
        name = os.path.basename(path)[: -len(".tiktoken")]
        return TokenizerHint(kind="tiktoken", name=name, path=path, source=_USER)
    if path.endswith(".model") and hint.kind != "llama2c":
        return TokenizerHint(kind="sentencepiece", path=path, source=_USER)
    if path.endswith((".bin", ".model")):
        return TokenizerHint(
            kind="llmc" if is_llmc_tokenizer(path) else "llama2c", path=path, source=_USER
        )
    raise UsageError(
        f"{shown_path(path)} is no tokenizer that can be read",
        "",
        "There are tokenizer.json, tokenizer.pkl, meta.pkl, NAME.tiktoken, tokenizer.model, and "
        "tokenizer.bin of llama2.c or llm.c",
    )


def template_hint(said: str, hint: TemplateHint) -> TemplateHint:
    """`hint` replaced by the template the user named: a name, a Jinja file, or a directory (or
    its tokenizer_config.json) with a chat template. Raises on anything else."""
    if not said or said == hint.name:
        return hint
    if said == "none":
        return TemplateHint(source=_USER)
    if said == "train-llm":
        from tui_chat.checkpoint.formats.train_llm import TEMPLATE

        return TemplateHint(name=said, source=_USER, turns=TEMPLATE.turns, stop=TEMPLATE.stop)
    if said in NAMES:
        return named_template(said, _USER, hint.tokens)
    if said in TEMPLATE_NAMES:
        return TemplateHint(name=said, source=_USER)
    path = os.path.abspath(os.path.expanduser(said))
    if os.path.isdir(path) or os.path.basename(path) == "tokenizer_config.json":
        return _template_of(path if os.path.isdir(path) else os.path.dirname(path), hint)
    if os.path.exists(path) or said.endswith((".jinja", ".jinja2", ".j2")):
        return TemplateHint(
            name=shown_name(path), source=_USER, jinja=read_template(path), tokens=hint.tokens
        )
    names = dict.fromkeys((*TEMPLATE_NAMES, *((hint.name,) if hint.name else ())))
    raise UsageError(
        f"there is no template {said[:80]!r}",
        "",
        f"Give a Jinja file, or one of {', '.join(names)}",
    )


def _template_of(folder: str, hint: TemplateHint) -> TemplateHint:
    found = hf_tokenizer(folder).template
    if not found.jinja:
        raise CheckpointError(f"there is no chat template in {shown_path(folder)}")
    return replace(found, source=_USER, tokens=found.tokens or hint.tokens)
