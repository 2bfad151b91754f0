"""What a plan may ask of a tensor beyond its bytes: rearranged rows, scales, added matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tui_chat.checkpoint import weights
from tui_chat.checkpoint.files import RegularFile
from tui_chat.checkpoint.names import Recipe
from tui_chat.checkpoint.plan import WeightPlan
from tui_chat.checkpoint.tensors import LowRank, Storage, TensorRef, contiguous, part

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
    recipe = Recipe(refs, transposed)
    stamps = {}
    for storage in (s for ref in refs for s in ref.storages):
        with RegularFile(storage.file) as file:
            stamps[storage.file] = file.stamp
    return weights.read(WeightPlan(recipes={"w": recipe}, stamps=stamps), dtype=dtype)["w"]


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
    assert query.is_contiguous() and query.untyped_storage().nbytes() == query.nbytes


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
