"""A directory that torch.distributed.checkpoint wrote, as data: which tensors there are, and where
each piece of them lies.

`.metadata` is a pickle that names every tensor, its shards and the place of each in a `.distcp`
file; at that place stands a small torch archive of its own. All of it is read inertly and held
against the files: shards lie in the directory itself, pieces fill their tensor without a gap. What
is no tensor is never opened, for it may be anything.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from tui_chat.checkpoint.archive import Archive, torch_root
from tui_chat.checkpoint.files import (
    Damaged,
    RegularFile,
    being_written,
    refused,
    shown_name,
    shown_path,
)
from tui_chat.checkpoint.pickles import MAX_BYTES, Name, Record, read_pickle
from tui_chat.checkpoint.plain import Opaque
from tui_chat.checkpoint.tensors import (
    ITEM_BYTES,
    Pieces,
    TensorRef,
    contiguous,
    part,
    shape_text,
    sizes,
)
from tui_chat.errors import CheckpointError

METADATA = ".metadata"
SUFFIX = ".distcp"
# A model of some ten billion parameters and its optimizer, on 64 ranks.
MAX_OPERATIONS = 12_000_000

_CLASSES = "torch.distributed.checkpoint."
_Box = tuple[tuple[int, ...], tuple[int, ...]]  # where a piece begins, and its sizes


@dataclass(frozen=True, slots=True)
class Dcp:
    """`names` are all entries that are tensors; `tensors` those that were asked for, whole or in
    pieces, and Opaque where the dtype is not known; `archives` the files that were read."""

    names: tuple[str, ...]
    tensors: Mapping[str, object]
    archives: tuple[Archive, ...]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where an entry lies: a file of the directory, first byte, number of bytes."""

    file: str
    begin: int
    length: int


def read_dcp(folder: str, wanted: Callable[[str], bool]) -> Dcp:
    """The tensors of `folder` whose names are wanted. Raises CheckpointError in one sentence,
    whatever is in it."""
    path = os.path.join(folder, METADATA)
    with RegularFile(path) as file:
        try:
            if file.size > MAX_BYTES:
                raise Damaged(f"it has {file.size:,} bytes, more than {MAX_BYTES:,}")
            root, _ = read_pickle(file.read(0, file.size), operations=MAX_OPERATIONS)
            fields = _fields(root, "metadata.Metadata")
            entries = _entries(fields)
            names = tuple(name for name, entry in entries.items() if _is_tensor(entry))
            asked = {name: entries[name] for name in names if wanted(name)}
            places = _places(fields, asked)
        except Damaged as error:
            if not file.unchanged():
                raise being_written(path) from None
            raise refused(path, error) from None
        metadata = Archive(path, "torch", {}, file.stamp, file.modified)
    shards = _Shards(folder)
    try:
        tensors = {name: _tensor(shards, name, entry, places) for name, entry in asked.items()}
    except Damaged as error:
        raise refused(path, error) from None
    shards.check_apart()
    return Dcp(names, tensors, (metadata, *shards.archives.values()))


# ---- what .metadata says


def _entries(fields: Mapping[str, object]) -> dict[str, object]:
    found = fields.get("state_dict_metadata")
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise Damaged("it has no list of entries")
    return found


def _is_tensor(entry: object) -> bool:
    return isinstance(entry, Record) and str(entry.cls) == (
        _CLASSES + "metadata.TensorStorageMetadata"
    )


def _places(
    fields: Mapping[str, object], asked: Mapping[str, object]
) -> dict[tuple[str, tuple[int, ...]], _Place]:
    """Name and corner of each piece -> where it lies."""
    found = fields.get("storage_data")
    if not isinstance(found, dict):
        raise Damaged("it does not say where its tensors lie")
    places: dict[tuple[str, tuple[int, ...]], _Place] = {}
    for index, said in found.items():
        at = _fields(index, "metadata.MetadataIndex")
        name, corner = at.get("fqn"), at.get("offset")
        if not isinstance(name, str) or name not in asked:
            continue
        info = _fields(said, "filesystem._StorageInfo")
        file, begin, length = (info.get(key) for key in ("relative_path", "offset", "length"))
        if not isinstance(file, str) or not _is_bare(file):
            raise Damaged(f"it names the file {str(file)[:60]!r}, which is no shard beside it")
        if info.get("transform_descriptors"):
            raise Damaged(f"{name[:80]} was packed when it was saved, which is not read")
        begin, length = sizes((begin, length), "place")
        key = (name, () if corner is None else _size(corner))
        if key in places:
            raise Damaged(f"it has two places for the same piece of {name[:80]}")
        places[key] = _Place(file, begin, length)
    return places


