"""Loops over vectors of 16 numbers, written in LLVM's own terms: what the step spends its time on.

Weights stand row by row as float32, bfloat16, float16 or int8 and are widened to float32 as they
are read; activations are float32. A plain Python loop compiles to code that reads memory at half
the speed. All arguments are addresses and counts in bytes or numbers, as said; counts are
multiples of `STEP`. LLVM maps the 16 lanes to whatever the processor has (AVX-512, AVX2, NEON).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from tui_chat.model.native.ready import GROUP

LANES = 16

I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F32, F16 = ir.FloatType(), ir.HalfType()
VECTOR = ir.VectorType(F32, LANES)
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}

Value = Any  # of llvmlite, which has no types
Build = Any


def _number(value: int) -> Value:
    return ir.Constant(I64, value)


def _load(b: Build, address: Value, element: Value) -> Value:
    loaded = b.load(b.inttoptr(address, ir.PointerType(ir.VectorType(element, LANES))))
    loaded.align = 1
    return loaded


def _store(b: Build, vector: Value, address: Value) -> None:
    b.store(vector, b.inttoptr(address, ir.PointerType(VECTOR))).align = 1


def _widened(b: Build, kind: str, address: Value) -> Value:
    """16 numbers of a kind at an address, as float32."""
    return _wide(b, kind, _load(b, address, _ELEMENTS[kind]))


_ELEMENTS = {"float32": F32, "bfloat16": I16, "float16": F16, "int8": I8}


def _wide(b: Build, kind: str, numbers: Value) -> Value:
    """16 numbers of a kind as float32."""
    if kind == "float32":
        return numbers
    if kind == "float16":
        return b.fpext(numbers, VECTOR)
    integers = ir.VectorType(I32, LANES)
    if kind == "bfloat16":
        high = b.zext(numbers, integers)
        return b.bitcast(b.shl(high, ir.Constant(integers, [16] * LANES)), VECTOR)
    return b.sitofp(b.sext(numbers, integers), VECTOR)


def _line(b: Build, kind: str, address: Value) -> list[Value]:
    """64 bytes of numbers as vectors of float32, 16 each. They are loaded at once: loads of parts,
    which a compiler may put in any order, keep a processor from seeing that memory is read from
    front to back, and it then gives half as much.
    """
    count = 64 // BYTES[kind]
    whole = b.load(b.inttoptr(address, ir.PointerType(ir.VectorType(_ELEMENTS[kind], count))))
    whole.align = 1
    if count == LANES:
        return [whole]
    parts = []
    for start in range(0, count, LANES):
        lanes = ir.Constant(ir.VectorType(I32, LANES), list(range(start, start + LANES)))
        parts.append(_wide(b, kind, b.shuffle_vector(whole, whole, lanes)))
    return parts


def _all(b: Build, number: Value) -> Value:
    """The vector whose lanes are all `number`."""
    undefined = ir.Constant(VECTOR, ir.Undefined)
    first = b.insert_element(undefined, number, ir.Constant(I32, 0))
    return b.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _fma(b: Build, x: Value, y: Value, z: Value) -> Value:
    """x * y + z."""
    kind = ir.FunctionType(VECTOR, [VECTOR] * 3)
    return b.call(cgutils.get_or_insert_function(b.module, kind, "llvm.fma.v16f32"), [x, y, z])


def _sum(b: Build, vector: Value) -> Value:
    kind = ir.FunctionType(F32, [F32, VECTOR])
    name = "llvm.vector.reduce.fadd.v16f32"
    add = cgutils.get_or_insert_function(b.module, kind, name)
    return b.call(add, [ir.Constant(F32, 0.0), vector], fastmath=("reassoc",))


def _sums(b: Build, count: int) -> list[Value]:
    """Places for vectors of sums; the compiler keeps them in registers."""
    zero = ir.Constant(VECTOR, [0.0] * LANES)
    return [cgutils.alloca_once_value(b, zero) for _ in range(count)]


def _zero(b: Build, places: list[Value]) -> None:
    for place in places:
        b.store(ir.Constant(VECTOR, [0.0] * LANES), place)


def dot_of(kind: str) -> Any:
    """(weights, x, n) -> the sum of the products of n numbers, 32 in one turn."""
    size = BYTES[kind]

    @intrinsic
    def dot(_: Any, weights: Any, x: Any, n: Any) -> Any:
        def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
            weights, x, n = args
            sums = _sums(b, 2)  # one chain of sums would wait for each addition
            _zero(b, sums)
            with cgutils.for_range_slice(b, _number(0), n, _number(2 * LANES)) as (at, _):
                start = b.add(weights, b.mul(at, _number(size)))
                if size == 2:
                    ws = _line(b, kind, start)
                else:
                    second = b.add(start, _number(LANES * size))
                    ws = [_widened(b, kind, start), _widened(b, kind, second)]
                for part, (w, place) in enumerate(zip(ws, sums, strict=True)):
                    over = b.mul(b.add(at, _number(part * LANES)), _number(4))
                    b.store(_fma(b, w, _load(b, b.add(x, over), F32), b.load(place)), place)
            return _sum(b, b.fadd(b.load(sums[0]), b.load(sums[1])))

        return types.float32(types.int64, types.int64, types.int64), code

    return dot


def short_dot_of(kind: str) -> Any:
    """The same, 16 numbers in one turn."""
    size = BYTES[kind]

    @intrinsic
    def dot(_: Any, weights: Any, x: Any, n: Any) -> Any:
        def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
            weights, x, n = args
            (place,) = sums = _sums(b, 1)
            _zero(b, sums)
            with cgutils.for_range_slice(b, _number(0), n, _number(LANES)) as (at, _):
                w = _widened(b, kind, b.add(weights, b.mul(at, _number(size))))
                v = _load(b, b.add(x, b.mul(at, _number(4))), F32)
                b.store(_fma(b, w, v, b.load(place)), place)
            return _sum(b, b.load(place))

        return types.float32(types.int64, types.int64, types.int64), code

    return dot


def dots_of(kind: str, rows: int) -> Any:
    """(weights, x, x_stride, n, out, out_stride): the same weights with `rows` rows of x."""
    size = BYTES[kind]

    @intrinsic
    def dots(_: Any, weights: Any, x: Any, x_stride: Any, n: Any, out: Any, out_stride: Any) -> Any:
        def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
            weights, x, x_stride, n, out, out_stride = args
            sums = _sums(b, rows)
            _zero(b, sums)
            starts = [b.add(x, b.mul(x_stride, _number(row))) for row in range(rows)]
            with cgutils.for_range_slice(b, _number(0), n, _number(LANES)) as (at, _):
                w = _widened(b, kind, b.add(weights, b.mul(at, _number(size))))
                behind = b.mul(at, _number(4))
                for start, place in zip(starts, sums, strict=True):
                    v = _load(b, b.add(start, behind), F32)
                    b.store(_fma(b, w, v, b.load(place)), place)
            for row, place in enumerate(sums):
                to = b.add(out, b.mul(out_stride, _number(row)))
                b.store(_sum(b, b.load(place)), b.inttoptr(to, ir.PointerType(F32)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 6), code

    return dots


def grouped_dot() -> Any:
    """(weights, scales, x, n) for int8 whose groups have scales of their own (float32), and n a
    multiple of 16: what is left of a last group counts as a whole one.
    """

    @intrinsic
    def dot(_: Any, weights: Any, scales: Any, x: Any, n: Any) -> Any:
        def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
            weights, scales, x, n = args
            (total, part) = _sums(b, 2)
            _zero(b, [total])

            def values(at: Value) -> Value:
                return _load(b, b.add(x, b.mul(at, _number(4))), F32)

            def close(at: Value, made: Value) -> None:
                where = b.add(scales, b.mul(b.udiv(at, _number(GROUP)), _number(4)))
                scale = _all(b, b.load(b.inttoptr(where, ir.PointerType(F32))))
                b.store(_fma(b, made, scale, b.load(total)), total)

            whole = b.mul(b.udiv(n, _number(GROUP)), _number(GROUP))
            with cgutils.for_range_slice(b, _number(0), whole, _number(GROUP)) as (at, _):
                first, *rest = _line(b, "int8", b.add(weights, at))
                made = b.fmul(first, values(at))
                for number, w in enumerate(rest, 1):
                    made = _fma(b, w, values(b.add(at, _number(number * LANES))), made)
                close(at, made)
            with b.if_then(b.icmp_signed("<", whole, n)):
                _zero(b, [part])
                with cgutils.for_range_slice(b, whole, n, _number(LANES)) as (at, _):
                    w = _widened(b, "int8", b.add(weights, at))
                    b.store(_fma(b, w, values(at), b.load(part)), part)
                close(whole, b.load(part))
            return _sum(b, b.load(total))

        return types.float32(*[types.int64] * 4), code

    return dot


TILE = 4  # rows of weights in a tile


def tile_of(kind: str, rows: int) -> Any:
    """(weights, stride, scales, scales_stride, x, x_stride, n, out, out_stride): four rows of
    weights with each of `rows` rows of x, so that what is loaded is used several times; out[row]
    gets four numbers. Only int8 has scales.

    The next four rows of weights are asked of memory meanwhile, in the order in which they stand.
    """
    size = BYTES[kind]

    @intrinsic
    def tile(
        _: Any,
        weights: Any,
        stride: Any,
        scales: Any,
        scales_stride: Any,
        x: Any,
        x_stride: Any,
        n: Any,
        out: Any,
        out_stride: Any,
    ) -> Any:
        def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
            weights, stride, scales, scales_stride, x, x_stride, n, out, out_stride = args
            sums = [_sums(b, TILE) for _ in range(rows)]
            for places in sums:
                _zero(b, places)
            from_w = [b.add(weights, b.mul(stride, _number(row))) for row in range(TILE)]
            from_x = [b.add(x, b.mul(x_stride, _number(row))) for row in range(rows)]
            by = [b.add(scales, b.mul(scales_stride, _number(row))) for row in range(TILE)]
            ahead = b.add(weights, b.mul(stride, _number(TILE)))
            with cgutils.for_range_slice(b, _number(0), n, _number(LANES)) as (at, _):
                behind, over = b.mul(at, _number(size)), b.mul(at, _number(4))
                soon = b.add(ahead, b.mul(at, _number(TILE * size)))
                for line in range(0, TILE * LANES * size, 64):
                    _fetch(b, b.add(soon, _number(line)))
                vs = [_load(b, b.add(start, over), F32) for start in from_x]
                for column, start in enumerate(from_w):
                    w = _widened(b, kind, b.add(start, behind))
                    if kind == "int8":
                        where = b.add(by[column], b.mul(b.udiv(at, _number(GROUP)), _number(4)))
                        w = b.fmul(w, _all(b, b.load(b.inttoptr(where, ir.PointerType(F32)))))
                    for v, places in zip(vs, sums, strict=True):
                        b.store(_fma(b, w, v, b.load(places[column])), places[column])
            for row, places in enumerate(sums):
                to = b.add(out, b.mul(out_stride, _number(row)))
                for column, place in enumerate(places):
                    where = b.add(to, _number(4 * column))
                    b.store(_sum(b, b.load(place)), b.inttoptr(where, ir.PointerType(F32)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 9), code

    return tile


def _fetch(b: Build, address: Value) -> None:
    """Ask for a line of memory that is read soon; one that is not there does no harm."""
    pointer = ir.PointerType(I8)
    kind = ir.FunctionType(ir.VoidType(), [pointer, I32, I32, I32])
    ask = cgutils.get_or_insert_function(b.module, kind, "llvm.prefetch.p0")
    b.call(ask, [b.inttoptr(address, pointer), *(ir.Constant(I32, n) for n in (0, 3, 1))])


def mix_of(kind: str, vectors: int) -> Any:
    """(shares, values, stride, count, out): sum of count rows of `vectors` * 16 numbers, each times
    its share (float32); stride in bytes."""
    size = BYTES[kind]

    @intrinsic
    def mix(_: Any, shares: Any, values: Any, stride: Any, count: Any, out: Any) -> Any:
        def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
            shares, values, stride, count, out = args
            sums = _sums(b, vectors)
            _zero(b, sums)
            with cgutils.for_range(b, count) as loop:
                at = loop.index
                where = b.add(shares, b.mul(at, _number(4)))
                share = _all(b, b.load(b.inttoptr(where, ir.PointerType(F32))))
                row = b.add(values, b.mul(at, stride))
                for part, place in enumerate(sums):
                    v = _widened(b, kind, b.add(row, _number(part * LANES * size)))
                    b.store(_fma(b, v, share, b.load(place)), place)
            for part, place in enumerate(sums):
                _store(b, b.load(place), b.add(out, _number(part * LANES * 4)))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 5), code

    return mix


# ---- single numbers


def _reader(kind: str) -> Any:
    """(address) -> the number of that kind there."""
    elements = {"float32": F32, "bfloat16": I16, "float16": F16, "int8": I8}

    @intrinsic
    def read(_: Any, address: Any) -> Any:
        def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
            found = b.load(b.inttoptr(args[0], ir.PointerType(elements[kind])))
            if kind == "float16":
                return b.fpext(found, F32)
            if kind == "bfloat16":
                return b.bitcast(b.shl(b.zext(found, I32), ir.Constant(I32, 16)), F32)
            return found if kind == "float32" else b.sitofp(found, F32)

        return types.float32(types.int64), code

    return read


read_float32 = _reader("float32")
read_bfloat16 = _reader("bfloat16")
read_float16 = _reader("float16")
read_int8 = _reader("int8")


@intrinsic
def write_int8(_: Any, address: Any, number: Any) -> Any:
    """(address, number): rounded already, within [-127, 127]."""

    def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
        b.store(b.fptosi(args[1], I8), b.inttoptr(args[0], ir.PointerType(I8)))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), code


@intrinsic
def round_group(_: Any, numbers: Any, share: Any, out: Any) -> Any:
    """(numbers, share, out): 64 numbers of int8, each times a share of at most 1, rounded."""

    def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
        numbers, share, out = args
        kind = ir.FunctionType(VECTOR, [VECTOR])
        rint = cgutils.get_or_insert_function(b.module, kind, "llvm.rint.v16f32")
        by = _all(b, share)
        for number, found in enumerate(_line(b, "int8", numbers)):
            made = b.fptosi(b.call(rint, [b.fmul(found, by)]), ir.VectorType(I8, LANES))
            to = b.add(out, _number(number * LANES))
            b.store(made, b.inttoptr(to, ir.PointerType(ir.VectorType(I8, LANES)))).align = 1
        return context.get_dummy_value()

    return types.void(types.int64, types.float32, types.int64), code


@intrinsic
def power_of_two(_: Any, exponent: Any) -> Any:
    """2 ** exponent for a whole exponent in [-126, 127], made of its bits."""

    def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
        biased = b.add(args[0], ir.Constant(I32, 127))
        return b.bitcast(b.shl(biased, ir.Constant(I32, 23)), F32)

    return types.float32(types.int32), code


@intrinsic
def floats(_: Any, address: Any) -> Any:
    """(address) -> a pointer to float32, to be indexed."""

    def code(context: Any, b: Build, signature: Any, args: list[Value]) -> Value:
        return b.inttoptr(args[0], ir.PointerType(F32))

    return types.CPointer(types.float32)(types.int64), code
