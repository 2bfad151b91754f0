"""The whole app in a pseudo-terminal, fed by a worker whose every text is hostile.

    python -m tests.tui.hostile_app TEXTS FOLDER

FOLDER holds files with hostile names, and becomes the home of the app.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.tui.terminal_app import pieces
from tests.tui.test_chat_controller import SPEC
from tui_chat.checkpoint.info import CheckpointInfo, TemplateHint, TokenizerHint
from tui_chat.engine import events as ev
from tui_chat.errors import EngineError
from tui_chat.settings import Paths
from tui_chat.tui import terminal
from tui_chat.tui.app import Program, TuiChat
from tui_chat.tui.screens.picker import CheckpointPicker


def loaded(text: str) -> ev.Loaded:
    info = CheckpointInfo(
        path=f"/nowhere/{text}", format=text, spec=SPEC, parameters=1, dtype=text, run=text,
        description=text, warnings=(text,), losses={text: 1.0, "val": 2.0}, mode="chat",
        tokenizer=TokenizerHint(kind="none"), template=TemplateHint(name=text),
    )  # fmt: skip
    return ev.Loaded(
        lane="main", info=info, device=text, dtype=text, context_length=32, vocab_size=64,
        weight_bytes=1, cache_bytes_per_token=1, seconds=0.1,
    )  # fmt: skip


class Fed(TuiChat):
    """Plays every case through every place where foreign text is shown."""

    def _start(self) -> None:
        super()._start()
        self.run_worker(self.play())

    async def painted(self) -> None:
        for _ in range(2):
            done = asyncio.Event()
            self.call_after_refresh(done.set)
            await done.wait()

    async def play(self) -> None:
        screen, chat = self.chat_screen, self.chat_screen.chat
        while chat.loading:  # the folder holds no checkpoint, which the app has to say first
            await asyncio.sleep(0.02)  # spinning here would keep the worker from importing torch
        for case in cases(Path(sys.argv[1])):
            parts = pieces(case)
            text = "".join(parts)[:2000]
            chat.new()
            screen.handle(loaded(text))
            screen._tick()
            await self.painted()  # the page of an empty chat
            chat.set_system(text)
            chat.conversation.title = text
            chat.submit(text + " said")
            await self.replies(parts, chat.reply)
            screen._tick()
            screen.say(text, error=True)
            screen._tick()
            await self.painted()
            self.clear_notifications()
        for key in ("ctrl+o", "escape", "ctrl+f", "escape", "f12", "escape"):
            await self.run_action(f"app.simulate_key('{key}')")
            for _ in range(5):
                await self.painted()
            while isinstance(self.screen, CheckpointPicker) and self.screen._scanning:
                await asyncio.sleep(0.02)
        self.exit(0)

    async def replies(self, parts: list[str], reply: Any) -> None:
        screen = self.chat_screen
        while not reply.turn_ids:  # until the prompt is on disk and asked for
            await asyncio.sleep(0.005)
        request = reply.request_id
        text = "".join(parts)
        screen.handle(
            ev.Started(
                request_id=request, lane="main", seed=1, prompt_ids=(1,), reused_tokens=0,
                missing=text[:50],
            )
        )  # fmt: skip
        for part in parts:
            step = ev.Step(1, part, -1.0)
            screen.handle(ev.Stepped(request_id=request, text=part, steps=(step,)))
        screen.handle(ev.Failed(lane="main", request_id=request, error=EngineError(text[:500])))


def cases(texts: Path) -> Iterator[dict[str, Any]]:
    for line in texts.read_text("utf-8").splitlines():
        case = json.loads(line)
        if "parts" not in case:  # very long texts have tests of their own
            yield case
    for markup in ("[/nope]", "[@click=app.quit]x[/]", "[link=file:///etc/passwd]x[/link]", "[b"):
        yield {"id": markup, "text": markup + " literal"}


def main() -> None:
    terminal.harden()
    home = Path(sys.argv[2])
    program = Program(Paths(config=home / "c", data=home / "d", cache=home / "k"), [str(home)])
    with terminal.guarded(home / "log"):
        app = Fed(program)
        app.run()
        app.close()
    program.close()
    sys.exit(app.return_code or 0)


if __name__ == "__main__":
    main()
