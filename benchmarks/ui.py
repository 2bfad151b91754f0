"""What a streaming conversation costs: key echo, CPU per token and per frame, long chats, memory.

    python benchmarks/ui.py [--smoke] [--only PART] [--app CHECKPOINT] [--keep]

CPU time is that of the whole process, in milliseconds or microseconds; it says more than the clock
on a machine that does other things too. Latency is measured from outside, in a pseudo-terminal:
from writing a key to reading its echo. The part "decoding" does that in the real app while it is
idle, while 1,000 tokens/s come from a script, and while the engine decodes models of 1M and of 124M
random weights in the same process; a ticker in the app's loop says how late that is called. All
take turns. The part "small" streams into a small app of transcript and text field. `--app` types
into the real app while a checkpoint of yours writes; choose a fast one that goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import gc
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TEXTUAL_FPS", "120")  # as the app does, before Textual is imported

from homes import home_in
from textual.app import App, ComposeResult
from textual.widgets import TextArea

from tui_chat.engine.events import Event, Step, Stepped
from tui_chat.tui import terminal
from tui_chat.tui.mailbox import Mailbox
from tui_chat.tui.widgets.conversation_view import CHAT_VARIABLES, Block, ConversationView

ROOT = Path(__file__).resolve().parent.parent
TOKENS_PER_SECOND = 1000
WORDS = ["the ", "model ", "ends ", "a line\n", "and ", "begins ", "another ", "abc "]
KEYS = "øæåþðß"  # stand nowhere else on the screen

# Feasible on a quiet machine of two cores at 2.5 GHz.
TARGETS = {
    "key echo p50": (8.0, "ms"),
    "key echo p99": (33.0, "ms"),
    "CPU per token": (80.0, "us"),
    "CPU per frame": (3.0, "ms"),
    "open 10,000 messages": (300.0, "ms"),
    "resize 10,000 messages": (150.0, "ms"),
    "memory of 10,000 messages": (25.0, "MB"),
}
TICK_BEYOND_IDLE = 2.0  # ms that the 99th of 100 ticks may be later while a model decodes

# Who writes while keys are typed: a shape of common.py, or nobody.
WRITERS = {
    "nobody": ("GPT-like 1M", "idle"),
    "1,000 tokens/s from a script": ("GPT-like 1M", "scripted"),
    "GPT-like 1M": ("GPT-like 1M", "engine"),
    "GPT-2 124M": ("GPT-2 124M", "engine"),
}


class Bench(App[None]):
    """A transcript and a text field, fed through the mailbox by a thread."""

    CSS = "TextArea { height: 5; }"

    def __init__(self) -> None:
        super().__init__()
        self.mailbox = Mailbox(self.take)
        self.view = ConversationView()
        self.frames = 0
        self.arrived = 0
        self.stopped = threading.Event()

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return CHAT_VARIABLES

    def get_line_filters(self) -> list[object]:  # type: ignore[override]
        return [*super().get_line_filters(), terminal.ControlFilter()]

    def compose(self) -> ComposeResult:
        yield self.view
        area = TextArea()
        area.cursor_blink = False
        yield area

    def on_mount(self) -> None:
        self.query_one(TextArea).focus()
        self.view.append_block(Block("reply", "assistant", header="Assistant"))

    def take(self, events: list[Event]) -> None:
        self.frames += 1
        for event in events:
            assert isinstance(event, Stepped)
            self.arrived += len(event.steps)
            self.view.append_text("reply", event.text)

    def produce(self, count: int) -> None:
        """Tokens at TOKENS_PER_SECOND, in the slices in which a worker would make them."""
        begin, made = time.monotonic(), 0
        while made < count and not self.stopped.is_set():
            due = min(count, int((time.monotonic() - begin) * TOKENS_PER_SECOND))
            for number in range(made, due):
                text = WORDS[number % len(WORDS)]
                step = Step(number, text, -1.0)
                self.mailbox.put(Stepped(request_id="r", text=text, steps=(step,)))
            made = max(made, due)
            time.sleep(0.001)

    def stream(self, count: int) -> threading.Thread:
        thread = threading.Thread(target=self.produce, args=(count,), daemon=True)
        thread.start()
        return thread


class Talking(Bench):
    """Streams until it is ended, for the measurement from outside."""

    def on_ready(self) -> None:
        self.view.append_text("reply", text_of(500))
        self.mailbox.start(self)
        self.stream(1 << 30)


def text_of(tokens: int) -> str:
    return "".join(WORDS[number % len(WORDS)] for number in range(tokens))


def memory() -> float:
    """Resident memory in MB; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return 0.0


