"""The engine's worker, driven as the app drives it: requests in, events out with the time at which
each came.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tui_chat.engine import load
from tui_chat.engine.events import (
    Event,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    LoadOptions,
    Prompt,
    Started,
    Stepped,
    Unload,
    Unloaded,
)
from tui_chat.engine.worker import Worker
from tui_chat.sampling import SamplingParams

PATIENCE = 300.0  # seconds


class Asked(NamedTuple):
    """A reply: when it was wanted, what it reused, and when its tokens came."""

    sent: float
    reused: int
    stamps: list[float]
    ids: list[int]

    @property
    def first(self) -> float:
        """Seconds to the first token."""
        return self.stamps[0] - self.sent


class Driver:
    """A worker and the events that have come of it."""

    def __init__(self, memory_budget: int | None = None) -> None:
        self._events: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
        self._worker = Worker(
            lambda event: self._events.put((time.perf_counter(), event)),
            memory_budget=memory_budget,
        )
        self._number = 0
        self._worker.start()

    def close(self) -> None:
        self._worker.close()

    def _next(self) -> tuple[float, Event]:
        at, event = self._events.get(timeout=PATIENCE)
        if isinstance(event, (Failed, LoadFailed)):
            raise event.error
        return at, event

    def send_load(self, lane: str, path: str, dtype: str, device: str = "cpu") -> None:
        options = LoadOptions(device=device, dtype=dtype, tokenizer="none")
        self._worker.send(Load(lane=lane, path=path, options=options))

    def load(self, lane: str, path: str, dtype: str, device: str = "cpu") -> Loaded:
        """Open a checkpoint and wait for it."""
        self.send_load(lane, path, dtype, device)
        while True:
            _, event = self._next()
            if isinstance(event, Loaded):
                return event

    def unload(self, lane: str) -> None:
        self._worker.send(Unload(lane=lane))
        while not isinstance(self._next()[1], Unloaded):
            pass

    def ask(self, lanes: Sequence[str], ids: Sequence[Sequence[int]], count: int) -> list[Asked]:
        """`count` greedy tokens in each lane, all at once, each behind its own ids."""
        params = SamplingParams(temperature=0.0, max_new_tokens=count)
        found: dict[str, Asked] = {}
        for lane, prompt in zip(lanes, ids, strict=True):
            self._number += 1
            wish = Generate(
                lane=lane,
                request_id=str(self._number),
                prompt=Prompt(mode="raw", ids=tuple(prompt)),
                params=params,
            )
            found[lane] = Asked(time.perf_counter(), 0, [], [])
            self._worker.send(wish)
        waiting = set(lanes)
        while waiting:
            at, event = self._next()
            match event:
                case Started(lane=lane, reused_tokens=reused):
                    found[lane] = found[lane]._replace(reused=reused)
                case Stepped(request_id=number, steps=steps):
                    lane = lanes[int(number) - self._number + len(lanes) - 1]
                    found[lane].stamps.extend([at] * len(steps))
                    found[lane].ids.extend(step.id for step in steps)
                case Finished(lane=lane):
                    waiting.discard(lane)
        return [found[lane] for lane in lanes]


@contextmanager
def driver(threads: int, memory_budget: int | None = None) -> Iterator[Driver]:
    """A worker whose models use so many threads, which it would otherwise find out by measuring."""
    chosen = load.choose_threads
    load.choose_threads = lambda model: threads
    made = Driver(memory_budget)
    try:
        yield made
    finally:
        made.close()
        load.choose_threads = chosen


def total_rate(asked: Sequence[Asked]) -> float:
    """Tokens a second of all replies together, while all of them are being written."""
    begin = max(one.stamps[0] for one in asked)
    end = min(one.stamps[-1] for one in asked)
    made = sum(1 for one in asked for at in one.stamps if begin < at <= end)
    return made / (end - begin)
