"""The card of a checkpoint: what was understood of it, or why nothing was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from textual.app import App

from tui_chat.checkpoint import catalog
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.errors import CheckpointError
from tui_chat.tui.screens.card import CheckpointCard
from tui_chat.tui.widgets.conversation_view import CHAT_VARIABLES

from .host import screen_rows

FIXTURE = Path(__file__).parent.parent / "fixtures/nanogpt/char-bias"


class Bare(App[None]):
    def get_theme_variable_defaults(self) -> dict[str, str]:
        return CHAT_VARIABLES


async def shown(describe: Any, until: str) -> str:
    """The screen once it shows `until`."""
    app = Bare()
    async with app.run_test(size=(80, 40)) as pilot:
        app.push_screen(CheckpointCard(describe))
        for _ in range(200):
            await pilot.pause(0.01)
            text = "\n".join(screen_rows(app))
            if until in text:
                return text
    raise AssertionError(f"{until!r} never came:\n{text}")


def info() -> CheckpointInfo:
    return catalog.describe(str(FIXTURE))


async def test_says_the_format_the_shape_and_each_conclusion() -> None:
    text = await shown(info, "inferred")
    assert "nanoGPT" in text and "layers" in text and "fingerprint" in text


async def test_a_file_that_cannot_be_read_is_a_sentence() -> None:
    def describe() -> CheckpointInfo:
        raise CheckpointError("cannot open it", "it is a letter to \x1b]0;grandmother\x07")

    text = await shown(describe, "grandmother")
    assert "cannot open it: it is a letter to" in text and "\x1b]" not in text


async def test_names_from_the_file_are_shown_literally() -> None:
    bold = replace(info(), run="[bold]run[/bold]", inferred=("[red]all[/red] of it\x1b[2J",))
    text = await shown(lambda: bold, "of it")
    assert "[bold]run[/bold]" in text and "[red]all[/red] of it" in text
