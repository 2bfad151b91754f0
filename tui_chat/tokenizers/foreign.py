"""Byte-pair tokenizers whose split pattern is a stranger's: a regular expression can take for ever,
so a process of its own (tui_chat/child.py) runs it, with limits of time and memory.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable, Mapping

from tui_chat.child import Child, Ended, Refused, Request
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.bpe import GPT2_PATTERN, Bpe, pieces

SECONDS, MEGABYTES = 4.0, 400
_TEXT_PER_SECOND = 200_000  # characters; a long text may take its time


class ForeignBpe(Bpe):
    """A byte-pair tokenizer with any pattern. Ids become bytes here, as with the others."""

    def __init__(
        self,
        name: str,
        ranks: Mapping[bytes, int],
        special: Mapping[str, int],
        pattern: str,
        *,
        hidden: bool = False,
        raw_specials: Iterable[str] = (),
    ) -> None:
        """Raises CheckpointError for tables that cannot be, and for a pattern that does not
        parse."""
        super().__init__(
            name, ranks, special, GPT2_PATTERN, hidden=hidden, raw_specials=raw_specials
        )
        self._pattern = pattern
        self._packed = b"".join(
            struct.pack(">II", len(piece), rank) + piece for piece, rank in ranks.items()
        )
        self._child = Child(
            "tui_chat.tokenizers.served",
            ("tiktoken", "regex"),
            seconds=SECONDS,
            megabytes=MEGABYTES,
            opening=self._opening,
        )
        try:
            self._child.start()
        except (Refused, Ended) as error:
            raise CheckpointError(f"cannot use the tokenizer {name}", str(error)[:160]) from None

    def _opening(self) -> Request:
        return {"do": "open ranks", "pattern": self._pattern}, self._packed

    def close(self) -> None:
        """End the process; it starts again when it is needed."""
        self._child.close()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = []
        for piece in pieces(text.encode("utf-8", "replace").decode()):
            seconds = SECONDS + len(piece) / _TEXT_PER_SECOND
            try:
                _, data = self._child.call(
                    {"do": "encode", "text": piece, "at": []}, seconds=seconds
                )
            except (Refused, Ended) as error:
                raise CheckpointError("the text cannot be encoded", str(error)[:160]) from None
            ids += array("I", data)
        return ids
