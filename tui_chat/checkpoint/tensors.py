"""Where a tensor lies in a file and how its numbers are laid out, in integers only. No torch.

Everything a file claims about a tensor is checked here against what is really in the file, before
anything is allocated: a file of 500 bytes can claim a terabyte.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.words import kind

MAX_RANK = 16
MAX_SIZE = 2**48

ITEM_BYTES = {
    "float64": 8,
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "bool": 1,
}
"""Bytes of one number. The names are torch's; a dtype that is not here is not read."""

WEIGHT_DTYPES = frozenset(("float64", "float32", "float16", "bfloat16"))


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of bytes in a file. `crc32` is what the archive says of them, None where it says
    nothing."""

    file: str
    begin: int
    nbytes: int
    crc32: int | None = None
    label: str = ""  # the archive member, for messages


@dataclass(frozen=True, slots=True)
class LowRank:
    """What a LoRA adapter adds to a matrix: `scale * up @ down`, turned over if `transposed`."""

    down: TensorRef  # (rank, in)
    up: TensorRef  # (out, rank)
    scale: float
    transposed: bool = False


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A tensor that has not been read. `stride` and `offset` count numbers, not bytes.

    Where the numbers are laid out in more dimensions than the tensor has (rows grouped by head),
    `grid` is the shape that `stride` walks through, row-major, and `shape` what it is then taken
    for. `scales` is for quantised tensors: each run of `numel / scales.numel` numbers is multiplied
    by the scale with its index, which gives float32. `deltas` are added to it and `plus` to every
    number. `encoding` names how numbers are packed that no stride can reach (quantised.py): the
    storage then holds just this tensor, row after row, and stride and offset mean nothing.
    """

    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    storage: Storage
    scales: TensorRef | None = None
    grid: tuple[int, ...] = ()
    deltas: tuple[LowRank, ...] = ()
    plus: float = 0.0
    encoding: str = ""

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def storages(self) -> tuple[Storage, ...]:
        """What must be read to have its numbers."""
        found = [self.storage]
        if self.scales is not None:
            found += self.scales.storages
        for delta in self.deltas:
            found += delta.down.storages + delta.up.storages
        return tuple(found)

    @property
    def nbytes(self) -> int:
        return self.numel * ITEM_BYTES[self.dtype]

    @property
    def place(self) -> tuple[object, ...]:
        """Equal for two tensors that are views of the same numbers."""
        return (
            self.storage.file,
            self.storage.begin,
            self.offset,
            self.dtype,
            self.shape,
            self.stride,
            self.grid,
            self.deltas,
            self.plus,
            self.encoding,
        )

    def same_numbers(self, other: TensorRef) -> bool:
        """Whether both hold equal numbers, as far as the archive says: one storage, or equal
        checksums."""
        if self.place == other.place:
            return True
        mine, theirs = self.storage, other.storage
        return (
            mine.crc32 is not None
            and (mine.crc32, mine.nbytes) == (theirs.crc32, theirs.nbytes)
            and self.place[2:] == other.place[2:]  # all but where the storage lies
        )


@dataclass(frozen=True, slots=True)
class Pieces:
    """A tensor that lies in several places, of one file or of many: `parts[k]` begins at
    `corners[k]` of it. Together they fill it, each number once; they are ordered by corner.
    """

    shape: tuple[int, ...]
    parts: tuple[TensorRef, ...]
    corners: tuple[tuple[int, ...], ...]


def part(
    ref: TensorRef,
    shape: tuple[int, ...],
    *,
    offset: int = 0,
    grid: tuple[int, ...] = (),
    stride: tuple[int, ...] = (),
) -> TensorRef:
    """Some of the numbers of a contiguous tensor: `shape`, from number `offset` of it on.

    Without `stride` they follow one another; with it they are walked through as `grid` (default
    `shape`). Raises Damaged when they are not all inside.
    """
    if ref.stride != contiguous(ref.shape) or ref.scales or ref.deltas or ref.encoding:
        raise Damaged("a tensor that would have to be cut is not stored in one piece")
    walk = grid or shape
    steps = stride or contiguous(walk)
    if math.prod(walk) != math.prod(shape) or min((*shape, offset), default=0) < 0:
        raise Damaged(f"a tensor of {shape_text(ref.shape)} cannot be cut to {shape_text(shape)}")
    last = offset + sum((size - 1) * step for size, step in zip(walk, steps, strict=True))
    if math.prod(shape) and last >= ref.numel:
        raise Damaged(f"a tensor of {shape_text(ref.shape)} cannot be cut to {shape_text(shape)}")
    return replace(ref, shape=shape, stride=steps, offset=ref.offset + offset, grid=grid)


def contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of a tensor whose rows follow one another."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def sizes(value: object, what: str) -> tuple[int, ...]:
    """`value` as sizes or strides. Raises Damaged."""
    if not isinstance(value, (tuple, list)) or len(value) > MAX_RANK:
        raise Damaged(f"the {what} of a tensor is not a short list of numbers")
    for size in value:
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < MAX_SIZE:
            raise Damaged(f"the {what} of a tensor says {_short(size)}, which cannot be")
    return tuple(value)


def checked(
    dtype: str, shape: object, stride: object, offset: object, storage: Storage
) -> TensorRef:
    """A TensorRef whose numbers all lie inside its storage. Raises Damaged."""
    dims = sizes(shape, "shape")
    steps = sizes(stride, "stride")
    if len(dims) != len(steps):
        raise Damaged(f"a tensor has {len(dims)} sizes but {len(steps)} strides")
    if not isinstance(offset, int) or isinstance(offset, bool) or not 0 <= offset < MAX_SIZE:
        raise Damaged(f"a tensor begins at {_short(offset)}, which cannot be")
    ref = TensorRef(dtype, dims, steps, offset, storage)
    held = storage.nbytes // ITEM_BYTES[dtype]
    count = ref.numel
    if count:
        last = offset + sum((size - 1) * step for size, step in zip(dims, steps, strict=True))
        # More numbers than the storage holds means some are repeated (stride 0): a small file
        # posing as a big one.
        if last >= held or count > held:
            raise Damaged(
                f"a tensor of {shape_text(dims)} needs more numbers than the {held:,} stored for it"
            )
    return ref


def shape_text(shape: tuple[int, ...]) -> str:
    """A shape as messages write it: "50304 x 384"."""
    return " x ".join(str(size) for size in shape) or "one number"


def _short(value: object) -> str:
    text = (
        repr(value)
        if isinstance(value, (int, float, str)) and not _huge(value)
        else "a huge number"
        if isinstance(value, int)
        else kind(value)
    )
    return text if len(text) <= 40 else text[:37] + "..."


def _huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > 100
