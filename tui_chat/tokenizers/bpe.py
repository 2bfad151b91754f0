"""Byte-pair tokenizers that tiktoken runs: GPT-2's by name, and those that tokenizer_json.py reads.

tiktoken does the splitting and merging; ids become bytes by a table of our own, so that no id can
make it panic. The only tokenizer module that imports tiktoken at its top.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import tiktoken

from tui_chat.checkpoint.files import Damaged, RegularFile, refused
from tui_chat.errors import CheckpointError
from tui_chat.settings import Paths

# GPT-2's split, with possessive quantifiers: the same pieces, found faster.
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
GPT2_END = "<|endoftext|>"
_GPT2_NAMES = ("gpt2", "r50k_base")  # two names for the same ranks
_GPT2_RANKS = 50256
_DIRECTORY = "TUI_CHAT_TOKENIZERS_DIR"

# tiktoken's splitter gives up on very long runs of spaces, so long texts are encoded in pieces.
PIECE = 50_000  # characters
MAX_RANK_FILE = 64 * 1024 * 1024


class Bpe:
    """A byte-pair tokenizer. `ids` beyond what has text decode to nothing.

    `hidden`: control tokens decode to nothing. `raw_specials`: control tokens that `encode_raw`
    recognises by name.
    """

    def __init__(
        self,
        name: str,
        ranks: Mapping[bytes, int],
        special: Mapping[str, int],
        pattern: str,
        *,
        hidden: bool = False,
        raw_specials: Iterable[str] = (),
        normalize: Callable[[str], str] | None = None,
    ) -> None:
        """Raises CheckpointError for tables that cannot be: two pieces with one id, a pattern that
        does not parse."""
        _check(name, ranks, special)
        self.name = name
        self.special: Mapping[str, int] = dict(special)
        self.vocab_size = max((*ranks.values(), *special.values())) + 1
        self._encoding = guarded(
            f"cannot use the tokenizer {name}",
            lambda: tiktoken.Encoding(
                name, pat_str=pattern, mergeable_ranks=dict(ranks), special_tokens=dict(special)
            ),
        )
        self._bytes = [b""] * self.vocab_size
        for piece, rank in ranks.items():
            self._bytes[rank] = piece
        if not hidden:
            for text, token in special.items():
                self._bytes[token] = text.encode()
        self._normalize = normalize
        known = [text for text in raw_specials if text in special]
        self._raw = re.compile("(" + "|".join(map(re.escape, known)) + ")") if known else None

    def encode(self, text: str) -> list[int]:
        # A lone surrogate has no UTF-8; typed by a user or made by a broken paste it must not end
        # the program.
        clean = text.encode("utf-8", "replace").decode()
        if self._normalize is not None:
            clean = self._normalize(clean)
        ids: list[int] = []
        for piece in pieces(clean):
            ids += guarded(
                "the text cannot be encoded",
                partial(self._encoding.encode_ordinary, piece),
            )
        return ids

    def encode_raw(self, text: str) -> list[int]:
        if self._raw is None:
            return self.encode(text)
        ids: list[int] = []
        for n, part in enumerate(self._raw.split(text)):
            ids += [self.special[part]] if n % 2 else self.encode(part)
        return ids

    def missing(self, text: str) -> str:
        return ""  # every byte is a piece

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


_T = TypeVar("_T")


def guarded(title: str, call: Callable[[], _T]) -> _T:
    """`call()`, with what tiktoken may raise made into a CheckpointError.

    Its Rust panics derive from BaseException and would end a thread without a word.
    """
    try:
        return call()
    except (ValueError, OverflowError, TypeError, KeyError) as error:
        raise CheckpointError(title, _first_line(error)) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise CheckpointError(title, _first_line(error)) from None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:160] if lines else type(error).__name__


def _check(name: str, ranks: Mapping[bytes, int], special: Mapping[str, int]) -> None:
    title = f"cannot use the tokenizer {name}"
    ids = [*ranks.values(), *special.values()]
    if not ranks:
        raise CheckpointError(title, "it has no pieces")
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i < 2**22 for i in ids):
        raise CheckpointError(title, "an id in it is not a small whole number")
    if len(set(ids)) != len(ids):
        raise CheckpointError(title, "two of its pieces have the same id")
    if any(not text for text in special):
        raise CheckpointError(title, "one of its control tokens is the empty text")
    lost = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if lost:
        raise CheckpointError(
            title, f"it has no piece for {len(lost)} of the 256 bytes, e.g. {bytes(lost[:1])!r}"
        )


def pieces(text: str, size: int = PIECE) -> Iterable[str]:
    """`text` in parts that give the same ids as the whole: cut only where a word ends before white
    space.

    A longer run of one kind is cut anyway; its ids may then differ from those of the whole.
    """
    begin = 0
    while len(text) - begin > size:
        end = begin + size
        for at in range(end, max(begin, end - size // 2), -1):
            if text[at].isspace() and not text[at - 1].isspace():
                # In GPT-4's split, ends of lines belong to the signs before them.
                if text[at] in "\r\n" and not text[at - 1].isalnum():
                    continue
                end = at
                break
        yield text[begin:end]
        begin = end
    if begin < len(text):
        yield text[begin:]


# ---- encodings by name


def open_named(
    name: str,
    path: str = "",
    *,
    beside: str = "",
    hidden: bool = False,
    raw_specials: Iterable[str] = (),
) -> Bpe:
    """The encoding `name`, from a rank file where one is at hand, else from tiktoken, which may
    fetch it.

    `path` is a rank file given outright, `beside` a directory to look in as well. Raises
    CheckpointError.
    """
    if name in _GPT2_NAMES or path:
        file = path or _rank_file(name, beside)
        if file:
            ranks = read_ranks(file)
            special = {GPT2_END: len(ranks)} if len(ranks) == _GPT2_RANKS else {}
            return Bpe(name, ranks, special, GPT2_PATTERN, hidden=hidden, raw_specials=raw_specials)
    encoding = _from_tiktoken(name)
    ranks = guarded(f"cannot use the tokenizer {name}", lambda: dict(encoding._mergeable_ranks))
    return Bpe(
        name,
        ranks,
        dict(encoding._special_tokens),
        encoding._pat_str,
        hidden=hidden,
        raw_specials=raw_specials,
    )


def _rank_file(name: str, beside: str) -> str:
    """A rank file on this machine, "" if there is none."""
    folders = [os.environ.get(_DIRECTORY, ""), str(Paths.find().data / "tokenizers"), beside]
    names = _GPT2_NAMES if name in _GPT2_NAMES else (name,)
    for folder in folders:
        for file in names:
            path = os.path.join(folder, f"{file}.tiktoken")
            if folder and os.path.isfile(path):
                return path
    return ""


def _from_tiktoken(name: str) -> tiktoken.Encoding:
    # Both names give the same ids; r50k_base is one file where gpt2 is two.
    try:
        return tiktoken.get_encoding("r50k_base" if name in _GPT2_NAMES else name)
    except Exception as error:
        # Anything a download can end with: no network, no permission, a proxy's page instead of the
        # file.
        file = "gpt2" if name in _GPT2_NAMES else name
        folder = Path(os.environ.get(_DIRECTORY) or Paths.find().data / "tokenizers")
        raise CheckpointError(
            f"the tokenizer {name} is not on this machine and could not be fetched",
            type(error).__name__,
            f"Put its rank file at {folder / f'{file}.tiktoken'}",
        ) from None


def read_ranks(path: str) -> dict[bytes, int]:
    """A tiktoken rank file: on each line a piece in base64 and its rank. Raises CheckpointError."""
    with RegularFile(path) as file:
        try:
            if file.size > MAX_RANK_FILE:
                raise Damaged(f"it has {file.size:,} bytes, more than a rank file has")
            ranks: dict[bytes, int] = {}
            for number, line in enumerate(file.read(0, file.size).splitlines(), 1):
                piece, _, rank = line.partition(b" ")
                try:
                    ranks[base64.b64decode(piece, validate=True)] = int(rank)
                except (binascii.Error, ValueError):
                    raise Damaged(f"line {number} is not a piece and its rank") from None
            return ranks
        except Damaged as error:
            raise refused(path, error) from None
