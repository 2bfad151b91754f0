"""When nothing is known of the tokenizer: ids are shown as numbers, and no text can be put in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class IdsOnly:
    """Shows each id as a space and its number; has no id for any text."""

    def __init__(self, vocab_size: int) -> None:
        self.name = "ids only"
        self.vocab_size = vocab_size
        self.special: Mapping[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return []

    def encode_raw(self, text: str) -> list[int]:
        return []

    def missing(self, text: str) -> str:
        return "".join(dict.fromkeys(text))

    def token_bytes(self, token: int) -> bytes:
        return f" {token}".encode() if 0 <= token < self.vocab_size else b""

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode()
