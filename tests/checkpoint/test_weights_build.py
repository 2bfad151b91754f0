"""What a plan may ask of a tensor beyond its bytes: rearranged rows, scales, added matrices."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tui_chat.checkpoint import assembly, reading, weights
from tui_chat.checkpoint.files import RegularFile
from tui_chat.checkpoint.names import Recipe
from tui_chat.checkpoint.plan import WeightPlan
from tui_chat.checkpoint.tensors import LowRank, Storage, TensorRef, contiguous, part
from tui_chat.errors import CheckpointError

Stored = Callable[..., TensorRef]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """Writes a tensor's bytes to a file of its own and says where they lie."""
    count = iter(range(1000))

    def write(tensor: torch.Tensor) -> TensorRef:
        path = tmp_path / f"{next(count)}.bin"
        raw = bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())
        path.write_bytes(raw)
        shape = tuple(tensor.shape)
        storage = Storage(str(path), 0, len(raw))
        dtype = str(tensor.dtype).removeprefix("torch.")
        return TensorRef(dtype, shape, contiguous(shape), 0, storage)

    return write


def built(*refs: TensorRef, dtype: str | None = None, transposed: bool = False) -> torch.Tensor:
    """The parts one below the other, as a plan of one tensor reads them."""
    return weights.read(plan_of({"w": Recipe(refs, transposed)}), dtype=dtype)["w"]


def plan_of(recipes: Mapping[str, Recipe]) -> WeightPlan:
    stamps = {}
    for storage in (s for recipe in recipes.values() for ref in recipe.parts for s in ref.storages):
        with RegularFile(storage.file) as file:
            stamps[storage.file] = file.stamp
    return WeightPlan(recipes=recipes, stamps=stamps)


def rows_by_head(tensor: torch.Tensor, ref: TensorRef, heads: int) -> TensorRef:
    """The query rows of a matrix that keeps q, k, v of each head together."""
    rows, width = tensor.shape
    dim = rows // heads // 3
    return part(
        ref, (heads * dim, width), grid=(heads, dim, width), stride=(3 * dim * width, width, 1)
    )


def test_rows_grouped_by_head_are_put_in_order(stored: Stored) -> None:
    fused = torch.randn(4 * 3 * 5, 7)
    query = built(rows_by_head(fused, stored(fused), 4))
    assert torch.equal(query, fused.view(4, 3, 5, 7)[:, 0].reshape(20, 7))
    assert query.is_contiguous()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_number_is_added_in_float32_and_rounded_once(dtype: str, stored: Stored) -> None:
    norm = (torch.randn(64) * 0.01).bfloat16()
    ref = stored(norm)
    one_plus = TensorRef("bfloat16", ref.shape, ref.stride, 0, ref.storage, plus=1.0)
    wanted = (1.0 + norm.double()).to(getattr(torch, dtype))
    assert torch.equal(built(one_plus, dtype=dtype), wanted)


