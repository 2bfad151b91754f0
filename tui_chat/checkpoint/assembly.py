"""From bytes in memory to the numbers of a tensor: dtypes, orders, scales, what is added.

Everything goes piece by piece, so that no second copy of a large tensor is ever held. The only
module of this package besides weights.py that works with torch.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tui_chat.checkpoint.reading import PIECE, Pieces, Stage
from tui_chat.checkpoint.tensors import ITEM_BYTES, TensorRef

if TYPE_CHECKING:
    import torch

_NUMBERS = PIECE // 4  # of a piece that is computed with, as float32

Numbers = Callable[[TensorRef], "tuple[torch.Tensor, int]"]
"""The numbers that were read for a tensor, in one dimension, and which of them is its first."""


def straight(place: torch.Tensor, ref: TensorRef) -> Pieces:
    """Memory for the bytes of a tensor whose numbers lie in order: `place` itself where they can
    stay as they come, else a stage from which they are converted and turned. `place` has the shape
    of the tensor."""
    import torch

    dtype = getattr(torch, ref.dtype)
    item = ITEM_BYTES[ref.dtype]
    whole = place.is_contiguous()

    def as_they_come(stage: Stage) -> Iterator[memoryview]:
        memory = _memory(place)
        for begin in range(0, len(memory), PIECE):
            yield memory[begin : begin + PIECE]

    def by_stage(stage: Stage) -> Iterator[memoryview]:
        # Of what lies in order, any run of numbers will do; else whole rows.
        to = place.view(-1) if whole else place
        row = 1 if whole else ref.numel // ref.shape[0]
        step = max(1, PIECE // (row * item))
        for begin in range(0, to.shape[0], step):
            there = to[begin : begin + step]
            memory = stage(there.numel() * item)
            yield memory
            numbers = torch.frombuffer(memory, dtype=dtype).view(there.shape)
            if there.device.type != "cpu":  # converted and turned over there
                numbers = numbers.to(there.device)
            elif not whole:
                # Turned over in the cache first: columns a power of two apart, as they are in most
                # models, would push one another out of it.
                turned = torch.frombuffer(stage(len(memory)), dtype=dtype).view(there.shape[::-1])
                numbers, there = turned.copy_(numbers.t()), there.t()
            there.copy_(numbers.float().add_(ref.plus) if ref.plus else numbers)

    stays = whole and place.dtype == dtype and place.device.type == "cpu" and not ref.plus
    return as_they_come if stays else by_stage


def held(buffer: torch.Tensor) -> Pieces:
    """Memory for bytes that `fill` will look at."""

    def pieces(stage: Stage) -> Iterator[memoryview]:
        memory = _memory(buffer)
        for begin in range(0, len(memory), PIECE):
            yield memory[begin : begin + PIECE]

    return pieces


def fill(place: torch.Tensor, ref: TensorRef, numbers: Numbers) -> None:
    """Write the numbers of `ref` to `place`, which has its shape and any dtype, device and
    layout."""
    import torch

    from tui_chat.checkpoint.quantised import decoded

    if not ref.numel:
        return
    stored, first = numbers(ref)
    walk, stride = (ref.grid or ref.shape, ref.stride) if ref.shape else ((1,), (1,))
    rows = ref.shape[0] if ref.shape else 1
    row, each = ref.numel // rows, ref.numel // walk[0]
    step = math.lcm(row, each)
    scales = None
    if ref.scales is not None:
        scales = _whole(ref.scales, numbers).float()
        step = math.lcm(step, ref.numel // scales.numel())
    changes = [
        (
            _whole(delta.up, numbers).float().mul_(delta.scale),
            _whole(delta.down, numbers).float(),
            delta.transposed,
        )
        for delta in ref.deltas
    ]
    count = max(1, _NUMBERS // step) * step
    for begin in range(0, ref.numel, count):
        end = min(begin + count, ref.numel)
        there = place[begin // row : end // row] if ref.shape else place
        if ref.encoding:
            packed = stored.view(rows, -1)[begin // row : end // row]
            piece = decoded(ref.encoding, packed.view(-1), tuple(there.shape))
        else:
            shape = ((end - begin) // each, *walk[1:])
            piece = torch.as_strided(stored, shape, stride, first + begin // each * stride[0])
        if scales is not None:
            group = ref.numel // scales.numel()
            by = scales.view(-1, 1)[begin // group : end // group]
            piece = piece.reshape(-1, group).float().mul_(by)
        piece = piece.reshape(there.shape)
        if changes or ref.plus:
            # In float32: what is added may be smaller than what 16 bits can tell apart.
            piece = piece.to(torch.float32, copy=True)
            for up, down, transposed in changes:
                some = slice(begin // row, end // row)
                piece += down[:, some].t() @ up.t() if transposed else up[some] @ down
            piece += ref.plus
        there.copy_(piece)


def _whole(ref: TensorRef, numbers: Numbers) -> torch.Tensor:
    """A small tensor in a memory of its own."""
    import torch

    result = torch.empty(ref.shape, dtype=getattr(torch, ref.dtype))
    fill(result, ref, numbers)
    return result


def _memory(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, to be written to. Not to be used after it."""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
