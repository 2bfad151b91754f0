"""When nothing is known of the tokenizer: ids are shown as numbers, and numbers are read as ids."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping


class IdsOnly:
    """Shows each id as a space and its number, and reads a text of such numbers; for any other text
    it has no id.
    """

    def __init__(self, vocab_size: int) -> None:
        self.name = "ids only"
        self.vocab_size = vocab_size
        self.special: Mapping[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [token for word in _words(text) if (token := self._id(word)) is not None]

    def encode_raw(self, text: str) -> list[int]:
        return self.encode(text)

    def missing(self, text: str) -> str:
        strange = (word for word in _words(text) if self._id(word) is None)
        return "".join(dict.fromkeys("".join(strange)))

    def _id(self, word: str) -> int | None:
        short = word.isascii() and word.isdigit() and len(word) < 12
        return int(word) if short and int(word) < self.vocab_size else None

    def token_bytes(self, token: int) -> bytes:
        return f" {token}".encode() if 0 <= token < self.vocab_size else b""

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode()


def _words(text: str) -> Iterator[str]:
    return iter(text.replace(",", " ").split())