def _is_bare(name: str) -> bool:
    return name == os.path.basename(name) and "\\" not in name and name.endswith(SUFFIX)


def _fields(value: object, name: str) -> Mapping[str, object]:
    """The fields of an object of torch's own class `name`."""
    if not isinstance(value, Record) or str(value.cls) != _CLASSES + name:
        raise Damaged(f"it is not what torch writes: {name.rpartition('.')[2]} is missing")
    if not isinstance(value.state, dict):
        raise Damaged(f"it is not what torch writes: {name.rpartition('.')[2]} is empty")
    return {str(key): field for key, field in value.state.items()}


def _size(value: object) -> tuple[int, ...]:
    if isinstance(value, Record) and str(value.cls) == "torch.Size" and len(value.args) == 1:
        value = value.args[0]
    return sizes(value, "shape")


def _dtype(properties: object) -> str:
    """The name of a tensor's dtype."""
    if isinstance(properties, Record):
        state = properties.state
        first = state[0] if isinstance(state, tuple) and state else None
        first = state.get("dtype") if isinstance(state, dict) else first
        if isinstance(first, Name) and first.module == "torch":
            return first.name
    raise Damaged("a tensor in it has no type")


# ---- pieces


def _tensor(
    shards: _Shards,
    name: str,
    entry: object,
    places: Mapping[tuple[str, tuple[int, ...]], _Place],
) -> TensorRef | Pieces | Opaque:
    fields = _fields(entry, "metadata.TensorStorageMetadata")
    shape, dtype = _size(fields.get("size")), _dtype(fields.get("properties"))
    if dtype not in ITEM_BYTES:
        return Opaque(f"a tensor of {dtype[:40]}")
    chunks = fields.get("chunks")
    if not isinstance(chunks, list):
        raise Damaged(f"it does not say what {name[:80]} consists of")
    boxes = []
    for chunk in chunks:
        at = _fields(chunk, "metadata.ChunkStorageMetadata")
        boxes.append((_size(at.get("offsets")), _size(at.get("sizes"))))
    # A rank without a share has an empty one; copies of a piece are listed once for each rank.
    boxes = sorted({box for box in boxes if math.prod(box[1])})
    _check_filled(name, shape, boxes)
    parts = []
    for corner, size in boxes:
        place = places.get((name, corner))
        if place is None and not any(corner):
            place = places.get((name, ()))
        if place is None:
            raise Damaged(f"it does not say where the piece of {name[:80]} at {corner} lies")
        parts.append(shards.piece(name, place, dtype, size))
    if not parts:
        raise Damaged(f"{name[:80]} is empty")
    if len(parts) == 1:
        return parts[0]
    return Pieces(shape, tuple(parts), tuple(corner for corner, _ in boxes))


def _check_filled(name: str, shape: tuple[int, ...], boxes: list[_Box]) -> None:
    """The pieces lie inside the tensor, do not overlap and leave no gap."""
    inside = all(
        len(corner) == len(size) == len(shape)
        and all(a + n <= whole for a, n, whole in zip(corner, size, shape, strict=True))
        for corner, size in boxes
    )
    # Pieces of a tensor that was split by rows, by columns or both stand in columns of pieces.
    columns: dict[_Box, list[tuple[int, int]]] = {}
    for corner, size in boxes if inside and shape else ():
        columns.setdefault((corner[1:], size[1:]), []).append((corner[0], corner[0] + size[0]))
    apart = all(
        before[1] <= after[0] for rows in columns.values() for before, after in pairwise(rows)
    ) and not any(_overlap(a, b) for a, b in _pairs(list(columns)))
    held = sum(math.prod(size) for _, size in boxes)
    if not inside or not apart or held != math.prod(shape):
        raise Damaged(
            f"the pieces of {name[:80]} do not make up a tensor of {shape_text(shape)}: "
            "a shard is missing, or they overlap"
        )


