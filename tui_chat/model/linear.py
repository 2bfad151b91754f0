"""Matrices as their device multiplies them fastest, for a model that talks spends its time on
exactly that.

A dense matrix keeps the numbers of the file. A held one (int8, float16 or bfloat16 beside float32
activations; CPU only) takes a quarter or half of the bytes, which is what a token costs. All have
the same three ways of being used. Knows no model.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.model.native import ready
from tui_chat.model.native.ready import GROUP
from tui_chat.pages import PAGES

Map = Callable[[Tensor], Tensor]
Precision = Literal["dense", "int8", "float16", "bfloat16"]


class Linear(Protocol):
    """y = x @ weight + bias."""

    @property
    def rows(self) -> int:
        """How many numbers y has."""
        ...

    def many(self, x: Tensor) -> Tensor:
        """(T, in) -> (T, out)."""
        ...

    def into(self, out: Tensor) -> Map:
        """For a single row: the product written to `out` (1, out), whose views can then be made
        once and for all.
        """
        ...

    def onto(self, x: Tensor) -> Map:
        """For a single row: the product added to `x` (1, out)."""
        ...


Make = Callable[[Tensor, Tensor | None], Linear]


class Matrix:
    """A dense matrix; `weight` is (in, out)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.weight, self.bias = weight, bias
        self.rows = weight.shape[1]
        natural = weight.dtype == torch.float32 and weight.t().is_contiguous()
        self._row = _Row(weight.t(), None) if natural else None

    def many(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)

    def into(self, out: Tensor) -> Map:
        weight, bias, row = self.weight, self.bias, self._row

        def product(x: Tensor) -> Tensor:
            if row is not None and (fast := row.fast()) is not None:
                return out.copy_(fast(x)) if bias is None else torch.add(fast(x), bias, out=out)
            if bias is None:
                return torch.mm(x, weight, out=out)
            return torch.addmm(bias, x, weight, out=out)

        return product

    def onto(self, x: Tensor) -> Map:
        weight, bias, row = self.weight, self.bias, self._row

        def product(made: Tensor) -> Tensor:
            if row is not None and (fast := row.fast()) is not None:
                x.add_(fast(made))
            else:
                x.addmm_(made, weight)
            return x if bias is None else x.add_(bias)

        return product


class _Row:
    """The compiled product of one row with a matrix (out, in), once it can be had."""

    def __init__(self, weight: Tensor, scales: Tensor | None) -> None:
        self._matrix = weight, scales
        self._fast: Map | None = None

    def fast(self) -> Map | None:
        if self._fast is None:
            self._fast = ready.row_product(*self._matrix)
        return self._fast


def matrix(weight: Tensor, bias: Tensor | None) -> Matrix:
    """From the canonical (out, in), as it lies."""
    return Matrix(weight.t(), bias)


def turned(weight: Tensor, bias: Tensor | None) -> Matrix:
    """The same, lying (in, out) in memory where that helps: a float32 row times such a matrix is
    half as fast again on a CPU, when torch multiplies them.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return Matrix(weight.t().contiguous(), bias)
    return matrix(weight, bias)


class Held:
    """A matrix (out, in) in fewer bits than the float32 activations it is used with. `scales` are
    those of int8, (out, groups of GROUP columns).
    """

    def __init__(
        self, weight: Tensor, scales: Tensor | None, bias: Tensor | None, product: Map
    ) -> None:
        """`product`: (T, in) -> (T, out) float32, without the bias."""
        self.weight, self.scales = weight, scales
        self.bias = None if bias is None else bias.float()
        self.rows = weight.shape[0]
        self._several = product
        self._row = _Row(weight, scales)

    def _product(self, x: Tensor) -> Tensor:
        if x.shape[0] == 1 and (fast := self._row.fast()) is not None:
            return fast(x)
        return self._several(x)

    def many(self, x: Tensor) -> Tensor:
        made = self._product(x)
        return made if self.bias is None else made.add_(self.bias)

    def into(self, out: Tensor) -> Map:
        run, bias = self._product, self.bias
        if bias is None:
            return lambda x: out.copy_(run(x))
        return lambda x: torch.add(run(x), bias, out=out)

    def onto(self, x: Tensor) -> Map:
        run, bias = self._product, self.bias
        if bias is None:
            return lambda made: x.add_(run(made))
        return lambda made: x.add_(run(made)).add_(bias)


_TINY = torch.finfo(torch.float32).tiny


def row_scales(rows: Tensor) -> Tensor:
    """By which rows (..., n) are divided to lie in [-127, 127]: (...,) float32."""
    return rows.abs().amax(-1).float().clamp_min_(_TINY).div_(127)


def _grouped(rows: Tensor) -> Tensor:
    """(out, in) -> (out, groups, GROUP), zeros filling up the last."""
    missing = -rows.shape[1] % GROUP
    padded = F.pad(rows, (0, missing)) if missing else rows
    return padded.reshape(rows.shape[0], -1, GROUP)


def _rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """(out, in) in 8 bits, and the scales of its groups (out, groups)."""
    made = PAGES.empty(weight.shape, torch.int8)
    scales = PAGES.empty((weight.shape[0], -(-weight.shape[1] // GROUP)), torch.float32)
    for at in range(0, len(made), 4096):  # in pieces: of a large table float32 would be too much
        groups = _grouped(weight[at : at + 4096].float())
        each = scales[at : at + 4096] = row_scales(groups)
        numbers = groups.div(each[..., None]).round_().to(torch.int8)
        made[at : at + 4096] = numbers.flatten(1)[:, : weight.shape[1]]
    return made, scales


def int8(weight: Tensor, bias: Tensor | None) -> Held:
    """8 bits a weight with one scale for 64 neighbours in a row of (out, in).

    A few rows of activations stay float32, as in the compiled step. Many are rounded to 8 bits as
    well, a scale each, and the weights to one scale a row, where the processor multiplies such
    numbers four times as fast.
    """
    numbers, scales = _rounded(weight)
    exact = _widening(numbers, scales)
    if not _fast_int8():
        return Held(numbers, scales, bias, exact)
    largest = scales.amax(1)
    parts = (scales / largest[:, None])[..., None]
    width = weight.shape[1]

    def product(x: Tensor) -> Tensor:
        if x.shape[0] <= ready.MOST_ROWS:
            return exact(x)
        each = row_scales(x)[:, None]
        rounded = x.div(each).round_().to(torch.int8)
        even = ready.evened(numbers, scales)
        if even is None:
            groups = torch.mul(_grouped(numbers), parts).round_().to(torch.int8)
            even = groups.flatten(1)[:, :width]
        return torch._int_mm(rounded, even.t()).float().mul_(each).mul_(largest)

    return Held(numbers, scales, bias, product)


def int8_down(weight: Tensor, bias: Tensor | None) -> Held:
    """The same for the matrix at the end of an MLP. What comes in there is a product or a ReLU of
    others, a few numbers far larger than the rest, which 8 bits with one scale cannot tell apart.
    """
    numbers, scales = _rounded(weight)
    return Held(numbers, scales, bias, _widening(numbers, scales))


def float16(weight: Tensor, bias: Tensor | None) -> Held:
    """float16 weights for float32 activations. Values beyond float16's range become its largest."""
    largest = torch.finfo(torch.float16).max
    same = weight.dtype == torch.float16
    held = _kept(weight if same else weight.clamp(-largest, largest).half(), weight)
    return Held(held, None, bias, _widening(held, None))


