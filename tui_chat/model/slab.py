"""The memory of a cache: the rows of those layers that see equally far, in one tensor, for then a
single call makes the views of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

# Rows are allocated in steps of so many, or an eighth of what is there if that is more. Copying
# what is there then costs a token little beside its attention, which reads all of it; at most an
# eighth of a large cache is room not yet used.
STEP = 256

# A layer with a window keeps what a reply or question taken back by at most so many tokens needs,
# and moves its rows up once in so many more.
BACK = 768
SLACK = 256

_TINY = torch.finfo(torch.float32).tiny


class Span(Protocol):
    """A layer's places for the keys and values of the next tokens, which follow what it holds."""

    def put(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        """Write keys over values (2, 1, n_kv_head, T, head_dim) -> all keys and all values that the
        T queries may see: (1, n_kv_head, S, head_dim) each, the last row being the last query's.
        S is min(window - 1, tokens before) + T, or all.
        """
        ...


class _Exact(NamedTuple):
    slot: Tensor
    keys: Tensor
    values: Tensor

    def put(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        self.slot.copy_(kv)
        return self.keys, self.values


class _Quantised(NamedTuple):
    """8 bits a number and a scale for each row of each head: (head_dim + 4) / (4 head_dim) of
    float32's memory. Of 959 tokens of a play the demo's base model finds the same one likeliest in
    99.6 % (with bfloat16 throughout 99.3 %); logits are off by 0.26 % of their spread (0.44 %).
    """

    slot: Tensor
    scales: Tensor  # of the slot
    rows: Tensor
    row_scales: Tensor
    dtype: torch.dtype

    def put(self, kv: Tensor) -> tuple[Tensor, Tensor]:
        wide = kv.float()
        scales = wide.abs().amax(-1).div_(127).clamp_min_(_TINY)
        self.scales.copy_(scales)
        self.slot.copy_(wide.div(scales[..., None]).round_())
        # What is read is what others will read: any cutting of a text gives the same.
        read = self.rows.float().mul_(self.row_scales[..., None]).to(self.dtype)
        return read[0], read[1]


class Slab:
    """`data` (layers, 2, 1, n_kv_head, capacity, head_dim), whose first row is the position
    `origin`. Rows of positions not seen yet hold nothing of use.
    """

    def __init__(
        self,
        numbers: list[int],
        window: int,
        limit: int,
        shape: tuple[int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        quantised: bool,
    ) -> None:
        """For the layers `numbers`; `window` 0: they see all of the `limit` positions. `shape`:
        n_kv_head, head_dim.
        """
        self.numbers = numbers
        self.window = window
        self.origin = 0
        self._limit = limit
        self._most = min(limit, window - 1 + BACK + SLACK) if window else limit  # rows
        self._shape, self._dtype, self._device = shape, dtype, device
        self._quantised = quantised
        self.data, self.scales = self._allocated(0)

    def _allocated(self, rows: int) -> tuple[Tensor, Tensor | None]:
        heads, dim = self._shape
        size = (len(self.numbers), 2, 1, heads, rows)
        dtype = torch.int8 if self._quantised else self._dtype
        data = torch.empty((*size, dim), dtype=dtype, device=self._device)
        if not self._quantised:
            return data, None
        return data, torch.empty(size, dtype=torch.float32, device=self._device)

    @property
    def capacity(self) -> int:
        return self.data.shape[4]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def bytes_for(self, length: int) -> int:
        """What the first `length` tokens take, read in pieces of ordinary size."""
        return min(self._most, self._rows(length)) * self._row_bytes

    def seen_bytes(self, length: int) -> int:
        """What a token behind `length` others sees."""
        return (min(length, self.window) if self.window else length) * self._row_bytes

    @property
    def _row_bytes(self) -> int:
        heads, dim = self._shape
        row = dim + 4 if self._quantised else dim * self._dtype.itemsize
        return len(self.numbers) * 2 * heads * row

    def _rows(self, needed: int) -> int:
        """The size, in a fixed row of sizes, that holds `needed` rows."""
        rows = 0
        while rows < needed:
            rows += max(STEP, rows // 8 // STEP * STEP)
        return min(rows, self._limit)

    def reaches(self, length: int) -> bool:
        """Whether all is there that the token behind the first `length` ones may see."""
        return self.origin <= max(0, length - self.window + 1) or length == 0

    def reserve(self, start: int, end: int) -> bool:
        """Make room for the positions up to `end`, when those before `start` are filled; True if
        that took another allocation. Called only where there is none.
        """
        if end - self.origin <= self._most:
            self._resize(self.origin, start, min(self._most, self._rows(end - self.origin)))
            return True
        # What the queries from `start` on see, and those after something is taken back.
        first = max(self.origin, min(start, end - BACK) - self.window + 1)
        # A very long piece takes more room than usual, until rows move again.
        rows = max(self._most, end - first)
        if rows != self.capacity:
            self._resize(first, start, rows)
            return True
        begin, count = first - self.origin, start - first
        for held in (self.data, self.scales):
            if held is not None:
                moved = held.narrow(4, begin, count)
                held.narrow(4, 0, count).copy_(moved.clone() if begin < count else moved)
        self.origin = first
        return False

    def _resize(self, first: int, end: int, rows: int) -> None:
        """Allocate anew, with the rows of the positions from `first` to `end`."""
        data, scales = self.data, self.scales
        self.data, self.scales = self._allocated(rows)
        begin, count = first - self.origin, end - first
        for new, old in ((self.data, data), (self.scales, scales)):
            if new is not None and old is not None and count > 0:
                new.narrow(4, 0, count).copy_(old.narrow(4, begin, count))
        self.origin = first

    def take_from(self, other: Slab, length: int) -> bool:
        """Hold the first `length` tokens of another one; True if that took another allocation."""
        first = 0
        if self.window and length:
            first = max(other.origin, length - BACK - self.window + 1, 0)
        rows = min(self._most, self._rows(length - first))
        grown = self.capacity < length - first
        if grown:
            self.data, self.scales = self._allocated(rows)
        self.origin = first
        begin, count = first - other.origin, length - first
        for new, old in ((self.data, other.data), (self.scales, other.scales)):
            if new is not None and old is not None and count > 0:
                new.narrow(4, 0, count).copy_(old.narrow(4, begin, count))
        return grown

    def spans(self, start: int, end: int) -> Sequence[Span]:
        """Of each layer, for the positions from `start` to `end`."""
        first = max(0, start - self.window + 1) if self.window else 0
        at, count = start - self.origin, end - start
        begin, seen = first - self.origin, end - first
        data, scales = self.data, self.scales
        slots = data.narrow(4, at, count).unbind(0)
        if scales is None:
            rows = data.narrow(4, begin, seen).flatten(0, 1).unbind(0)
            return list(map(_Exact, slots, rows[::2], rows[1::2]))
        return [
            _Quantised(*parts, self._dtype)
            for parts in zip(
                slots,
                scales.narrow(4, at, count).unbind(0),
                data.narrow(4, begin, seen).unbind(0),
                scales.narrow(4, begin, seen).unbind(0),
                strict=True,
            )
        ]


class Layer:
    """One layer's part of a slab. Ask for `data` and `scales` anew when the cache's version has
    changed.
    """

    __slots__ = ("_at", "_slab")

    def __init__(self, slab: Slab, at: int) -> None:
        self._slab, self._at = slab, at

    @property
    def data(self) -> Tensor:
        """(2, 1, n_kv_head, capacity, head_dim), contiguous."""
        return self._slab.data[self._at]

    @property
    def scales(self) -> Tensor | None:
        """(2, 1, n_kv_head, capacity) float32, None unless quantised."""
        scales = self._slab.scales
        return None if scales is None else scales[self._at]

    @property
    def origin(self) -> int:
        """The position of row 0."""
        return self._slab.origin