@pytest.mark.parametrize("stored_in_out", [False, True], ids=["out-in", "in-out"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_adapter_is_added_to_its_matrix(
    stored_in_out: bool, dtype: torch.dtype, stored: Stored
) -> None:
    weight, scale = torch.randn(12, 8).to(dtype), 0.5  # (out, in)
    adapters = [(torch.randn(12, 2), torch.randn(2, 8)), (torch.randn(12, 3), torch.randn(3, 8))]
    ref = stored(weight.t() if stored_in_out else weight)
    deltas = tuple(
        LowRank(stored(down), stored(up), scale, transposed=stored_in_out) for up, down in adapters
    )
    merged = TensorRef(ref.dtype, ref.shape, ref.stride, 0, ref.storage, deltas=deltas)
    found = built(merged, dtype="float32", transposed=stored_in_out)
    wanted = weight.double() + sum(scale * (up.double() @ down.double()) for up, down in adapters)
    assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_blocks_with_their_scale_between_the_numbers_are_multiplied_out(
    stored: Stored, tmp_path: Path
) -> None:
    """GGUF's Q8_0: of each 34 bytes, two are a float16 scale and 32 the numbers."""
    numbers = torch.randint(-127, 128, (6, 32), dtype=torch.int8)
    scales = torch.rand(6, 1).half()
    blocks = torch.cat([scales.view(torch.uint8), numbers.view(torch.uint8)], dim=1)
    storage = stored(blocks).storage
    ref = TensorRef(
        "int8", (3, 64), (34, 1), 2, storage, grid=(6, 32),
        scales=TensorRef("float16", (6,), (17,), 0, storage),
    )  # fmt: skip
    assert torch.equal(built(ref), (numbers.float() * scales.float()).view(3, 64))


def test_parts_of_all_these_kinds_stand_below_one_another(stored: Stored) -> None:
    fused, plain = torch.randn(2 * 3 * 4, 8), torch.randn(5, 8)
    found = built(rows_by_head(fused, stored(fused), 2), stored(plain), dtype="float64")
    wanted = torch.cat([fused.view(2, 3, 4, 8)[:, 0].reshape(8, 8), plain]).double()
    assert torch.equal(found, wanted)


# ---- where the bytes go


@pytest.fixture(params=[16, 64, 4096])
def small_pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Read in pieces so small that every tensor is cut many times."""
    monkeypatch.setattr(reading, "PIECE", request.param)
    monkeypatch.setattr(reading, "_HANDED_OVER", request.param // 2)
    monkeypatch.setattr(assembly, "PIECE", request.param)
    monkeypatch.setattr(assembly, "_NUMBERS", request.param // 4)
    return int(request.param)


def read_all(
    path: Path, refs: dict[str, TensorRef], turned: frozenset[str] = frozenset(), **options: Any
) -> dict[str, torch.Tensor]:
    plan = plan_of({name: Recipe((ref,)) for name, ref in refs.items()})
    return weights.read(plan, turned=lambda name: name in turned, **options)


@pytest.fixture
def flat(tmp_path: Path) -> tuple[Path, torch.Tensor, Storage]:
    """A file whose single storage, with a checksum, holds everything, as flat parameters do."""
    numbers = torch.randn(1000)
    raw = bytes(numbers.view(torch.uint8).tolist())
    path = tmp_path / "flat.bin"
    path.write_bytes(b"head" + raw + b"tail")
    return path, numbers, Storage(str(path), 4, len(raw), zlib.crc32(raw), "data/0")


@pytest.mark.parametrize("dtype", [None, "bfloat16", "float64"])
def test_views_of_one_storage_are_read_apart_whatever_lies_between(
    flat: tuple[Path, torch.Tensor, Storage], dtype: str | None, small_pieces: int
) -> None:
    path, numbers, storage = flat
    refs = {
        "rows": TensorRef("float32", (7, 9), (9, 1), 3, storage),
        "columns": TensorRef("float32", (8, 6), (1, 8), 100, storage),
        "first": TensorRef("float32", (10, 10), (10, 1), 200, storage),
        "overlapping": TensorRef("float32", (10, 5), (10, 1), 230, storage),
        "spread": TensorRef("float32", (20, 3), (13, 2), 500, storage),
        "last": TensorRef("float32", (100,), (1,), 900, storage),
        "nothing": TensorRef("float32", (0, 4), (4, 1), 0, storage),
        "scalar": TensorRef("float32", (), (), 899, storage),
    }
    found = read_all(path, refs, frozenset(("rows", "first", "spread")), dtype=dtype)
    for name, ref in refs.items():
        wanted = torch.as_strided(numbers, ref.shape, ref.stride, ref.offset)
        assert torch.equal(found[name], wanted.to(found[name].dtype)), name
    assert found["rows"].stride() == (1, 7) and found["columns"].is_contiguous()


def test_a_flipped_bit_between_the_tensors_is_noticed_too(
    flat: tuple[Path, torch.Tensor, Storage], small_pieces: int
) -> None:
    path, _, storage = flat
    raw = bytearray(path.read_bytes())
    raw[4 + 4 * 500] ^= 1
    path.write_bytes(raw)
    refs = {"a": TensorRef("float32", (50,), (1,), 0, storage)}
    refs["b"] = TensorRef("float32", (50,), (1,), 800, storage)
    with pytest.raises(CheckpointError, match="checksum"):
        read_all(path, refs)


def test_without_a_checksum_only_the_bytes_of_the_tensors_are_read(
    flat: tuple[Path, torch.Tensor, Storage],
) -> None:
    path, numbers, storage = flat
    bare = Storage(storage.file, storage.begin, storage.nbytes)
    refs = {"a": TensorRef("float32", (50,), (1,), 10, bare)}
    refs["b"] = TensorRef("float32", (50,), (1,), 800, bare)
    plan = WeightPlan(recipes={name: Recipe((ref,)) for name, ref in refs.items()}, stamps={})
    assert plan.nbytes == 400
    assert torch.equal(read_all(path, refs)["b"], numbers[800:850])


def test_tensors_of_the_same_numbers_stay_one_tensor(
    flat: tuple[Path, torch.Tensor, Storage],
) -> None:
    path, numbers, storage = flat
    tied = {n: TensorRef("float32", (10, 9), (9, 1), 3, storage) for n in ("embed", "head")}
    found = read_all(path, tied, frozenset(("head",)), dtype="float16")
    assert found["embed"].data_ptr() == found["head"].data_ptr()
    assert torch.equal(found["embed"], numbers[3:93].view(10, 9).half())


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_matrices_lie_in_memory_as_asked(
    turned: bool, transposed: bool, stored: Stored, small_pieces: int
) -> None:
    parts = [torch.randn(6, 10), torch.randn(5, 10)]
    refs = tuple(stored(part.t() if transposed else part) for part in parts)
    plan = plan_of({"w": Recipe(refs, transposed)})
    found = weights.read(plan, turned=lambda name: turned)["w"]
    assert torch.equal(found, torch.cat(parts))
    assert found.stride() == ((1, 11) if turned else (10, 1))


def test_numbers_in_blocks_are_multiplied_out_piece_by_piece(
    stored: Stored, small_pieces: int
) -> None:
    numbers = torch.randint(-127, 128, (40, 8), dtype=torch.int8)
    scales = torch.rand(40, 1)
    ref = replace(stored(numbers.view(10, 32)), scales=stored(scales.view(40)))
    found = weights.read(plan_of({"w": Recipe((ref,))}), turned=lambda name: True)["w"]
    assert torch.equal(found, (numbers.float() * scales).view(10, 32))


@pytest.mark.parametrize("transposed", [False, True])
def test_parts_that_fill_a_tensor_by_their_corners_are_put_there(
    transposed: bool, stored: Stored, small_pieces: int
) -> None:
    whole = torch.randn(6, 10)
    corners = ((0, 0), (0, 7), (4, 0), (4, 7))
    sizes = ((4, 7), (4, 3), (2, 7), (2, 3))
    places = [
        (slice(r, r + h), slice(c, c + w)) for (r, c), (h, w) in zip(corners, sizes, strict=True)
    ]
    parts = [whole[place].clone() for place in places]
    refs = tuple(stored(part.t() if transposed else part) for part in parts)
    plan = plan_of({"w": Recipe(refs, transposed, corners)})
    for turned in (False, True):
        found = weights.read(plan, dtype="float64", turned=lambda name, over=turned: over)["w"]
        assert torch.equal(found, whole.double())
