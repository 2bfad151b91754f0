"""GGUF files: a header of keys and tensor places, then the numbers, all little-endian.

Everything the header claims is held against the length of the file before it is used. Long lists,
such as a vocabulary, are passed over and read when they are asked for. Knows no architecture.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from tui_chat.checkpoint.files import Damaged, RegularFile, refused
from tui_chat.checkpoint.plain import Opaque
from tui_chat.checkpoint.quantised import BLOCKS
from tui_chat.checkpoint.tensors import (
    ITEM_BYTES,
    MAX_SIZE,
    Storage,
    TensorRef,
    checked,
    contiguous,
    shape_text,
)

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_KEYS = 100_000
MAX_TENSORS = 100_000
MAX_NAME = 1024  # bytes of the name of a key or a tensor
MAX_TEXT = 16 * 1024 * 1024  # bytes of one value; a chat template is the longest
MAX_LIST = 2**21  # entries, far above any vocabulary
MAX_KEPT = 64 * 1024 * 1024  # bytes of all values and names that are kept, about
_EAGER = 4096  # entries of a list that is read at once
_WINDOW = 1024 * 1024
_LENGTH = struct.Struct("<Q")

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS[12] = "d"
_TEXT, _LIST = 8, 9

_PLAIN = {0: "float32", 1: "float16", 24: "int8", 25: "int16", 26: "int32", 27: "int64"}
_PLAIN |= {28: "float64", 30: "bfloat16"}
_Q8_0 = 8
_PACKED = {2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K"}
_PACKED |= {13: "Q5_K", 14: "Q6_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S"}
_PACKED |= {20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 29: "IQ1_M", 34: "TQ1_0"}
_PACKED |= {35: "TQ2_0", 39: "MXFP4"}
_OTHERS = {4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 31: "Q4_0_4_4", 32: "Q4_0_4_8"}
_OTHERS |= {33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 40: "NVFP4", 41: "Q1_0"}


@dataclass(frozen=True, slots=True)
class LongList:
    """A list in a GGUF header that was passed over: `count` entries of type `kind` at `begin`."""

    kind: int
    count: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Gguf:
    """The header as data. `tensors` holds a TensorRef for each, or an Opaque that names a type
    which is not read."""

    version: int
    keys: Mapping[str, object]
    tensors: Mapping[str, object]

    @property
    def root(self) -> dict[str, object]:
        """As the root of an Archive."""
        return {"version": self.version, "keys": dict(self.keys), "tensors": dict(self.tensors)}


def read_gguf(file: RegularFile) -> Gguf:
    """The header of a GGUF file. Raises Damaged."""
    at = _Cursor(file, len(MAGIC))
    version = at.number("I")
    if version not in VERSIONS:
        if int.from_bytes(version.to_bytes(4, "little"), "big") in VERSIONS:
            raise Damaged("its numbers are big-endian; gguf-convert-endian makes them little")
        raise Damaged(f"it is a GGUF file of version {version}; 2 and 3 can be read")
    tensors, keys = at.number("Q"), at.number("Q")
    if keys > MAX_KEYS or tensors > MAX_TENSORS:
        raise Damaged(f"its header says {keys:,} keys and {tensors:,} tensors, which cannot be")
    said: dict[str, object] = {}
    for _ in range(keys):
        name = at.text(MAX_NAME)
        if name in said:
            raise Damaged(f"it has the key {name[:60]!r} twice")
        said[name] = _value(at)
    alignment = said.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment % 8:
        raise Damaged("its alignment cannot be")
    places = [_place(at) for _ in range(tensors)]
    begin = -(-at.at // alignment) * alignment
    found: dict[str, object] = {}
    spans: list[tuple[int, int]] = []
    for name, shape, number, offset in places:
        if name in found:
            raise Damaged(f"it has the tensor {name[:60]!r} twice")
        if offset % alignment:
            raise Damaged(f"the tensor {name[:60]!r} does not begin at a multiple of {alignment}")
        ref = found[name] = _tensor(file, name, shape, number, begin + offset)
        if isinstance(ref, TensorRef):
            spans.append((ref.storage.begin, ref.storage.begin + ref.storage.nbytes))
    spans.sort()
    if any(first[1] > second[0] for first, second in itertools.pairwise(spans)):
        raise Damaged("its tensors overlap")
    return Gguf(version, said, found)


def read_list(path: str, values: object) -> list[object]:
    """The entries of a list of the header of the file at `path`. Raises CheckpointError."""
    if not isinstance(values, LongList):
        return list(values) if isinstance(values, list) else []
    with RegularFile(path) as file:
        try:
            return _entries(_Cursor(file, values.begin), values.kind, values.count)
        except Damaged as error:
            raise refused(path, error) from None


def entry_of(path: str, values: object, n: int) -> object:
    """One entry of a list of the header, without the others. Raises CheckpointError."""
    if not isinstance(values, LongList) or values.kind != _TEXT:
        return read_list(path, values)[n]
    with RegularFile(path) as file:
        try:
            at = _Cursor(file, values.begin)
            at.skip_texts(n)
            return at.text()
        except Damaged as error:
            raise refused(path, error) from None


def slab(ref: TensorRef, n: int) -> TensorRef:
    """`ref[n]`: one of the matrices that are stacked in a tensor of three dimensions."""
    nbytes = ref.storage.nbytes // ref.shape[0]
    storage = replace(ref.storage, begin=ref.storage.begin + n * nbytes, nbytes=nbytes)
    return _laid_out(ref, ref.shape[1:], storage)


def stacked(ref: TensorRef) -> TensorRef:
    """The same numbers as a matrix: what was stacked stands one below the other."""
    rows = 1
    for size in ref.shape[:-1]:
        rows *= size
    return _laid_out(ref, (rows, ref.shape[-1]), ref.storage)


def _laid_out(ref: TensorRef, shape: tuple[int, ...], storage: Storage) -> TensorRef:
    if ref.scales is not None:
        return _q8_0(shape, storage)
    return TensorRef(ref.dtype, shape, contiguous(shape), 0, storage, encoding=ref.encoding)


# ---- the header


class _Cursor:
    """Reads on from a place in the file, a window at a time."""

    def __init__(self, file: RegularFile, at: int) -> None:
        self.file = file
        self.at = at
        self.window = b""
        self.begin = at
        self.kept = 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self.at - self.begin
        if start < 0 or start + count > len(self.window):
            size = min(max(count, _WINDOW), self.file.size - self.at)
            if count > size:
                raise Damaged("it ends in the middle of its header")
            self.window, self.begin, start = self.file.read(self.at, size), self.at, 0
        self.at += count
        return self.window[start : start + count]

    def number(self, layout: str) -> int:
        value: int = struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))[0]
        return value

    def length(self) -> int:
        value: int = _LENGTH.unpack(self.take(8))[0]
        return value

    def text(self, most: int = MAX_TEXT) -> str:
        size = self.length()
        if size > most:
            raise Damaged(f"a text in its header has {size:,} bytes, which cannot be")
        self.keep(size)
        try:
            return self.take(size).decode("utf-8")
        except UnicodeDecodeError:
            raise Damaged("a text in its header is not UTF-8") from None

    def keep(self, count: int) -> None:
        """Count what stays in memory: many values of a fair size would fill it."""
        self.kept += count
        if self.kept > MAX_KEPT:
            raise Damaged(f"its header has more than {MAX_KEPT:,} bytes of settings")

    def skip(self, count: int) -> None:
        if count > self.file.size - self.at:
            raise Damaged("it ends in the middle of its header")
        self.at += count

    def skip_texts(self, count: int) -> None:
        """Past `count` texts, of which a vocabulary has hundreds of thousands."""
        at, begin, window, size = self.at, self.begin, self.window, self.file.size
        for _ in range(count):
            start = at - begin
            if start + 8 > len(window):
                self.at = at
                self.take(8)
                begin, window, start = self.begin, self.window, at - self.begin
            at += 8 + _LENGTH.unpack_from(window, start)[0]
            if at > size:
                raise Damaged("it ends in the middle of its header")
        self.at = at


def _value(at: _Cursor) -> object:
    kind = at.number("I")
    if kind == _TEXT:
        return at.text()
    if kind in _NUMBERS:
        return at.number(_NUMBERS[kind])
    if kind != _LIST:
        raise Damaged(f"a value in its header is of the unknown type {kind}")
    kind, count = at.number("I"), at.number("Q")
    if kind != _TEXT and kind not in _NUMBERS:
        raise Damaged(f"a list in its header is of the type {kind}, which is not read")
    least = 8 if kind == _TEXT else struct.calcsize(_NUMBERS[kind])
    if count > MAX_LIST or count * least > at.file.size - at.at:
        raise Damaged(f"a list in its header has {count:,} entries, which cannot be")
    if count <= (64 if kind == _TEXT else _EAGER):
        return _entries(at, kind, count)
    begin = at.at
    if kind == _TEXT:
        at.skip_texts(count)
    else:
        at.skip(count * least)
    return LongList(kind, count, begin, at.at)


def _entries(at: _Cursor, kind: int, count: int) -> list[object]:
    if kind == _TEXT:
        return [at.text() for _ in range(count)]
    at.keep(8 * count)
    layout = f"<{count}{_NUMBERS[kind]}"
    return list(struct.unpack(layout, at.take(struct.calcsize(layout))))


def _place(at: _Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (rows first, as torch has it), type and offset of a tensor."""
    name = at.text(MAX_NAME)
    dims = at.number("I")
    if not 1 <= dims <= 4:
        raise Damaged(f"the tensor {name[:60]!r} has {dims} dimensions")
    shape = tuple(at.number("Q") for _ in range(dims))[::-1]
    if not all(0 < size < MAX_SIZE for size in shape):
        raise Damaged(f"the tensor {name[:60]!r} has an impossible shape")
    return name, shape, at.number("I"), at.number("Q")


