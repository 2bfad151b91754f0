"""A column of rows that grows at its end: scrolling, following, drawing, copying.

What the rows are made of and which of them are marked is the business of a subclass.
"""

from __future__ import annotations

from collections.abc import Callable

from textual import events
from textual.geometry import Offset, Region, Size
from textual.scroll_view import ScrollView
from textual.scrollbar import ScrollBar
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from tui_chat.tui.widgets.blocks import Flow
from tui_chat.tui.widgets.layout import Layout
from tui_chat.tui.widgets.look import look_of
from tui_chat.tui.widgets.strips import CachedScrollBar, Painter


class RowsView(ScrollView):
    """Draws the rows of a `Layout` that are in view, from strips that are kept.

    It stays at its end while rows arrive, unless it was scrolled up; then it counts them.
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
        disabled: bool = False,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes, disabled=disabled)
        self._layout = Layout()
        self._painter: Painter | None = None
        self._following = True
        self._seen = 0  # rows from the top that have been in view
        self._unread = 0

    # ---- for the subclass

    def marks(self, flow: Flow, row: int) -> tuple[int, bool]:
        """For a row: the block of its flow under the cursor (-1: none), whether it is growing."""
        return -1, False

    def unread_changed(self, rows: int) -> None:
        """`rows` rows below the view have not been seen."""

    # ---- reading

    @property
    def following(self) -> bool:
        """Whether the view stays at the end while text arrives."""
        return self._following

    @property
    def unread(self) -> int:
        """Rows below the view that have not been seen."""
        return self._unread

    def follow(self) -> None:
        """Go to the end and stay there while text arrives."""
        self._following = True
        self._to_end()
        self._note_seen()

    # ---- growth and scrolling

    def _grown(self, first: int) -> None:
        """The rows from `first` to the end are new or changed."""
        self._set_height()
        if self._following:
            before = self.scroll_offset.y
            self._to_end()
            if self.scroll_offset.y == before:
                self._refresh_from(first)
        else:
            self._refresh_from(first)
        self._note_seen()

    def _refresh_from(self, first: int) -> None:
        bottom = self.scroll_offset.y + self.size.height
        if first < bottom:
            first = max(first, self.scroll_offset.y)
            self.refresh_lines(first, bottom - first)

    def _set_height(self) -> None:
        """Tell the scroll bar. Assigning virtual_size would lay out the whole screen again."""
        size = Size(self._layout.width, self._layout.height)
        if size != self.virtual_size:
            self.set_reactive(Widget.virtual_size, size)
            if self.is_attached:
                self._scroll_update(size)

    def _go(self, y: float) -> None:
        if self.is_attached:
            self.scroll_to(y=y, animate=False)

    def _to_end(self) -> None:
        self._go(self.max_scroll_y)

    def _edit(self, change: Callable[[], None]) -> None:
        """Make a change anywhere, keeping the row at the top of the view in its place."""
        anchor = self._anchor()
        change()
        self._restore(anchor)

    def _anchor(self) -> tuple[str, int, int] | None:
        """What stands at the top of the view: a block, an index in its text, rows from there."""
        if self._following or not self._layout.flows:
            return None
        flow, row = self._layout.find(self.scroll_offset.y)
        line = max(0, min(row - flow.top_rows, len(flow.rows) - 1))
        place = flow.rows[line]
        index = flow.block_at(place)
        return flow.blocks[index].id, place - flow.borders[index], row - flow.top_rows - line

    def _restore(self, anchor: tuple[str, int, int] | None) -> None:
        self._set_height()
        if anchor is None or anchor[0] not in self._layout:
            if self._following:
                self._to_end()
        else:
            flow, index = self._layout.place(anchor[0])
            line = flow.row_of(min(flow.borders[index] + anchor[1], len(flow.shown)))
            y = self._layout.top(flow) + max(0, flow.top_rows + line + anchor[2])
            self._go(min(y, self.max_scroll_y))
        self.refresh()
        self._note_seen()

    def _keep_place_after(self, flow: Flow) -> None:
        """A flow in the middle has grown: rows below it moved."""
        below = self._layout.top(flow) + flow.height <= self.scroll_offset.y
        grown = self._layout.height - self.virtual_size.height
        self._set_height()
        if self._following:
            self._to_end()
        elif below and grown:
            self._go(self.scroll_offset.y + grown)
        self.refresh()
        self._note_seen()

    def _resized(self) -> None:
        """Everything may have changed."""
        self._painter = None
        self._set_height()
        if self._following:
            self._to_end()
        self._seen = min(self._seen, self._layout.height)
        self._note_seen()
        self.refresh()

    def _note_seen(self) -> None:
        height = self._layout.height
        if self._following or not self.size:
            self._seen = height
        else:
            self._seen = max(self._seen, self.scroll_offset.y + self.size.height)
        unread = max(0, height - self._seen)
        if unread != self._unread:
            self._unread = unread
            if self.is_attached:
                self.unread_changed(unread)

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        super().watch_scroll_y(old_value, new_value)
        self._following = round(new_value) >= self.max_scroll_y
        self._note_seen()

    def on_resize(self, event: events.Resize) -> None:
        width = self.scrollable_content_region.width
        if width != self._layout.width and width > 0:
            anchor = self._anchor()
            seen_all = self._seen >= self._layout.height
            self._layout.rewrap(width)
            self._painter = None
            self._seen = self._layout.height if seen_all else 0
            self._restore(anchor)
        else:
            self._resized()

    def notify_style_update(self) -> None:
        super().notify_style_update()
        self._painter = None

    # ---- selecting text with the mouse

    @property
    def allow_select(self) -> bool:
        return True

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The original text under the selection; soft-wrapped rows are joined, headers left out."""
        if not self._layout.flows:
            return None
        last_row = self._layout.height - 1
        start = selection.start or Offset(0, 0)
        end = selection.end or Offset(1 << 30, last_row)
        text = self._layout.text_between((start.y, start.x), (min(end.y, last_row), end.x))
        return (text, "\n") if text else None

    # ---- drawing

    @property
    def vertical_scrollbar(self) -> ScrollBar:
        if self._vertical_scrollbar is None:
            bar = CachedScrollBar(
                vertical=True, name="vertical", thickness=self.scrollbar_size_vertical
            )
            self._vertical_scrollbar = bar
            bar.display = False
            self.app._start_widget(self, bar)
        return self._vertical_scrollbar

    def render_line(self, y: int) -> Strip:
        return self._rows(y, y + 1)[0]

    def render_lines(self, crop: Region) -> list[Strip]:
        # Not through the styles cache, which would make a new strip of each row on every frame.
        self._styles_cache._dirty_lines.clear()
        self._dirty_regions.clear()
        strips = self._rows(crop.y, crop.bottom)
        if crop.x or crop.width != self.size.width:
            strips = [strip.crop(crop.x, crop.right) for strip in strips]
        return strips

    def _rows(self, first: int, stop: int) -> list[Strip]:
        """Strips of rows of the view, numbered from its top."""
        painter, layout = self._painter, self._layout
        if painter is None or painter.look.width != self.size.width:
            painter = self._painter = Painter(look_of(self, layout.width))
        scroll, height = self.scroll_offset.y, layout.height
        selection = self.text_selection
        strips: list[Strip] = []
        for y in range(scroll + first, scroll + stop):
            if y >= height:
                strips.append(painter.blank())
                continue
            flow, row = layout.find(y)
            cursor, writing = self.marks(flow, row)
            selected = selection.get_span(y) if selection is not None else None
            strip = painter.row(flow, row, cursor=cursor, selected=selected, writing=writing)
            # The place of each character, by which Textual tells what the mouse selects.
            strips.append(strip.apply_offsets(0, y))
        return strips