async def streaming(length: int, tokens: int) -> tuple[float, float, float]:
    """CPU of the screen's thread in us per token and in ms per frame while a reply of `length`
    tokens grows, and that of the producing thread in us per token.
    """
    app = Bench()
    async with app.run_test(size=(120, 40)) as pilot:
        app.view.append_text("reply", text_of(length))
        app.view.set_writing("reply")
        await pilot.pause(0.3)
        gc.collect()
        gc.freeze()
        app.mailbox.start(app)
        whole, screen = time.process_time(), time.thread_time()
        app.stream(tokens)
        while app.arrived < tokens:
            await asyncio.sleep(0.05)
        screen = time.thread_time() - screen
        producer = time.process_time() - whole - screen
    return screen / tokens * 1e6, screen / max(1, app.frames) * 1e3, producer / tokens * 1e6


async def long_chat(messages: int) -> dict[str, float]:
    text = ("A sentence of some length that a model could have written, and on it goes. " * 7)[:480]
    blocks = [
        Block(f"m{n}", "assistant" if n % 2 else "user", f"{text}{n}", "Header", f"seed {n}")
        for n in range(messages)
    ]
    app = Bench()
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.pause()
        gc.collect()
        before = memory()
        wall, cpu = time.monotonic(), time.process_time()
        app.view.set_blocks(blocks)
        await pilot.pause()
        out = {
            "open": (time.process_time() - cpu) * 1e3,
            "open wall": (time.monotonic() - wall) * 1e3,
            "memory": memory() - before,
        }
        cpu = time.process_time()
        await pilot.resize_terminal(100, 30)
        await pilot.pause()
        out["resize"] = (time.process_time() - cpu) * 1e3
        cpu = time.process_time()
        for page in range(20):
            app.view.scroll_to(y=page * 997 % app.view.max_scroll_y, animate=False)
            await pilot.pause()
        out["jump"] = (time.process_time() - cpu) * 1e3 / 20
    return out


