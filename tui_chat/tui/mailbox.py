"""Carries events from the worker thread to the screen, without either waiting for the other.

The producer appends to a deque; the first event of a burst wakes the screen's loop at once, later
ones are taken 30 times a second. Neighbouring pieces of one reply are delivered as one. A flood is
taken in portions, so that keys and frames come in between. What is done with events it does not
know.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import TYPE_CHECKING

from tui_chat.engine.events import Event, Stepped

if TYPE_CHECKING:
    from textual.app import App

PERIOD = 1 / 30
"""Seconds between two deliveries while events come."""
_BUSY_PERIOD = 1 / 200  # between two portions of a flood
_PATIENCE = 0.012  # seconds a delivery may keep the loop from keys and frames
_SMALLEST, _LARGEST = 8, 4096  # events taken for one delivery


class Mailbox:
    """Events in from any thread with `put`, lists of events out to `deliver` in the loop's thread.

    Events put before `start` wait for it. An exception of `deliver` goes to the app, which ends
    with it; the mailbox then delivers nothing more.
    """

    def __init__(self, deliver: Callable[[list[Event]], None]) -> None:
        self._deliver = deliver
        self._events: deque[Event] = deque()
        self._armed = False  # a delivery is due or planned: `put` need not wake the loop
        self._portion = 512
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context: contextvars.Context | None = None
        self._failed: Callable[[Exception], object] | None = None

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that events are delivered in. Raises RuntimeError before `start`."""
        if self._loop is None:
            raise RuntimeError("the mailbox is not started")
        return self._loop

    def put(self, event: Event) -> None:
        """Hand over an event, from any thread. Never waits, never raises."""
        self._events.append(event)
        if not self._armed:
            self._wake()

    def start(self, app: App | None = None) -> None:
        """Begin to deliver; to be called in the loop, by the app that is to hear of exceptions."""
        self._loop = asyncio.get_running_loop()
        # Callbacks scheduled by another thread would run in that thread's context, where Textual
        # does not find its app.
        self._context = contextvars.copy_context()
        if app is not None:
            self._failed = app._handle_exception
        if self._events:
            self._wake()

    def stop(self) -> None:
        """Deliver nothing more."""
        self._loop = None

    def drain_all(self) -> list[Event]:
        """Take out everything that has not been delivered; for after the loop has ended."""
        self.stop()
        return self._take(len(self._events))

    def _wake(self) -> None:
        loop = self._loop
        if loop is None:
            return
        self._armed = True
        try:
            loop.call_soon_threadsafe(self._tick, context=self._context)
        except RuntimeError:  # the loop is closed: nobody is left to read
            self._loop = None

    def _tick(self) -> None:
        if self._loop is None:
            return
        if not self._events:
            self._armed = False
            # An event may have come between the look and the disarming.
            if self._events and not self._armed:
                self._wake()
            return
        began = perf_counter()
        try:
            self._deliver(self._take(self._portion))
        except Exception as error:
            self.stop()
            if self._failed is None:
                raise
            self._failed(error)
            return
        spent = perf_counter() - began
        if spent > _PATIENCE:
            self._portion = max(_SMALLEST, self._portion // 2)
        elif self._events:
            self._portion = min(_LARGEST, self._portion * 2)
        pause = _BUSY_PERIOD if self._events else PERIOD
        # As long a rest as the work, so that a flood takes half of the loop's time at most.
        self._loop.call_later(max(pause, spent), self._tick, context=self._context)

    def _take(self, count: int) -> list[Event]:
        """Up to `count` events, neighbouring pieces of one reply joined."""
        events = self._events
        taken: list[Event] = []
        pieces: list[Stepped] = []

        def close() -> None:
            if len(pieces) == 1:
                taken.append(pieces[0])
            elif pieces:
                text = "".join(piece.text for piece in pieces)
                steps = tuple(step for piece in pieces for step in piece.steps)
                taken.append(replace(pieces[-1], text=text, steps=steps))
            pieces.clear()

        while events and count > 0:
            event = events.popleft()
            count -= 1
            if not isinstance(event, Stepped):
                close()
                taken.append(event)
                continue
            if pieces and pieces[0].request_id != event.request_id:
                close()
            pieces.append(event)
        close()
        return taken
