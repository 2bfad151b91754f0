"""What the rest of the program asks of a tokenizer: text to ids, ids to bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol


class Tokenizer(Protocol):
    """Ids in [0, vocab_size). Ordinary text never becomes a control token."""

    name: str
    vocab_size: int
    special: Mapping[str, int]  # control tokens by their text

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text. Characters it has no id for are dropped (`missing` names them)."""
        ...

    def encode_raw(self, text: str) -> list[int]:
        """Ids of a raw prompt, read as the training system's own sampler does: some systems take
        the name of a control token in it for that token. Never for the content of a conversation.
        """
        ...

    def missing(self, text: str) -> str:
        """The distinct characters of `text` that `encode` drops, "" if none."""
        ...

    def token_bytes(self, token: int) -> bytes:
        """The UTF-8 bytes of one token, possibly half a character; b"" for an id without text."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """The whole text that the ids are, control tokens as their own system shows them, bad UTF-8
        replaced. Some tokenizers put a space before the first word; it is left out here, so what
        goes on with a text is joined from `token_bytes`.
        """
        ...
