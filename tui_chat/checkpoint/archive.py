"""Files that hold tensors, opened as plain data: torch's archive, torch's older stream,
safetensors, GGUF, a bare pickle, a header and bare numbers.

Which of them a file is, its first bytes tell, never its name. No torch; the numbers themselves are
left in the file.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tui_chat.checkpoint.binaries import (
    BinaryKind,
    foreign,
    looks_binary,
    read_binary,
    resembles_legacy,
)
from tui_chat.checkpoint.files import Damaged, RegularFile, Stamp, being_written, refused
from tui_chat.checkpoint.gguf.reader import MAGIC, read_gguf
from tui_chat.checkpoint.hipgpt.file import looks_like_hipgpt, read_hipgpt, resembles_hipgpt
from tui_chat.checkpoint.pickles import MAX_BYTES, Truncated, read_pickle
from tui_chat.checkpoint.plain import no_storage, plain
from tui_chat.checkpoint.tensors import (
    ITEM_BYTES,
    Storage,
    TensorRef,
    checked,
    contiguous,
    shape_text,
    sizes,
)
from tui_chat.checkpoint.zips import Directory

Kind = Literal["torch", "torch stream", "safetensors", "pickle", "gguf"] | BinaryKind

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MAX_HEADER = 16 * 1024 * 1024  # bytes of a safetensors header
MAX_VALUES = 1_000_000  # entries of a JSON text: numbers, texts, lists, tables
MAX_TENSORS = 60_000  # in one safetensors file: more than the largest mixtures of experts have


@dataclass(frozen=True, slots=True)
class Archive:
    """A file as data. `root` holds TensorRefs where the file holds tensors; `metadata` is a
    safetensors header's."""

    path: str
    kind: Kind
    root: object
    stamp: Stamp
    modified: float
    metadata: Mapping[str, str] = field(default_factory=dict)

    def scalar(self, value: object) -> float | None:
        """`value` as a number, reading it from the file where it is a tensor of one; None if it is
        no number."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value) if -1e300 < value < 1e300 else None
        layout = _SCALARS.get(value.dtype) if isinstance(value, TensorRef) else None
        if layout is None or not isinstance(value, TensorRef) or value.numel != 1:
            return None
        size = ITEM_BYTES[value.dtype]
        with RegularFile(self.path) as file:
            try:
                raw = file.read(value.storage.begin + value.offset * size, size)
            except Damaged as error:
                raise refused(self.path, error) from None
        if value.dtype == "bfloat16":  # the upper half of a float32
            raw = b"\0\0" + raw
        number: float = struct.unpack(layout, raw)[0]
        return float(number)


_SCALARS = {
    "float64": "<d",
    "float32": "<f",
    "float16": "<e",
    "bfloat16": "<f",
    "int64": "<q",
    "int32": "<i",
}


def read_archive(path: str) -> Archive:
    """The file at `path` as data. Raises CheckpointError in one sentence, whatever is in it."""
    with RegularFile(path) as file:
        try:
            kind, root, metadata = _read(file)
        except Damaged as error:
            if not file.unchanged():
                raise being_written(path) from None
            raise refused(path, error) from None
        return Archive(path, kind, root, file.stamp, file.modified, metadata)


def read_pickle_file(path: str) -> object:
    """A small pickle that lies alone, such as nanoGPT's meta.pkl, as plain data. Raises
    CheckpointError."""
    archive = read_archive(path)
    if archive.kind != "pickle":
        raise refused(path, Damaged("it is not a pickle"))
    return archive.root


def _read(file: RegularFile) -> tuple[Kind, object, Mapping[str, str]]:
    if file.size == 0:
        raise Damaged("it is empty")
    head = file.read(0, min(file.size, 64))
    if head[:4] == b"PK\x03\x04":
        return "torch", torch_root(file), {}
    if head[:4] == MAGIC:
        return "gguf", read_gguf(file).root, {}
    # Before the pickles: a llama2.c model of width 128 begins with the byte that theirs begin with.
    if looks_binary(head, file.size):
        binary = read_binary(file, head)
        return binary.kind, binary.root, {}
    if looks_like_hipgpt(file):
        binary = read_hipgpt(file)
        return binary.kind, binary.root, {}
    if _looks_like_safetensors(head, file.size):
        root, metadata = _safetensors(file)
        return "safetensors", root, metadata
    if head[:1] == b"\x80" and not resembles_legacy(head):
        return _stream(file)
    raise Damaged(_what_it_is(head, file.size))


def _what_it_is(head: bytes, size: int) -> str:
    text = head.lstrip()[:20].lower()
    if not any(head):
        return "it begins with zeros, as a full disk or a crash leaves a file"
    if text.startswith((b"<!doctype", b"<html")):
        return "it is a web page, not a checkpoint"
    if text.startswith(b"version https://git-lfs"):
        return "it is a pointer to a file in Git LFS; fetch the file itself with git lfs pull"
    if resembles_legacy(head):
        return "its first numbers are the sizes of a llama2.c export, but not of one of its length"
    if foreign(head):
        return foreign(head)
    if resembles_hipgpt(head, size):
        return (
            f"its first numbers are the sizes of a HipGPT model, but of one larger than its "
            f"{size:,} bytes: a copy cut short, or a save in progress"
        )
    return "it is neither a torch file nor safetensors"


# ---- torch since 1.6: a zip archive with one pickle and one member for each storage


def torch_root(file: RegularFile, base: int = 0, length: int | None = None) -> object:
    """What torch.save put into the archive at [base, base + length) of a file. Raises Damaged."""
    directory = Directory(file, base, length)
    roots = [
        name for name in directory.members if name.endswith("/data.pkl") and name.count("/") == 1
    ]
    if len(roots) != 1:
        if any(
            name.endswith("/constants.pkl") and "/code/" in "".join(directory.members)
            for name in roots
        ):
            raise Damaged("it is a TorchScript program, not a checkpoint")
        raise Damaged("it is a zip archive, but not one that torch.save makes")
    prefix = roots[0][: -len("data.pkl")]
    order = directory.members.get(prefix + "byteorder")
    if order is not None and directory.read(order.name) != b"little":
        raise Damaged("its numbers are big-endian")
    if directory.members[roots[0]].size > MAX_BYTES:
        raise Damaged(f"its pickled part has more than {MAX_BYTES:,} bytes")
    if prefix + "constants.pkl" in directory.members:
        raise Damaged("it is a TorchScript program, not a checkpoint")
    found: dict[str, Storage] = {}

    def storage_of(key: str, nbytes: int) -> Storage:
        storage = found.get(key)
        if storage is None:
            member = directory.members.get(f"{prefix}data/{key}")
            if member is None:
                raise Damaged(f"the storage {key[:40]!r} is missing from the archive")
            storage = found[key] = Storage(
                file.path, directory.position(member), member.size, member.crc32, f"data/{key}"
            )
        if storage.nbytes != nbytes:
            raise Damaged(f"the storage {key[:40]!r} has {storage.nbytes:,} bytes, not {nbytes:,}")
        return storage

    value, _ = read_pickle(directory.read(roots[0]))
    return plain(value, storage_of)


# ---- torch before 1.6: five pickles, then the storages one after the other


def _stream(file: RegularFile) -> tuple[Kind, object, Mapping[str, str]]:
    # How long the pickles are is not written anywhere, and the storages after them may be
    # gigabytes.
    for size in (256 * 1024, 8 * 1024 * 1024, MAX_BYTES):
        data = file.read(0, min(size, file.size))
        try:
            return _stream_from(file, data)
        except Truncated:
            if len(data) == file.size:
                raise
    raise Damaged(f"its pickled part has more than {MAX_BYTES:,} bytes")


def _stream_from(file: RegularFile, data: bytes) -> tuple[Kind, object, Mapping[str, str]]:
    first, at = read_pickle(data)
    if first != LEGACY_MAGIC:
        return "pickle", plain(first, no_storage), {}
    version, at = read_pickle(data, at)
    system, at = read_pickle(data, at)
    value, at = read_pickle(data, at)
    keys, at = read_pickle(data, at)
    if version != 1001 or not isinstance(system, dict) or not isinstance(keys, list):
        raise Damaged("it is a torch file of an unknown version")
    if system.get("little_endian") is not True:
        raise Damaged("its numbers are big-endian")
    sizes_by_key: dict[str, int] = {}

    def announced(key: str, nbytes: int) -> Storage:
        if sizes_by_key.setdefault(key, nbytes) != nbytes:
            raise Damaged(f"the storage {key[:40]!r} has two sizes")
        return Storage(file.path, 0, nbytes)

    # Only to learn how many bytes a number of each storage has: also those of the optimizer, which
    # may stand before the weights.
    plain(value, announced, whole=True)
    begins: dict[str, int] = {}
    for key in keys:
        if not isinstance(key, str) or key in begins or key not in sizes_by_key:
            raise Damaged("its list of storages does not fit its tensors")
        count = struct.unpack("<q", file.read(at, 8))[0]
        nbytes = sizes_by_key[key]
        # The count is in numbers, whose size only the pickle knows: the two must agree for one size
        # of number.
        if count < 0 or not any(count * item == nbytes for item in (1, 2, 4, 8)):
            raise Damaged(f"the storage {key[:40]!r} has another size than announced")
        begins[key] = at + 8
        at += 8 + nbytes
        if at > file.size:
            raise Damaged("it ends before its last tensor: a copy cut short, or a save in progress")

    def storage_of(key: str, nbytes: int) -> Storage:
        if key not in begins:
            raise Damaged(f"the storage {key[:40]!r} is missing")
        return Storage(file.path, begins[key], nbytes, None, key)

    return "torch stream", plain(value, storage_of), {}


# ---- safetensors: the length of a JSON header, the header, the numbers

_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _looks_like_safetensors(head: bytes, size: int) -> bool:
    """A length, then JSON. A pickle read so has an impossible length."""
    if head[8:9] != b"{":
        return False
    fits: bool = 8 + struct.unpack("<Q", head[:8])[0] <= size
    return fits or head[:1] != b"\x80"


def _safetensors(file: RegularFile) -> tuple[Mapping[str, object], Mapping[str, str]]:
    length = struct.unpack("<Q", file.read(0, 8))[0]
    if 8 + length > file.size:
        raise Damaged(f"its header claims {length:,} bytes where the file has {file.size:,}")
    if length > MAX_HEADER:
        raise Damaged(f"its header has {length:,} bytes, more than {MAX_HEADER:,}")
    header = parse_json(file.read(8, length))
    if not isinstance(header, dict):
        raise Damaged("its header is not a table of tensors")
    if len(header) > MAX_TENSORS:
        raise Damaged(f"its header names {len(header):,} tensors, more than {MAX_TENSORS:,}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise Damaged("its metadata is not a table of texts")
    begin = 8 + length
    root: dict[str, object] = {}
    ends: list[tuple[int, int]] = []
    for name, entry in header.items():
        ref = _safetensor(file, name, entry, begin)
        if isinstance(ref, TensorRef):
            ends.append((ref.storage.begin, ref.storage.begin + ref.storage.nbytes))
        root[name] = ref
    at = begin
    for start, end in sorted(ends):
        if start != at:
            raise Damaged("its tensors overlap or leave a hole")
        at = end
    if at != file.size:
        raise Damaged(f"{file.size - at:,} bytes follow its last tensor")
    return root, metadata


def _safetensor(file: RegularFile, name: str, entry: object, begin: int) -> TensorRef:
    if not isinstance(entry, dict):
        raise Damaged(f"the tensor {name[:60]!r} is not described")
    dtype = _DTYPES.get(str(entry.get("dtype")))
    if dtype is None:
        raise Damaged(
            f"the tensor {name[:60]!r} has the unknown type {str(entry.get('dtype'))[:20]!r}"
        )
    shape = sizes(entry.get("shape"), "shape")
    span = sizes(entry.get("data_offsets"), "place")
    numel = 1
    for size in shape:
        numel *= size
    if (
        len(span) != 2
        or span[1] - span[0] != numel * ITEM_BYTES[dtype]
        or begin + span[1] > file.size
    ):
        raise Damaged(
            f"the tensor {name[:60]!r} of {shape_text(shape)} does not fit the place given for it"
        )
    storage = Storage(file.path, begin + span[0], span[1] - span[0], None, name)
    return checked(dtype, shape, contiguous(shape), 0, storage)


def parse_json(raw: bytes, what: str = "its header", values: int = MAX_VALUES) -> object:
    """JSON, or Damaged: also for what is nested too deeply, names a key twice, or is not UTF-8.
    `what` is how the reason calls it; `values` is how many it may hold at most."""

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Damaged("it names a key twice")
        return found

    # An empty list of two bytes takes fifty in memory; each value has one of these beside it.
    if len(raw) > values and sum(map(raw.count, (b",", b"[", b"{"))) > values:
        raise Damaged(f"{what} has more than {values:,} entries")
    try:
        value: object = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except Damaged:
        raise
    except UnicodeDecodeError:
        raise Damaged(f"{what} is not UTF-8") from None
    except RecursionError:
        raise Damaged(f"{what} is nested too deeply") from None
    except ValueError as error:
        raise Damaged(f"{what} is not JSON ({str(error)[:80]})") from None
    return value
