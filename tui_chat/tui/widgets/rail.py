"""The left rail of a wide screen: the runs with their steps, and the latest chats, one key away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from tui_chat.checkpoint.info import Run
from tui_chat.tui.rows import ChatRow, chat_rows, checkpoint_rows
from tui_chat.tui.widgets.row_list import RowList

LATEST = 50  # chats shown; Ctrl+F has them all


class Rail(Vertical):
    """Two lists. Enter or a click posts `CheckpointChosen` or `ChatChosen`."""

    DEFAULT_CSS = """
    Rail { width: 38; height: 1fr; background: $surface; padding: 0 1; }
    Rail Static { height: 1; color: $primary; text-style: bold; background: $surface; }
    Rail RowList { height: 1fr; }
    Rail #rail-chats { height: 1fr; }
    """

    class CheckpointChosen(Message):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

    class ChatChosen(Message):
        def __init__(self, chat_id: str) -> None:
            super().__init__()
            self.chat_id = chat_id

    def __init__(
        self,
        scan: Callable[[], Iterator[Run]],
        chats: Callable[[int], Iterable[ChatRow]],
        *,
        id: str | None = None,
    ) -> None:
        """`scan` is called in a thread, `chats` with how many at most in the screen's."""
        super().__init__(id=id)
        self._scan = scan
        self._chats = chats
        self._runs: list[Run] = []
        self._checkpoint = ""
        self._chat = ""
        self._scanning = threading.Lock()

    def compose(self) -> ComposeResult:
        yield Static(Content("RUNS"))
        yield RowList(empty="Looking …", id="rail-runs")
        yield Static(Content("CHATS"))
        yield RowList(empty="None yet.", id="rail-chats")

    def show(self, *, checkpoint: str, chat: str) -> None:
        """Mark what is open and read the chats anew; the runs too when another one is open."""
        look = checkpoint != self._checkpoint or not self._runs
        self._checkpoint, self._chat = checkpoint, chat
        self._fill()
        if look and self._scanning.acquire(blocking=False):
            threading.Thread(target=self._read, name="rail", daemon=True).start()

    def _read(self) -> None:
        try:
            runs = list(self._scan())
        except Exception:  # the edge of the thread; the picker says why
            runs = []
        finally:
            self._scanning.release()
        self.call_later(self._found, runs)

    def _found(self, runs: list[Run]) -> None:
        if self.is_attached:
            self._runs = runs
            self._fill()

    def _fill(self) -> None:
        if not self.display:
            return
        now, width = time.time(), max(20, self.size.width - 4)
        steps = self.query_one("#rail-runs", RowList)
        steps.set_rows(
            checkpoint_rows(self._runs, "", now, width, self._checkpoint),
            cursor=None if steps.has_focus else self._checkpoint or None,
            empty="None found." if self._runs else "Looking …",
        )
        chats = self.query_one("#rail-chats", RowList)
        chats.set_rows(
            chat_rows(self._chats(LATEST), "", now, width, self._chat),
            cursor=None if chats.has_focus else self._chat or None,
        )

    def on_row_list_chosen(self, event: RowList.Chosen) -> None:
        event.stop()
        if event.row_list.id == "rail-runs":
            self.post_message(self.CheckpointChosen(event.key))
        else:
            self.post_message(self.ChatChosen(event.key))

    def on_row_list_highlighted(self, event: RowList.Highlighted) -> None:
        event.stop()
