"""Files that are a short header and then bare numbers: llama2.c's exports and llm.c's GPT-2.

Nothing in them says where a tensor lies; the header's sizes imply it. So the sizes must be in
range, and together they must give the length of the file to the byte, before any of them is used.
Layouts: llama2.c export.py (versions 0, 1, 2) and run.c; llm.c train_gpt2.py (versions 3, 5).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tui_chat.checkpoint.files import Damaged, RegularFile
from tui_chat.checkpoint.tensors import ITEM_BYTES, Storage, TensorRef, contiguous

BinaryKind = Literal["llama2.c", "llm.c", "HipGPT"]

LLAMA2C_MAGIC = 0x616B3432
LLMC_MAGIC = 20240326
LLMC_STATE_MAGIC = 20240527  # the optimizer's side of a run
LLMC_LLAMA_MAGIC = 20240803
LLMC_DTYPES = {3: "float32", 5: "bfloat16"}

_MOST = {  # far above anything trained, far below what makes the arithmetic below dear
    "dim": 2**20,
    "hidden_dim": 2**22,
    "n_layers": 4096,
    "n_heads": 4096,
    "n_kv_heads": 4096,
    "vocab_size": 2**24,
    "max_seq_len": 2**24,
}
_LLAMA2C_HEADER = 256  # bytes, versions 1 and 2
_LLMC_HEADER = 1024


@dataclass(frozen=True, slots=True)
class Binary:
    """`sizes` are the header's numbers under the trainer's words, and its `version`."""

    kind: BinaryKind
    sizes: Mapping[str, int]
    tensors: Mapping[str, TensorRef]

    @property
    def root(self) -> dict[str, object]:
        """As the root of an Archive."""
        return {"sizes": dict(self.sizes), "weights": dict(self.tensors)}


def looks_binary(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` (28 bytes or more) is one of these,
    by its magic number or, for the oldest kind that has none, by its exact length."""
    if len(head) < 28:
        return False
    magic = struct.unpack("<I", head[:4])[0]
    return magic in (LLAMA2C_MAGIC, LLMC_MAGIC) or _legacy_length(_seven(head)) == size


def resembles_legacy(head: bytes) -> bool:
    """Whether `head` could be the seven sizes of llama2.c's oldest export, whatever the length."""
    return len(head) >= 28 and _fault(_seven(head)) == ""


def read_binary(file: RegularFile, head: bytes) -> Binary:
    """The header and the places of the tensors. Raises Damaged where the two do not agree."""
    magic = struct.unpack("<I", head[:4])[0]
    if magic == LLMC_MAGIC:
        return _llmc(file)
    if magic != LLAMA2C_MAGIC:
        return _legacy(file, _seven(head))
    version = struct.unpack("<i", head[4:8])[0]
    if version not in (1, 2):
        raise Damaged(f"it is a llama2.c file of version {version}; 0, 1 and 2 can be read")
    return _llama2c(file, version)


def foreign(head: bytes) -> str:
    """What a file with one of the neighbouring magic numbers is, "" for any other."""
    magic = struct.unpack("<I", head[:4])[0] if len(head) >= 4 else 0
    if magic == LLMC_STATE_MAGIC:
        return "it is the optimizer state of llm.c; the weights are in the model_*.bin beside it"
    if magic == LLMC_LLAMA_MAGIC:
        return "it is a Llama 3 export of llm.c, which cannot be read yet"
    return ""


