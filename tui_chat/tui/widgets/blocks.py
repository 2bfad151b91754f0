"""What a transcript is made of: blocks of text, and the flows of rows they are laid out in.

A flow is one message, or all neighbouring raw blocks together: typed and continued text of raw mode
is one text whose rows cross the borders of its blocks. Knows nothing of colours or of the screen.
"""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

from tui_chat.display import Cleaner, sources
from tui_chat.tui.widgets.wrap import extend_rows, new_rows, row_text

Kind = Literal["user", "assistant", "system", "note", "error", "rule", "raw-typed", "raw-generated"]
RAW: frozenset[str] = frozenset({"raw-typed", "raw-generated"})


@dataclass(frozen=True, slots=True)
class Block:
    """One piece of a conversation.

    `header` stands above the text on the left, `detail` on the right (neither in raw blocks).
    `text` is the original: the view makes it safe to draw. `faint` marks what the model no longer
    sees. A rule is one dotted line with its text in the middle.
    """

    id: str
    kind: Kind
    text: str = ""
    header: str = ""
    detail: str = ""
    faint: bool = False

    @property
    def raw(self) -> bool:
        return self.kind in RAW

    @property
    def selectable(self) -> bool:
        """Whether the block cursor stops here."""
        return self.kind not in ("rule", "note")


# Cells before the text: room for the bar that tells the kinds apart.
GUTTERS: dict[str, int] = {kind: 1 if kind in RAW else 2 for kind in Kind.__args__}  # type: ignore[attr-defined]
MARGIN = 1  # cells after the text

_serials = itertools.count()


class Flow:
    """Blocks that share one text, and its rows at one width.

    Rows count from 0: first `gap` empty ones, then the header if there is one, then the text.
    `at` is the flow's place in its layout.
    """

    __slots__ = (
        "_cleaner", "at", "blocks", "borders", "gap", "rows", "serial", "shown", "width",
    )  # fmt: skip

    def __init__(self, blocks: Iterable[Block], width: int) -> None:
        """`width` is that of the whole view in cells."""
        self.serial = next(_serials)
        self.at = 0
        self.gap = 0
        self.blocks: list[Block] = []
        self.borders: list[int] = []  # where in `shown` each block begins
        self.shown = ""
        self.width = 0
        self.rows = new_rows()
        self._cleaner = Cleaner()
        for block in blocks:
            self.join(block)
        self.wrap(width)

    @property
    def kind(self) -> Kind:
        return self.blocks[0].kind

    @property
    def header_rows(self) -> int:
        first = self.blocks[0]
        return 1 if (first.header or first.detail) and not first.raw else 0

    @property
    def top_rows(self) -> int:
        return self.gap + self.header_rows

    @property
    def height(self) -> int:
        return self.gap + 1 if self.kind == "rule" else self.top_rows + len(self.rows)

    def wrap(self, width: int) -> None:
        """Lay the text out for a view of `width` cells."""
        self.width = max(1, width - GUTTERS[self.kind] - MARGIN)
        self.rows = new_rows()
        if self.kind != "rule":
            extend_rows(self.rows, self.shown, self.width)

    def join(self, block: Block) -> None:
        """Append a block to the flow. The rows are brought up to date by the next `append`."""
        self.blocks.append(block)
        self.borders.append(len(self.shown))
        self.shown += self._cleaner.feed(block.text)
        if block.text == self.shown:
            self.shown = block.text  # one string in memory where nothing had to be made safe

    def append(self, piece: str) -> int:
        """Append to the last block. Returns the first text row that changed."""
        last = self.blocks[-1]
        same = last.text is self.shown
        cleaned = self._cleaner.feed(piece)
        self.blocks[-1] = replace(last, text=last.text + piece)
        if same and cleaned == piece:
            self.shown = self.blocks[-1].text
        else:
            self.shown += cleaned
        first = len(self.rows) - 1
        extend_rows(self.rows, self.shown, self.width)
        return first

    def row_span(self, row: int) -> tuple[int, int]:
        """The part of `shown` that text row `row` holds."""
        end = self.rows[row + 1] if row + 1 < len(self.rows) else len(self.shown)
        return self.rows[row], end

    def row_of(self, place: int) -> int:
        """The text row that holds index `place` of `shown`."""
        return bisect_right(self.rows, place) - 1

    def block_at(self, place: int) -> int:
        """Which block the index `place` of `shown` belongs to."""
        return bisect_right(self.borders, place) - 1

    def block_rows(self, index: int) -> tuple[int, int]:
        """First row and the row after the last one of a block, header included, gap not."""
        start = self.gap if index == 0 else self.top_rows + self.row_of(self.borders[index])
        if index + 1 == len(self.blocks):
            return start, self.height
        return start, self.top_rows + self.row_of(max(0, self.borders[index + 1] - 1)) + 1

    def index_at(self, row: int, x: int) -> int:
        """The index in `shown` of character `x` of a row as drawn, gutter included."""
        line = row - self.top_rows
        if line < 0 or not self.shown:
            return 0
        if line >= len(self.rows):
            return len(self.shown)
        start, end = self.row_span(line)
        _, places = row_text(self.shown, start, end)
        at = max(0, x - GUTTERS[self.kind])
        return places[at] if at < len(places) else end

    def original(self, start: int, end: int) -> str:
        """The original text behind `shown[start:end]`."""
        text = "".join(block.text for block in self.blocks)
        if start == 0 and end >= len(self.shown):
            return text
        if start >= end:
            return ""
        places = sources(text)
        return text[places[start] : places[end] if end < len(places) else len(text)]
