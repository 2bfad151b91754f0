"""What a user says about sizes, tokenizer and template in place of what the file says."""

from __future__ import annotations

import os
from typing import Literal

from tui_chat.checkpoint.archive import read_pickle_file
from tui_chat.checkpoint.encodings import is_encoding
from tui_chat.checkpoint.files import shown_path
from tui_chat.checkpoint.hipgpt_tokenizer import is_word_pieces
from tui_chat.checkpoint.info import TemplateHint, TokenizerHint
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import read_json, read_toml
from tui_chat.checkpoint.vocabularies import is_llmc_tokenizer
from tui_chat.checkpoint.yaml_file import read_yaml
from tui_chat.errors import CheckpointError, UsageError

TIKTOKEN_NAMES = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base")
TEMPLATE_NAMES = ("none", "plain", "train-llm", "nanochat")
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
        for name in ("tokenizer.json", "tokenizer.pkl", "meta.pkl"):
            if os.path.isfile(os.path.join(path, name)):
                return _by_file(os.path.join(path, name))
        raise CheckpointError(
            f"there is no tokenizer in {shown_path(path)}",
            "it has neither tokenizer.json nor tokenizer.pkl nor meta.pkl",
        )
    if os.path.exists(path):
        return _by_file(path)
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


def _by_file(path: str) -> TokenizerHint:
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
    """`hint` replaced by the template the user named."""
    if not said or said == hint.name:
        return hint
    if said not in TEMPLATE_NAMES:
        names = dict.fromkeys((*TEMPLATE_NAMES, *((hint.name,) if hint.name else ())))
        raise UsageError(f"there is no template {said[:80]!r}", "", f"There are {', '.join(names)}")
    if said == "none":
        return TemplateHint(source=_USER)
    if said == "train-llm":
        from tui_chat.checkpoint.formats.train_llm import TEMPLATE

        return TemplateHint(name=said, source=_USER, turns=TEMPLATE.turns, stop=TEMPLATE.stop)
    return TemplateHint(name=said, source=_USER)
