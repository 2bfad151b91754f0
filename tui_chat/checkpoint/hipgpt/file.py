"""HipGPT's weights: a header of four numbers, then bare tensors.

There is no magic number. A file is known by the record before its first layer, which repeats the
width of the header, and believed when all sizes together give its length to the byte.
Layout: save_checkpoint in gpt_model.cpp, save in transformer_layer.cpp.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from tui_chat.checkpoint.binaries import Binary, Places
from tui_chat.checkpoint.files import Damaged, RegularFile

_MOST = {  # far above anything trained, and still to be computed: every token takes whole windows
    "vocab_size": 2**24,
    "max_seq_len": 2**16,
    "embed_dim": 2**20,
    "num_layers": 1024,
}
_HEADER = 16  # bytes; the record of a layer has 12
_MOST_HIDDEN = 2**22
_MOST_WINDOW = 2**31  # numbers of a window, which the program counts in 32 bits


def looks_like_hipgpt(file: RegularFile) -> bool:
    """Whether the file begins as a checkpoint, as far as the record of its first layer."""
    sizes = _header(file)
    if not sizes:
        return False
    at = _first_layer(sizes)
    return at + 12 <= file.size and _record_fault(sizes, _record(file, at)) == ""


def resembles_hipgpt(head: bytes, size: int) -> bool:
    """Whether `head` could be a header of a file that is too short to hold a layer."""
    sizes = _sizes(head)
    return bool(sizes) and size < _first_layer(sizes) + 12


def read_hipgpt(file: RegularFile) -> Binary:
    """The sizes and the places of the tensors. Raises Damaged where the two do not agree."""
    sizes = _header(file)
    if not sizes:
        raise Damaged("its first four numbers are no sizes of a HipGPT model")
    rows, window, width = sizes["vocab_size"], sizes["max_seq_len"], sizes["embed_dim"]
    places = Places(file, _HEADER)
    places.add("token_embedding.weight", (rows, width))
    places.add("pos_embedding.weight", (window, width))
    first: tuple[int, int, int] | None = None
    for i in range(sizes["num_layers"]):
        if places.at + 12 > file.size:
            raise Damaged(
                f"it ends before layer {i} of {sizes['num_layers']}: a copy cut short, or a save "
                "in progress"
            )
        record = _record(file, places.at)
        fault = _record_fault(sizes, record)
        if not fault and first is not None and record != first:
            fault = f"has {record[1]} heads and {record[2]} hidden numbers, unlike those before"
        if not fault and first is None and file.size in _first_hours(sizes, record[2]):
            raise Damaged(
                "it is of HipGPT's first hours, when layers were saved without their output "
                "matrix, which HipGPT does not read either"
            )
        if fault:
            raise Damaged(f"its layer {i} {fault}")
        first = record
        places.skip(3)
        _add_layer(places, f"layers.{i}", width, record[2])
    places.add("output_projection.weight", (width, rows))
    assert first is not None
    found = sizes | {"num_heads": first[1], "ff_hidden_dim": first[2]}
    return Binary("HipGPT", found, places.close())


def _add_layer(places: Places, at: str, width: int, hidden: int) -> None:
    matrices = {
        "qkv": (width, 3 * width),
        "o": (width, width),
        "ff1": (width, hidden),
        "ff2": (hidden, width),
    }
    for name, shape in matrices.items():
        places.add(f"{at}.{name}.weight", shape)
    for name, shape in matrices.items():
        places.add(f"{at}.{name}.bias", shape[1:])
    for name in ("attn_norm", "ffn_norm"):
        places.add(f"{at}.{name}.weight", (width,))
        places.add(f"{at}.{name}.bias", (width,))


def _header(file: RegularFile) -> dict[str, int]:
    return _sizes(file.read(0, min(file.size, _HEADER)))


def _sizes(head: bytes) -> dict[str, int]:
    """The header's numbers under the trainer's words, empty for those that cannot be."""
    if len(head) < _HEADER:
        return {}
    sizes = dict(zip(_MOST, struct.unpack("<4i", head[:_HEADER]), strict=True))
    if any(not 0 < value <= _MOST[name] for name, value in sizes.items()):
        return {}
    return sizes if sizes["max_seq_len"] * sizes["embed_dim"] < _MOST_WINDOW else {}


def _first_layer(sizes: Mapping[str, int]) -> int:
    """Where the record of the first layer stands."""
    rows = sizes["vocab_size"] + sizes["max_seq_len"]
    return _HEADER + 4 * rows * sizes["embed_dim"]


def _first_hours(sizes: Mapping[str, int], hidden: int) -> tuple[int, int]:
    """Bytes of a file whose layers lack attention's output matrix and its bias, or all biases."""
    width = sizes["embed_dim"]
    layer = 3 + 3 * width * width + 2 * width * hidden + 4 * width
    around = _first_layer(sizes) + 4 * sizes["vocab_size"] * width
    layers = 4 * sizes["num_layers"]
    return around + layers * (layer + 4 * width + hidden), around + layers * layer


def _record(file: RegularFile, at: int) -> tuple[int, int, int]:
    """Width, heads and hidden width of the layer that begins at byte `at`."""
    width, heads, hidden = struct.unpack("<3i", file.read(at, 12))
    return width, heads, hidden


def _record_fault(sizes: Mapping[str, int], record: tuple[int, int, int]) -> str:
    """Why this cannot be a layer of that model, "" if it can."""
    width, heads, hidden = record
    if width != sizes["embed_dim"]:
        return f"says a width of {width}, its header {sizes['embed_dim']}"
    if not 0 < heads <= width or width % heads:
        return f"says {heads} heads, which cannot share a width of {width}"
    if not 0 < hidden <= _MOST_HIDDEN:
        return f"says {hidden} hidden numbers, which cannot be"
    return ""
