"""A program for a pseudo-terminal: our driver, filter and transcript, told by its argument what to
show.
"""

from __future__ import annotations

import asyncio
import base64
import codecs
import json
import os
import sys
from pathlib import Path
from typing import Any

from textual.app import App, ComposeResult
from textual.events import Key
from textual.widgets import Static

from tui_chat.display import one_line
from tui_chat.tui import terminal
from tui_chat.tui.widgets.conversation_view import CHAT_VARIABLES, Block, ConversationView


class Shown(App[None]):
    CSS = "#keys { height: 1; }"

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return CHAT_VARIABLES

    def get_line_filters(self) -> list[Any]:
        return [*super().get_line_filters(), terminal.ControlFilter()]

    def compose(self) -> ComposeResult:
        yield ConversationView()
        yield Static("", id="keys", markup=False)

    def on_mount(self) -> None:
        terminal.exit_on_signals(self)
        self.say("READY")

    def say(self, text: str) -> None:
        self.query_one("#keys", Static).update(text)

    def on_key(self, event: Key) -> None:
        self.say(f"KEY<{event.key}>")


class Hostile(Shown):
    """Streams every case of a file of texts through the transcript, one after the other."""

    def on_mount(self) -> None:  # beside that of Shown, which Textual calls too
        self.call_after_refresh(self.run_worker, self.show_all())

    async def show_all(self) -> None:
        view = self.query_one(ConversationView)
        for line in Path(sys.argv[2]).read_text("utf-8").splitlines():
            case = json.loads(line)
            view.set_blocks([Block("a", "assistant", header=case["id"])])
            for piece in pieces(case):
                view.append_text("a", piece)
            view.update_block("a", detail=one_line(view.text_of("a"), 30))
            self.say(f"CASE {case['id']}")
            for _ in range(2):  # until it is on the screen
                shown = asyncio.Event()
                self.call_after_refresh(shown.set)
                await shown.wait()
            if "parts" not in case and "bytes_b64" not in case:
                assert view.text_of("a") == case["text"]
        # The same through a widget that draws what it is given.
        for line in Path(sys.argv[2]).read_text("utf-8").splitlines():
            case = json.loads(line)
            if "text" in case:
                self.say(f"{case['text']} {case['id']}")
                shown = asyncio.Event()
                self.call_after_refresh(shown.set)
                await shown.wait()
        self.say("ALL SHOWN")


def pieces(case: dict[str, Any]) -> list[str]:
    if "bytes_b64" in case:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        data, out = base64.b64decode(case["bytes_b64"]), []
        for size in case["chunks"]:
            out.append(decoder.decode(data[:size]))
            data = data[size:]
        return [*out, decoder.decode(b"", True)]
    if "parts" in case:
        return ["".join(text * times for text, times in case["parts"])]
    return list(case["text"])


def main() -> None:
    terminal.harden()
    with terminal.guarded(Path(os.environ["TERMINAL_LOG"])):
        os.write(2, b"native words\n")
        app = Hostile() if sys.argv[1] == "hostile" else Shown()
        app.run()
    sys.exit(app.return_code or 0)


if __name__ == "__main__":
    main()
