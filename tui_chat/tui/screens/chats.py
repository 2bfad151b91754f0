"""The saved chats: type to filter, open, rename, delete, undo a delete."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import ClassVar, Protocol

from textual.binding import Binding, BindingType

from tui_chat.tui.rows import ChatRow, chat_rows
from tui_chat.tui.screens.dialogs import LineDialog
from tui_chat.tui.screens.sheet import Sheet
from tui_chat.tui.widgets.row_list import Row, RowList


class ChatShelf(Protocol):
    """What this screen asks of the store of chats."""

    renamed: dict[str, str]  # titles given here that the chat on screen has not taken yet

    def chats(self, limit: int | None = None) -> Sequence[ChatRow]: ...
    def rename(self, chat_id: str, title: str) -> Future[None]: ...
    def delete(self, chat_id: str) -> Future[None]: ...
    def is_deleted(self, chat_id: str) -> bool: ...
    def undelete(self) -> tuple[str, Future[None]] | None:
        """Bring back the chat deleted last; None when there is none."""


class ChatsScreen(Sheet):
    """Answers with the id of the chat to open, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+f,f9", "dismiss(None)", show=False, priority=True),
        Binding("delete,ctrl+d", "delete", show=False, priority=True),
        Binding("ctrl+z", "undelete", show=False, priority=True),
        Binding("ctrl+r,f4", "rename", show=False, priority=True),
    ]

    TITLE = "Saved chats"
    KEYS = "Enter opens · ^R renames · Del deletes · ^Z undoes · Esc closes"

    def __init__(self, shelf: ChatShelf, *, current: str = "") -> None:
        super().__init__(current=current)
        self._shelf = shelf
        self._chats: Sequence[ChatRow] = ()

    def on_mount(self) -> None:
        self._read()

    def _read(self) -> None:
        self._chats = self._shelf.chats()
        self.refill()

    def rows(self, query: str, now: float, width: int) -> Sequence[Row]:
        return chat_rows(self._chats, query, now, width, self._current)

    def empty(self, query: str) -> str:
        return "Nothing matches." if query else "No chats yet."

    def action_delete(self) -> None:
        if key := self.query_one(RowList).cursor_key:
            self._once_done(self._shelf.delete(key))
            self.hint("Deleted · ^Z brings it back")

    def action_undelete(self) -> None:
        self.hint(self.KEYS)
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
