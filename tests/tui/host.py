"""A small app around one widget, and what it shows as text."""

from __future__ import annotations

from typing import Any

from textual.app import App, ComposeResult
from textual.message import Message
from textual.widget import Widget

from tui_chat.tui.terminal import ControlFilter
from tui_chat.tui.widgets.conversation_view import CHAT_VARIABLES


class Host(App[None]):
    """Holds the widget under test and keeps the messages that reach it."""

    AUTO_FOCUS = None

    def __init__(self, widget: Widget, *kept: type[Message]) -> None:
        super().__init__()
        self.widget = widget
        self.kept = kept
        self.messages: list[Any] = []

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return CHAT_VARIABLES

    def get_line_filters(self) -> list[Any]:
        return [*super().get_line_filters(), ControlFilter()]

    def compose(self) -> ComposeResult:
        yield self.widget

    async def _on_message(self, message: Message) -> None:
        if isinstance(message, self.kept):
            self.messages.append(message)
        await super()._on_message(message)


def screen_rows(app: App[Any], columns: int | None = None) -> list[str]:
    """The rows on the screen, without trailing blanks; only the first `columns` of each."""
    strips = app.screen._compositor.render_strips()
    return ["".join(segment.text for segment in strip)[:columns].rstrip() for strip in strips]
