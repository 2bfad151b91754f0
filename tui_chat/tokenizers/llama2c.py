"""llama2.c's tokenizer: SentencePiece's merges with byte pieces, as run.c applies them.

A text gets a space in front; neighbouring pieces are joined, the pair with the highest score first
and the leftmost of equals, until none can be; what is no piece becomes its UTF-8 bytes.
"""

from __future__ import annotations

import functools
import heapq
import re
from collections.abc import Iterable, Mapping

from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.vocabularies import ScoredPieces, read_scored_pieces, read_sentencepiece
from tui_chat.errors import CheckpointError

UNKNOWN, BEGIN, END = 0, 1, 2
BYTE_PIECE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_LOWEST = -1e10  # run.c joins only what scores higher
# A word with the spaces before it. The lookbehind keeps a run of spaces in one part.
_WORDS = re.compile(r"(?<=[^ ])(?= )")


class Llama2c:
    """Ids 0 to 2 are unknown, begin and end of a text; none of them has text of its own."""

    def __init__(self, name: str, vocabulary: ScoredPieces) -> None:
        """Raises CheckpointError where a byte has no piece."""
        self.name = name
        self.special: Mapping[str, int] = {"<unk>": UNKNOWN, "<s>": BEGIN, "</s>": END}
        self.vocab_size = len(vocabulary.pieces)
        self._bytes = [b"", b"", b"", *vocabulary.pieces[3:]]
        self._scores = vocabulary.scores
        self._ids: dict[str, int] = {}
        byte_ids: dict[int, int] = {}
        for token, piece in enumerate(vocabulary.pieces[3:], 3):
            found = BYTE_PIECE.fullmatch(piece)
            if found:
                byte = int(found.group(1), 16)
                byte_ids.setdefault(byte, token)
                self._bytes[token] = bytes([byte])
            else:
                self._ids.setdefault(piece.decode("utf-8", "surrogateescape"), token)
        lost = [byte for byte in range(256) if byte not in byte_ids]
        if lost:
            raise CheckpointError(
                f"cannot use the tokenizer {name}",
                f"it has no piece for {len(lost)} of the 256 bytes, e.g. <0x{lost[0]:02X}>",
            )
        self._byte_ids = byte_ids
        # Where no piece spans the end of a word, words can be encoded one by one.
        self._by_words = not any(_WORDS.search(piece) for piece in self._ids)
        self._word = functools.lru_cache(maxsize=20_000)(self._joined)

    def encode(self, text: str) -> list[int]:
        if not text:
            return []
        # A lone surrogate has no UTF-8; typed by a user or made by a broken paste it must not end
        # the program.
        clean = " " + text.encode("utf-8", "replace").decode()
        ids: list[int] = []
        for word in _WORDS.split(clean) if self._by_words else (clean,):
            ids += self._word(word) if len(word) < 64 else self._joined(word)
        return ids

    def encode_raw(self, text: str) -> list[int]:
        return self.encode(text)

    def missing(self, text: str) -> str:
        return ""  # every byte is a piece

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def decode(self, ids: Iterable[int]) -> str:
        """Without the space that stands before the first word, as at the beginning of a text."""
        found = bytearray()
        first = True
        for token in ids:
            piece = self.token_bytes(token)
            found += piece[1:] if first and piece[:1] == b" " else piece
            first = token == BEGIN
        return found.decode("utf-8", "replace")

    def _joined(self, text: str) -> tuple[int, ...]:
        """The ids of one stretch of text, by a queue of the pairs that can be joined: n log n where
        run.c looks through all pairs after each join."""
        parts: list[str] = []
        ids: list[int] = []
        for char in text:
            token = self._ids.get(char)
            if token is not None:
                parts.append(char)
                ids.append(token)
            else:
                for byte in char.encode("utf-8"):
                    parts.append("")  # joins with nothing
                    ids.append(self._byte_ids[byte])
        after = [*range(1, len(parts)), -1]
        before = list(range(-1, len(parts) - 1))
        queue: list[tuple[float, int, int, int]] = []

        def offer(left: int, right: int) -> None:
            if left < 0 or right < 0 or not parts[left] or not parts[right]:
                return
            token = self._ids.get(parts[left] + parts[right])
            if token is not None and self._scores[token] > _LOWEST:
                # The length tells later whether either side has been joined to something since.
                size = len(parts[left]) + len(parts[right])
                heapq.heappush(queue, (-self._scores[token], left, right, size))

        for left in range(len(parts) - 1):
            offer(left, left + 1)
        while queue:
            _, left, right, size = heapq.heappop(queue)
            if after[left] != right or len(parts[left]) + len(parts[right]) != size:
                continue
            parts[left] += parts[right]
            ids[left] = self._ids[parts[left]]
            ids[right] = -1
            parts[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            after[right] = -1
            offer(before[left], left)
            offer(left, after[left])
        return tuple(token for token in ids if token >= 0)


def open_llama2c(path: str, count: int) -> Llama2c:
    """The tokenizer.bin at `path`, of `count` ids, or a tokenizer.model. Raises CheckpointError."""
    if path.endswith(".model"):
        return Llama2c(shown_name(path), read_sentencepiece(path))
    return Llama2c(shown_name(path), read_scored_pieces(path, count))


__all__ = ["BEGIN", "END", "Llama2c", "open_llama2c"]
