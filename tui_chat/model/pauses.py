"""Computations that pause, so that others may use the thread meanwhile."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def finished(running: Generator[None, None, T]) -> T:
    """Run it to its end without a pause; what it returns."""
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
