"""The status rows at the widths that terminals have."""

from __future__ import annotations

import pytest

from tui_chat.engine import events as ev
from tui_chat.sampling import SamplingParams
from tui_chat.tui import lines, words
from tui_chat.tui.widgets.status import Status, StatusBar

from .host import Host, screen_rows
from .test_chat_controller import Bench

GB = 10**9
CALM = ev.Memory(weights=GB, caches=GB // 2, idle=0, free=14 * GB, needs=10**7, tokens=300)
TIGHT = ev.Memory(weights=GB, caches=0, idle=0, free=GB, needs=9 * GB // 10, tokens=300)
FULL = ev.Memory(
    weights=GB, caches=0, idle=0, free=12 * GB // 10, needs=31 * GB // 10, tokens=32768
)


async def second_row(status: Status, width: int) -> str:
    bar = StatusBar()
    app = Host(bar)
    async with app.run_test(size=(width, 5)) as pilot:
        bar.show(status)
        await pilot.pause()
        return screen_rows(app)[1]


def told(memory: ev.Memory | None) -> Status:
    bench = Bench()
    bench.chat.memory, bench.chat.context_used = memory, 12
    return lines.status(bench.chat)


@pytest.mark.parametrize(
    ("memory", "width", "text"),
    [
        (CALM, 120, "mem 1.5 GB of 16 GB  ctx "),
        (CALM, 200, "mem 1.5 GB of 16 GB  ctx "),
        (TIGHT, 60, "memory tight  ctx "),
        (TIGHT, 80, "memory tight: 1.0 GB free  ctx "),
        (TIGHT, 120, "memory tight: 1.0 GB free  ctx "),
        (FULL, 80, "memory too small  ctx "),
        (FULL, 120, "memory too small: 3.1 GB needed, 1.2 GB free"),
        (FULL, 200, "memory too small: 3.1 GB needed, 1.2 GB free  ctx "),
    ],
)
async def test_the_memory_stands_beside_the_context(
    memory: ev.Memory, width: int, text: str
) -> None:
    row = await second_row(told(memory), width)
    assert text in row
    assert row.endswith("12/32")


async def test_what_is_calm_takes_no_room_from_the_knobs() -> None:
    without, calm = await second_row(told(None), 80), await second_row(told(CALM), 80)
    assert without == calm and "seed random" in calm


def test_the_memory_is_asked_for_with_each_count_and_after_each_reply() -> None:
    bench = Bench()
    counts = [request for request in bench.sent if isinstance(request, ev.CountTokens)]
    assert [(c.request_id, c.reply_tokens) for c in counts] == [("context", 256)]
    bench.chat.handle(ev.Counted(request_id="context", lane="main", tokens=7, memory=CALM))
    assert bench.chat.memory == CALM and bench.chat.context_used == 7
    bench.chat.count("draft")
    bench.chat.set_params(SamplingParams(max_new_tokens=100))
    bench.chat.submit("Hello")
    bench.reply("Hi")
    counts = [request for request in bench.sent if isinstance(request, ev.CountTokens)][1:]
    assert [(c.request_id, c.behind, c.reply_tokens) for c in counts] == [
        ("draft", 7, 256),
        ("memory", 7, 100),
        ("memory", bench.chat.context_used, 100),
    ]


def test_what_cannot_fit_is_said_before_it_is_sent() -> None:
    bench = Bench()
    bench.chat.handle(ev.Counted(request_id="memory", lane="main", tokens=0, memory=FULL))
    bench.chat.submit("Hello")
    assert bench.view.sentences[-1] == words.no_room(FULL, quantised=False)
    assert "new chat" in words.no_room(FULL, quantised=True)
    assert words.no_room(FULL, quantised=False) == (
        "32,768 tokens need 3.1 GB more memory, and 1.2 GB is free: lower max new tokens (Ctrl+S), "
        "or open the checkpoint with --kv-cache int8."
    )
