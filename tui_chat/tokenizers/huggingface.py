"""Hugging Face tokenizers (tokenizer.json) of every kind: the `tokenizers` library encodes, in a
process of its own (tui_chat/child.py); ids become bytes by a table that is here.

The library panics on some files, and a stranger's regular expression can keep it busy for seconds
while it holds the interpreter's lock; in that process neither can hurt. No text forges a control
token: there they have secret names (served.py), and only what `encode_parts` is told to be a
control token gets one.
"""

from __future__ import annotations

import json
import re
import secrets
import struct
import zlib
from array import array
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from tui_chat.checkpoint.files import shown_name
from tui_chat.child import Child, Ended, Refused, Request
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.converted import tokenizer_json

SECONDS, MEGABYTES = 4.0, 400
# What a large vocabulary or a long text may take beyond that. Measured: a tokenizer.json of 30 MB
# with 262,000 pieces takes 2 seconds and 450 MB, a million characters of text 2 seconds.
_FILE_PER_SECOND = 10_000_000  # bytes
_MEMORY_PER_BYTE = 18
_TEXT_PER_SECOND = 250_000  # characters
_MEMORY_PER_CHARACTER = 700

# A piece of a rendered template: ordinary text, or a control token by its text.
Part = str | tuple[str]


class HuggingFace:
    """A tokenizer.json. `special` are its control tokens; `marks` are added tokens that look like
    such but are not called special, as <think> is: `encode_raw` knows them, content does not.

    `notes` say what was left out of the file.
    """

    def __init__(
        self,
        name: str,
        content: Callable[[], bytes],
        *,
        rows: int = 0,
        hidden: bool = False,
    ) -> None:
        """`content` reads the JSON; it is called again should the process have to be started anew.
        `rows` is how many ids the model knows, 0 if that is not known: added tokens beyond them
        are left out. `hidden`: control tokens decode to nothing. Raises CheckpointError.
        """
        self.name = name
        self._content = content
        self._first: bytes | None = content()
        size = len(self._first)
        self._megabytes = MEGABYTES + size * _MEMORY_PER_BYTE // 2**20
        self._rows = rows
        self._checksum: int | None = None
        self._secret = f"q{secrets.token_hex(8)}x"
        self._child = Child(
            "tui_chat.tokenizers.served",
            ("tokenizers",),
            seconds=SECONDS + size / _FILE_PER_SECOND,
            megabytes=self._megabytes,
            opening=self._opening,
        )
        title = f"cannot use the tokenizer {name}"
        try:
            said, table = self._child.start()
        except (Refused, Ended) as error:
            raise CheckpointError(title, _reason(str(error))) from None
        self._bytes = _table(table)
        beyond = said["beyond"]
        self.notes: tuple[str, ...] = ()
        if isinstance(beyond, list) and beyond:
            names = ", ".join(repr(str(text)[:30]) for text in beyond[:3])
            self.notes = (f"{len(beyond)} added tokens beyond the model's ids: {names}",)
            if int(str(said["vocabulary"])) <= rows:
                del self._bytes[rows:]
        if not self._bytes:
            raise CheckpointError(title, "it has no pieces")
        # Rows of the model beyond the tokenizer can be drawn as well, as in the systems that use
        # such files; they have no text.
        self._bytes += [b""] * (rows - len(self._bytes))
        self.vocab_size = len(self._bytes)
        self.special: Mapping[str, int] = {}
        self.marks: Mapping[str, int] = {}
        self._names: dict[str, str] = {}
        special: dict[str, int] = {}
        marks: dict[str, int] = {}
        rows_of = said["hidden"]
        assert isinstance(rows_of, list)
        for n, (text, token, is_special) in enumerate(rows_of):
            (special if is_special else marks)[text] = token
            self._names[text] = f"{self._secret}{n:06x}"
            if hidden and is_special:
                self._bytes[token] = b""
        self.special, self.marks = special, marks
        self._space_first = said["space_first"] is True
        self._complete = said["complete"] is True
        self._raw = alternatives(self._names)
        self._last: tuple[tuple[object, ...], list[int], list[int]] | None = None

    def close(self) -> None:
        """End the process; it starts again when it is needed."""
        self._child.close()

    def _opening(self) -> Request:
        content = self._content() if self._first is None else self._first
        self._first = None
        checksum = zlib.crc32(content)
        if self._checksum not in (None, checksum):
            raise Refused("its file has changed since it was opened")
        self._checksum = checksum
        return {"do": "open", "rows": self._rows, "secret": self._secret}, content

    # ---- text to ids

    def encode(self, text: str) -> list[int]:
        return self.encode_parts([text])[0]

    def encode_raw(self, text: str) -> list[int]:
        """All added tokens are recognised, as the library does by default."""
        return self.encode_parts(parted(text, self._raw))[0]

    def encode_parts(
        self, parts: Sequence[Part], at: Sequence[int] = (), *, also: Collection[str] = ()
    ) -> tuple[list[int], list[int]]:
        """Ids of a text made of ordinary text and control tokens, encoded as one.

        `also` names marks that count in the ordinary text too. `at` are places in the text, in
        characters; returned are the ids, and for each place the index of the first token that
        begins there or later. Raises CheckpointError.
        """
        inside = alternatives([text for text in also if text in self._names])
        sent: list[str] = []
        moved: list[tuple[int, int]] = []  # where the text sent is longer, and by how much
        begin = 0
        for part in parts:
            pieces: Sequence[Part] = [part] if isinstance(part, tuple) else parted(part, inside)
            for piece in pieces:
                if isinstance(piece, tuple):
                    name = self._names.get(piece[0])
                    sent.append(piece[0] if name is None else name)
                    moved.append((begin + len(piece[0]), len(sent[-1]) - len(piece[0])))
                    begin += len(piece[0])
                else:
                    sent.append(_clean(piece))
                    begin += len(piece)
        text = "".join(sent)
        places = [place + sum(by for end, by in moved if end <= place) for place in at]
        if not text:
            return [], [0] * len(at)
        key = (text, *places)
        if self._last is None or self._last[0] != key:
            ids, found = self._asked(text, places)
            self._last = key, ids, found
        return list(self._last[1]), list(self._last[2])

    def _asked(self, text: str, places: list[int]) -> tuple[list[int], list[int]]:
        reply, data = self._call({"do": "encode", "text": text, "at": places}, len(text))
        ids = array("I")
        ids.frombytes(data)
        found = reply["at"]
        assert isinstance(found, list)
        return ids.tolist(), found

    def _call(self, request: Mapping[str, object], size: int) -> tuple[dict[str, object], bytes]:
        """One request with a text of `size` characters."""
        try:
            return self._child.call(
                request,
                seconds=SECONDS + size / _TEXT_PER_SECOND,
                megabytes=self._megabytes + size * _MEMORY_PER_CHARACTER // 2**20,
            )
        except (Refused, Ended) as error:
            raise CheckpointError("the text cannot be encoded", _reason(str(error))) from None

    def missing(self, text: str) -> str:
        if self._complete or not text:
            return ""
        reply, _ = self._call({"do": "missing", "text": _clean(text)}, len(text))
        return str(reply["missing"])

    # ---- ids to text

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def decode(self, ids: Iterable[int]) -> str:
        found = bytearray()
        first = True
        for token in ids:
            piece = self.token_bytes(token)
            if first and self._space_first and piece[:1] == b" ":
                piece = piece[1:]
            found += piece
            first = False
        return found.decode("utf-8", "replace")


