"""Replies of one checkpoint, computed as one batch: their next tokens go through its matrices
together, and what several are about to read is read by one of them.

Each reply stays the generator it is: what it would compute next is computed for it and given to
it. One that wants something else (a prefill, an end) goes its own way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from tui_chat.engine.memory import out_of_memory
from tui_chat.engine.prefixes import common

if TYPE_CHECKING:
    from tui_chat.engine.engine import Reply

log = logging.getLogger(__name__)


def serve(replies: Iterable[Reply]) -> None:
    """Compute what those of the replies that only want their next token want, where there is more
    than one for a checkpoint."""
    waiting: dict[int, list[Reply]] = {}
    for reply in replies:
        if reply.wants is not None:
            waiting.setdefault(id(reply.lane.checkpoint), []).append(reply)
    for group in waiting.values():
        if len(group) > 1:
            _serve(group)


def held_back(replies: Sequence[Reply]) -> list[Reply]:
    """Those for whom another one is about to read what they want, and who have copied all that it
    has read so far. Of several that have come equally far the first goes on; when it is stopped,
    the next.
    """
    held: list[Reply] = []
    before: list[Reply] = []
    for reply in replies:
        if reply.reading is not None:
            if any(_reads_for(other, reply) for other in before):
                held.append(reply)
            before.append(reply)
    return held


def _reads_for(other: Reply, reply: Reply) -> bool:
    ids, theirs, done = reply.reading, other.reading, len(reply.lane.cache)
    return (
        ids is not None
        and theirs is not None
        and other.lane is not reply.lane
        and other.lane.checkpoint is reply.lane.checkpoint
        and len(other.lane.cache) == done
        and common(theirs, ids, len(ids) - 1) > done
    )


def _serve(group: Sequence[Reply]) -> None:
    from tui_chat.engine.generate import use_threads
    from tui_chat.model.build import StepsTogether

    checkpoint = group[0].lane.checkpoint
    if not isinstance(checkpoint.model, StepsTogether):
        return
    use_threads(checkpoint.threads)
    began = time.perf_counter()
    try:
        rows = checkpoint.model.forward_each(
            [reply.wants for reply in group if reply.wants is not None],
            [reply.lane.cache for reply in group],
        )
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        # Each computes for itself then, and says so if it cannot.
        log.warning("no memory to compute %d replies together", len(group))
        return
    seconds = (time.perf_counter() - began) / len(group)
    for reply, row in zip(group, rows, strict=True):
        reply.give(row, seconds)
