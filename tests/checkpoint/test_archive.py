from __future__ import annotations

import collections
import json
import os
import struct
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tui_chat.checkpoint.archive import read_archive
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

DTYPES = [
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
]


def values(path: Path, ref: object) -> torch.Tensor:
    """The tensor behind a reference, read in the simplest way."""
    assert isinstance(ref, TensorRef)
    raw = bytearray(path.read_bytes()[ref.storage.begin : ref.storage.begin + ref.storage.nbytes])
    numbers = torch.frombuffer(raw, dtype=getattr(torch, ref.dtype)) if raw else torch.empty(0)
    return torch.as_strided(numbers, ref.shape, ref.stride, ref.offset)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_finds_the_numbers_torch_saved(dtype: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    base = (torch.arange(24) % 7).to(getattr(torch, dtype))
    saved: dict[str, Any] = {
        "plain": base.view(4, 6),
        "turned": base.view(4, 6).t(),
        "part": base.view(4, 6)[1:3, 2:5],
        "one": base[3],
        "list": [torch.nn.Parameter(base, requires_grad=False), {"deep": base + base}],
        "ordered": collections.OrderedDict(x=base),
    }
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    root = read_archive(str(path)).root
    assert isinstance(root, dict)
    for name in ("plain", "turned", "part", "one"):
        assert torch.equal(values(path, root[name]), saved[name])
    assert torch.equal(values(path, root["list"][0]), base)
    assert torch.equal(values(path, root["list"][1]["deep"]), base + base)
    assert root["plain"].storage == root["turned"].storage == root["ordered"]["x"].storage


def test_reads_a_number_whether_it_is_one_or_a_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(
        {"a": torch.tensor(1.5), "b": torch.tensor(2.5, dtype=torch.bfloat16), "c": 3, "d": "x"},
        path,
    )
    archive = read_archive(str(path))
    assert isinstance(archive.root, dict)
    assert [archive.scalar(archive.root[k]) for k in "abcd"] == [1.5, 2.5, 3.0, None]


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_the_state_of_the_optimizer_is_left_out(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    turns = torch.ones(3, dtype=torch.complex64)  # as some keep their rotary table
    saved = {"optimizer": {"m": torch.ones(3)}, "t": turns, "model": {"w": torch.arange(2.0)}}
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    root = read_archive(str(path)).root
    assert isinstance(root, dict) and root["optimizer"] is None
    assert torch.equal(values(path, root["model"]["w"]), saved["model"]["w"])


def safetensors(path: Path, header: object, body: bytes = b"") -> str:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
    return str(path)


def test_reads_safetensors_with_their_metadata(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"step": "5"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "BF16", "shape": [3], "data_offsets": [16, 22]},
    }
    path = tmp_path / "a.safetensors"
    archive = read_archive(safetensors(path, header, struct.pack("<4f", 1, 2, 3, 4) + bytes(6)))
    assert archive.metadata == {"step": "5"} and isinstance(archive.root, dict)
    assert values(path, archive.root["a"]).tolist() == [[1, 2], [3, 4]]
    assert archive.root["b"].shape == (3,)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, "does not fit"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, "hole"),
        ({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 8]}}, "unknown type"),
        ({"a": {"dtype": "F32", "shape": [True, 2], "data_offsets": [0, 8]}}, "True"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, "4 bytes follow"),
        ({"a": []}, "not described"),
        ({"__metadata__": {"a": 1}}, "not a table of texts"),
        (b'{"a": {}, "a": {}}', "twice"),
    ],
)
def test_refuses_safetensors_that_lie(header: object, reason: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read_archive(safetensors(tmp_path / "a.safetensors", header, bytes(8)))


def test_a_header_whose_length_begins_like_a_pickle_is_still_safetensors(tmp_path: Path) -> None:
    header = {"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}
    raw = json.dumps(header).encode().ljust(0x80)
    archive = read_archive(safetensors(tmp_path / "a.safetensors", raw, b"x"))
    assert archive.kind == "safetensors"


def test_refuses_a_compressed_archive(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.pt", tmp_path / "b.pt"
    torch.save({"a": torch.zeros(1000)}, plain)
    with (
        zipfile.ZipFile(plain) as source,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in source.namelist():
            target.writestr(name, source.read(name))
    with pytest.raises(CheckpointError, match="compressed"):
        read_archive(str(packed))


def test_refuses_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as target:
        target.writestr("a/data.pkl", b"\x80\x02}.")
        with pytest.warns(UserWarning, match="Duplicate"):
            target.writestr("a/data.pkl", b"\x80\x02N.")
    with pytest.raises(CheckpointError, match="two members"):
        read_archive(str(path))


def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path: Path) -> None:
    pipe = tmp_path / "ckpt.pt"
    os.mkfifo(pipe)
    for path in (str(pipe), "/dev/zero"):
        with pytest.raises(CheckpointError, match="not a file"):
            read_archive(path)


@pytest.mark.parametrize("path", ["missing.pt", "with\0nul.pt"])
def test_a_path_that_cannot_be_is_one_sentence(path: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot open"):
        read_archive(str(tmp_path / path))


def test_a_sparse_terabyte_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ckpt.pt"
    with path.open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(CheckpointError, match="zeros"):
        read_archive(str(path))
