"""The checkpoint picker: runs and their steps under the roots, type to filter, Enter opens.

The roots are scanned in a thread (headers only, no torch), so rows appear while it goes on. Files
that cannot be read stay in the list with the reason.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widgets import Input

from tui_chat.checkpoint.info import CatalogEntry, CheckpointInfo, Run
from tui_chat.display import one_line, visible
from tui_chat.settings import user_path
from tui_chat.tui.draft import LOOKUP
from tui_chat.tui.rows import checkpoint_rows
from tui_chat.tui.screens.card import CheckpointCard
from tui_chat.tui.screens.sheet import Sheet
from tui_chat.tui.widgets.row_list import Row, RowList

Scan = Callable[[], Iterator[Run]]
Describe = Callable[[str], CheckpointInfo]


class CheckpointPicker(Sheet):
    """Answers with the path of the chosen checkpoint, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+o,f2", "dismiss(None)", show=False, priority=True),
        Binding("f5", "card", show=False, priority=True),
        Binding("f7", "draft", show=False, priority=True),
        Binding("f8", "lookup", show=False, priority=True),
    ]

    TITLE = "Open a checkpoint"
    KEYS = "Enter opens · F5 all about it · F7 drafts · F8 lookup · Esc closes"
    FILTER = "filter, or the path of a file or directory"

    def __init__(
        self,
        scan: Scan,
        describe: Describe,
        *,
        current: str = "",
        draft: str = "",
        lookup: bool = False,
        on_draft: Callable[[str], None] = lambda answer: None,
        roots: Iterable[str] = (),
    ) -> None:
        """`draft` is the path of the checkpoint that drafts; `on_draft` takes that of another one,
        or LOOKUP, and is called with the same again to end it.
        """
        super().__init__(current=current)
        self._draft, self._lookup, self._on_draft = draft, lookup, on_draft
        self._scan = scan
        self._describe = describe
        self._roots = tuple(roots)
        self._runs: list[Run] = []
        self._scanning = True
        self._left = threading.Event()

    def on_mount(self) -> None:
        if self._lookup:
            self.hint(self.KEYS.replace("F8 lookup", "F8 ends lookup"))
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
        self.refill()

    def action_card(self) -> None:
        """All that is known of the checkpoint under the cursor, or at the path that was typed."""
        typed = self.query_one(Input).value.strip()
        path = self.typed(typed, self.query_one(RowList).cursor_key)
        if path:
            self.app.push_screen(CheckpointCard(lambda: self._describe(path)))

    def action_draft(self) -> None:
        """The checkpoint under the cursor, or at the path that was typed, drafts for the open
        one.
        """
        typed = self.query_one(Input).value.strip()
        if path := self.typed(typed, self.query_one(RowList).cursor_key):
            self._on_draft(path)
            self.dismiss(None)

    def action_lookup(self) -> None:
        self._on_draft(LOOKUP)
        self.dismiss(None)

    # ---- the sheet

    def rows(self, query: str, now: float, width: int) -> Sequence[Row]:
        return checkpoint_rows(self._runs, query, now, width, self._current, self._draft)

    def empty(self, query: str) -> str:
        if self._scanning:
            return "Looking …"
        if query:
            return "Nothing matches. Enter opens what you typed as a path."
        places = ", ".join(one_line(root, 40) for root in self._roots)
        return f"No checkpoints under {places}. Type the path of one."

    def typed(self, text: str, key: str) -> str:
        path = str(user_path(text))
        if text and (not key or ("/" in text and os.path.exists(path))):
            return path
        return key

    def card(self, key: str) -> str:
        entries = (entry for run in self._runs for entry in run.checkpoints)
        entry = next((entry for entry in entries if entry.path == key), None)
        return "" if entry is None else _facts(entry)


def _facts(entry: CatalogEntry) -> str:
    """What is known of a checkpoint, on a few lines."""
    if entry.error:
        return visible(f"{entry.path}\n{entry.error}")
    losses = (f"{name} {value:.4f}" for name, value in entry.losses.items())
    facts = [entry.format, f"{entry.parameters:,} parameters", entry.dtype, *losses]
    return visible(
        "\n".join(
            (
                entry.path,
                "  ".join(fact for fact in facts if fact),
                f"fingerprint {entry.fingerprint}" if entry.fingerprint else "",
            )
        )
    )
