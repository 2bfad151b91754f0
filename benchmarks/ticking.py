"""The app as it runs for users, with a ticker beside its screen. ui.py starts it in a
pseudo-terminal and types into it.

python benchmarks/ticking.py CHECKPOINT FILE THREADS [--scripted]

On SIGUSR1 it begins to count, on SIGUSR2 it writes what it has counted to FILE: how late each tick
of the screen's loop came, and how many tokens the screen got in how many seconds. --scripted:
replies are not computed, they come at 1,000 tokens/s.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TEXTUAL_FPS", "120")  # as the app does, before Textual is imported

from tui_chat.engine.events import (
    Event,
    Generate,
    LoadOptions,
    Request,
    Started,
    Step,
    Stepped,
)
from tui_chat.engine.torch_import import import_torch
from tui_chat.engine.worker import Worker
from tui_chat.tui import app as program

TICK = 0.005  # seconds
TOKENS_PER_SECOND = 1000


class Ticking(program.TuiChat):
    """Counts ticks and tokens while it is asked to."""

    def on_ready(self) -> None:
        self.late: list[float] = []
        self.tokens = 0
        self.since = 0.0  # 0: does not count
        self.loop = asyncio.get_running_loop()
        self.loop.add_signal_handler(signal.SIGUSR1, self.count)
        self.loop.add_signal_handler(signal.SIGUSR2, self.tell)
        self.due = self.loop.time() + TICK
        self.loop.call_at(self.due, self.tick)

    def count(self) -> None:
        self.late.clear()
        self.tokens, self.since = 0, time.perf_counter()

    def tick(self) -> None:
        now = self.loop.time()
        if self.since:
            self.late.append(now - self.due)
        self.due = max(self.due, now - TICK) + TICK
        self.loop.call_at(self.due, self.tick)

    def tell(self) -> None:
        found = {
            "late_ms": [value * 1e3 for value in self.late],
            "tokens": self.tokens,
            "seconds": time.perf_counter() - self.since,
        }
        self.since = 0.0
        file = Path(sys.argv[2])
        file.with_suffix(".part").write_text(json.dumps(found))
        file.with_suffix(".part").rename(file)

    def _deliver(self, events: list[Event]) -> None:
        if self.since:
            self.tokens += sum(len(e.steps) for e in events if isinstance(e, Stepped))
        super()._deliver(events)


class Scripted(Worker):
    """Opens checkpoints as ever; its replies are numbers at TOKENS_PER_SECOND."""

    def send(self, request: Request) -> None:
        if isinstance(request, Generate):
            threading.Thread(target=self.write, args=(request,), daemon=True).start()
        else:
            super().send(request)

    def write(self, asked: Generate) -> None:
        name = asked.request_id
        self._emit(
            Started(request_id=name, lane=asked.lane, seed=1, prompt_ids=(1,), reused_tokens=0)
        )
        began = time.monotonic()
        for number in itertools.count():
            while number > (time.monotonic() - began) * TOKENS_PER_SECOND:
                time.sleep(0.001)
            text = f"{number % 2048} "
            step = Step(number % 2048, text, -1.0)
            self._emit(Stepped(request_id=name, text=text, steps=(step,)))


def main() -> int:
    import_torch()
    from tui_chat.engine import load

    threads = int(sys.argv[3])
    load.choose_threads = lambda model: threads
    program.TuiChat = Ticking  # type: ignore[misc]
    if "--scripted" in sys.argv:
        program.Worker = Scripted  # type: ignore[misc]
    options = LoadOptions(device="cpu", dtype="float32", tokenizer="none")
    return program.run([sys.argv[1]], options)


if __name__ == "__main__":
    sys.exit(main())
