"""Tokens of a reply as text while it is being made: one object per reply, never half a
character."""

from __future__ import annotations

import codecs

from tui_chat.tokenizers.base import Tokenizer


class TextStream:
    """Turns ids into text one by one. Bytes of an unfinished character wait for the next id; bad
    ones become U+FFFD.

    The pieces joined are `decode` of all ids, but for the space that some tokenizers put before the
    first word of a text: it is only left out where the ids are the `opening` of one.
    """

    def __init__(self, tokenizer: Tokenizer, *, opening: bool = False) -> None:
        self._tokenizer = tokenizer
        self._opening = opening
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; "" while a character is unfinished."""
        piece = self._tokenizer.token_bytes(token_id)
        if self._opening and piece:
            self._opening = False
            if piece[:1] == b" " and self._tokenizer.decode([token_id])[:1] != " ":
                piece = piece[1:]
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """What an unfinished character leaves, once no more ids come."""
        return self._decoder.decode(b"", final=True)
