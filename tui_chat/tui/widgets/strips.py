"""Turns rows of a transcript into strips of styled cells, and keeps those that were drawn.

A strip that is kept holds its rendered form too, so that a row that scrolls costs next to nothing.
What a strip depends on is its key: rows that grow or get selected are drawn anew, others are found.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.cache import LRUCache
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region
from textual.scrollbar import ScrollBar, ScrollBarRender
from textual.strip import Strip

from tui_chat.display import one_line
from tui_chat.tui.widgets.blocks import GUTTERS, MARGIN, Flow
from tui_chat.tui.widgets.wrap import row_text

# Kinds differ by a sign before the text, not by colour alone.
BARS: Mapping[str, str] = {
    "user": "▌ ", "assistant": "  ", "system": "┊ ", "note": "· ", "error": "! ", "rule": "  ",
    "raw-typed": " ", "raw-generated": " ",
}  # fmt: skip
_CURSOR_BARS = {1: "┃", 2: "┃ "}
WRITING = "▌"
_KEPT_STRIPS = 1024


@dataclass(frozen=True)
class Look:
    """The styles of a view. `text`, `bar` and `head` are by kind of block.

    Rows are `width` cells wide, of which the scroll bar covers those after `inner`.
    """

    width: int
    inner: int
    base: Style
    text: Mapping[str, Style]
    bar: Mapping[str, Style]
    head: Mapping[str, Style]
    detail: Style
    faint: Style
    cursor: Style
    cursor_bar: Style
    writing: Style
    selection: Style
    background: Color
    filters: Sequence[LineFilter] = field(default_factory=tuple)


class Painter:
    """Draws rows with one look; a new look forgets every strip."""

    def __init__(self, look: Look) -> None:
        self.look = look
        self._strips: LRUCache[object, Strip] = LRUCache(_KEPT_STRIPS)

    def blank(self) -> Strip:
        key = "blank"
        if (strip := self._strips.get(key)) is None:
            self._strips[key] = strip = self._done([], 0)
        return strip

    def row(
        self,
        flow: Flow,
        row: int,
        *,
        cursor: int = -1,
        selected: tuple[int, int] | None = None,
        writing: bool = False,
    ) -> Strip:
        """The strip of row `row` of a flow.

        `cursor` is the block under the block cursor (-1: none), `selected` a range of characters
        of the row as drawn (end -1: to the end), `writing` draws the sign of a growing text.
        """
        if row < flow.gap:
            return self.blank()
        line = row - flow.top_rows
        key: object
        if line < 0 or flow.kind == "rule":
            key = (flow.blocks[0], cursor, selected)
        else:
            start, end = flow.row_span(line)
            writing = writing and line + 1 == len(flow.rows)
            key = (flow.serial, start, end, line, cursor, selected, writing)
        strip = self._strips.get(key)
        if strip is None:
            if flow.kind == "rule":
                strip = self._rule(flow)
            elif line < 0:
                strip = self._header(flow, cursor == 0, selected)
            else:
                strip = self._text(flow, line, cursor, selected, writing)
            self._strips[key] = strip
        return strip

    # ---- drawing

    def _done(self, segments: list[Segment], cells: int) -> Strip:
        if cells < self.look.width:
            segments.append(Segment(" " * (self.look.width - cells), self.look.base))
        strip = Strip(segments, max(cells, self.look.width))
        for line_filter in self.look.filters:
            strip = strip.apply_filter(line_filter, self.look.background)
        return strip

    def _gutter(self, kind: str, cursor: bool) -> Segment:
        look = self.look
        if cursor:
            return Segment(_CURSOR_BARS[GUTTERS[kind]], look.cursor_bar)
        return Segment(BARS[kind], look.bar[kind])

    def _rule(self, flow: Flow) -> Strip:
        text = one_line(flow.blocks[0].text, self.look.inner - 8)
        if not text:
            text = "┄" * max(0, self.look.inner - 2)
        room = max(0, self.look.inner - 2 - cell_len(text))
        if room > 4:
            left = (room - 2) // 2
            text = f"{'┄' * left} {text} {'┄' * (room - 2 - left)}"
        text = " " + set_cell_size(text, max(0, self.look.inner - 2))
        return self._done([Segment(text, self.look.text["rule"])], cell_len(text))

    def _header(self, flow: Flow, cursor: bool, selected: tuple[int, int] | None) -> Strip:
        look, block = self.look, flow.blocks[0]
        room = max(0, look.inner - GUTTERS[block.kind] - MARGIN)
        left = one_line(block.header, room)
        detail = one_line(block.detail, max(1, room - cell_len(left) - 2))
        if cell_len(left) + 2 + cell_len(detail) > room:
            detail = ""
        space = room - cell_len(left) - cell_len(detail)
        head, right = look.head[block.kind], look.detail
        base = look.base
        if block.faint:
            head = right = look.faint
        if cursor:
            head, right, base = head + look.cursor, right + look.cursor, base + look.cursor
        pieces = [(left, head), (" " * space, base), (detail, right)]
        segments = [self._gutter(block.kind, cursor)]
        segments += [Segment(text, style) for text, style in pieces if text]
        if selected is not None:
            segments = _overlaid(segments, selected, look.selection)
        return self._done(segments, GUTTERS[block.kind] + room)

    def _text(
        self, flow: Flow, line: int, cursor: int, selected: tuple[int, int] | None, writing: bool
    ) -> Strip:
        look = self.look
        start, end = flow.row_span(line)
        text, places = row_text(flow.shown, start, end)
        cells = cell_len(text)
        if cells > flow.width:  # hanging spaces, or a character wider than the view
            text = text.rstrip(" ")
            cells = cell_len(text)
            if cells > flow.width:
                text = set_cell_size(text, flow.width)
                cells = flow.width
        first = flow.block_at(start)
        segments = [self._gutter(flow.blocks[first].kind, cursor == first)]
        at = 0
        for index in range(first, len(flow.blocks)):
            border = flow.borders[index + 1] if index + 1 < len(flow.blocks) else end
            until = len(text) if border >= end else min(len(text), bisect_left(places, border))
            if until > at:
                block = flow.blocks[index]
                style = look.faint if block.faint else look.text[block.kind]
                if index == cursor:
                    style = style + look.cursor
                segments.append(Segment(text[at:until], style))
                at = until
            if border >= end:
                break
        cells += GUTTERS[flow.kind]
        if writing and cells < look.inner:
            segments.append(Segment(WRITING, look.writing))
            cells += 1
        if cursor >= 0 and cells < look.inner and not flow.blocks[0].raw:
            rest = look.inner - cells
            segments.append(Segment(" " * rest, look.base + look.cursor))
            cells += rest
        if selected is not None:
            segments = _overlaid(segments, selected, look.selection)
        return self._done(segments, cells)


def _overlaid(
    segments: list[Segment], selected: tuple[int, int], selection: Style
) -> list[Segment]:
    """Segments with the style of a selection on a range of characters, never on the gutter."""
    start, end = selected
    out = segments[:1]
    at = len(segments[0].text)
    start = max(start, at)
    for text, style, _ in segments[1:]:
        cuts = (start - at, (len(text) if end < 0 else end - at))
        low, high = (max(0, min(len(text), cut)) for cut in cuts)
        if low >= high:
            out.append(Segment(text, style))
        else:
            lit = selection if style is None else style + selection
            parts = ((text[:low], style), (text[low:high], lit), (text[high:], style))
            out += [Segment(part, part_style) for part, part_style in parts if part]
        at += len(text)
    return out


class CachedScrollBar(ScrollBar):
    """A vertical scroll bar that is drawn from a few strips which are kept.

    The stock one makes a strip for each of its rows on every frame of a growing text: half of the
    cost of the frame.
    """

    _drawn: tuple[object, list[Strip]] | None = None
    _cells: dict[object, Strip]
    _cells_of: object = None

    def render_lines(self, crop: Region) -> list[Strip]:
        self._styles_cache._dirty_lines.clear()
        self._dirty_regions.clear()
        bar = self.render()
        if not isinstance(bar, ScrollBarRender):
            return super().render_lines(crop)
        height = self.size.height
        style = cast("Style", bar.style)
        filters = self.get_line_filters()
        look = (height, bar.virtual_size, bar.window_size, bar.position, style, tuple(filters))
        if self._drawn is None or self._drawn[0] != look:
            if self._cells_of != look[4:]:
                self._cells_of = look[4:]
                self._cells = {}
            segments = bar.render_bar(
                size=height,
                virtual_size=bar.virtual_size,
                window_size=bar.window_size,
                position=bar.position,
                thickness=bar.thickness,
                back_color=style.bgcolor or Color.parse("black").rich_color,
                bar_color=style.color or Color.parse("white").rich_color,
            ).segments
            cells = self._cells
            strips: list[Strip] = []
            for segment in segments:
                strip = cells.get(segment)
                if strip is None:
                    strip = Strip([segment], bar.thickness)
                    for line_filter in filters:
                        strip = strip.apply_filter(line_filter, self.background_colors[1])
                    cells[segment] = strip
                strips.append(strip)
            self._drawn = (look, strips)
        return self._drawn[1][crop.y : crop.bottom]
