"""Whose turn it is in a thread that several share: who has had least of its time."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


class Shares:
    """Seconds that each has had. One that joins later starts with what the poorest had by then, so
    that it neither waits for the others nor they for it.
    """

    def __init__(self) -> None:
        self._had: dict[Hashable, float] = {}

    def next(self, those: Sequence[Key]) -> Key:
        """Whose turn it is of `those`, who are all that want one."""
        start = min((self._had[key] for key in those if key in self._had), default=0.0)
        self._had = {key: self._had.get(key, start) for key in those}
        return min(those, key=self._had.__getitem__)

    def charge(self, key: Hashable, seconds: float) -> None:
        self._had[key] = self._had.get(key, 0.0) + seconds
