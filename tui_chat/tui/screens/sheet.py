"""A sheet to choose from: a line to filter by above a list of rows. Enter chooses, Esc leaves."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tui_chat.tui.widgets.row_list import Row, RowList


class Sheet(ModalScreen[str | None]):
    """Answers with the key of the chosen row, or None. A subclass says which rows there are."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close", show=False),
    ]

    DEFAULT_CSS = """
    Sheet { align: center middle; }
    Sheet > Vertical {
        width: 110; max-width: 100%; height: 90%; background: $surface; padding: 0 1;
        border: round $primary; border-title-color: $primary; border-subtitle-color: $chat-muted;
    }
    Sheet.-narrow > Vertical { height: 100%; }
    Sheet Input { margin-bottom: 1; }
    Sheet RowList { height: 1fr; }
    Sheet .card { display: none; height: auto; max-height: 4; color: $chat-muted; margin-top: 1; }
    """

    TITLE: ClassVar[str] = ""
    KEYS: ClassVar[str] = "Enter chooses · Esc closes"
    FILTER: ClassVar[str] = "filter"

    def __init__(self, *, current: str = "") -> None:
        """`current` is the key of the row that is marked as open."""
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self._current = current
        self._moved = False

    # ---- what a subclass says

    def rows(self, query: str, now: float, width: int) -> Sequence[Row]:
        """Rows that match; `now` is seconds since the epoch, `width` cells."""
        return ()

    def empty(self, query: str) -> str:
        """What to say when there are none."""
        return "Nothing matches." if query else "Nothing here."

    def card(self, key: str) -> str:
        """More about the row under the cursor, below the list."""
        return ""

    def moved_to(self, key: str) -> None:
        """The cursor is on another row."""

    def typed(self, text: str, key: str) -> str:
        """The answer to Enter with `text` in the filter and the cursor on `key`; "" for none."""
        return key

    # ---- the sheet

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self.TITLE)
            box.border_subtitle = Content(self.KEYS)
            yield Input(placeholder=self.FILTER, compact=True)
            yield RowList()
            yield Static("", classes="card", markup=False)

    def hint(self, text: str) -> None:
        """Words on the lower border."""
        self.query_one(Vertical).border_subtitle = Content(text)

    def refill(self) -> None:
        """Show the rows as they are now."""
        shown = self.query_one(RowList)
        query = self.query_one(Input).value.strip()
        rows = self.rows(query, time.time(), max(40, shown.size.width - 2))
        # On what is open, as rows come in, until the cursor is moved.
        cursor = shown.cursor_key if self._moved else self._current
        shown.set_rows(rows, cursor=cursor, empty=self.empty(query))

    def on_resize(self) -> None:
        if self.is_mounted:
            self.refill()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self.refill()

    def on_key(self, event: events.Key) -> None:
        self._moved = True
        if event.key in ("up", "down", "pageup", "pagedown") and isinstance(self.focused, Input):
            event.stop()
            event.prevent_default()
            shown = self.query_one(RowList)
            move = shown.action_move if event.key in ("up", "down") else shown.action_page
            move(-1 if event.key in ("up", "pageup") else 1)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if answer := self.typed(event.value.strip(), self.query_one(RowList).cursor_key):
            self.dismiss(answer)

    def on_row_list_chosen(self, event: RowList.Chosen) -> None:
        event.stop()
        self.dismiss(event.key)

    def on_row_list_highlighted(self, event: RowList.Highlighted) -> None:
        event.stop()
        self.moved_to(event.key)
        text = self.card(event.key)
        card = self.query_one(".card", Static)
        card.display = bool(text)
        card.update(Content(text))