def open_huggingface(path: str, *, rows: int = 0, hidden: bool = False) -> HuggingFace:
    """The tokenizer at `path`: a tokenizer.json, or the files from which one can be made
    (converted.py). Raises CheckpointError."""
    return HuggingFace(shown_name(path), lambda: tokenizer_json(path), rows=rows, hidden=hidden)


def open_content(name: str, content: Mapping[str, object], *, rows: int = 0) -> HuggingFace:
    """A tokenizer from what stands in a tokenizer.json. Raises CheckpointError."""
    text = json.dumps(content).encode()
    return HuggingFace(name, lambda: text, rows=rows)


def alternatives(texts: Iterable[str]) -> re.Pattern[str] | None:
    """A pattern that finds the longest of `texts` at each place, None where there are none."""
    longest = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def parted(text: str, pattern: re.Pattern[str] | None) -> list[Part]:
    """`text` cut into ordinary text and what `pattern` finds."""
    parts: list[Part] = []
    begin = 0
    for match in pattern.finditer(text) if pattern is not None else ():
        if match.start() > begin:
            parts.append(text[begin : match.start()])
        parts.append((match.group(),))
        begin = match.end()
    if begin < len(text):
        parts.append(text[begin:])
    return parts


def _clean(text: str) -> str:
    """A lone surrogate has no UTF-8; typed by a user or made by a broken paste it must not end the
    program."""
    return text.encode("utf-8", "replace").decode()


def _reason(text: str) -> str:
    return text[:1].lower() + text[1:] if text[1:2].islower() else text


def _table(data: bytes) -> list[bytes]:
    """The bytes of each id, as served.py packs them."""
    (size,) = struct.unpack_from(">Q", data)
    lengths = array("I")
    lengths.frombytes(data[8 : 8 + 4 * size])
    pieces: list[bytes] = []
    at = 8 + 4 * size
    for length in lengths:
        pieces.append(data[at : at + length])
        at += length
    return pieces
