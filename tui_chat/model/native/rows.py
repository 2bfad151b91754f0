"""A single row times a matrix by the compiled loops, for models whose step torch computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from tui_chat.model.native import tables
from tui_chat.model.native.crew import Crew
from tui_chat.model.native.kernels import even, multiply
from tui_chat.model.native.step import meet, share

KINDS = {
    torch.float32: tables.FLOAT32,
    torch.bfloat16: tables.BFLOAT16,
    torch.float16: tables.FLOAT16,
    torch.int8: tables.INT8,
}
WORTH_SHARING = 2**20  # weights: below, waking another thread costs more than it brings


@njit(nogil=True, cache=True, error_model="numpy")
def _run(matrices: Any, x: int, y: int, sync: int, met: int, rank: int, threads: int) -> None:
    by = matrices[0]
    first, last = share(by["rows"], rank, threads)
    multiply(by, x, 0, 1, y, 0, first, last)
    if threads > 1:
        meet(sync, met + threads)


@njit(nogil=True, cache=True, error_model="numpy")
def _run_even(
    numbers: int,
    scales: int,
    out: int,
    rows: int,
    columns: int,
    sync: int,
    met: int,
    rank: int,
    threads: int,
) -> None:
    first, last = share(rows, rank, threads)
    even(numbers, scales, out, columns, first, last)
    if threads > 1:
        meet(sync, met + threads)


_crew, _even_crew = Crew(_run), Crew(_run_even)


def described(weight: Tensor, scales: Tensor | None) -> Any:
    """A matrix (out, in), which lies so in memory, without a bias: (1,) MATRIX."""
    made = np.zeros(1, tables.MATRIX)
    one = made[0]
    one["weight"], one["kind"] = weight.data_ptr(), KINDS[weight.dtype]
    one["rows"], one["columns"] = weight.shape
    one["scales"] = 0 if scales is None else scales.data_ptr()
    return made


def row_product(weight: Tensor, scales: Tensor | None) -> Callable[[Tensor], Tensor]:
    """(1, in) -> (1, out) float32, for a matrix of `KINDS` that lies (out, in) on a CPU."""
    made, (count, columns) = described(weight, scales), weight.shape
    kept = weight, scales  # whose addresses are in the table
    shared = weight.numel() >= WORTH_SHARING

    def product(x: Tensor) -> Tensor:
        if x.shape[1] != columns or x.dtype != torch.float32:
            raise ValueError(f"a row {tuple(x.shape)} for a matrix {tuple(kept[0].shape)}")
        x = x.contiguous()
        y = torch.empty(1, count)
        threads = torch.get_num_threads() if shared else 1
        _crew(threads, (made, x.data_ptr(), y.data_ptr()))
        return y

    return product


def evened(numbers: Tensor, scales: Tensor) -> Tensor:
    """An int8 matrix (out, in) rounded again, to one scale a row: the largest of its groups'."""
    out = torch.empty_like(numbers)
    places = numbers.data_ptr(), scales.data_ptr(), out.data_ptr()
    _even_crew(torch.get_num_threads(), (*places, *numbers.shape))
    return out
