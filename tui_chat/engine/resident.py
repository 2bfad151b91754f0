"""Checkpoints that stay in memory after their lane has moved on, so that switching back is
instant.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.engine.events import LoadOptions

if TYPE_CHECKING:
    from tui_chat.engine.load import LoadedCheckpoint

Key = tuple[object, ...]

SHARE = 0.25  # of the memory that was available at the start


class Resident:
    """The recently used checkpoints, the oldest dropped once the idle ones exceed `budget` bytes
    of weights.
    """

    def __init__(self, budget: int | None = None) -> None:
        self.budget = int(available_memory() * SHARE) if budget is None else budget
        self._kept: OrderedDict[Key, LoadedCheckpoint] = OrderedDict()

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

    def trim(self, in_use: set[int]) -> None:
        idle = [(key, kept) for key, kept in self._kept.items() if id(kept) not in in_use]
        size = sum(kept.model.weight_bytes for _, kept in idle)
        for key, kept in idle:
            if size <= self.budget:
                return
            del self._kept[key]
            size -= kept.model.weight_bytes

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