def bfloat16(weight: Tensor, bias: Tensor | None) -> Held:
    """bfloat16 weights for float32 activations; many rows of these are rounded to bfloat16 where
    the processor multiplies such numbers faster.
    """
    held = _kept(weight.bfloat16(), weight)
    exact = _widening(held, None)
    if not _fast_bfloat16():
        return Held(held, None, bias, exact)
    lying = held.t()

    def product(x: Tensor) -> Tensor:
        if x.shape[0] <= ready.MOST_ROWS:
            return exact(x)
        return torch.mm(x.bfloat16(), lying).float()

    return Held(held, None, bias, product)


_PIECE = 2**22  # numbers that are widened at a time: what stays in a processor's cache


def _kept(made: Tensor, weight: Tensor) -> Tensor:
    """`made` where weights lie best, unless it is the weight itself, which lies there already."""
    if made is weight and made.is_contiguous():
        return made
    return PAGES.empty(made.shape, made.dtype).copy_(made)


def _widening(held: Tensor, scales: Tensor | None) -> Map:
    """The product with all weights made float32 for it, which costs little beside several rows."""
    rows = max(1, _PIECE // held.shape[1])
    numbers = torch.split(held, rows)
    by = [None] * len(numbers) if scales is None else torch.split(scales, rows)

    def product(x: Tensor) -> Tensor:
        made = [F.linear(x, widened(*piece)) for piece in zip(numbers, by, strict=True)]
        return made[0] if len(made) == 1 else torch.cat(made, dim=1)

    return product


def widened(numbers: Tensor, scales: Tensor | None) -> Tensor:
    """Rows (T, in) of a held matrix as float32."""
    if scales is None:
        return numbers.float()
    return torch.mul(_grouped(numbers), scales[..., None]).flatten(1)[:, : numbers.shape[1]]


def _fast_int8() -> bool:
    """Whether the processor adds products of 8-bit numbers in one instruction. Without it oneDNN
    may let sums of two products overflow.
    """
    return bool(torch.cpu._is_vnni_supported())


def _fast_bfloat16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


MAKERS: dict[Precision, Make] = {
    "dense": matrix,
    "int8": int8,
    "float16": float16,
    "bfloat16": bfloat16,
}
DOWN_MAKERS: dict[Precision, Make] = {**MAKERS, "int8": int8_down}


class Table(Protocol):
    """The embedding of each id."""

    def many(self, ids: Tensor) -> Tensor:
        """(T,) -> (T, n_embd)."""
        ...

    def one(self, token: int) -> Tensor:
        """(n_embd,)."""
        ...


class DenseTable:
    """Rows as the file has them: (vocab_size, n_embd)."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.one: Callable[[int], Tensor] = rows.__getitem__

    def many(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.rows)


class HeldTable:
    """Rows of fewer bits, given as float32; `of`: a head whose rows they are, which then are not
    kept twice.
    """

    def __init__(self, of: Held) -> None:
        self.rows, self.scales = of.weight, of.scales

    def many(self, ids: Tensor) -> Tensor:
        return widened(self.rows[ids], None if self.scales is None else self.scales[ids])

    def one(self, token: int) -> Tensor:
        return self.many(torch.tensor([token]))[0]


def into(by: Linear, out: Tensor) -> Map:
    """For a single row: the product written to `out`."""
    return by.into(out)


def times(x: Tensor, by: Linear) -> Tensor:
    """(T, in) -> (T, out)."""
    return by.many(x)
