"""How many ids a checkpoint's tokenizer has, where its file or its name tells that without opening
it; and whether the model has rows for them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import replace

from tui_chat.checkpoint.files import RegularFile
from tui_chat.checkpoint.info import CheckpointInfo, TokenizerHint
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import MAX_TEXT
from tui_chat.checkpoint.vocabularies import read_pieces
from tui_chat.errors import CheckpointError

MAX_ENTRIES = 4_000_000  # of a tokenizer.json, merges included
_TIKTOKEN = {
    "gpt2": 50257,
    "r50k_base": 50257,
    "p50k_base": 50281,
    "p50k_edit": 50284,
    "cl100k_base": 100277,
    "o200k_base": 200019,
}


def with_tokenizer_size(info: CheckpointInfo) -> CheckpointInfo:
    """`info` with the tokenizer's number of ids and, where its vocabulary has more than the model
    has rows, a warning. Reads the tokenizer's file; one that cannot be read changes nothing."""
    vocabulary, ids = _sizes(info.tokenizer)
    if not ids:
        return info
    rows = info.spec.vocab_size
    warnings = info.warnings
    if vocabulary > rows:
        warnings += (
            f"the tokenizer has {vocabulary:,} ids, the model only {rows:,} rows, so they do not "
            "belong together: name the right one with --tokenizer",
        )
    return replace(info, tokenizer=replace(info.tokenizer, vocab_size=ids), warnings=warnings)


def _sizes(hint: TokenizerHint) -> tuple[int, int]:
    """How many ids the vocabulary of a tokenizer spans, and with its added tokens; zeros where that
    is not known."""
    if hint.kind == "tiktoken" and not hint.path:
        size = _TIKTOKEN.get(hint.name, 0)
        return size, size
    try:
        if hint.kind == "sentencepiece":
            size = len(read_pieces(hint.path).pieces)
            return size, size
        return _json_sizes(hint.path) if hint.kind == "tokenizer.json" else (0, 0)
    except CheckpointError:  # opening it will say what is wrong with it
        return 0, 0


def _json_sizes(path: str) -> tuple[int, int]:
    with RegularFile(path) as file:
        if file.size > MAX_TEXT:
            return 0, 0
        raw = file.read(0, file.size)
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_ENTRIES:
        return 0, 0
    try:
        said = mapping(json.loads(raw))
    except (ValueError, RecursionError):
        return 0, 0
    if os.path.basename(path) == "vocab.json":
        return (_span(said.values()),) * 2
    vocab = mapping(said.get("model")).get("vocab")
    # Unigram: a list of pieces with their scores, in the order of their ids.
    size = len(vocab) if isinstance(vocab, list) else _span(mapping(vocab).values())
    added = said.get("added_tokens")
    rows = added if isinstance(added, list) else []
    return size, max(size, _span(mapping(row).get("id") for row in rows))


def _span(ids: Iterable[object]) -> int:
    """One more than the greatest id."""
    found = (token for token in ids if isinstance(token, int) and 0 <= token < 2**31)
    return max(found, default=-1) + 1
