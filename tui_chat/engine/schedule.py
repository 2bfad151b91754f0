"""The replies that run in one thread, and whose turn it is.

Those of one checkpoint that write do so in step, as one batch; each that still reads its prompt has
turns of its own. All get an equal share of the time, so that a long prompt in one lane neither
stops the others nor is stopped by them, and what several want read is read once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from tui_chat.engine.events import Event, Failed, Finished
from tui_chat.engine.fairness import Shares
from tui_chat.engine.together import held_back, serve

if TYPE_CHECKING:
    from tui_chat.engine.engine import Reply

SLICE = 0.008  # seconds that a turn takes, unless a single token or piece of a prompt takes longer


class _Running(NamedTuple):
    reply: Reply
    events: Iterator[Event]


class Schedule:
    """Replies by the name of their lane, one in each.

    `emit` takes their events, `blame` those that broke in a way nobody foresaw; a turn ends early
    when `wanted` says that the thread has something else to do.
    """

    def __init__(
        self,
        emit: Callable[[Event], None],
        blame: Callable[[str, str, BaseException], None],
        wanted: Callable[[], bool] = lambda: False,
    ) -> None:
        self._emit, self._blame, self._wanted = emit, blame, wanted
        self._running: dict[str, _Running] = {}
        self._shares = Shares()

    def __contains__(self, lane: str) -> bool:
        return lane in self._running

    def __len__(self) -> int:
        return len(self._running)

    def lanes(self) -> list[str]:
        return list(self._running)

    def reply(self, lane: str) -> Reply | None:
        running = self._running.get(lane)
        return None if running is None else running.reply

    def add(self, lane: str, reply: Reply) -> None:
        self._running[lane] = _Running(reply, reply.events())

    def stop(self, request_id: str) -> None:
        for running in self._running.values():
            if running.reply.request_id == request_id:
                running.reply.cancel()

    def end(self, lane: str) -> None:
        """Stop the lane's reply, if there is one, and see it to its end."""
        reply = self.reply(lane)
        if reply is not None:
            reply.cancel()
        while lane in self._running:
            self._advance(lane)

    def turn(self) -> None:
        """One turn, of those who have had least of the time."""
        groups = self._groups()
        if not groups:
            return
        key = self._shares.next(list(groups))
        began = time.perf_counter()
        lanes = groups[key]
        self._advance_in_step(lanes, until=began + SLICE * len(lanes))
        self._shares.charge(key, (time.perf_counter() - began) / len(lanes))

    def turns(self) -> None:
        """As many turns as there are replies."""
        for _ in range(len(self._running)):
            self.turn()

    def _groups(self) -> dict[Hashable, list[str]]:
        """Who advances together: the lanes of a checkpoint that write, or one that reads."""
        held = held_back([running.reply for running in self._running.values()])
        reading: dict[Hashable, list[str]] = {}
        writing: dict[Hashable, list[str]] = {}
        for lane, (reply, _) in self._running.items():
            if reply.reading is None:
                writing.setdefault(id(reply.lane.checkpoint), []).append(lane)
            elif reply not in held:
                reading[id(reply)] = [lane]  # not the reply: what is over is not to be held
        # Where all have had the same: whoever has read will write in one batch with the others.
        return reading | writing

    def _advance_in_step(self, lanes: list[str], until: float) -> None:
        """One event of each in turn, what they compute next being computed at once; until one of
        them begins to read, or has read."""
        replies = [self._running[lane].reply for lane in lanes]
        reading = [reply.reading is not None for reply in replies]
        while True:
            if len(replies) > 1:
                serve(replies)
            for lane in lanes:
                self._advance(lane)
            if (
                time.perf_counter() >= until
                or self._wanted()
                or not all(lane in self._running for lane in lanes)
                or [reply.reading is not None for reply in replies] != reading
            ):
                return

    def _advance(self, lane: str) -> None:
        """To the next event of the lane's reply."""
        running = self._running.get(lane)
        if running is None:
            return
        try:
            event = next(running.events, None)
        except BaseException as error:
            del self._running[lane]
            self._blame(lane, running.reply.request_id, error)
            return
        if event is None or isinstance(event, (Finished, Failed)):
            del self._running[lane]
        if event is not None:
            self._emit(event)


def side_by_side(replies: Iterable[Reply]) -> Iterator[Event]:
    """The events of several replies as they come, each in a lane of its own. Raises what one of
    them breaks with.
    """

    def blame(lane: str, request_id: str, error: BaseException) -> None:
        raise error

    waiting: list[Event] = []
    schedule = Schedule(waiting.append, blame)
    for number, reply in enumerate(replies):
        schedule.add(str(number), reply)
    while len(schedule):
        schedule.turn()
        yield from waiting
        waiting.clear()
