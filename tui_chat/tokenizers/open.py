"""Chooses the tokenizer that a hint names, and holds it against the model."""

from __future__ import annotations

from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec
from tui_chat.tokenizers.base import Tokenizer
from tui_chat.tokenizers.chars import open_characters
from tui_chat.tokenizers.none import IdsOnly


def open_tokenizer(hint: TokenizerHint, spec: ModelSpec, *, beside: str = "") -> Tokenizer:
    """The tokenizer of a checkpoint. `beside` is a directory in which its files may lie.

    Raises CheckpointError where it cannot be read, or has ids that the model does not know.
    """
    if hint.kind == "none":
        return IdsOnly(spec.vocab_size)
    tokenizer = _opened(hint, beside)
    if tokenizer.vocab_size > spec.vocab_size:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name} does not belong to this model",
            f"it has {tokenizer.vocab_size:,} ids, the model only {spec.vocab_size:,}",
            "Name the right one with --tokenizer, or --tokenizer none to see ids",
        )
    return tokenizer


def _opened(hint: TokenizerHint, beside: str) -> Tokenizer:
    if hint.kind == "chars":
        return open_characters(hint.path)
    if hint.kind == "tokenizer.json":
        from tui_chat.tokenizers.tokenizer_json import open_tokenizer_json

        return open_tokenizer_json(hint.path, hidden=hint.drop_special)
    from tui_chat.tokenizers.bpe import open_named  # tiktoken only where it is used

    return open_named(
        hint.name,
        hint.path,
        beside=beside,
        hidden=hint.drop_special,
        raw_specials=hint.text_specials,
    )
