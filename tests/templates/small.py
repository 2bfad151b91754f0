"""A small byte-level tokenizer.json with the control tokens of many families."""

from __future__ import annotations

from typing import Any

from tests.templates.known import NOT_SPECIAL, SPECIAL
from tui_chat.tokenizers.pieces import byte_alphabet

GPT2_ORIGINAL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LEVEL = {"add_prefix_space": False, "trim_offsets": True}


def tokenizer_json() -> dict[str, Any]:
    alphabet = byte_alphabet()
    vocab = {alphabet[n]: n for n in range(256)}
    merges = ["h e", "l l", "he ll", "Ġ w", "i n", "Ċ Ċ", "< |", "| >", "e n", "en d", "Ġ Ġ"]
    for merge in merges:
        vocab[merge.replace(" ", "")] = len(vocab)
    first = len(vocab)
    added = [
        {"id": first + n, "content": text, "special": text in SPECIAL, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for n, text in enumerate((*SPECIAL, *NOT_SPECIAL))
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": GPT2_ORIGINAL},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", **LEVEL, "use_regex": False},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **LEVEL, "use_regex": True},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }
