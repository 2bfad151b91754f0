"""The transcript: one virtualised widget for a whole conversation.

It draws only the rows on screen, keeps the strips it has drawn, and touches the last row alone when
text arrives, so that a token costs the same after 20,000 tokens and 10,000 messages as at first.
All text is drawn literally, through `tui_chat.display`; copying gives the original.
It has no border and no padding of its own: those belong on a parent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from tui_chat.tui.widgets.blocks import GUTTERS, Block, Flow, Kind
from tui_chat.tui.widgets.look import CHAT_VARIABLES, COMPONENTS, CSS
from tui_chat.tui.widgets.rows_view import RowsView

__all__ = ["CHAT_VARIABLES", "Block", "ConversationView", "Kind"]


class ConversationView(RowsView, can_focus=True):
    """Blocks of text in one scrollable column.

    It follows the end while the end is in view; once scrolled up it stays where it is and counts
    the rows that arrive below (`UnreadChanged`). With the focus, a block cursor moves over the
    messages (`BlockSelected`).
    """

    class BlockSelected(Message):
        """The block cursor is on another block; `block_id` None: it is gone."""

        def __init__(self, view: ConversationView, block_id: str | None) -> None:
            super().__init__()
            self.view = view
            self.block_id = block_id

        @property
        def control(self) -> ConversationView:
            return self.view

    class UnreadChanged(Message):
        """`rows` rows below the view have not been seen yet."""

        def __init__(self, view: ConversationView, rows: int) -> None:
            super().__init__()
            self.view = view
            self.rows = rows

        @property
        def control(self) -> ConversationView:
            return self.view

    DEFAULT_CSS = CSS
    COMPONENT_CLASSES: ClassVar[set[str]] = COMPONENTS

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "block_up", "Previous message", show=False, id="transcript.up"),
        Binding("down,j", "block_down", "Next message", show=False, id="transcript.down"),
        Binding("pageup", "page_up", "Page up", show=False, id="transcript.page_up"),
        Binding("pagedown", "page_down", "Page down", show=False, id="transcript.page_down"),
        Binding("home,ctrl+home", "top", "Begin", show=False, id="transcript.top"),
        Binding("end,ctrl+end", "bottom", "End", show=False, id="transcript.bottom"),
    ]

    def __init__(
        self,
        *,
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
        disabled: bool = False,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes, disabled=disabled)
        self._cursor: str | None = None
        self._writing: str | None = None

    # ---- reading

    @property
    def blocks(self) -> list[Block]:
        """All blocks, top to bottom, with the text they have now."""
        return list(self._layout)

    def __contains__(self, block_id: object) -> bool:
        return isinstance(block_id, str) and block_id in self._layout

    def block(self, block_id: str) -> Block:
        """The block with that id. Raises KeyError."""
        flow, index = self._layout.place(block_id)
        return flow.blocks[index]

    def text_of(self, block_id: str) -> str:
        """The original text of a block, as it was given."""
        return self.block(block_id).text

    @property
    def cursor(self) -> str | None:
        """The block under the block cursor."""
        return self._cursor

    # ---- changing

    def set_blocks(self, blocks: Iterable[Block]) -> None:
        """Show these blocks instead of all there are.

        What stood at the top of the view keeps its place if it is among them; else, and when the
        view was at its end, it goes to the end. The block cursor stays on its block.
        """
        anchor = self._anchor()
        self._layout.set(blocks)
        self._writing = None
        if anchor is None or anchor[0] not in self._layout:
            anchor = None
            self._following = True
        self._seen = min(self._seen, self._layout.height)
        self._restore(anchor)
        if self._cursor is not None and self._cursor not in self._layout:
            self._move_cursor(None)

    def append_block(self, block: Block) -> None:
        """Add a block at the end. Raises ValueError if its id is taken."""
        first = self._layout.add(block)
        self._grown(first)

    def insert_block(self, block: Block, before: str) -> None:
        """Add a block before another one; within raw text it begins a new line."""
        self._edit(lambda: self._layout.insert(block, before))

    def append_text(self, block_id: str, text: str) -> None:
        """Continue the text of a block; cheap for the last one. Raises KeyError."""
        if not text:
            return
        flow, row = self._layout.append(block_id, text)
        top = self._layout.top(flow)
        if flow.at == len(self._layout.flows) - 1:
            self._grown(top + row)
        else:
            self._keep_place_after(flow)

    def update_block(
        self,
        block_id: str,
        *,
        kind: Kind | None = None,
        text: str | None = None,
        header: str | None = None,
        detail: str | None = None,
        faint: bool | None = None,
    ) -> None:
        """Change parts of a block. Raises KeyError."""
        old = self.block(block_id)
        new = replace(
            old,
            kind=old.kind if kind is None else kind,
            text=old.text if text is None else text,
            header=old.header if header is None else header,
            detail=old.detail if detail is None else detail,
            faint=old.faint if faint is None else faint,
        )
        if new != old:
            self._edit(lambda: self._layout.replace(new))

    def remove_block(self, block_id: str) -> None:
        """Take a block out. Raises KeyError."""
        self._edit(lambda: self._layout.remove(block_id))
        if self._cursor == block_id:
            self._move_cursor(None)

    def clear(self) -> None:
        """Take everything out."""
        self.set_blocks(())

    def set_writing(self, block_id: str | None) -> None:
        """Draw the sign of a growing text at the end of a block; None: nowhere."""
        if block_id != self._writing:
            self._writing = block_id
            self.refresh()

    def select_block(self, block_id: str | None, *, scroll: bool = True) -> None:
        """Put the block cursor on a block, or away. Raises KeyError."""
        if block_id is not None and scroll:
            self._show_block(block_id)
        self._move_cursor(block_id)

    # ---- the block cursor

    def _selectable(self) -> list[str]:
        return [block.id for block in self._layout if block.selectable]

    def _move_cursor(self, block_id: str | None) -> None:
        if block_id == self._cursor:
            return
        if block_id is not None:
            self._layout.place(block_id)
        self._cursor = block_id
        self.refresh()
        if self.is_attached:
            self.post_message(self.BlockSelected(self, block_id))

    def _block_span(self, block_id: str) -> tuple[int, int]:
        """First row of a block and the row after its last."""
        flow, index = self._layout.place(block_id)
        first, last = flow.block_rows(index)
        top = self._layout.top(flow)
        return top + first, top + last

    def _show_block(self, block_id: str) -> None:
        first, last = self._block_span(block_id)
        top, height = self.scroll_offset.y, self.size.height
        if first < top or last - first > height:
            self._go(first)
        elif last > top + height:
            self._go(last - height)

    def _step(self, direction: int) -> None:
        ids = self._selectable()
        if not ids:
            return
        if self._cursor not in ids:
            self.select_block(ids[-1])
            return
        first, last = self._block_span(self._cursor)
        top, height = self.scroll_offset.y, self.size.height
        # A block taller than the view is read through before the cursor leaves it.
        goes_on = last > top + height and (first < top or last - first > height)
        if direction > 0 and goes_on:
            self._go(min(top + height // 2, last - height))
        elif direction < 0 and first < top < last:
            self._go(max(top - height // 2, first))
        else:
            at = ids.index(self._cursor) + direction
            if 0 <= at < len(ids):
                self.select_block(ids[at])
            elif at >= len(ids):
                self.follow()

    def on_focus(self) -> None:
        ids = self._selectable()
        if self._cursor is None and ids:
            self._move_cursor(ids[-1])
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()

    def on_click(self, event: events.Click) -> None:
        if not self._layout.flows:
            return
        y = self.scroll_offset.y + event.y
        if y < self._layout.height:
            flow, row = self._layout.find(y)
            line = max(0, row - flow.top_rows)
            x = event.x - GUTTERS[flow.kind]
            place = 0
            if line < len(flow.rows):
                start, end = flow.row_span(line)
                place = max(start, min(start + x, end - 1))
            block = flow.blocks[flow.block_at(place)]
            if block.selectable:
                self._move_cursor(block.id)

    def marks(self, flow: Flow, row: int) -> tuple[int, bool]:
        cursor = -1
        if self._cursor is not None and self.has_focus:
            at, index = self._layout.place(self._cursor)
            if at is flow:
                first, last = flow.block_rows(index)
                cursor = index if first <= row < last else -1
        return cursor, self._writing is not None and self._writing == flow.blocks[-1].id

    def unread_changed(self, rows: int) -> None:
        self.post_message(self.UnreadChanged(self, rows))

    def action_block_up(self) -> None:
        self._step(-1)

    def action_block_down(self) -> None:
        self._step(1)

    def action_page_up(self) -> None:
        self._go(self.scroll_offset.y - max(1, self.size.height - 2))

    def action_page_down(self) -> None:
        self._go(self.scroll_offset.y + max(1, self.size.height - 2))

    def action_top(self) -> None:
        self._go(0)

    def action_bottom(self) -> None:
        self.follow()
