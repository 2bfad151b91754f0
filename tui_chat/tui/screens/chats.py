"""The saved chats: type to filter, open, rename, delete, undo a delete."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import ClassVar, Protocol

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input

from tui_chat.tui.rows import ChatRow, chat_rows
from tui_chat.tui.screens.dialogs import LineDialog
from tui_chat.tui.widgets.row_list import RowList


class ChatShelf(Protocol):
    """What this screen asks of the store of chats."""

    renamed: dict[str, str]  # titles given here that the chat on screen has not taken yet

    def chats(self, limit: int | None = None) -> Sequence[ChatRow]: ...
    def rename(self, chat_id: str, title: str) -> Future[None]: ...
    def delete(self, chat_id: str) -> Future[None]: ...
    def is_deleted(self, chat_id: str) -> bool: ...
    def undelete(self) -> tuple[str, Future[None]] | None:
        """Bring back the chat deleted last; None when there is none."""


class ChatsScreen(ModalScreen[str | None]):
    """Answers with the id of the chat to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Close", show=False),
        Binding("ctrl+f,f9", "dismiss(None)", show=False, priority=True),
        Binding("delete,ctrl+d", "delete", show=False, priority=True),
        Binding("ctrl+z", "undelete", show=False, priority=True),
        Binding("ctrl+r,f4", "rename", show=False, priority=True),
    ]

    DEFAULT_CSS = """
    ChatsScreen { align: center middle; }
    ChatsScreen > Vertical {
        width: 110; max-width: 100%; height: 90%; background: $surface; padding: 0 1;
        border: round $primary; border-title-color: $primary; border-subtitle-color: $chat-muted;
    }
    ChatsScreen.-narrow > Vertical { height: 100%; }
    ChatsScreen Input { margin-bottom: 1; }
    ChatsScreen RowList { height: 1fr; }
    """

    def __init__(self, shelf: ChatShelf, *, current: str = "") -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self._shelf = shelf
        self._current = current
        self._chats: Sequence[ChatRow] = ()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content("Saved chats")
            box.border_subtitle = Content(
                "Enter opens · ^R renames · Del deletes · ^Z undoes · Esc closes"
            )
            yield Input(placeholder="filter", compact=True)
            yield RowList(empty="No chats yet.")

    def on_mount(self) -> None:
        self._read()

    def _read(self) -> None:
        self._chats = self._shelf.chats()
        self._refill()

    def _refill(self) -> None:
        query = self.query_one(Input).value.strip()
        rows_widget = self.query_one(RowList)
        width = max(40, rows_widget.size.width - 2)
        rows = chat_rows(self._chats, query, time.time(), width, self._current)
        rows_widget.set_rows(rows, empty="Nothing matches." if query else "No chats yet.")

    def on_resize(self) -> None:
        if self.is_mounted:
            self._refill()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._refill()

    def on_key(self, event: events.Key) -> None:
        if event.key in ("up", "down", "pageup", "pagedown") and isinstance(self.focused, Input):
            event.stop()
            event.prevent_default()
            rows = self.query_one(RowList)
            move = rows.action_move if event.key in ("up", "down") else rows.action_page
            move(-1 if event.key in ("up", "pageup") else 1)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        if key := self.query_one(RowList).cursor_key:
            self.dismiss(key)

    def on_row_list_chosen(self, event: RowList.Chosen) -> None:
        event.stop()
        self.dismiss(event.key)

    def on_row_list_highlighted(self, event: RowList.Highlighted) -> None:
        event.stop()

    def action_delete(self) -> None:
        if key := self.query_one(RowList).cursor_key:
            self._once_done(self._shelf.delete(key))
            self.notify("Deleted. Ctrl+Z brings it back.", markup=False)

    def action_undelete(self) -> None:
        if back := self._shelf.undelete():
            self._once_done(back[1])

    def _once_done(self, change: Future[None]) -> None:
        """Read the list anew when the disk has the change. What fails is told by the store."""
        change.add_done_callback(lambda _: self.call_later(self._read))

    def action_rename(self) -> None:
        key = self.query_one(RowList).cursor_key
        if not key:
            return
        title = next((chat.title for chat in self._chats if chat.id == key), "")

        def renamed(answer: str | None) -> None:
            if answer:
                self._once_done(self._shelf.rename(key, answer))

        self.app.push_screen(LineDialog("Rename chat", title), renamed)