# ---- the tensors


def _tensor(
    file: RegularFile, name: str, shape: tuple[int, ...], number: int, begin: int
) -> TensorRef | Opaque:
    numel = 1
    for size in shape:
        numel *= size
    plain, packed = _PLAIN.get(number), _PACKED.get(number)
    if plain is not None:
        nbytes = numel * ITEM_BYTES[plain]
    elif packed is not None or number == _Q8_0:
        block, size = BLOCKS[packed] if packed else (32, 34)
        if shape[-1] % block:
            raise Damaged(
                f"the tensor {name[:60]!r} of {shape_text(shape)} is no whole number of blocks"
            )
        nbytes = numel // block * size
    else:
        return Opaque(f"a tensor of the type {_OTHERS.get(number, number)}")
    if begin + nbytes > file.size:
        raise Damaged(
            f"the tensor {name[:60]!r} ends beyond the file's {file.size:,} bytes: a copy cut "
            "short, or a save in progress"
        )
    storage = Storage(file.path, begin, nbytes, None, name)
    if plain is not None:
        return checked(plain, shape, contiguous(shape), 0, storage)
    if packed is None:
        return _q8_0(shape, storage)
    return TensorRef("uint8", shape, contiguous(shape), 0, storage, encoding=packed)


def _q8_0(shape: tuple[int, ...], storage: Storage) -> TensorRef:
    """Blocks of 34 bytes: a float16 scale, then the 32 numbers it multiplies."""
    blocks = storage.nbytes // 34
    scales = TensorRef("float16", (blocks,), (17,), 0, storage)
    return TensorRef("int8", shape, (34, 1), 2, storage, scales, grid=(blocks, 32))


def numbers_of(ref: TensorRef) -> Iterator[float]:
    """The numbers of a small unpacked tensor of one dimension. Raises CheckpointError."""
    layout = {"float32": "f", "float16": "e", "float64": "d"}.get(ref.dtype)
    with RegularFile(ref.storage.file) as file:
        try:
            if layout is None or ref.storage.nbytes > 1024 * 1024:
                raise Damaged(f"its tensor {ref.storage.label[:60]!r} is no short list of numbers")
            raw = file.read(ref.storage.begin, ref.storage.nbytes)
        except Damaged as error:
            raise refused(ref.storage.file, error) from None
    yield from struct.unpack(f"<{ref.numel}{layout}", raw)