class Places:
    """Hands out consecutive tensors of a file, and holds their sum against its length."""

    def __init__(self, file: RegularFile, begin: int) -> None:
        self.file = file
        self.at = begin
        self.tensors: dict[str, TensorRef] = {}

    def take(self, dtype: str, shape: tuple[int, ...], label: str, rows: int = 0) -> TensorRef:
        """The next tensor; of its rows only the first `rows`, where the others are padding."""
        item = ITEM_BYTES[dtype]
        begin, numel = self.at, 1
        for size in shape:
            numel *= size
        self.at += numel * item
        if self.at > self.file.size:  # at once, so that no header makes us plan a million tensors
            raise Damaged(
                f"its header calls for more than the {self.file.size:,} bytes it has: "
                "a copy cut short, or a save in progress"
            )
        if rows:
            numel = numel // shape[0] * rows
            shape = (rows, *shape[1:])
        storage = Storage(self.file.path, begin, numel * item, None, label)
        return TensorRef(dtype, shape, contiguous(shape), 0, storage)

    def add(self, name: str, shape: tuple[int, ...], dtype: str = "float32", rows: int = 0) -> None:
        self.tensors[name] = self.take(dtype, shape, name, rows)

    def add_grouped(self, name: str, shape: tuple[int, int], group: int) -> None:
        """All int8 values of a matrix, then a float32 for each `group` of them in a row."""
        values = self.take("int8", shape, name)
        scales = self.take("float32", (shape[0] * shape[1] // group,), f"{name} scales")
        self.tensors[name] = TensorRef(
            values.dtype, values.shape, values.stride, 0, values.storage, scales
        )

    def skip(self, numel: int) -> None:
        self.at += 4 * numel

    def close(self) -> Mapping[str, TensorRef]:
        if self.at != self.file.size:
            raise Damaged(
                f"its header calls for {self.at:,} bytes, and the file has {self.file.size:,}"
            )
        return self.tensors


# ---- llama2.c


def _seven(head: bytes, at: int = 0) -> dict[str, int]:
    return dict(zip(_MOST, struct.unpack("<7i", head[at : at + 28]), strict=True))


def _fault(sizes: Mapping[str, int], *, signed: bool = True) -> str:
    """Why these cannot be the sizes of a model, "" if they can. `signed`: a negative vocab_size
    stands for an output matrix of its own."""
    for name, most in _MOST.items():
        value = abs(sizes[name]) if signed and name == "vocab_size" else sizes[name]
        if not 0 < value <= most:
            return f"its header says {name} = {sizes[name]}, which cannot be"
    heads, kv_heads = sizes["n_heads"], sizes["n_kv_heads"]
    if sizes["dim"] % (2 * heads):
        return (
            f"its header says dim = {sizes['dim']}, which {heads} heads of even width cannot fill"
        )
    if heads % kv_heads:
        return f"its header says {kv_heads} key heads, which cannot serve {heads} query heads"
    return ""


def _kv_dim(sizes: Mapping[str, int]) -> int:
    return sizes["dim"] // sizes["n_heads"] * sizes["n_kv_heads"]


def _rope_table(sizes: Mapping[str, int]) -> int:
    """Numbers of the cosines and the sines, which the oldest export stores."""
    return sizes["max_seq_len"] * (sizes["dim"] // sizes["n_heads"])


def _legacy_length(sizes: Mapping[str, int]) -> int:
    """Bytes of an export without magic number, 0 for sizes that cannot be."""
    if _fault(sizes):
        return 0
    dim, hidden, vocab = sizes["dim"], sizes["hidden_dim"], abs(sizes["vocab_size"])
    layer = 2 * dim + 2 * dim * dim + 2 * _kv_dim(sizes) * dim + 3 * hidden * dim
    tables = vocab * dim * (2 if sizes["vocab_size"] < 0 else 1)
    numbers = tables + sizes["n_layers"] * layer + dim + _rope_table(sizes)
    return 28 + 4 * numbers


def _matrices(sizes: Mapping[str, int]) -> Iterator[tuple[str, tuple[int, int]]]:
    """The matrices of the layers, each for all layers before the next; `{i}` is the layer."""
    dim, hidden, kv_dim = sizes["dim"], sizes["hidden_dim"], _kv_dim(sizes)
    yield "layers.{i}.attention.wq.weight", (dim, dim)
    yield "layers.{i}.attention.wk.weight", (kv_dim, dim)
    yield "layers.{i}.attention.wv.weight", (kv_dim, dim)
    yield "layers.{i}.attention.wo.weight", (dim, dim)
    yield "layers.{i}.feed_forward.w1.weight", (hidden, dim)
    yield "layers.{i}.feed_forward.w2.weight", (dim, hidden)
    yield "layers.{i}.feed_forward.w3.weight", (hidden, dim)


def _norms(places: Places, sizes: Mapping[str, int], *kinds: str) -> None:
    for kind in kinds:
        for i in range(sizes["n_layers"]):
            places.add(f"layers.{i}.{kind}.weight", (sizes["dim"],))


def _legacy(file: RegularFile, sizes: dict[str, int]) -> Binary:
    places = Places(file, 28)
    dim, vocab = sizes["dim"], abs(sizes["vocab_size"])
    places.add("tok_embeddings.weight", (vocab, dim))
    _norms(places, sizes, "attention_norm")
    for name, shape in _matrices(sizes):
        if name.endswith(".w1.weight"):
            _norms(places, sizes, "ffn_norm")
        for i in range(sizes["n_layers"]):
            places.add(name.replace("{i}", str(i)), shape)
    places.add("norm.weight", (dim,))
    places.skip(_rope_table(sizes))
    if sizes["vocab_size"] < 0:
        places.add("output.weight", (vocab, dim))
    found = sizes | {"vocab_size": vocab, "version": 0}
    return Binary("llama2.c", found, places.close())


def _llama2c(file: RegularFile, version: int) -> Binary:
    header = file.read(0, _LLAMA2C_HEADER)
    sizes = _seven(header, 8)
    fault = _fault(sizes, signed=False)
    if fault:
        raise Damaged(fault)
    shared = header[36]
    if shared not in (0, 1):
        raise Damaged(f"its header says {shared} where a shared output is 0 or 1")
    places = Places(file, _LLAMA2C_HEADER)
    dim, table = sizes["dim"], (sizes["vocab_size"], sizes["dim"])
    group = 0
    if version == 2:
        group = struct.unpack("<i", header[37:41])[0]
        widths = (dim, sizes["hidden_dim"], _kv_dim(sizes))
        if not 0 < group <= dim or any(width % group for width in widths[:2]):
            raise Damaged(f"its header says groups of {group}, which cannot be")
    _norms(places, sizes, "attention_norm", "ffn_norm")
    places.add("norm.weight", (dim,))
    matrices = [("tok_embeddings.weight", table)]
    for name, shape in _matrices(sizes):
        matrices += [(name.replace("{i}", str(i)), shape) for i in range(sizes["n_layers"])]
    if not shared:
        matrices.append(("output.weight", table))
    for name, shape in matrices:
        if group:
            places.add_grouped(name, shape, group)
        else:
            places.add(name, shape)
    return Binary("llama2.c", sizes | {"version": version}, places.close())


# ---- llm.c

_LLMC_WORDS = ("max_seq_len", "vocab_size", "num_layers", "num_heads", "channels", "padded_vocab")


def _llmc(file: RegularFile) -> Binary:
    numbers = struct.unpack("<256i", file.read(0, _LLMC_HEADER))
    dtype = LLMC_DTYPES.get(numbers[1])
    if dtype is None:
        raise Damaged(f"it is a llm.c file of version {numbers[1]}; 3 and 5 can be read")
    sizes = dict(zip(_LLMC_WORDS, numbers[2:8], strict=True))
    limits = (_MOST["max_seq_len"], _MOST["vocab_size"], 4096, 4096, 2**20, _MOST["vocab_size"])
    for (name, value), most in zip(sizes.items(), limits, strict=True):
        if not 0 < value <= most:
            raise Damaged(f"its header says {name} = {value}, which cannot be")
    width, rows, padded = sizes["channels"], sizes["vocab_size"], sizes["padded_vocab"]
    if width % sizes["num_heads"] or padded < rows:
        raise Damaged(
            f"its header says {width} channels, {sizes['num_heads']} heads, "
            f"{rows} ids in {padded} rows, which do not fit together"
        )
    places = Places(file, _LLMC_HEADER)
    places.add("wte.weight", (padded, width), dtype, rows)
    places.add("wpe.weight", (sizes["max_seq_len"], width), dtype)
    for name, shape in (
        ("ln_1.weight", (width,)),
        ("ln_1.bias", (width,)),
        ("attn.c_attn.weight", (3 * width, width)),
        ("attn.c_attn.bias", (3 * width,)),
        ("attn.c_proj.weight", (width, width)),
        ("attn.c_proj.bias", (width,)),
        ("ln_2.weight", (width,)),
        ("ln_2.bias", (width,)),
        ("mlp.c_fc.weight", (4 * width, width)),
        ("mlp.c_fc.bias", (4 * width,)),
        ("mlp.c_proj.weight", (width, 4 * width)),
        ("mlp.c_proj.bias", (width,)),
    ):
        for i in range(sizes["num_layers"]):
            places.add(f"h.{i}.{name}", shape, dtype)
    places.add("ln_f.weight", (width,), dtype)
    places.add("ln_f.bias", (width,), dtype)
    return Binary("llm.c", sizes | {"version": numbers[1]}, places.close())
