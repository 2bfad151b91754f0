"""Which row of the transcript belongs to which block: flows, with their heights summed up."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

from tui_chat.tui.widgets.blocks import Block, Flow


class Layout:
    """All flows of a transcript, top to bottom, at one width."""

    def __init__(self, width: int = 1) -> None:
        self.width = width
        self.flows: list[Flow] = []
        self._flow_of: dict[str, Flow] = {}
        self._tops: list[int] = [0]  # first row of each flow, and the total; may end early

    # ---- reading

    @property
    def height(self) -> int:
        """Rows of everything."""
        self._sum()
        return self._tops[-1]

    def __contains__(self, block_id: str) -> bool:
        return block_id in self._flow_of

    def __iter__(self) -> Iterator[Block]:
        return (block for flow in self.flows for block in flow.blocks)

    def top(self, flow: Flow) -> int:
        """The first row of a flow, its gap included."""
        if flow.at >= len(self._tops):
            self._sum()
        return self._tops[flow.at]

    def find(self, y: int) -> tuple[Flow, int]:
        """The flow at row `y` and the row within it. The layout must not be empty."""
        self._sum()
        at = min(bisect_right(self._tops, max(0, y)) - 1, len(self.flows) - 1)
        return self.flows[at], y - self._tops[at]

    def place(self, block_id: str) -> tuple[Flow, int]:
        """A block's flow and its index there. Raises KeyError."""
        flow = self._flow_of[block_id]
        if len(flow.blocks) == 1:
            return flow, 0
        return flow, next(i for i, block in enumerate(flow.blocks) if block.id == block_id)

    def text_between(self, start: tuple[int, int], end: tuple[int, int]) -> str:
        """The original text between two (row, character of the row) as drawn, gutters counted.

        Rows that were wrapped are joined, headers left out, messages parted by an empty line.
        """
        first_flow, first_row = self.find(start[0])
        last_flow, last_row = self.find(end[0])
        out = ""
        for flow in self.flows[first_flow.at : last_flow.at + 1]:
            low, high = 0, len(flow.shown)
            if flow is first_flow:
                low = flow.index_at(first_row, start[1])
            if flow is last_flow:
                high = flow.index_at(last_row, end[1])
            if text := flow.original(low, high):
                out += ("\n\n" if flow.gap else "\n") * bool(out) + text
        return out

    def _sum(self) -> None:
        known = len(self._tops) - 1
        if known < len(self.flows):
            heights = (flow.height for flow in self.flows[known:])
            self._tops[known:] = accumulate(heights, initial=self._tops[known])

    # ---- changing

    def set(self, blocks: Iterable[Block]) -> None:
        self.flows = []
        self._flow_of = {}
        self._tops = [0]
        self._splice(0, 0, blocks)

    def rewrap(self, width: int) -> None:
        self.width = width
        for flow in self.flows:
            flow.wrap(width)
        self._tops = [0]

    def changed(self, flow: Flow) -> None:
        """To be called when the height of a flow has changed."""
        del self._tops[flow.at + 1 :]

    def add(self, block: Block) -> int:
        """Append a block. Returns the first row that changed."""
        if block.id in self._flow_of:
            raise ValueError(f"there is a block {block.id!r} already")
        last = self.flows[-1] if self.flows else None
        if last is not None and last.blocks[-1].raw and block.raw:
            last.join(block)
            first = self.top(last) + last.top_rows + last.append("")
            self._flow_of[block.id] = last
            self.changed(last)
            return first
        first = self.height
        self._splice(len(self.flows), len(self.flows), [block])
        return first

    def insert(self, block: Block, before: str) -> None:
        """Put a block before another one. A raw flow is parted there if the block is none."""
        if block.id in self._flow_of:
            raise ValueError(f"there is a block {block.id!r} already")
        flow, index = self.place(before)
        blocks = [*flow.blocks[:index], block, *flow.blocks[index:]]
        self._regroup(flow.at, flow.at + 1, blocks)

    def remove(self, block_id: str) -> None:
        flow, index = self.place(block_id)
        del self._flow_of[block_id]
        self._regroup(flow.at, flow.at + 1, [*flow.blocks[:index], *flow.blocks[index + 1 :]])

    def replace(self, block: Block) -> None:
        """Put `block` in the place of the one with its id."""
        flow, index = self.place(block.id)
        blocks = [*flow.blocks[:index], block, *flow.blocks[index + 1 :]]
        self._regroup(flow.at, flow.at + 1, blocks)

    def append(self, block_id: str, piece: str) -> tuple[Flow, int]:
        """Append text to a block. Returns its flow and the first row of the flow that changed."""
        flow, index = self.place(block_id)
        if index + 1 < len(flow.blocks):
            block = flow.blocks[index]
            self.replace(replace(block, text=block.text + piece))
            return self._flow_of[block_id], 0
        before = len(flow.rows)
        first = flow.append(piece)
        if len(flow.rows) != before:
            self.changed(flow)
        return flow, flow.top_rows + first

    def _regroup(self, start: int, stop: int, blocks: Sequence[Block]) -> None:
        """Lay out anew flows `start` to `stop`, whose blocks are now `blocks`."""
        # What is raw at an end may now belong to a raw neighbour.
        if start and self.flows[start - 1].blocks[-1].raw:
            start -= 1
            blocks = [*self.flows[start].blocks, *blocks]
        if stop < len(self.flows) and self.flows[stop].blocks[0].raw:
            blocks = [*blocks, *self.flows[stop].blocks]
            stop += 1
        self._splice(start, stop, blocks)

    def _splice(self, start: int, stop: int, blocks: Iterable[Block]) -> None:
        fresh: list[Flow] = []
        for raw, group in groupby(blocks, key=lambda block: block.raw):
            if raw:
                fresh.append(Flow(group, self.width))
            else:
                fresh.extend(Flow((block,), self.width) for block in group)
        self.flows[start:stop] = fresh
        for flow in fresh:
            for block in flow.blocks:
                self._flow_of[block.id] = flow
        # The flow after the new ones may need another gap; all later ones another number.
        for at in range(start, len(self.flows)):
            flow = self.flows[at]
            flow.at = at
            if at <= start + len(fresh):
                flow.gap = _gap(self.flows[at - 1] if at else None, flow)
        del self._tops[start + 1 :]


def _gap(above: Flow | None, flow: Flow) -> int:
    """Empty rows between two flows."""
    if above is None:
        return 0
    kinds = {above.kind, flow.kind}
    if "rule" in kinds and (above.blocks[-1].raw or flow.blocks[0].raw):
        return 0
    return 0 if kinds == {"note"} else 1