def _pairs(columns: list[_Box]) -> list[tuple[_Box, _Box]]:
    if len(columns) > 256:
        raise Damaged(f"a tensor in it is split into {len(columns):,} columns")
    return [(a, b) for n, a in enumerate(columns) for b in columns[:n]]


def _overlap(a: _Box, b: _Box) -> bool:
    return all(p < q + m and q < p + n for p, n, q, m in zip(a[0], a[1], b[0], b[1], strict=True))


class _Shards:
    """The .distcp files of a directory. There may be more of them than files can be open."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.archives: dict[str, Archive] = {}
        self.taken: dict[str, list[tuple[int, int]]] = {}  # bytes of each file that a piece has

    def piece(self, name: str, place: _Place, dtype: str, shape: tuple[int, ...]) -> TensorRef:
        """The piece of `name` at `place`. Raises CheckpointError."""
        path = os.path.join(self.folder, place.file)
        if not os.path.lexists(path):
            raise CheckpointError(
                f"cannot open {shown_path(self.folder)}",
                f"its shard {shown_name(path)[:80]} is missing",
                "Copy the whole directory",
            )
        with RegularFile(path) as file:
            known = self.archives.setdefault(
                path, Archive(path, "torch", {}, file.stamp, file.modified)
            )
            if known.stamp != file.stamp:
                raise being_written(path)
            end = place.begin + place.length
            try:
                if end > file.size:
                    raise Damaged(
                        f"it ends at byte {file.size:,}, but {name[:80]} lies up to byte {end:,}"
                    )
                found = torch_root(file, place.begin, place.length)
                if not isinstance(found, TensorRef) or found.dtype != dtype or found.shape != shape:
                    raise Damaged(f"what it holds for {name[:80]} is not what {METADATA} says")
            except Damaged as error:
                if not file.unchanged():
                    raise being_written(path) from None
                raise refused(path, error) from None
        self.taken.setdefault(path, []).append((place.begin, end))
        return found

    def check_apart(self) -> None:
        """No two pieces share bytes: otherwise small files could pose as a huge model."""
        for path, ranges in self.taken.items():
            if any(before[1] > after[0] for before, after in pairwise(sorted(ranges))):
                raise refused(path, Damaged("pieces of two tensors share the same bytes in it"))


# ---- cutting


def turned(tensor: TensorRef | Pieces, index: int) -> TensorRef | Pieces:
    """Matrix `index` of a stack (n, in, out), turned over: (out, in). Raises Damaged where there is
    none."""
    if len(tensor.shape) != 3 or not 0 <= index < tensor.shape[0]:
        raise Damaged(f"a tensor of {shape_text(tensor.shape)} has no matrix {index}")
    if isinstance(tensor, TensorRef):
        return _turned(tensor, index)
    cut = [
        (_turned(ref, index - corner[0]), (corner[2], corner[1]))
        for ref, corner in zip(tensor.parts, tensor.corners, strict=True)
        if corner[0] <= index < corner[0] + ref.shape[0]
    ]
    if len(cut) == 1:
        return cut[0][0]
    cut.sort(key=lambda piece: piece[1])
    shape = (tensor.shape[2], tensor.shape[1])
    return Pieces(shape, tuple(ref for ref, _ in cut), tuple(corner for _, corner in cut))


def _turned(ref: TensorRef, index: int) -> TensorRef:
    _, rows, columns = ref.shape
    if ref.stride != contiguous(ref.shape):
        raise Damaged("a stack of matrices in it is not stored in one piece")
    return part(ref, (columns, rows), offset=index * rows * columns, stride=(1, columns))


def same_numbers(one: object, other: object) -> bool:
    """Whether two tensors hold equal numbers, as far as their checksums say."""
    if isinstance(one, TensorRef) and isinstance(other, TensorRef):
        return one.same_numbers(other)
    if isinstance(one, Pieces) and isinstance(other, Pieces) and one.corners == other.corners:
        return all(a.same_numbers(b) for a, b in zip(one.parts, other.parts, strict=True))
    return False


def dtype_of(tensor: TensorRef | Pieces) -> str:
    """The name of its dtype."""
    return tensor.dtype if isinstance(tensor, TensorRef) else tensor.parts[0].dtype
