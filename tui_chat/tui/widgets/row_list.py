"""A list of one-line rows that stays quick with many thousands of them: only what is on screen is
drawn.

Rows are literal text in pieces with a role each (text, strong, muted, accent, error, heading);
nothing is markup.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

ROLES = ("text", "strong", "muted", "accent", "error", "heading")


@dataclass(frozen=True, slots=True)
class Row:
    """`key` names the row to whoever made it; a row without a key is a heading the cursor passes
    over.
    """

    key: str
    pieces: tuple[tuple[str, str], ...]  # (text, role), already cleaned for display


class RowList(ScrollView, can_focus=True):
    """Rows with a cursor. Posts `Highlighted` when it moves and `Chosen` on Enter or a click."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", show=False),
        Binding("down,j", "move(1)", show=False),
        Binding("pageup", "page(-1)", show=False),
        Binding("pagedown", "page(1)", show=False),
        Binding("home,g", "edge(0)", show=False),
        Binding("end,G", "edge(1)", show=False),
        Binding("enter", "choose", show=False),
    ]

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"row-list--{role}" for role in ROLES} | {
        "row-list--cursor"
    }

    DEFAULT_CSS = """
    RowList { background: $surface; scrollbar-size-vertical: 1; overflow-x: hidden; }
    RowList .row-list--text { color: $foreground; }
    RowList .row-list--strong { color: $foreground; text-style: bold; }
    RowList .row-list--muted { color: $chat-muted; }
    RowList .row-list--accent { color: $accent; }
    RowList .row-list--error { color: $chat-error; }
    RowList .row-list--heading { color: $primary; text-style: bold; }
    RowList .row-list--cursor { background: $primary 25%; }
    """

    class Highlighted(Message):
        def __init__(self, row_list: RowList, key: str) -> None:
            super().__init__()
            self.row_list = row_list
            self.key = key

        @property
        def control(self) -> RowList:
            return self.row_list

    class Chosen(Highlighted):
        pass

    def __init__(self, *, empty: str = "", id: str | None = None) -> None:
        super().__init__(id=id)
        self._rows: Sequence[Row] = ()
        self._empty = empty
        self._cursor = -1

    # ---- rows

    @property
    def cursor_key(self) -> str:
        """The key under the cursor, "" when there is none."""
        return self._rows[self._cursor].key if 0 <= self._cursor < len(self._rows) else ""

    def set_rows(
        self, rows: Sequence[Row], *, cursor: str | None = None, empty: str | None = None
    ) -> None:
        """Show `rows`, the cursor on key `cursor`, else where it was by key, else on the first."""
        wanted = cursor or self.cursor_key
        self._rows = rows
        if empty is not None:
            self._empty = empty
        self._cursor = next((i for i, row in enumerate(rows) if row.key and row.key == wanted), -1)
        if self._cursor < 0:
            self._cursor = next((i for i, row in enumerate(rows) if row.key), -1)
        self.virtual_size = Size(self.scrollable_content_region.width, max(1, len(rows)))
        self._show_cursor()
        self.refresh()
        self._announce()

    def _announce(self) -> None:
        self.post_message(self.Highlighted(self, self.cursor_key))

    def _show_cursor(self) -> None:
        if self._cursor >= 0:
            above = (
                1 if self._cursor and not self._rows[self._cursor - 1].key else 0
            )  # keep its heading in sight
            self.scroll_to_region(Region(0, self._cursor - above, 1, 1 + above), animate=False)

    def _put_cursor(self, index: int, direction: int) -> None:
        index = max(0, min(len(self._rows) - 1, index))
        while 0 <= index < len(self._rows) and not self._rows[index].key:
            index += direction
        if 0 <= index < len(self._rows) and index != self._cursor:
            self._cursor = index
            self._show_cursor()
            self.refresh()
            self._announce()

    def on_resize(self) -> None:
        self._show_cursor()

    # ---- keys and mouse

    def action_move(self, by: int) -> None:
        if self._rows:
            self._put_cursor(self._cursor + by, by)

    def action_page(self, by: int) -> None:
        if self._rows:
            self._put_cursor(self._cursor + by * max(1, self.size.height - 1), by)

    def action_edge(self, end: int) -> None:
        if self._rows:
            self._put_cursor(len(self._rows) - 1 if end else 0, -1 if end else 1)

    def action_choose(self) -> None:
        if self.cursor_key:
            self.post_message(self.Chosen(self, self.cursor_key))

    def on_click(self, event: events.Click) -> None:
        index = event.y + self.scroll_offset.y
        if 0 <= index < len(self._rows) and self._rows[index].key:
            self._put_cursor(index, 1)
            self.action_choose()

    # ---- drawing

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        index = y + self.scroll_offset.y
        base = self.rich_style
        if not self._rows and y == 0 and self._empty:
            muted = base + self.get_component_rich_style("row-list--muted", partial=True)
            return Strip([Segment(f" {self._empty}", muted)]).adjust_cell_length(width, base)
        if index >= len(self._rows):
            return Strip.blank(width, base)
        row = self._rows[index]
        if index == self._cursor:
            cursor = self.get_component_rich_style("row-list--cursor")
            base = base + Style(bgcolor=cursor.bgcolor, bold=self.has_focus or None)
        segments = [Segment("▌" if index == self._cursor else " ", base)]
        for text, role in row.pieces:
            segments.append(Segment(text, base + self._role_style(role)))
        return Strip(segments).adjust_cell_length(width, base)

    def _role_style(self, role: str) -> Style:
        style = self.get_component_rich_style(f"row-list--{role}", partial=True)
        return Style(color=style.color, bold=style.bold)


def column(text: str, width: int, *, right: bool = False) -> str:
    """`text` cut or padded to `width` cells."""
    length = cell_len(text)
    if length > width:
        kept = ""
        for character in text:
            if cell_len(kept) + cell_len(character) > width - 1:
                break
            kept += character
        text, length = kept + "…", cell_len(kept) + 1
    pad = " " * max(0, width - length)
    return pad + text if right else text + pad
