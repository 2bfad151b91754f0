"""The transcript: one virtualised widget for a whole conversation.

It draws only the rows on screen, keeps the strips it has drawn, and touches the last row alone when
text arrives, so that a token costs the same after 20,000 tokens and 10,000 messages as at the start.
All text is drawn literally, through `tui_chat.display`; copying gives the original.
It has no border and no padding of its own: those belong on a parent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import ClassVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.scrollbar import ScrollBar
from textual.selection import Selection
from textual.strip import Strip
from textual.widget import Widget

from tui_chat.tui.widgets.blocks import GUTTERS, Block, Flow, Kind
from tui_chat.tui.widgets.layout import Layout
from tui_chat.tui.widgets.strips import CachedScrollBar, Look, Painter
from tui_chat.tui.widgets.wrap import row_text

__all__ = ["CHAT_VARIABLES", "Block", "ConversationView", "Kind"]

# Defaults of the theme variables drawn with. They suit dark and light; themes bring their own.
CHAT_VARIABLES: dict[str, str] = {
    "chat-user": "#3f93d6",
    "chat-assistant": "#3f9c6b",
    "chat-system": "#9a78c8",
    "chat-muted": "auto 65%",
    "chat-error": "#d9534f",
}

_KINDS: tuple[Kind, ...] = (
    "user", "assistant", "system", "note", "error", "rule", "raw-typed", "raw-generated",
)  # fmt: skip


class ConversationView(ScrollView, can_focus=True):
    """Blocks of text in one scrollable column.

    It follows the end while the end is in view; once scrolled up it stays where it is and counts the
    rows that arrive below (`UnreadChanged`). With the focus, a block cursor moves over the messages
    (`BlockSelected`).
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

    DEFAULT_CSS = """
    ConversationView {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        scrollbar-background-hover: $background;
        scrollbar-background-active: $background;
        background: $background;
        color: $foreground;

        & > .conversation--user { color: $chat-user; }
        & > .conversation--user-head { color: $chat-user; text-style: bold; }
        & > .conversation--assistant { color: $foreground; }
        & > .conversation--assistant-head { color: $chat-assistant; text-style: bold; }
        & > .conversation--system { color: $chat-system; text-style: italic; }
        & > .conversation--system-head { color: $chat-system; text-style: bold; }
        & > .conversation--note { color: $chat-muted; }
        & > .conversation--error { color: $chat-error; }
        & > .conversation--error-head { color: $chat-error; text-style: bold; }
        & > .conversation--rule { color: $chat-muted; }
        & > .conversation--raw-typed { color: $chat-user; text-style: bold; }
        & > .conversation--raw-generated { color: $foreground; }
        & > .conversation--detail { color: $chat-muted; }
        & > .conversation--faint { color: $chat-muted; }
        & > .conversation--cursor { background: $primary 14%; }
        & > .conversation--cursor-bar { color: $accent; text-style: bold; }
        & > .conversation--writing { color: $accent; }
    }
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *(f"conversation--{kind}" for kind in _KINDS),
        "conversation--user-head",
        "conversation--assistant-head",
        "conversation--system-head",
        "conversation--error-head",
        "conversation--detail",
        "conversation--faint",
        "conversation--cursor",
        "conversation--cursor-bar",
        "conversation--writing",
    }

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
        self._layout = Layout()
        self._painter: Painter | None = None
        self._following = True
        self._seen = 0  # rows from the top that have been in view
        self._unread = 0
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
    def following(self) -> bool:
        """Whether the view stays at the end while text arrives."""
        return self._following

    @property
    def unread(self) -> int:
        """Rows below the view that have not been seen."""
        return self._unread

    @property
    def cursor(self) -> str | None:
        """The block under the block cursor."""
        return self._cursor

    # ---- changing

    def set_blocks(self, blocks: Iterable[Block]) -> None:
        """Show these blocks and go to the end."""
        self._layout.set(blocks)
        self._following = True
        self._writing = None
        self._move_cursor(None)
        self._resized()

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

    def follow(self) -> None:
        """Go to the end and stay there while text arrives."""
        self._following = True
        self._to_end()
        self._note_seen()

    def select_block(self, block_id: str | None, *, scroll: bool = True) -> None:
        """Put the block cursor on a block, or away. Raises KeyError."""
        if block_id is not None and scroll:
            self._show_block(block_id)
        self._move_cursor(block_id)

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

    def _to_end(self) -> None:
        self.scroll_to(y=self.max_scroll_y, animate=False)

    def _edit(self, change: object) -> None:
        """Make a change anywhere, keeping the row at the top of the view in its place."""
        assert callable(change)
        anchor = self._anchor()
        change()
        self._restore(anchor)

    def _anchor(self) -> tuple[str, int, int] | None:
        """What stands at the top of the view: a block, an index in its flow's text, rows above it."""
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
            self.scroll_to(y=min(y, self.max_scroll_y), animate=False)
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
            self.scroll_to(y=self.scroll_offset.y + grown, animate=False)
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
            self.post_message(self.UnreadChanged(self, unread))

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
            self.scroll_to(y=first, animate=False)
        elif last > top + height:
            self.scroll_to(y=last - height, animate=False)

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
        if direction > 0 and top <= first and last > top + height and last - first > height:
            self.scroll_to(y=min(top + height // 2, last - height), animate=False)
        elif direction > 0 and first < top and last > top + height:
            self.scroll_to(y=min(top + height // 2, last - height), animate=False)
        elif direction < 0 and first < top < last:
            self.scroll_to(y=max(top - height // 2, first), animate=False)
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

    def action_block_up(self) -> None:
        self._step(-1)

    def action_block_down(self) -> None:
        self._step(1)

    def action_page_up(self) -> None:
        self.scroll_to(y=self.scroll_offset.y - max(1, self.size.height - 2), animate=False)

    def action_page_down(self) -> None:
        self.scroll_to(y=self.scroll_offset.y + max(1, self.size.height - 2), animate=False)

    def action_top(self) -> None:
        self.scroll_to(y=0, animate=False)

    def action_bottom(self) -> None:
        self.follow()

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
        first_flow, first_row = self._layout.find(start.y)
        last_flow, final_row = self._layout.find(min(end.y, last_row))
        parts: list[tuple[Flow, str]] = []
        for flow in self._layout.flows[first_flow.at : last_flow.at + 1]:
            low, high = 0, len(flow.shown)
            if flow is first_flow:
                low = _place(flow, first_row, start.x)
            if flow is last_flow:
                high = _place(flow, final_row, end.x)
            if text := flow.original(low, high):
                parts.append((flow, text))
        if not parts:
            return None
        out = parts[0][1]
        for (above, _), (flow, text) in zip(parts, parts[1:], strict=False):
            out += ("\n\n" if flow.gap and above.gap is not None else "\n") + text
        return out, "\n"

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

    def _look(self) -> Look:
        component = self.get_component_rich_style
        text: dict[str, Style] = {kind: component(f"conversation--{kind}") for kind in _KINDS}
        head = {
            kind: component(f"conversation--{kind}-head")
            for kind in ("user", "assistant", "system", "error")
        }
        head["note"] = head["rule"] = text["note"]
        cursor = self.get_component_styles("conversation--cursor").background
        background = self.background_colors[1]
        return Look(
            width=self.size.width,
            inner=self._layout.width,
            base=self.rich_style,
            text=text,
            bar={**text, **head},
            head=head,
            detail=component("conversation--detail"),
            faint=component("conversation--faint"),
            cursor=Style(bgcolor=(background + cursor).rich_color),
            cursor_bar=component("conversation--cursor-bar"),
            writing=component("conversation--writing"),
            selection=self.screen.get_component_rich_style("screen--selection"),
            background=background,
            filters=self.get_line_filters(),
        )

    def render_line(self, y: int) -> Strip:
        if self._painter is None or self._painter.look.width != self.size.width:
            self._painter = Painter(self._look())
        y += self.scroll_offset.y
        if y >= self._layout.height:
            return self._painter.blank()
        flow, row = self._layout.find(y)
        cursor = -1
        if self._cursor is not None and self.has_focus:
            at, index = self._layout.place(self._cursor)
            if at is flow:
                first, last = flow.block_rows(index)
                cursor = index if first <= row < last else -1
        selection = self.text_selection
        strip = self._painter.row(
            flow,
            row,
            cursor=cursor,
            selected=selection.get_span(y) if selection is not None else None,
            writing=self._writing is not None and self._writing == flow.blocks[-1].id,
        )
        return strip.apply_offsets(0, y)

    def render_lines(self, crop: Region) -> list[Strip]:
        # Not through the styles cache, which would make a new strip of each row on every frame.
        self._styles_cache._dirty_lines.clear()
        self._dirty_regions.clear()
        strips = [self.render_line(y) for y in range(crop.y, crop.bottom)]
        if crop.x or crop.width != self.size.width:
            strips = [strip.crop(crop.x, crop.right) for strip in strips]
        return strips


def _place(flow: Flow, row: int, x: int) -> int:
    """The index in `flow.shown` of character `x` (gutter included) of a row of the flow."""
    line = row - flow.top_rows
    if line < 0 or not flow.shown:
        return 0
    if line >= len(flow.rows):
        return len(flow.shown)
    start, end = flow.row_span(line)
    _, places = row_text(flow.shown, start, end)
    at = x - GUTTERS[flow.kind]
    if at >= len(places):
        return end
    return places[max(0, at)]
