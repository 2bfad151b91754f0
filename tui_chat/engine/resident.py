"""Checkpoints that stay in memory after their lane has moved on, with what the lane had read, so
that switching back costs nothing.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.engine.events import LoadOptions

if TYPE_CHECKING:
    from tui_chat.engine.engine import Lane
    from tui_chat.engine.load import LoadedCheckpoint

Key = tuple[object, ...]

SHARE = 0.25  # of the memory that was available at the start


class Resident:
    """The recently used checkpoints and the lanes that rest in them, the oldest dropped once the
    idle ones exceed `budget` bytes of weights and caches.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = int(available_memory() * SHARE) if budget is None else budget
        self._kept: OrderedDict[Key, LoadedCheckpoint] = OrderedDict()
        self._resting: dict[int, dict[str, Lane]] = {}  # by the id of the checkpoint, by name

    @staticmethod
    def key(info: CheckpointInfo, options: LoadOptions) -> Key:
        """The same file, unchanged, opened the same way."""
        return (info.path, info.fingerprint, info.size, info.modified, repr(options))

    def get(self, key: Key) -> LoadedCheckpoint | None:
        return self._kept.get(key)

    def put(self, key: Key, loaded: LoadedCheckpoint, in_use: set[int]) -> None:
        """Remember a checkpoint as the most recent; `in_use` holds the ids of those that lanes
        hold anyway.
        """
        self._kept[key] = loaded
        self._kept.move_to_end(key)
        self.trim(in_use | {id(loaded)})

    def rest(self, lane: Lane) -> None:
        """Keep a lane, with its cache, until it is woken or its checkpoint goes."""
        if any(lane.checkpoint is kept for kept in self._kept.values()):
            self._resting.setdefault(id(lane.checkpoint), {})[lane.name] = lane

    def wake(self, name: str, loaded: LoadedCheckpoint) -> Lane | None:
        """The lane of that name that rests in the checkpoint, None if there is none."""
        return self._resting.get(id(loaded), {}).pop(name, None)

    def trim(self, in_use: set[int]) -> None:
        """Drop what is idle and too much, the checkpoint used longest ago first; one in use only
        loses the lanes that rest in it.
        """
        size = sum(self._weight(kept, in_use) for kept in self._kept.values())
        for key, kept in list(self._kept.items()):
            if size <= self.budget:
                return
            size -= self._weight(kept, in_use)
            self._resting.pop(id(kept), None)
            if id(kept) not in in_use:
                del self._kept[key]

    def _weight(self, kept: LoadedCheckpoint, in_use: set[int]) -> int:
        """Bytes that would be freed without it."""
        caches = sum(lane.cache.nbytes for lane in self._resting.get(id(kept), {}).values())
        return caches + (0 if id(kept) in in_use else kept.model.weight_bytes)

    def __len__(self) -> int:
        return len(self._kept)


def available_memory() -> int:
    """Bytes a program may take without swapping; a cautious guess where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30
