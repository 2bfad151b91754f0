"""Checkpoints that stay in memory after their lane has moved on, with what the lane had read, so
that switching back costs nothing.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.engine.events import LoadOptions
from tui_chat.engine.memory import available_memory

if TYPE_CHECKING:
    from tui_chat.engine.engine import Lane
    from tui_chat.engine.load import LoadedCheckpoint

Key = tuple[object, ...]

SHARE = 0.25  # of the memory that was available at the start


class Resident:
    """The recently used checkpoints and the lanes that rest in them, the oldest dropped once the
    idle ones exceed `budget` bytes of weights and caches, or something else needs the memory.
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
        lane.writer = None  # its last reply holds the lane: together they would outlive their use
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
            self._drop(key, in_use)

    def make_room(self, needed: int, device: str, in_use: set[int]) -> int:
        """Drop what is idle on a device, as `trim` does, until `needed` bytes are free there;
        returns how many are.
        """
        free = available_memory(device)
        for key in list(self._kept):
            if free >= needed:
                break
            kept = self._kept[key]
            weight, there = self._weight(kept, in_use), kept.device == device
            del kept
            if weight and there:
                self._drop(key, in_use)
                gc.collect()  # lanes and their replies know each other
                free = available_memory(device)
        return free

    def _drop(self, key: Key, in_use: set[int]) -> None:
        """Forget a checkpoint; of one in use what rests in it and its branches."""
        kept = self._kept[key]
        self._resting.pop(id(kept), None)
        kept.prefixes.clear()
        if id(kept) not in in_use:
            del self._kept[key]

    def _weight(self, kept: LoadedCheckpoint, in_use: set[int]) -> int:
        """Bytes that would be freed without it."""
        caches = sum(lane.cache.nbytes for lane in self._resting.get(id(kept), {}).values())
        weights = 0 if id(kept) in in_use else kept.model.weight_bytes
        return caches + kept.prefixes.nbytes + weights

    def idle_bytes(self, device: str, in_use: set[int]) -> int:
        """What `make_room` could free."""
        return sum(
            self._weight(kept, in_use) for kept in self._kept.values() if kept.device == device
        )

    def checkpoints(self) -> Iterator[LoadedCheckpoint]:
        """All that are kept, in use or not."""
        yield from self._kept.values()

    def lanes(self) -> Iterator[Lane]:
        """All that rest."""
        for lanes in self._resting.values():
            yield from lanes.values()

    def __len__(self) -> int:
        return len(self._kept)
