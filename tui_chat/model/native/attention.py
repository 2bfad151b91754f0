"""One head's attention over the rows of a cache, in float32 or int8, as functions that numba
compiles into the step.

Arguments are addresses as in kernels.py; keys and values are rows one behind the other.
"""

from __future__ import annotations

import numpy as np
from numba import carray

from tui_chat.model.native import vectors
from tui_chat.model.native.kernels import compiled, exp, tanh
from tui_chat.model.native.vectors import floats

_read_float32, _read_int8 = vectors.read_float32, vectors.read_int8
_write_int8 = vectors.write_int8
_dot_float32, _short_float32 = vectors.dot_of("float32"), vectors.short_dot_of("float32")
_short_int8 = vectors.short_dot_of("int8")
_dots8_float32 = vectors.dots_of("float32", 8)
_mix4_float32, _mix1_float32 = vectors.mix_of("float32", 4), vectors.mix_of("float32", 1)
_mix4_int8, _mix1_int8 = vectors.mix_of("int8", 4), vectors.mix_of("int8", 1)


@compiled
def scores_of(q: int, keys: int, count: int, dim: int, scale: float, scores: int) -> None:
    """scale * q·k for `count` rows of float32 keys."""
    found = carray(floats(scores), count)
    half, whole = dim // 16 * 16, dim // 32 * 32
    stride = dim * 4
    at = 0
    while at + 8 <= count:
        _dots8_float32(q, keys + at * stride, stride, half, scores + 4 * at, 4)
        at += 8
    for one in range(at, count):
        total = _dot_float32(keys + one * stride, q, whole)
        if half > whole:
            total += _short_float32(keys + one * stride + whole * 4, q + whole * 4, 16)
        found[one] = total
    if half < dim:
        rest = carray(floats(q), dim)
        for one in range(count):
            row = carray(floats(keys + one * stride), dim)
            total = found[one]
            for column in range(half, dim):
                total += rest[column] * row[column]
            found[one] = total
    for one in range(count):
        found[one] *= scale


@compiled
def scores_of_int8(
    q: int, keys: int, scales: int, count: int, dim: int, scale: float, scores: int
) -> None:
    """The same for keys in int8, each row with its scale."""
    found, by = carray(floats(scores), count), carray(floats(scales), count)
    half = dim // 16 * 16
    rest = carray(floats(q), dim)
    for one in range(count):
        row = keys + one * dim
        total = _short_int8(row, q, half)
        for column in range(half, dim):
            total += _read_int8(row + column) * rest[column]
        found[one] = total * by[one] * scale


@compiled
def softmax(scores: int, count: int, cap: float) -> None:
    """In place; scores are first drawn into (-cap, cap) where cap is not 0."""
    found = carray(floats(scores), count)
    if cap:
        for at in range(count):
            found[at] = np.float32(cap) * tanh(found[at] / np.float32(cap))
    peak = found[0]
    for at in range(1, count):
        peak = max(peak, found[at])
    total = np.float32(0.0)
    for at in range(count):
        found[at] = exp(found[at] - peak)
        total += found[at]
    share = np.float32(1.0) / total
    for at in range(count):
        found[at] *= share


@compiled
def mixed(shares: int, values: int, count: int, dim: int, out: int) -> None:
    """The sum of `count` rows of float32 values, each times its share."""
    stride, at = dim * 4, 0
    while at + 64 <= dim:
        _mix4_float32(shares, values + at * 4, stride, count, out + at * 4)
        at += 64
    while at + 16 <= dim:
        _mix1_float32(shares, values + at * 4, stride, count, out + at * 4)
        at += 16
    if at < dim:
        by, made = carray(floats(shares), count), carray(floats(out), dim)
        for column in range(at, dim):
            total = np.float32(0.0)
            for one in range(count):
                total += by[one] * _read_float32(values + one * stride + column * 4)
            made[column] = total


@compiled
def mixed_int8(shares: int, values: int, scales: int, count: int, dim: int, out: int) -> None:
    """The same for values in int8; `shares` are multiplied by the scales of the rows."""
    by, each = carray(floats(shares), count), carray(floats(scales), count)
    for one in range(count):
        by[one] *= each[one]
    at = 0
    while at + 64 <= dim:
        _mix4_int8(shares, values + at, dim, count, out + at * 4)
        at += 64
    while at + 16 <= dim:
        _mix1_int8(shares, values + at, dim, count, out + at * 4)
        at += 16
    made = carray(floats(out), dim)
    for column in range(at, dim):
        total = np.float32(0.0)
        for one in range(count):
            total += by[one] * _read_int8(values + one * dim + column)
        made[column] = total


@compiled
def quantise(x: int, dim: int, row: int, scale: int) -> None:
    """A row as int8, with the scale that brings it back."""
    one = carray(floats(x), dim)
    largest = np.float32(0.0)
    for at in range(dim):
        largest = max(largest, abs(one[at]))
    by = max(largest / np.float32(127.0), np.float32(1.17549435e-38))
    carray(floats(scale), 1)[0] = by
    for at in range(dim):
        _write_int8(row + at, np.rint(one[at] / by))
