"""Events reach the screen in order and in time, and neither side waits for the other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

import pytest
from textual.app import App

from tui_chat.engine.events import Event, Step, Stepped, Unloaded
from tui_chat.tui.mailbox import PERIOD, Mailbox


def token(number: int, request: str = "r") -> Stepped:
    step = Step(number, f"{number} ", 0.0)
    return Stepped(request_id=request, text=step.text, steps=(step,))


class Inbox:
    def __init__(self) -> None:
        self.deliveries: list[list[Event]] = []
        self.threads: set[int] = set()
        self.box = Mailbox(self._take)

    def _take(self, events: list[Event]) -> None:
        self.deliveries.append(events)
        self.threads.add(threading.get_ident())

    @property
    def events(self) -> list[Event]:
        return [event for events in self.deliveries for event in events]

    @property
    def steps(self) -> list[int]:
        stepped = [event for event in self.events if isinstance(event, Stepped)]
        return [step.id for event in stepped for step in event.steps]

    async def until(self, true: Callable[[], object], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, "it did not come"
            await asyncio.sleep(0.005)


async def test_the_first_event_of_a_burst_is_delivered_at_once() -> None:
    inbox = Inbox()
    inbox.box.start()
    for _ in range(3):
        inbox.deliveries.clear()
        threading.Thread(target=inbox.box.put, args=(token(1),)).start()
        # No timer is waited for: a few turns of the loop are enough once the thread has put it.
        await inbox.until(lambda: inbox.deliveries)
        await asyncio.sleep(PERIOD * 3)  # idle again
        inbox.deliveries.clear()
        inbox.box.put(token(2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert inbox.steps == [2]
        await asyncio.sleep(PERIOD * 3)


async def test_nothing_is_lost_or_reordered_and_pieces_of_a_reply_are_joined() -> None:
    inbox = Inbox()
    inbox.box.start()

    def produce() -> None:
        for number in range(5000):
            inbox.box.put(token(number))
            if number % 500 == 0:
                time.sleep(0.002)
        inbox.box.put(Unloaded(lane="main"))

    threading.Thread(target=produce).start()
    await inbox.until(lambda: inbox.events and isinstance(inbox.events[-1], Unloaded))
    assert inbox.steps == list(range(5000))
    assert len(inbox.events) < 500
    assert inbox.threads == {threading.get_ident()}
    text = "".join(e.text for e in inbox.events if isinstance(e, Stepped))
    assert text == "".join(f"{number} " for number in range(5000))


async def test_only_neighbours_of_one_reply_are_joined() -> None:
    inbox = Inbox()
    for event in (token(1), token(2), token(3, "s"), Unloaded(lane="x"), token(4, "s"), token(5)):
        inbox.box.put(event)
    inbox.box.start()
    await inbox.until(lambda: inbox.deliveries)
    kinds = [(e.request_id, e.text) if isinstance(e, Stepped) else e for e in inbox.events]
    assert kinds == [("r", "1 2 "), ("s", "3 "), Unloaded(lane="x"), ("s", "4 "), ("r", "5 ")]


async def test_a_flood_leaves_the_loop_time_for_other_things() -> None:
    inbox = Inbox()
    for number in range(100_000):
        inbox.box.put(token(number, str(number)))  # none can be joined
    inbox.box.start()
    longest, last = 0.0, time.thread_time()
    while len(inbox.steps if not inbox.box._events else ()) < 100_000:
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, last = max(longest, now - last), now
    assert inbox.steps == list(range(100_000))
    assert longest < 0.2  # seconds of CPU in one turn, the last look at all 100,000 included


def test_the_producer_never_waits_even_when_the_loop_is_gone() -> None:
    loop = asyncio.new_event_loop()
    inbox = Inbox()

    async def begin() -> None:
        inbox.box.start()

    loop.run_until_complete(begin())
    loop.close()
    began = time.monotonic()
    for number in range(1000):
        inbox.box.put(token(number))
    assert time.monotonic() - began < 1.0
    (left,) = inbox.box.drain_all()
    assert isinstance(left, Stepped) and len(left.steps) == 1000


async def test_an_error_while_delivering_ends_the_app_with_it() -> None:
    def deliver(events: list[Event]) -> None:
        raise ZeroDivisionError("in a widget")

    app: App[None] = App()
    box = Mailbox(deliver)
    with pytest.raises(ZeroDivisionError):
        async with app.run_test() as pilot:
            box.start(app)
            box.put(token(1))
            await pilot.pause(0.2)


async def test_callbacks_find_their_app() -> None:
    found: list[object] = []
    app: App[None] = App()

    def deliver(events: list[Event]) -> None:
        from textual._context import active_app

        found.append(active_app.get())

    box = Mailbox(deliver)
    async with app.run_test() as pilot:
        app.call_later(box.start, app)
        await pilot.pause()
        threading.Thread(target=box.put, args=(token(1),)).start()
        end = time.monotonic() + 10
        while not found and time.monotonic() < end:
            await pilot.pause(0.01)
    assert found == [app]
