"""The tokenizer inside a GGUF file, written out as a tokenizer.json for the library that runs it.

Two kinds: GPT-2's byte-level pairs with their merges, and SentencePiece's with scores and bytes as
<0xNN>. Control tokens are never made from ordinary text, whatever their pieces spell.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from tui_chat.checkpoint.archive import read_archive
from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.gguf.reader import read_list
from tui_chat.checkpoint.gguf.splits import GUESS, SPLITS
from tui_chat.checkpoint.plain import mapping
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.huggingface import HuggingFace
from tui_chat.tokenizers.merges import merges_of
from tui_chat.tokenizers.pieces import SPACE

_NORMAL, _UNKNOWN, _CONTROL, _USER, _BYTE = 1, 2, 3, 4, 6


def open_gguf(path: str, *, rows: int = 0, hidden: bool = False) -> HuggingFace:
    """The tokenizer of the GGUF file at `path`. Raises CheckpointError."""
    return HuggingFace(
        shown_name(path),
        lambda: json.dumps(tokenizer_json(path)).encode(),
        rows=rows,
        hidden=hidden,
    )


def tokenizer_json(path: str) -> dict[str, object]:
    """The tokenizer as the content of a tokenizer.json. Raises CheckpointError."""
    archive = read_archive(path)
    keys = mapping(mapping(archive.root).get("keys")) if archive.kind == "gguf" else {}
    said = {name.removeprefix("tokenizer.ggml."): value for name, value in keys.items()}
    tokens = [str(token) for token in read_list(path, said.get("tokens"))]
    types = read_list(path, said.get("token_type"))
    if not tokens or (types and len(types) != len(tokens)):
        raise _unusable(path, "it has no list of tokens, or of their types")
    if not types:
        types = [_NORMAL] * len(tokens)
    if said.get("model") == "gpt2":
        return _byte_level(path, said, tokens, types)
    if said.get("model") == "llama":
        return _scored(path, said, tokens, types)
    raise _unusable(path, f"it is of the kind {str(said.get('model'))[:40]!r}")


def _unusable(path: str, found: str) -> CheckpointError:
    return CheckpointError(f"cannot use the tokenizer in {shown_name(path)}", found)


def _byte_level(
    path: str, said: Mapping[str, object], tokens: list[str], types: list[object]
) -> dict[str, object]:
    split = SPLITS.get(str(said.get("pre")), GUESS)
    merges: list[list[str]] = []
    for merge in read_list(path, said.get("merges")):
        text = str(merge)
        cut = text.find(" ", 1)  # a piece may begin with a space in old files, never hold one
        if cut < 0 or cut + 1 >= len(text):
            raise _unusable(path, f"its merge {text[:40]!r} is not of two pieces")
        merges.append([text[:cut], text[cut + 1 :]])
    steps: list[object] = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in split.patterns
    ]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps.append({**level, "use_regex": False})
    vocab = _ids(tokens)
    return {
        "version": "1.0",
        "added_tokens": _added(vocab, tokens, types),
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {
            "type": "BPE",
            "ignore_merges": split.whole,
            "byte_fallback": False,
            "vocab": vocab,
            "merges": [pair for pair in merges if _known(pair, vocab)],
        },
    }


def _scored(
    path: str, said: Mapping[str, object], tokens: list[str], types: list[object]
) -> dict[str, object]:
    scores = [s for s in read_list(path, said.get("scores")) if isinstance(s, float)]
    if len(scores) != len(tokens):
        raise _unusable(path, f"it has {len(scores):,} scores for {len(tokens):,} tokens")
    # What a user defined is found in the text as it was written, with spaces.
    tokens = [
        token.replace(SPACE, " ") if kind == _USER else token
        for token, kind in zip(tokens, types, strict=True)
    ]
    vocab = _ids(tokens)
    joined = {
        token: scores[n]
        for token, n in vocab.items()
        if types[n] not in (_CONTROL, _UNKNOWN, _BYTE)
    }
    unknown = next((t for t, n in vocab.items() if types[n] == _UNKNOWN), None)
    prefixed = said.get("add_space_prefix") is not False
    begin = {"type": "Prepend", "prepend": SPACE}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    after = [back, {"type": "ByteFallback"}, {"type": "Fuse"}]
    return {
        "version": "1.0",
        "added_tokens": _added(vocab, tokens, types),
        "normalizer": {"type": "Sequence", "normalizers": [begin] * prefixed + [spaces]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": after + [strip] * prefixed},
        "model": {
            "type": "BPE",
            "unk_token": unknown,
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": merges_of(joined, vocab),
        },
    }


def _ids(tokens: list[str]) -> dict[str, int]:
    """Piece -> id; of two with one text the first is the one that text becomes."""
    found: dict[str, int] = {}
    for n, token in enumerate(tokens):
        found.setdefault(token, n)
    return found


def _known(pair: list[str], vocab: Mapping[str, int]) -> bool:
    return all(piece in vocab for piece in (*pair, "".join(pair)))


def _added(
    vocab: Mapping[str, int], tokens: list[str], types: list[object]
) -> list[dict[str, object]]:
    return [
        {
            "id": n,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": types[n] in (_CONTROL, _UNKNOWN),
        }
        for n, token in enumerate(tokens)
        if types[n] in (_CONTROL, _UNKNOWN, _USER) and token and vocab[token] == n
    ]
