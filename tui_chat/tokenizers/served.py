"""Runs a stranger's tokenizer, in a process of its own (tui_chat/child.py).

Control tokens are given secret names before the library sees the file, so no text can spell one:
a control token is recognised exactly where the caller put its secret name.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import re
import struct
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any

from tui_chat.tokenizers.pieces import BYTE_PIECE, Decoder, byte_alphabet

MAX_ID = 2**22
# Added tokens that look like marks of a template though the file does not call them special, such
# as <think> or [INST].
_MARK = re.compile(r"[<\[{|｜].*\S.*[>\]}|｜]", re.S)

Answer = tuple[dict[str, object], bytes]
Encode = Callable[[str], Any]

_encode: Encode | None = None
_unknown: int | None = None


def prepare() -> None:
    """Import what opening needs, while files can be opened."""
    for package in ("tokenizers", "tiktoken._tiktoken"):
        with contextlib.suppress(ImportError):  # the process has one of them, whichever it serves
            importlib.import_module(package)


def answer(request: dict[str, Any], data: bytes) -> Answer:
    """Open a tokenizer, encode with the one that is open, or say what it has no ids for."""
    match request.get("do"):
        case "open":
            return _open_json(request, data)
        case "open ranks":
            return _open_ranks(request, data)
        case "encode":
            return _encoded(str(request["text"]), list(request["at"]))
        case "missing":
            return {"missing": _missing(str(request["text"]))}, b""
    raise ValueError("there is no such request")


def _encoded(text: str, places: list[int]) -> Answer:
    """Ids of a text, and for each place in it (a number of characters) the index of the first
    token that begins there or later."""
    assert _encode is not None
    ids, begins = _encode(text)
    found = [bisect_left(begins, place) for place in places]
    return {"at": found}, array("I", ids).tobytes()


def _missing(text: str) -> str:
    assert _encode is not None
    lost = []
    for char in dict.fromkeys(text):
        ids, _ = _encode(char)
        if not ids or (_unknown is not None and set(ids) == {_unknown}):
            lost.append(char)
    return "".join(lost)


# ---- tokenizer.json


def _open_json(request: Mapping[str, Any], data: bytes) -> Answer:
    global _encode, _unknown
    said = json.loads(data)
    del data
    if not isinstance(said, dict) or not isinstance(said.get("model"), dict):
        raise ValueError("it is no tokenizer")
    model = said["model"]
    ids = _vocabulary(model)
    added = _added(said.get("added_tokens"), ids)
    names = {**ids, **{row["content"]: row["id"] for row in added}}
    complete = all(f"<0x{byte:02X}>" in names for byte in range(256))
    decoder = Decoder(said, complete)
    table = _table(names, decoder)
    unknown = model.get("unk_token")
    _unknown = names.get(unknown) if isinstance(unknown, str) else None
    if isinstance(model.get("unk_id"), int):
        _unknown = model["unk_id"]
    rows = int(request["rows"])  # of the model: tokens beyond them can never be made or read
    own = {row["content"] for row in added}
    reply = {
        "kind": str(model.get("type", "BPE"))[:40],
        "space_first": decoder.space_first,
        "complete": complete or _byte_level(said, names),
        "vocabulary": max((token for text, token in ids.items() if text not in own), default=-1)
        + 1,
        "beyond": [row["content"] for row in added if rows and row["id"] >= rows],
    }
    added = [row for row in added if not rows or row["id"] < rows]
    hidden = [
        row
        for row in added
        if (row["special"] or _MARK.fullmatch(row["content"]))
        and not (complete and BYTE_PIECE.fullmatch(row["content"]))  # the library looks for these
    ]
    reply["hidden"] = [[row["content"], row["id"], row["special"]] for row in hidden]
    _rename(said, ids, added, hidden, str(request["secret"]))
    for name in ("post_processor", "truncation", "padding", "decoder"):
        said[name] = None
    said["added_tokens"] = added
    text = json.dumps(said, ensure_ascii=False)
    del said, ids, names, model
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(text)
    del text
    for row in added:
        if tokenizer.token_to_id(row["content"]) != row["id"]:
            raise ValueError(f"one of its added tokens cannot have the id {row['id']}")

    def encode(text: str) -> tuple[list[int], list[int]]:
        found = tokenizer.encode(text, add_special_tokens=False)
        return found.ids, [begin for begin, _ in found.offsets]

    _encode = encode
    return reply, table


def _vocabulary(model: dict[str, Any]) -> dict[str, int]:
    """Pieces with their ids. A Unigram model has a list in the order of the ids."""
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        ids = {str(row[0]): n for n, row in enumerate(vocab) if isinstance(row, list) and row}
        if len(ids) != len(vocab):
            raise ValueError("two of its pieces are the same, or one is none")
        return ids
    if not isinstance(vocab, dict):
        raise ValueError("it has no vocabulary")
    for text, token in vocab.items():
        if type(token) is not int or not 0 <= token < MAX_ID:
            raise ValueError(f"the piece {text[:40]!r} has no small whole number as its id")
    if len(set(vocab.values())) != len(vocab):
        raise ValueError("two of its pieces have the same id")
    return vocab


def _added(rows: object, ids: Mapping[str, int]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    taken: dict[int, str] = {}
    texts: set[str] = set()
    pieces: dict[int, str] = {}
    for row in rows if isinstance(rows, list) else []:
        text = row.get("content") if isinstance(row, dict) else None
        token = row.get("id") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text or type(token) is not int:
            raise ValueError("one of its added tokens has no text or no id")
        if not 0 <= token < MAX_ID:
            raise ValueError(f"its token {text[:40]!r} has an impossible id")
        if text in texts:
            continue
        pieces = pieces or {number: piece for piece, number in ids.items()}
        if taken.get(token, text) != text or pieces.get(token, text) != text:
            raise ValueError(f"its token {text[:40]!r} has the id {token} of another one")
        taken[token] = text
        texts.add(text)
        flags = {
            name: row.get(name) is True
            for name in ("single_word", "lstrip", "rstrip", "normalized", "special")
        }
        found.append({"id": ids.get(text, token), "content": text, **flags})
    return found


def _secret_name(secret: str, n: int) -> str:
    return f"{secret}{n:06x}"


def _rename(
    said: dict[str, Any],
    ids: Mapping[str, int],
    added: list[dict[str, Any]],
    hidden: list[dict[str, Any]],
    secret: str,
) -> None:
    """Put the secret names in place of the control tokens: where they are added, in the
    vocabulary, and in the merges, which could otherwise make one from letters."""
    model = said["model"]
    names = {row["content"]: _secret_name(secret, n) for n, row in enumerate(hidden)}
    known = {text for text in names if text in ids}
    if known and isinstance(model.get("merges"), list):
        model["merges"] = [m for m in model["merges"] if not _touches(m, known)]
    for row in hidden:
        row["content"] = names[row["content"]]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
    vocab = model["vocab"]
    if isinstance(vocab, list):
        for piece in vocab:
            piece[0] = names.get(piece[0], piece[0])
        return
    for text in known:
        del vocab[text]
    # The library numbers what is added and not in the vocabulary by itself.
    vocab.update((row["content"], row["id"]) for row in added)


def _touches(merge: object, known: set[str]) -> bool:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(pair, list) or len(pair) != 2:
        return False
    left, right = pair
    return left in known or right in known or left + right in known


def _byte_level(said: Mapping[str, Any], names: Mapping[str, int]) -> bool:
    """Whether any text can be spelled: the pre-tokenizer makes letters of its bytes, and the
    vocabulary has all of them."""
    letters = byte_alphabet().values()
    return '"ByteLevel"' in json.dumps(said.get("pre_tokenizer")) and all(
        letter in names for letter in letters
    )


def _table(names: Mapping[str, int], decoder: Decoder) -> bytes:
    """The bytes of all ids: how many ids, the length of each, then all of them joined."""
    size = max(names.values(), default=-1) + 1
    pieces = [b""] * size
    for text, token in names.items():
        pieces[token] = decoder.bytes_of(text)
    lengths = array("I", map(len, pieces))
    return struct.pack(">Q", size) + lengths.tobytes() + b"".join(pieces)


# ---- tiktoken's ranks with a pattern of somebody's own


def _open_ranks(request: Mapping[str, Any], data: bytes) -> Answer:
    global _encode, _unknown
    from tiktoken._tiktoken import CoreBPE  # type: ignore[import-not-found]

    ranks: dict[bytes, int] = {}
    at = 0
    while at < len(data):
        length, rank = struct.unpack_from(">II", data, at)
        at += 8
        ranks[data[at : at + length]] = rank
        at += length
    core = CoreBPE(ranks, {}, str(request["pattern"]))

    def encode(text: str) -> tuple[list[int], list[int]]:
        return core.encode_ordinary(text), []

    _encode, _unknown = encode, None
    return {}, b""
