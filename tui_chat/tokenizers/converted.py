"""A tokenizer.json made of what older folders have instead: a SentencePiece model, or vocab.json
with merges.txt.

They are put in the words of tokenizer.json as the converters of the Hugging Face libraries do, so
that the same library reads them all.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator, Mapping

from tui_chat.checkpoint.files import Damaged, RegularFile, refused
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import MAX_TEXT, MAX_VOCABULARY, read_json
from tui_chat.checkpoint.vocabularies import (
    BPE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    USER_DEFINED,
    SentencePieces,
    read_pieces,
)
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.merges import merges_of
from tui_chat.tokenizers.pieces import SPACE

# Fields of SentencePiece's normalizer part.
_CHARSMAP, _DUMMY_PREFIX, _EXTRA_SPACES, _ESCAPE_SPACES = 2, 3, 4, 5

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_json(path: str) -> bytes:
    """The JSON of the tokenizer at `path`: the file itself, or one made of a tokenizer.model or of
    a vocab.json. Raises CheckpointError."""
    if path.endswith(".model"):
        return json.dumps(_of_pieces(path, read_pieces(path))).encode()
    if os.path.basename(path) == "vocab.json":
        return json.dumps(_of_merges(path)).encode()
    raw = _whole(path)
    if len(raw) > MAX_VOCABULARY and sum(map(raw.count, (b",", b"[", b"{"))) > MAX_VOCABULARY:
        raise refused(path, Damaged(f"it has more than {MAX_VOCABULARY:,} entries"))
    return raw


def _whole(path: str) -> bytes:
    with RegularFile(path) as file:
        try:
            if file.size > MAX_TEXT:
                raise Damaged(f"it has {file.size:,} bytes, more than a tokenizer has")
            return file.read(0, file.size)
        except Damaged as error:
            raise refused(path, error) from None


# ---- SentencePiece


def _of_pieces(path: str, found: SentencePieces) -> dict[str, object]:
    texts = [piece.decode("utf-8", "replace") for piece in found.pieces]
    prefix = found.normalizer.get(_DUMMY_PREFIX, 1) == 1
    extra_spaces = found.normalizer.get(_EXTRA_SPACES, 1) == 1
    charsmap = found.normalizer.get(_CHARSMAP, b"")
    if found.normalizer.get(_ESCAPE_SPACES, 1) != 1:
        raise refused(path, Damaged("it leaves spaces as they are, which is not read"))
    unknown = next((n for n, kind in enumerate(found.kinds) if kind == UNKNOWN), None)
    steps: list[object] = []
    if isinstance(charsmap, bytes) and charsmap:
        steps.append(
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(charsmap).decode()}
        )
    if extra_spaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if prefix:
        steps.append({"type": "Prepend", "prepend": SPACE})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})
    decoders: list[object] = [
        {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    model: dict[str, object] = {"byte_fallback": found.byte_fallback}
    if found.model_type == BPE:
        vocab = {text: n for n, text in enumerate(texts)}
        if len(vocab) != len(texts):
            raise refused(path, Damaged("two of its pieces are the same"))
        scores = {
            text: found.scores[n]
            for text, n in vocab.items()
            if found.kinds[n] in (NORMAL, USER_DEFINED)
        }
        model |= {
            "type": "BPE",
            "vocab": vocab,
            "merges": [list(pair) for pair in merges_of(scores, vocab)],
            "unk_token": None if unknown is None else texts[unknown],
            "fuse_unk": True,
        }
    else:
        model |= {
            "type": "Unigram",
            "vocab": [list(row) for row in zip(texts, found.scores, strict=True)],
            "unk_id": unknown,
        }
    added = {
        text: (n, found.kinds[n] != USER_DEFINED)
        for n, text in enumerate(texts)
        if found.kinds[n] in (CONTROL, UNKNOWN, USER_DEFINED)
    }
    return {
        "version": "1.0",
        "added_tokens": added_rows(added | dict(beside(path))),
        "normalizer": {"type": "Sequence", "normalizers": steps},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": model,
    }


# ---- vocab.json and merges.txt


def _of_merges(path: str) -> dict[str, object]:
    folder = os.path.dirname(path)
    vocab = read_json(path, MAX_VOCABULARY)
    merges_path = os.path.join(folder, "merges.txt")
    try:
        raw = _whole(merges_path)
        if raw.count(b"\n") > MAX_VOCABULARY // 4:
            raise refused(merges_path, Damaged("it has more merges than a tokenizer has"))
        lines = raw.decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise refused(merges_path, Damaged("it is not UTF-8")) from None
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if not isinstance(vocab, dict) or not vocab:
        raise refused(path, Damaged("it is no vocabulary"))
    qwen = str(_beside(folder, "tokenizer_config.json").get("tokenizer_class")).startswith("Qwen2")
    split = {"type": "Split", "pattern": {"Regex": QWEN_PATTERN}, "behavior": "Isolated"}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    before = [split | {"invert": False}] if qwen else []
    added = dict(beside(path))
    if not added:  # GPT-2's own
        added = {text: (vocab[text], True) for text in ("<|endoftext|>",) if text in vocab}
    return {
        "version": "1.0",
        "added_tokens": added_rows(added),
        "normalizer": {"type": "NFC"} if qwen else None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [*before, level | {"use_regex": not qwen}],
        },
        "decoder": {"type": "ByteLevel"},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


# ---- added tokens in other files


def added_rows(added: Mapping[str, tuple[int, bool]]) -> list[dict[str, object]]:
    """Added tokens as tokenizer.json lists them, from {text: (id, special)}, in order of ids."""
    return [
        {"id": token, "content": text, "special": special, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for text, (token, special) in sorted(added.items(), key=lambda row: row[1][0])
    ]


def beside(path: str) -> Iterator[tuple[str, tuple[int, bool]]]:
    """The added tokens that other files beside `path` name: text, id, whether it is special."""
    folder = os.path.dirname(path)
    for text, token in _beside(folder, "added_tokens.json").items():
        if isinstance(token, int) and not isinstance(token, bool):
            yield text, (token, True)
    rows = mapping(_beside(folder, "tokenizer_config.json").get("added_tokens_decoder"))
    for key, row in rows.items():
        content = mapping(row).get("content")
        if isinstance(content, str) and key.isdecimal() and len(key) < 10:
            yield content, (int(key), mapping(row).get("special") is True)


def _beside(folder: str, name: str) -> Mapping[str, object]:
    path = os.path.join(folder, name)
    try:
        return mapping(read_json(path)) if os.path.isfile(path) else {}
    except CheckpointError:  # said where the folder is described
        return {}
