"""Matrices as their device multiplies a single row fastest, for a model that talks spends its time
on exactly that.

A dense matrix keeps the numbers of the file. A packed one (int8, float16 beside float32
activations; CPU only) is laid out by torch's quantised kernels, which read a quarter or half of the
bytes. All have the same three ways of being used. Knows no model.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

Map = Callable[[Tensor], Tensor]
Precision = Literal["dense", "int8", "float16"]


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


class Matrix(NamedTuple):
    """A dense matrix; `weight` is (in, out)."""

    weight: Tensor
    bias: Tensor | None

    @property
    def rows(self) -> int:
        return self.weight.shape[1]

    def many(self, x: Tensor) -> Tensor:
        weight, bias = self
        return torch.mm(x, weight) if bias is None else torch.addmm(bias, x, weight)

    def into(self, out: Tensor) -> Map:
        weight, bias = self
        if bias is None:
            return lambda x: torch.mm(x, weight, out=out)
        return lambda x: torch.addmm(bias, x, weight, out=out)

    def onto(self, x: Tensor) -> Map:
        weight, bias = self
        if bias is None:
            return lambda made: x.addmm_(made, weight)
        return lambda made: x.addmm_(made, weight).add_(bias)


def matrix(weight: Tensor, bias: Tensor | None) -> Matrix:
    """From the canonical (out, in). A float32 row times a matrix is half as fast again on a CPU
    when the matrix lies (in, out) in memory; 16-bit types and GPUs want it as it comes.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return Matrix(weight.t().contiguous(), bias)
    return Matrix(weight.t(), bias)


class Packed:
    """A matrix in the layout of torch's quantised kernels. x and y are float32."""

    def __init__(self, run: Map, rows: int, bias: Tensor | None) -> None:
        self._run = run
        self._bias = None if bias is None else bias.float()
        self.rows = rows

    def many(self, x: Tensor) -> Tensor:
        made = self._run(x)
        return made if self._bias is None else made.add_(self._bias)

    def into(self, out: Tensor) -> Map:
        run, bias = self._run, self._bias
        if bias is None:
            return lambda x: out.copy_(run(x))
        return lambda x: torch.add(run(x), bias, out=out)

    def onto(self, x: Tensor) -> Map:
        run, bias = self._run, self._bias
        if bias is None:
            return lambda made: x.add_(run(made))
        return lambda made: x.add_(run(made)).add_(bias)


def int8(weight: Tensor, bias: Tensor | None) -> Packed:
    """8 bits a weight with one scale for each row of (out, in); each row of activations is rounded
    to 8 bits as it comes.
    """
    wide = weight.float()
    scales = row_scales(wide).double()
    with warnings.catch_warnings():  # torch means to replace these types, and has nothing yet
        warnings.simplefilter("ignore")
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        numbers = torch.quantize_per_channel(wide, scales, zeros, 0, torch.qint8)
        held = torch.ops.quantized.linear_prepack(numbers, None)
    run: Callable[[Tensor, object], Tensor] = torch.ops.quantized.linear_dynamic

    def product(x: Tensor) -> Tensor:
        if x.shape[0] == 1:
            return run(x, held)
        # The kernel rounds all rows by one scale. Rows are made equally large for it, or the first
        # token, which is huge in many models, would leave few bits to the others.
        largest = x.abs().amax(1, keepdim=True).clamp_min_(_TINY)
        return run(x / largest, held).mul_(largest)

    return Packed(product, weight.shape[0], bias)


_TINY = torch.finfo(torch.float32).tiny


def row_scales(weight: Tensor) -> Tensor:
    """By which the rows of (out, in) are divided to lie in [-127, 127]: (out,) float32."""
    return weight.abs().amax(1).float().clamp_min_(_TINY).div_(127)


def half(weight: Tensor, bias: Tensor | None) -> Packed:
    """float16 weights for float32 activations. Values beyond float16's range become its largest."""
    held = torch.ops.quantized.linear_prepack_fp16(weight.float(), None)
    run = torch.ops.quantized.linear_dynamic_fp16
    return Packed(lambda x: run(x, held), weight.shape[0], bias)


MAKERS: dict[Precision, Make] = {"dense": matrix, "int8": int8, "float16": half}

# The matrix at the end of an MLP. What comes in there is a product or a ReLU of others, a few
# numbers far larger than the rest: rounded to 8 bits it costs more than all other matrices
# together. On the demo's base model the likeliest token is float32's in 98.4 % of 3,000 places
# with int8 here, 99.4 % with float16.
DOWN_MAKERS: dict[Precision, Make] = {"dense": matrix, "int8": half, "float16": half}


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


class PackedTable:
    """Rows of fewer bits, given as float32: int8 with a scale each, or float16."""

    def __init__(self, rows: Tensor, precision: Precision) -> None:
        self._scales = row_scales(rows)[:, None] if precision == "int8" else None
        if self._scales is None:
            self._rows = rows.half()
        else:
            self._rows = (rows / self._scales).round_().to(torch.int8)

    def many(self, ids: Tensor) -> Tensor:
        found = self._rows[ids].float()
        return found if self._scales is None else found.mul_(self._scales[ids])

    def one(self, token: int) -> Tensor:
        found = self._rows[token].float()
        return found if self._scales is None else found.mul_(self._scales[token])


def into(by: Linear, out: Tensor) -> Map:
    """For a single row: the product written to `out`."""
    return by.into(out)


def times(x: Tensor, by: Linear) -> Tensor:
    """(T, in) -> (T, out)."""
    return by.many(x)
