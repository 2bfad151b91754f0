"""Where a reply ends in text: stop strings, across the borders of tokens. Knows no model and no
tokenizer.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Passes text through, except what may yet turn out to be the beginning of a stop string."""

    def __init__(self, stops: Sequence[str]) -> None:
        self.stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def push(self, piece: str) -> tuple[str, str]:
        """The text that can be shown now, and the stop string that has appeared ("" for none)."""
        text = self._held + piece
        found = min(
            ((at, stop) for stop in self.stops if (at := text.find(stop)) >= 0),
            default=None,
            key=lambda hit: (hit[0], -len(hit[1])),
        )
        if found is not None:
            self._held = ""
            return text[: found[0]], found[1]
        keep = self._beginning(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], ""

    def flush(self) -> str:
        """What is still held back, once no more text comes."""
        text, self._held = self._held, ""
        return text

    def _beginning(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self.stops), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            end = text[-size:]
            if any(stop.startswith(end) for stop in self.stops):
                return size
        return 0
