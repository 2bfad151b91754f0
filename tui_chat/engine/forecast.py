"""What the memory holds, and what a prompt and its reply would add: said before they are begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.display import size
from tui_chat.engine.events import LoadOptions, Memory
from tui_chat.engine.memory import available_memory, weights_size
from tui_chat.engine.resident import Resident
from tui_chat.errors import EngineError

if TYPE_CHECKING:
    from tui_chat.engine.engine import Lane
    from tui_chat.engine.load import LoadedCheckpoint


def forecast(lane: Lane, lanes: Mapping[str, Lane], resident: Resident, tokens: int) -> Memory:
    """The memory of the lane's device, when its context is to grow to so many tokens."""
    device = lane.checkpoint.device
    in_use = {id(one.checkpoint) for one in lanes.values()}
    every = [*(one.checkpoint for one in lanes.values()), *resident.checkpoints()]
    open_ones = {id(one): one for one in every if one.device == device}.values()
    caches = sum(
        one.cache.nbytes
        for one in (*lanes.values(), *resident.lanes())
        if one.checkpoint.device == device
    )
    tokens = min(tokens, lane.checkpoint.context_length)
    return Memory(
        weights=sum(one.model.weight_bytes for one in open_ones),
        caches=caches + sum(one.prefixes.nbytes for one in open_ones),
        idle=resident.idle_bytes(device, in_use),
        free=available_memory(device),
        needs=max(0, lane.cache.cache_bytes(tokens) - lane.cache.nbytes),
        tokens=tokens,
    )


def room_for_weights(
    info: CheckpointInfo,
    options: LoadOptions,
    device: str,
    resident: Resident,
    in_use: set[int],
    leaving: LoadedCheckpoint | None = None,
) -> bool:
    """Make room for a checkpoint that is about to be read. True: there is enough once `leaving`,
    whose place it takes, has gone. Raises EngineError where there is not enough.
    """
    needed = weights_size(info, options.dtype, device)
    free = resident.make_room(needed, device, in_use)
    if needed > free:
        there = leaving is not None and leaving.device == device
        if leaving is not None and there and needed <= free + leaving.model.weight_bytes:
            return True
        raise EngineError(
            "there is not enough memory for this checkpoint",
            f"its weights need {size(needed)}, and {size(free)} is free",
            "Close another checkpoint, or open it with --dtype int8",
        )
    return False
