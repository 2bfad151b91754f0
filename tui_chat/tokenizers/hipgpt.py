"""HipGPT's word tokenizer: characters of a word, merged pair by pair; the last one carries an
end-of-word mark, which is a space when read back. There are no control tokens."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Mapping

from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.hipgpt.tokenizer import read_word_pieces

END_OF_WORD = "</w>"
_WORD = re.compile(r"[^ \t\n\v\f\r]+")  # C's idea of white space: a no-break space is a letter
_REMEMBERED = 20_000
_LONGEST_REMEMBERED = 64  # characters


class WordPieceMerges:
    """Ids of merged pieces of words. What is in no piece is dropped, as its own program does."""

    def __init__(
        self, name: str, texts: list[str], ranks: Mapping[tuple[str, str], int] | None
    ) -> None:
        """`ranks` None: of two pieces that make a third, the id of that one is the rank."""
        self.name = name
        self.vocab_size = len(texts)
        self.special: Mapping[str, int] = {}
        self._ids = {text: token for token, text in enumerate(texts)}  # of equal texts the last
        self._ranks = ranks
        self._bytes = [_shown(text).encode("utf-8", "replace") for text in texts]
        self._remembered: dict[str, list[str]] = {}

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids[piece] for piece in self._pieces(text) if piece in ids]

    def encode_raw(self, text: str) -> list[int]:
        return self.encode(text)

    def missing(self, text: str) -> str:
        lost = [piece for piece in self._pieces(text) if piece not in self._ids]
        return "".join(dict.fromkeys("".join(p.removesuffix(END_OF_WORD) for p in lost)))

    def token_bytes(self, token: int) -> bytes:
        return self._bytes[token] if 0 <= token < self.vocab_size else b""

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")

    def _pieces(self, text: str) -> Iterator[str]:
        for found in _WORD.finditer(text):
            word = found.group()
            pieces = self._remembered.get(word)
            if pieces is None:
                pieces = self._merged([*word[:-1], word[-1] + END_OF_WORD])
                if len(word) <= _LONGEST_REMEMBERED:
                    if len(self._remembered) >= _REMEMBERED:
                        self._remembered.clear()
                    self._remembered[word] = pieces
            yield from pieces

    def _rank(self, left: str, right: str) -> int | None:
        if self._ranks is None:
            return self._ids.get(left + right)
        return self._ranks.get((left, right))

    def _merged(self, pieces: list[str]) -> list[str]:
        """The pieces after all merges: the pair with the lowest rank, of equals the first, is
        merged wherever it stands, from left to right; then again, until there is none.

        Neighbours are linked and waiting pairs kept by rank, so that a word of a million letters
        takes seconds, not days. A merged piece is longer than both it was made of, so a pair that
        is being merged cannot come into being meanwhile.
        """
        count = len(pieces)
        before, after = list(range(-1, count - 1)), list(range(1, count + 1))
        waiting: list[tuple[int, int, str, str]] = []
        places: dict[tuple[str, str], list[int]] = {}

        def wait(at: int) -> None:
            left, right = pieces[at], pieces[after[at]]
            rank = self._rank(left, right)
            if rank is not None:
                heapq.heappush(waiting, (rank, at, left, right))
                places.setdefault((left, right), []).append(at)

        for at in range(count - 1):
            wait(at)
        while waiting:
            _, at, left, right = heapq.heappop(waiting)
            if not _stands(pieces, after, at, left, right):
                continue
            changed: list[int] = []
            for here in sorted(places.pop((left, right), ())):
                if not _stands(pieces, after, here, left, right):
                    continue
                gone = after[here]
                pieces[here], pieces[gone] = left + right, ""
                after[here] = after[gone]
                if after[gone] < count:
                    before[after[gone]] = here
                changed.append(here)
            for here in changed:
                if before[here] >= 0:
                    wait(before[here])
                if after[here] < count:
                    wait(here)
        return [piece for piece in pieces if piece]


def _stands(pieces: list[str], after: list[int], at: int, left: str, right: str) -> bool:
    """Whether the pair still stands at `at`: merges may have taken either piece since."""
    return after[at] < len(pieces) and pieces[at] == left and pieces[after[at]] == right


def _shown(text: str) -> str:
    return text.removesuffix(END_OF_WORD) + " " if text.endswith(END_OF_WORD) else text


def open_word_pieces(path: str) -> WordPieceMerges:
    """The tokenizer.json at `path`. Raises CheckpointError."""
    found = read_word_pieces(path)
    return WordPieceMerges(shown_name(path), found.texts, found.ranks if found.ranked else None)
