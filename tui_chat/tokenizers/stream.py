"""Tokens of a reply as text while it is being made: one object per reply, never half a
character."""

from __future__ import annotations

import codecs

from tui_chat.tokenizers.base import Tokenizer


class TextStream:
    """Turns ids into text one by one. Bytes of an unfinished character wait for the next id; bad
    ones become U+FFFD.

    The pieces joined are exactly `decode` of all ids.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; "" while a character is unfinished."""
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def flush(self) -> str:
        """What an unfinished character leaves, once no more ids come."""
        return self._decoder.decode(b"", final=True)
