"""The checkpoint picker: runs and their steps under the roots, type to filter, Enter opens.

The roots are scanned in a thread (headers only, no torch), so rows appear while it goes on. Files
that cannot be read stay in the list with the reason.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar

from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tui_chat.checkpoint.info import Run
from tui_chat.display import one_line, visible
from tui_chat.settings import user_path
from tui_chat.tui.rows import checkpoint_rows
from tui_chat.tui.widgets.row_list import RowList

Scan = Callable[[], Iterator[Run]]


class CheckpointPicker(ModalScreen[str | None]):
    """Answers with the path of the chosen checkpoint, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", show=False),
        Binding("ctrl+o,f2", "dismiss(None)", show=False, priority=True),
    ]

    DEFAULT_CSS = """
    CheckpointPicker { align: center middle; }
    CheckpointPicker > Vertical {
        width: 110; max-width: 100%; height: 90%; background: $surface; padding: 0 1;
        border: round $primary; border-title-color: $primary; border-subtitle-color: $chat-muted;
    }
    CheckpointPicker.-narrow > Vertical { height: 100%; }
    CheckpointPicker Input { margin-bottom: 1; }
    CheckpointPicker RowList { height: 1fr; }
    CheckpointPicker .card { height: auto; max-height: 4; color: $chat-muted; margin-top: 1; }
    """

    def __init__(self, scan: Scan, *, current: str = "", roots: Iterable[str] = ()) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]
        self._scan = scan
        self._current = current
        self._roots = tuple(roots)
        self._runs: list[Run] = []
        self._scanning = True
        self._left = threading.Event()

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content("Open a checkpoint")
            box.border_subtitle = Content("type to filter, or a path · Enter opens · Esc closes")
            yield Input(placeholder="filter, or the path of a file or directory", compact=True)
            yield RowList(empty="Looking …")
            yield Static("", classes="card", markup=False)

    def on_mount(self) -> None:
        threading.Thread(target=self._read, name="catalog", daemon=True).start()

    def on_unmount(self) -> None:
        self._left.set()

    def _read(self) -> None:
        """In a thread: gather runs and hand them over in batches."""
        batch: list[Run] = []
        sent = time.monotonic()
        try:
            for run in self._scan():
                if self._left.is_set():
                    return
                batch.append(run)
                if time.monotonic() - sent > 0.1:
                    self.call_later(self._add, batch, False)
                    batch, sent = [], time.monotonic()
        except Exception as error:  # the edge of the thread: shown, not lost
            self.call_later(self._failed, str(error))
        self.call_later(self._add, batch, True)

    def _failed(self, reason: str) -> None:
        self.notify(visible(reason), severity="error", markup=False)

    def _add(self, runs: list[Run], finished: bool) -> None:
        self._runs += runs
        self._scanning = not finished
        self._refill()

    def _refill(self) -> None:
        rows_widget = self.query_one(RowList)
        query = self.query_one(Input).value.strip()
        rows = checkpoint_rows(
            self._runs, query, time.time(), max(40, rows_widget.size.width - 2), self._current
        )
        if self._scanning:
            empty = "Looking …"
        elif query:
            empty = "Nothing matches. Enter opens what you typed as a path."
        else:
            places = ", ".join(one_line(root, 40) for root in self._roots)
            empty = f"No checkpoints under {places}. Type the path of one."
        rows_widget.set_rows(rows, cursor=rows_widget.cursor_key or self._current, empty=empty)

    def on_resize(self) -> None:
        if self.is_mounted:
            self._refill()

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._refill()

    def on_key(self, event: events.Key) -> None:
        if event.key in ("up", "down", "pageup", "pagedown") and isinstance(self.focused, Input):
            rows = self.query_one(RowList)
            event.stop()
            event.prevent_default()
            if event.key in ("up", "down"):
                rows.action_move(-1 if event.key == "up" else 1)
            else:
                rows.action_page(-1 if event.key == "pageup" else 1)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        key = self.query_one(RowList).cursor_key
        typed = event.value.strip()
        path = str(user_path(typed))
        if typed and (not key or ("/" in typed and os.path.exists(path))):
            self.dismiss(path)
        elif key:
            self.dismiss(key)

    def on_row_list_chosen(self, event: RowList.Chosen) -> None:
        event.stop()
        self.dismiss(event.key)

    def on_row_list_highlighted(self, event: RowList.Highlighted) -> None:
        event.stop()
        entry = next(
            (e for run in self._runs for e in run.checkpoints if e.path == event.key), None
        )
        card = self.query_one(".card", Static)
        if entry is None:
            card.update(Content(""))
            return
        facts = [visible(entry.path)]
        if entry.error:
            facts.append(visible(entry.error))
        else:
            losses = "  ".join(f"{name} {value:.4f}" for name, value in entry.losses.items())
            facts.append(
                "  ".join(
                    part
                    for part in (
                        entry.format,
                        f"{entry.parameters:,} parameters",
                        entry.dtype,
                        losses,
                    )
                    if part
                )
            )
            facts.append(f"fingerprint {entry.fingerprint}" if entry.fingerprint else "")
        card.update(Content("\n".join(facts)))
