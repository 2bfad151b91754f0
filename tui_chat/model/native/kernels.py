"""The layers of a decoder on float32 rows, as functions that numba compiles into the step.

x and y are addresses of rows; numbers are float32 unless said. Sums may be taken in any order, but
NaN and infinities stay what they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from tui_chat.model.native import vectors
from tui_chat.model.native.ready import GROUP
from tui_chat.model.native.tables import (
    BFLOAT16,
    FLOAT16,
    FLOAT32,
    GELU,
    GELU_TANH,
    LAYER_NORM,
    RELU,
    RELU2,
)
from tui_chat.model.native.vectors import floats

compiled = njit(nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "arcp", "nsz"})

_read_float32, _read_bfloat16 = vectors.read_float32, vectors.read_bfloat16
_read_float16, _read_int8 = vectors.read_float16, vectors.read_int8
_write_int8, _power_of_two = vectors.write_int8, vectors.power_of_two
_round_group = vectors.round_group

# ---- matrices


def _product_of(kind: str, read: Any) -> Any:
    """(weight, scales, bias, columns, x, x_stride, count, y, y_stride, first, last): rows [first,
    last) of the matrix with each of `count` rows of x."""
    grouped = kind == "int8"
    long, short = vectors.dot_of(kind), vectors.short_dot_of(kind)
    by_groups = vectors.grouped_dot()
    size = vectors.BYTES[kind]
    tile1, tile2, tile4 = (vectors.tile_of(kind, rows) for rows in (1, 2, 4))

    @compiled
    def product(
        weight: int,
        scales: int,
        bias: int,
        columns: int,
        x: int,
        x_stride: int,
        count: int,
        y: int,
        y_stride: int,
        first: int,
        last: int,
    ) -> None:
        whole, half, stride = columns // 32 * 32, columns // 16 * 16, columns * size
        groups = (columns + GROUP - 1) // GROUP * 4  # bytes of a row's scales
        if count == 1:
            made = carray(floats(y), last)
            for row in range(first, last):
                w = weight + row * stride
                if grouped:
                    made[row] = by_groups(w, scales + row * groups, x, half)
                else:
                    made[row] = long(w, x, whole)
            if not grouped and half > whole:
                for row in range(first, last):
                    made[row] += short(weight + row * stride + whole * size, x + whole * 4, 16)
            if half < columns:
                for row in range(first, last):
                    total = np.float32(0.0)
                    for column in range(half, columns):
                        total += read(weight + row * stride + column * size) * _read_float32(
                            x + 4 * column
                        )
                    if grouped:  # fewer than 16, in the last group
                        total *= _read_float32(scales + (row + 1) * groups - 4)
                    made[row] += total
            if bias:
                added = carray(floats(bias), last)
                for row in range(first, last):
                    made[row] += added[row]
            return
        row = first
        while row < last:
            w, to, by = weight + row * stride, y + row * 4, scales + row * groups
            high = 4 if count > 1 and row + 4 <= last else 1
            at = 0
            while at < count:
                here, into, left = x + at * x_stride, to + at * y_stride, count - at
                wide = 1
                if high == 1:
                    if grouped:
                        total = by_groups(w, by, here, half)
                    else:
                        total = long(w, here, whole)
                        if half > whole:
                            total += short(w + whole * size, here + whole * 4, 16)
                    carray(floats(into), 1)[0] = total
                elif left >= 4:
                    wide = 4
                    tile4(w, stride, by, groups, here, x_stride, half, into, y_stride)
                elif left >= 2:
                    wide = 2
                    tile2(w, stride, by, groups, here, x_stride, half, into, y_stride)
                else:
                    tile1(w, stride, by, groups, here, x_stride, half, into, y_stride)
                if half < columns:
                    for one in range(wide):
                        place = carray(floats(into + one * y_stride), 4)
                        behind = here + one * x_stride
                        for below in range(high):
                            total = np.float32(0.0)
                            for column in range(half, columns):
                                total += read(w + below * stride + column * size) * _read_float32(
                                    behind + 4 * column
                                )
                            if grouped:  # fewer than 16, in the last group
                                total *= _read_float32(by + (below + 1) * groups - 4)
                            place[below] += total
                at += wide
            if bias:
                for below in range(high):
                    added = _read_float32(bias + 4 * (row + below))
                    for one in range(count):
                        carray(floats(to + one * y_stride), 4)[below] += added
            row += high

    return product


_product_float32 = _product_of("float32", _read_float32)
_product_bfloat16 = _product_of("bfloat16", _read_bfloat16)
_product_float16 = _product_of("float16", _read_float16)
_product_int8 = _product_of("int8", _read_int8)


@compiled
def multiply(
    matrix: Any, x: int, x_stride: int, count: int, y: int, y_stride: int, first: int, last: int
) -> None:
    """y[:, first:last] = x @ those rows of the matrix, with its bias; strides in bytes."""
    weight, scales, bias = matrix["weight"], matrix["scales"], matrix["bias"]
    columns, kind = matrix["columns"], matrix["kind"]
    if kind == FLOAT32:
        _product_float32(
            weight, scales, bias, columns, x, x_stride, count, y, y_stride, first, last
        )
    elif kind == BFLOAT16:
        _product_bfloat16(
            weight, scales, bias, columns, x, x_stride, count, y, y_stride, first, last
        )
    elif kind == FLOAT16:
        _product_float16(
            weight, scales, bias, columns, x, x_stride, count, y, y_stride, first, last
        )
    else:
        _product_int8(weight, scales, bias, columns, x, x_stride, count, y, y_stride, first, last)


@compiled
def even(numbers: int, scales: int, out: int, columns: int, first: int, last: int) -> None:
    """Rows [first, last) of int8 with scales of groups, rounded to the largest scale of each."""
    groups = (columns + GROUP - 1) // GROUP
    for row in range(first, last):
        by = carray(floats(scales + row * groups * 4), groups)
        largest = by[0]
        for group in range(1, groups):
            largest = max(largest, by[group])
        of, to = numbers + row * columns, out + row * columns
        for group in range(groups):
            share = by[group] / largest
            begin = group * GROUP
            if begin + GROUP <= columns:
                _round_group(of + begin, share, to + begin)
            else:
                for column in range(begin, columns):
                    _write_int8(to + column, np.rint(_read_int8(of + column) * share))


@compiled
def look_up(matrix: Any, row: int, y: int) -> None:
    """A row of a table as float32."""
    columns, kind = matrix["columns"], matrix["kind"]
    made = carray(floats(y), columns)
    if kind == FLOAT32:
        start = matrix["weight"] + row * columns * 4
        for at in range(columns):
            made[at] = _read_float32(start + 4 * at)
    elif kind == BFLOAT16:
        start = matrix["weight"] + row * columns * 2
        for at in range(columns):
            made[at] = _read_bfloat16(start + 2 * at)
    elif kind == FLOAT16:
        start = matrix["weight"] + row * columns * 2
        for at in range(columns):
            made[at] = _read_float16(start + 2 * at)
    else:
        start = matrix["weight"] + row * columns
        groups = (columns + GROUP - 1) // GROUP
        by = carray(floats(matrix["scales"] + row * groups * 4), groups)
        for at in range(columns):
            made[at] = _read_int8(start + at) * by[at // GROUP]


# ---- norms


@compiled
def normed(norm: Any, x: int, size: int, y: int) -> None:
    """y = the norm of one row x; x itself where the kind is none."""
    one, made = carray(floats(x), size), carray(floats(y), size)
    kind, weight, bias = norm["kind"], norm["weight"], norm["bias"]
    mean, factor = np.float32(0.0), np.float32(1.0)
    if kind == LAYER_NORM:
        total = np.float32(0.0)
        for at in range(size):
            total += one[at]
        mean = total / np.float32(size)
    if kind:
        total = np.float32(0.0)
        for at in range(size):
            off = one[at] - mean
            total += off * off
        factor = np.float32(1.0) / np.sqrt(total / np.float32(size) + np.float32(norm["eps"]))
    for at in range(size):
        made[at] = (one[at] - mean) * factor
    if weight:
        by = carray(floats(weight), size)
        for at in range(size):
            made[at] *= by[at]
    if bias:
        plus = carray(floats(bias), size)
        for at in range(size):
            made[at] += plus[at]


@compiled
def rms_normed(x: int, size: int, eps: float, weight: int) -> None:
    """The same in place, for rows of heads: RMS only."""
    one = carray(floats(x), size)
    total = np.float32(0.0)
    for at in range(size):
        total += one[at] * one[at]
    factor = np.float32(1.0) / np.sqrt(total / np.float32(size) + np.float32(eps))
    if weight:
        by = carray(floats(weight), size)
        for at in range(size):
            one[at] *= factor * by[at]
    else:
        for at in range(size):
            one[at] *= factor


@compiled
def turn(heads: int, count: int, dim: int, rotary_dim: int, angles: int) -> None:
    """Rotate pairs of neighbours in `count` heads by one row of complex numbers, in place."""
    by = carray(floats(angles), rotary_dim)
    for head in range(count):
        one = carray(floats(heads + head * dim * 4), rotary_dim)
        for pair in range(rotary_dim // 2):
            real, imaginary = one[2 * pair], one[2 * pair + 1]
            cos, sin = by[2 * pair], by[2 * pair + 1]
            one[2 * pair] = real * cos - imaginary * sin
            one[2 * pair + 1] = real * sin + imaginary * cos


# ---- functions of a number, in a form that is computed sixteen at a time


@compiled
def exp(x: Any) -> Any:
    """e ** x in float32, to a unit in the last place; at the ends of
    what it can hold it stays there."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0)) if x == x else x
    whole = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
    rest = x - whole * np.float32(0.693359375)
    rest = rest + whole * np.float32(2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * rest + np.float32(1.3981999507e-3)
    p = p * rest + np.float32(8.3334519073e-3)
    p = p * rest + np.float32(4.1665795894e-2)
    p = p * rest + np.float32(1.6666665459e-1)
    p = p * rest + np.float32(5.0000001201e-1)
    p = p * rest * rest + rest + np.float32(1.0)
    return p * _power_of_two(np.int32(whole))


@compiled
def tanh(x: Any) -> Any:
    return np.float32(1.0) - np.float32(2.0) / (exp(np.float32(2.0) * x) + np.float32(1.0))


@compiled
def erf(x: Any) -> Any:
    """To 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    size = abs(x)
    t = np.float32(1.0) / (np.float32(1.0) + np.float32(0.3275911) * size)
    p = np.float32(1.061405429)
    p = p * t + np.float32(-1.453152027)
    p = p * t + np.float32(1.421413741)
    p = p * t + np.float32(-0.284496736)
    p = p * t + np.float32(0.254829592)
    found = np.float32(1.0) - p * t * exp(-size * size)
    return -found if x < 0 else found


@compiled
def activate(activation: int, x: int, first: int, last: int) -> None:
    """In place, numbers [first, last) of a row."""
    one = carray(floats(x), last)
    if activation == GELU:
        for at in range(first, last):
            v = one[at]
            one[at] = np.float32(0.5) * v * (np.float32(1.0) + erf(v * np.float32(0.70710678)))
    elif activation == GELU_TANH:
        for at in range(first, last):
            v = one[at]
            u = np.float32(1.5957691) * (v + np.float32(0.044715) * v * v * v)
            one[at] = v / (np.float32(1.0) + exp(-u))
    elif activation == RELU:
        for at in range(first, last):
            one[at] = max(one[at], np.float32(0.0)) if one[at] == one[at] else one[at]
    elif activation == RELU2:
        for at in range(first, last):
            v = max(one[at], np.float32(0.0)) if one[at] == one[at] else one[at]
            one[at] = v * v
    else:
        for at in range(first, last):
            v = one[at]
            one[at] = v / (np.float32(1.0) + exp(-v))
