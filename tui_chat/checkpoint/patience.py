"""Opening what a training run is just saving: wait a moment, and try again.

A save either replaces a file at once, or writes it over in place for seconds. Of the first nothing
is noticed but a file that is suddenly another one; of the second, a file that changes or is not all
there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TypeVar

from tui_chat.checkpoint.files import BeingWritten, Stamp, being_written
from tui_chat.checkpoint.reading import LoadCancelled
from tui_chat.errors import CheckpointError

T = TypeVar("T")

ATTEMPTS = 3
QUIET = 0.3  # seconds without a change after which a file counts as written
LONGEST = 3.0  # seconds to wait for that, before each new attempt
FRESH = 5.0  # seconds: what was changed longer ago is not being written


def patiently(
    path: str, attempt: Callable[[], T], cancelled: Callable[[], bool] = lambda: False
) -> T:
    """What `attempt()` returns; it opens the file or directory at `path`.

    Made again, a few times, when it ended because a file was being written, after waiting until
    nothing changes any more. Raises its last error, or LoadCancelled.
    """
    for left in reversed(range(ATTEMPTS)):
        try:
            return attempt()
        except LoadCancelled:
            raise
        except CheckpointError as error:
            writing = isinstance(error, BeingWritten)
            # A file that is cut short is damaged, or half written: its next moment tells.
            if not writing and not (_fresh(path) and _changes(path, cancelled)):
                raise
            if not left or not _quiet(path, cancelled):
                raise error if writing else being_written(path) from error
    raise AssertionError


def _fresh(path: str) -> bool:
    now = time.time_ns()
    return any(now - stamp.mtime_ns < FRESH * 1e9 for stamp in _stamps(path).values())


def _changes(path: str, cancelled: Callable[[], bool]) -> bool:
    """Whether anything of it changes in the next moment."""
    before, began = _stamps(path), time.monotonic()
    while time.monotonic() - began < QUIET:
        _pause(cancelled)
        if _stamps(path) != before:
            return True
    return False


def _quiet(path: str, cancelled: Callable[[], bool]) -> bool:
    """Wait until nothing of it changes. False when that took too long."""
    began = time.monotonic()
    while _changes(path, cancelled):
        if time.monotonic() - began > LONGEST:
            return False
    return True


def _pause(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise LoadCancelled("loading was cancelled")
    time.sleep(0.05)


def _stamps(path: str) -> dict[str, Stamp]:
    """How the file is now, or each of those in the directory."""
    found: dict[str, Stamp] = {}
    try:
        paths = [entry.path for entry in os.scandir(path)] if os.path.isdir(path) else [path]
    except OSError:
        return found
    for name in paths[:1000]:
        try:
            found[name] = Stamp.of(os.stat(name))
        except OSError:
            continue
    return found