def echoes(
    command: list[str],
    keys: int,
    prompt: str = "",
    writing: str = "",
    env: dict[str, str] | None = None,
    ready: str = "line",
    counts: Path | None = None,
) -> list[float]:
    """Milliseconds from key to echo for each key typed into a program in a pseudo-terminal.
    `counts`: the program is ticking.py, and writes to that file what it counted meanwhile.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
    process = subprocess.Popen(
        command,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm-256color", "TEXTUAL_ANIMATIONS": "none", **(env or {})},
    )
    os.close(slave)
    found: list[float] = []

    def read(wait: float) -> bytes:
        if not select.select([master], [], [], wait)[0]:
            return b""
        return os.read(master, 1 << 16)

    def wait_for(text: str, seconds: float) -> None:
        seen, end = b"", time.monotonic() + seconds
        while text.encode() not in seen:
            if time.monotonic() > end or process.poll() is not None:
                raise SystemExit(f"{text!r} was never shown: {seen[-300:]!r}")
            seen += read(0.1)

    try:
        wait_for(ready, 60)
        if prompt:
            os.write(master, prompt.encode())
            time.sleep(0.5)  # an Enter right behind a letter would look like a paste
            os.write(master, b"\r")
            wait_for(writing, 60)
        settle = time.monotonic() + 1.0
        while time.monotonic() < settle:
            read(0.05)
        if counts is not None:
            process.send_signal(signal.SIGUSR1)
        for number in range(keys):
            rest = time.monotonic() + 0.06 + number % 7 * 0.006  # at any moment of a frame
            while time.monotonic() < rest:
                read(0.002)
            key = KEYS[number % len(KEYS)].encode()
            began, seen = time.monotonic(), b""
            os.write(master, key)
            while key not in seen and time.monotonic() - began < 5:
                seen += read(0.5)
            found.append((time.monotonic() - began) * 1e3)
        if counts is not None:
            process.send_signal(signal.SIGUSR2)
            end = time.monotonic() + 10
            while not counts.exists() and time.monotonic() < end:
                read(0.05)
    finally:
        process.kill()
        process.wait()
        os.close(master)
    return sorted(found)


def endless(folder: str) -> dict[str, str]:
    """The environment of an app with an empty home there, whose replies do not end."""
    Path(folder, "CONFIG").mkdir()
    Path(folder, "CONFIG", "settings.toml").write_text(
        "[sampling]\nmax_new_tokens = 1000000\n", "utf-8"
    )
    return home_in(Path(folder))


def share(values: list[float], part: float) -> float:
    """The value that this part of them does not exceed."""
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def decoding(writers: list[str], rounds: int, keys: int, threads: int) -> list[dict[str, Any]]:
    """Echoes and ticks of the app while each of them writes, all in turn."""
    from common import SHAPES, random_weights, save

    late: dict[str, list[float]] = {name: [] for name in writers}
    echo: dict[str, list[float]] = {name: [] for name in writers}
    rates: dict[str, list[float]] = {name: [] for name in writers}
    with tempfile.TemporaryDirectory() as scratch:
        files = {}
        for shape in {WRITERS[name][0] for name in writers}:
            file = Path(scratch, shape.replace(" ", "-"), "model.safetensors")
            file.parent.mkdir()
            files[shape] = save(file, SHAPES[shape], random_weights(SHAPES[shape]))
        gc.collect()
        for _ in range(rounds):
            for name in writers:
                shape, way = WRITERS[name]
                with tempfile.TemporaryDirectory() as home:
                    counts = Path(home, "counts.json")
                    command = [sys.executable, str(Path(__file__).with_name("ticking.py"))]
                    command += [files[shape], str(counts), str(threads)]
                    command += ["--scripted"] if way == "scripted" else []
                    asked = ("", "") if way == "idle" else ("1 2 3 4", "writing")
                    echo[name] += echoes(command, keys, *asked, endless(home), "ready", counts)
                    counted = json.loads(counts.read_text())
                late[name] += counted["late_ms"]
                rates[name].append(counted["tokens"] / counted["seconds"])
    return [
        {
            "writes": name,
            "tokens_per_second": sum(rates[name]) / rounds,
            "echo_ms": {"p50": share(echo[name], 0.5), "p99": share(echo[name], 0.99)},
            "tick_late_ms": {"p50": share(late[name], 0.5), "p99": share(late[name], 0.99)},
            "keys": len(echo[name]),
            "ticks": len(late[name]),
        }
        for name in writers
    ]


def show_decoding(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{'who writes':<30} {'tokens/s':>9} {'echo p50':>9} {'p99 ms':>8} {'tick p50':>9} "
        f"{'p99 ms':>8} {'over idle':>10}"
    )
    idle = rows[0]["tick_late_ms"]["p99"]
    for one in rows:
        echo, tick = one["echo_ms"], one["tick_late_ms"]
        beyond = tick["p99"] - idle
        verdict = "" if one is rows[0] else "met" if beyond <= TICK_BEYOND_IDLE else "MISSED"
        print(
            f"{one['writes']:<30} {one['tokens_per_second']:9,.0f} {echo['p50']:9.1f} "
            f"{echo['p99']:8.1f} {tick['p50']:9.2f} {tick['p99']:8.2f} {beyond:+10.2f} {verdict}"
        )


FOUND: list[dict[str, Any]] = []  # what was shown so far, for the file of figures


def row(name: str, value: float, target: str = "", note: str = "") -> None:
    limit, unit = TARGETS.get(target or name, (0.0, ""))
    aim = f"<= {limit:g} {unit}" if limit else ""
    verdict = ("met" if value <= limit else "MISSED") if limit else ""
    FOUND.append({"what": name.strip(), "value": value, "unit": unit, "at_most": limit or None})
    print(f"{name:<34} {value:9.1f} {unit:<3} {aim:<12} {verdict:<7} {note}")


def app(checkpoint: str, keys: int) -> None:
    """Key echo in the real app while a checkpoint writes."""
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "tui_chat", checkpoint]
        found = echoes(command, keys, "Once upon a time", "writing", endless(home), "ready")
    note = f"the real app while {checkpoint} writes"
    row("key echo p50", share(found, 0.5), note=note)
    row("key echo p99", share(found, 0.99), note=note)


def small(keys: int, smoke: bool) -> None:
    """Everything that needs no engine."""
    found = echoes([sys.executable, __file__, "--child"], keys)
    note = f"{TOKENS_PER_SECOND} tokens/s, wall clock"
    row("key echo p50", share(found, 0.5), note=note)
    row("key echo p99", share(found, 0.99), note=note)
    for length in (500,) if smoke else (500, 4_000, 20_000):
        per_token, per_frame, producer = asyncio.run(streaming(length, 1_000 if smoke else 6_000))
        at = f"at {length:,} tokens"
        row(
            f"CPU per token {at}",
            per_token,
            "CPU per token",
            f"+ {producer:.0f} us in the producer",
        )
        row(f"CPU per frame {at}", per_frame, "CPU per frame")
    count = 1_000 if smoke else 10_000
    chat = asyncio.run(long_chat(count))
    row(f"open {count:,} messages", chat["open"], "open 10,000 messages", "CPU")
    row("  the same, wall clock", chat["open wall"], "open 10,000 messages")
    row(f"resize {count:,} messages", chat["resize"], "resize 10,000 messages", "CPU")
    print(f"{'jump anywhere in them':<34} {chat['jump']:9.1f} ms")
    row(f"memory of {count:,} messages", chat["memory"], "memory of 10,000 messages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, to see that it runs")
    parser.add_argument("--only", choices=("small", "decoding"), help="one part")
    parser.add_argument("--app", metavar="CHECKPOINT", help="only key echo in the real app")
    parser.add_argument("--threads", type=int, default=1, help="of the model (1)")
    parser.add_argument("--rounds", type=int, help="how often each writer has its turn (3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--keep", action="store_true", help="write them to benchmarks/results, for docs/"
    )
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        terminal.harden()
        Talking().run()
        return
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    print(f"load {load:.1f} on {os.cpu_count()} cores\n")
    keys = 20 if given.smoke else 200
    if given.app or given.only != "decoding":
        print(f"{'what':<34} {'measured':>9} {'':<3} {'target':<12}")
        if given.app:
            app(given.app, keys)
        else:
            small(keys, given.smoke)
    rows = []
    if not given.app and given.only != "small":
        names = ["nobody", "GPT-like 1M"] if given.smoke else list(WRITERS)
        rounds = given.rounds or (1 if given.smoke else 3)
        rows = decoding(names, rounds, keys // 2, given.threads)
        show_decoding(rows)
    if given.json or given.keep:
        from common import keep, machine

        print()
        where = {**machine(given.threads), "load": round(load, 1), "figures": FOUND}
        keep("ui", given, where, rows)


if __name__ == "__main__":
    main()
