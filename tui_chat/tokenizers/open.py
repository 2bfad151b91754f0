"""Chooses the tokenizer that a hint names, and holds it against the model."""

from __future__ import annotations

from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec
from tui_chat.tokenizers.base import Tokenizer
from tui_chat.tokenizers.chars import open_characters
from tui_chat.tokenizers.llama2c import open_llama2c
from tui_chat.tokenizers.none import IdsOnly


def open_tokenizer(hint: TokenizerHint, spec: ModelSpec, *, beside: str = "") -> Tokenizer:
    """The tokenizer of a checkpoint. `beside` is a directory in which its files may lie.

    Raises CheckpointError where it cannot be read, or has ids that the model does not know.
    """
    if hint.kind == "none":
        return IdsOnly(spec.vocab_size)
    tokenizer = _opened(hint, spec, beside)
    if tokenizer.vocab_size > spec.vocab_size:
        raise CheckpointError(
            f"the tokenizer {tokenizer.name} does not belong to this model",
            f"it has {tokenizer.vocab_size:,} ids, the model only {spec.vocab_size:,}",
            "Name the right one with --tokenizer, or --tokenizer none to see ids",
        )
    return tokenizer


def _opened(hint: TokenizerHint, spec: ModelSpec, beside: str) -> Tokenizer:
    if hint.kind == "chars":
        return open_characters(hint.path)
    if hint.kind in ("tokenizer.json", "sentencepiece"):
        from tui_chat.tokenizers.huggingface import open_huggingface

        return open_huggingface(hint.path, rows=spec.vocab_size, hidden=hint.drop_special)
    if hint.kind == "gguf":
        from tui_chat.tokenizers.gguf import open_gguf

        return open_gguf(hint.path, rows=spec.vocab_size, hidden=hint.drop_special)
    if hint.kind == "nanochat":
        from tui_chat.tokenizers.nanochat import open_nanochat

        return open_nanochat(hint.path, hidden=hint.drop_special, raw_specials=hint.text_specials)
    if hint.kind == "hipgpt":
        from tui_chat.tokenizers.hipgpt import open_word_pieces

        return open_word_pieces(hint.path)
    if hint.kind == "llama2c":  # the file does not say how many ids it has
        return open_llama2c(hint.path, hint.vocab_size or spec.vocab_size)
    if hint.kind == "llmc":
        from tui_chat.tokenizers.llmc import open_llmc

        return open_llmc(hint.path, raw_specials=hint.text_specials)
    from tui_chat.tokenizers.bpe import open_named  # tiktoken only where it is used

    return open_named(
        hint.name,
        hint.path,
        beside=beside,
        hidden=hint.drop_special,
        raw_specials=hint.text_specials,
    )
