"""From the records of a pickle to plain data: the dozen objects that checkpoints are really made
of.

A record whose name is known here (an ordered dict, a tensor, a version string) becomes data; every
other one becomes an `Opaque` that keeps the class name and the fields, which is enough to read a
trainer's own config object.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.pickles import Name, Persistent, Record
from tui_chat.checkpoint.tensors import ITEM_BYTES, Storage, checked
from tui_chat.checkpoint.words import kind

MAX_DEPTH = 64

STORAGE_DTYPES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}


_OTHER_BYTES = {"ComplexFloatStorage": 8, "QInt8Storage": 1,
                "QUInt8Storage": 1, "QInt32Storage": 4}  # fmt: skip


@dataclass(slots=True, eq=False)
class Opaque:
    """An object of a class that is not known: its name, and the fields it had, or the text that was
    its whole state."""

    name: str
    fields: Mapping[str, object] = field(default_factory=dict)
    state: str = ""


def what(value: object) -> str:
    """What a value is, with its article: "an object of torch.nn.Linear", "an empty dict"."""
    if not isinstance(value, Opaque):
        return kind(value)
    # What is no object has its words already: "a tensor in ...".
    words = value.name if value.name.startswith(("a ", "an ")) else f"an object of {value.name}"
    return words if len(words) <= 80 else words[:79] + "…"


StorageOf = Callable[[str, int], Storage]
"""Finds the storage with a key, given the bytes the pickle says it has. Raises Damaged."""


def no_storage(key: str, nbytes: int) -> Storage:
    """For pickles that lie alone: they have no storages."""
    raise Damaged(f"it names the storage {key[:40]!r} but has none")


# Two thirds of a checkpoint, and nothing that a model needs to speak.
NEVER_READ = frozenset(("optimizer", "optimizer_state_dict", "optimizer_state", "optimizers"))


def plain(value: object, storage_of: StorageOf = no_storage, *, whole: bool = False) -> object:
    """`value` without records: data, TensorRef and Opaque. Raises Damaged.

    The state of the optimizer, where it stands at the top, is left out unseen, and None stands for
    it; not so if `whole`.
    """
    reader = _Plain(storage_of)
    if isinstance(value, Record):
        value = value.entries if str(value.cls) in _DICTS else value
    if isinstance(value, dict) and not whole:
        value = {k: None if k in NEVER_READ else v for k, v in value.items()}
    return reader.of(value, 0)


class _Plain:
    def __init__(self, storage_of: StorageOf) -> None:
        self.storage_of = storage_of
        self.done: dict[int, object] = {}  # by id: what is shared is looked at once
        self.open: set[int] = set()

    def of(self, value: object, depth: int) -> object:
        if value is None or isinstance(value, (str, int, float, bytes)):
            return value
        if isinstance(value, Name):
            return Opaque(str(value))
        key = id(value)
        if key in self.done:
            return self.done[key]
        if depth > MAX_DEPTH:
            raise Damaged(f"its data is nested more than {MAX_DEPTH} levels deep")
        if key in self.open:
            raise Damaged("its data contains itself")
        self.open.add(key)
        found = self.made(value, depth + 1)
        self.open.discard(key)
        self.done[key] = found
        return found

    def made(self, value: object, depth: int) -> object:
        if isinstance(value, dict):
            return {self.key(k): self.of(v, depth) for k, v in value.items()}
        if isinstance(value, list):
            return [self.of(v, depth) for v in value]
        if isinstance(value, tuple):
            return tuple([self.of(v, depth) for v in value])
        if isinstance(value, Record):
            return self.record(value, depth)
        if isinstance(value, (set, frozenset)):
            return {self.key(v) for v in value}
        return Opaque("a persistent id") if isinstance(value, Persistent) else Opaque(kind(value))

    @staticmethod
    def key(value: object) -> object:
        return str(value) if isinstance(value, (Name, Record)) else value

    def record(self, record: Record, depth: int) -> object:
        name, args = str(record.cls), record.args
        if name in _DICTS:
            return self.of(record.entries, depth)
        if name in _TENSORS:
            return self.tensor(name, args)
        if name in _PARAMETERS and args:
            return self.of(args[0], depth)
        if name == _TYPED and len(args) >= 3 and isinstance(args[2], tuple):
            made = str(args[0]) if isinstance(args[0], Name) else ""
            return self.tensor(made, args[2]) if made in _TENSORS else Opaque(name)
        if name in ("torch.Size", "builtins.tuple") and len(args) == 1:
            return self.of(args[0], depth)
        if name == "torch.torch_version.TorchVersion" and args and isinstance(args[0], str):
            return args[0]
        if name == "_codecs.encode" and len(args) == 2 and isinstance(args[0], str):
            return _latin1(args[0])
        if name in ("__builtin__.bytes", "builtins.bytes") and not args:  # b"" in protocol 2
            return b""
        if name.endswith(".multiarray.scalar") and len(args) == 2:
            return _numpy_scalar(args[0], self.of(args[1], depth))
        fields: dict[str, object] = {}
        # Objects with slots have a pair of states, of which the second holds the slots.
        states = record.state if isinstance(record.state, tuple) else (record.state,)
        for part in (*states, record.entries):
            if isinstance(part, dict):
                fields.update((k, self.of(v, depth)) for k, v in part.items() if isinstance(k, str))
        return Opaque(name, fields, record.state if isinstance(record.state, str) else "")

    def tensor(self, name: str, args: tuple[object, ...]) -> object:
        if len(args) < 4 or not isinstance(args[0], Persistent):
            raise Damaged("a tensor in it does not say where its numbers are")
        pid = args[0].value
        if not (
            isinstance(pid, tuple)
            and len(pid) >= 5
            and pid[0] == "storage"
            and isinstance(pid[2], str)
            and isinstance(pid[4], int)
            and not any(pid[5:])  # torch before 0.4 wrote views of storages here
        ):
            raise Damaged("a tensor in it names a storage in an unknown way")
        held = STORAGE_DTYPES.get(pid[1].name) if isinstance(pid[1], Name) else None
        if held is None:
            # Of no use here, but an older stream holds its numbers among the others.
            size = _OTHER_BYTES.get(pid[1].name, 0) if isinstance(pid[1], Name) else 0
            if size and 0 <= pid[4] < 2**48:
                self.storage_of(pid[2], pid[4] * size)
            return Opaque(f"a tensor in {pid[1]}")
        dtype = held
        if name.endswith("_v3"):
            wanted = args[6] if len(args) > 6 else None
            dtype = wanted.name if isinstance(wanted, Name) else ""
            if dtype not in ITEM_BYTES:
                return Opaque(f"a tensor of {wanted}")
        if not 0 <= pid[4] < 2**48:
            raise Damaged("a storage in it has an impossible size")
        storage = self.storage_of(pid[2], pid[4] * ITEM_BYTES[held])
        shape, stride = (self.of(part, MAX_DEPTH) for part in args[2:4])
        return checked(dtype, shape, stride, args[1], storage)


_DICTS = frozenset(("collections.OrderedDict", "collections.defaultdict", "builtins.dict"))
_TENSORS = frozenset(
    f"torch._utils.{name}"
    for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3")
)
_PARAMETERS = frozenset(
    f"torch._utils.{name}" for name in ("_rebuild_parameter", "_rebuild_parameter_with_state")
)
_TYPED = "torch._tensor._rebuild_from_type_v2"  # a tensor that someone gave attributes
_NUMPY_LAYOUTS = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "i1": "b",
                  "u8": "Q", "u4": "I", "u2": "H", "u1": "B", "b1": "?"}  # fmt: skip


def _latin1(text: str) -> object:
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError:
        raise Damaged("its pickled part has bytes that are none") from None


def _numpy_scalar(dtype: object, raw: object) -> object:
    """A number that numpy pickled. Text and objects stay opaque."""
    code = dtype.args[0] if isinstance(dtype, Record) and dtype.args else None
    layout = _NUMPY_LAYOUTS.get(code) if isinstance(code, str) else None
    if layout is None or not isinstance(raw, bytes) or len(raw) != struct.calcsize("<" + layout):
        return Opaque("a numpy value")
    return struct.unpack("<" + layout, raw)[0]


def mapping(value: object) -> Mapping[str, object]:
    """The named values of a dict or of an object that was pickled; empty for anything else."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if isinstance(k, str)}
    return value.fields if isinstance(value, Opaque) else {}
