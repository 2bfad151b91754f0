from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.errors import CheckpointError

FIXTURES = Path(__file__).parent.parent / "fixtures"
Save = Callable[..., str]
Make = Callable[..., dict[str, torch.Tensor]]


def test_the_tensors_are_those_that_were_saved(nanogpt: Save, gpt: Make) -> None:
    saved = gpt()
    found = weights.load(catalog.describe(nanogpt(saved)))
    assert torch.equal(found["embed.weight"], saved["transformer.wte.weight"])
    assert torch.equal(found["blocks.1.mlp.down.bias"], saved["transformer.h.1.mlp.c_proj.bias"])
    assert "head.weight" not in found and len(found) == len(saved) - 1


def test_matrices_of_single_heads_are_joined_query_key_value() -> None:
    path = FIXTURES / "S0/grpo/grpo.pt"
    saved = torch.load(path, weights_only=False)["model_state_dict"]
    found = weights.load(catalog.describe(str(path)))
    heads = [
        saved[f"attn_blocks.2.attn.heads.{h}.{part}.weight"]
        for part in ("query", "key", "value")
        for h in range(2)
    ]
    assert torch.equal(found["blocks.2.attn.qkv.weight"], torch.cat(heads))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_come_in_the_dtype_that_is_asked_for(dtype: str, nanogpt: Save, gpt: Make) -> None:
    saved = {name: w.to(torch.float64) for name, w in gpt().items()}
    info = catalog.describe(nanogpt(saved))
    found = weights.load(info, dtype=dtype)
    assert info.dtype == "float64" and {str(w.dtype) for w in found.values()} == {f"torch.{dtype}"}
    wanted = saved["transformer.wpe.weight"].to(getattr(torch, dtype))
    assert torch.equal(found["position.weight"], wanted)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_views_of_one_storage_and_odd_strides_load_right(
    zipped: bool, gpt: Make, tmp_path: Path
) -> None:
    saved = gpt()
    big = torch.randn(40, 8)
    saved["transformer.wpe.weight"] = big[10:26]
    saved["transformer.h.0.attn.c_proj.weight"] = torch.randn(8, 8).t()
    path = tmp_path / "a.pt"
    torch.save(
        {"model": saved, "model_args": {"n_head": 2}}, path, _use_new_zipfile_serialization=zipped
    )
    found = weights.load(catalog.describe(str(path)))
    assert torch.equal(found["position.weight"], big[10:26])
    assert torch.equal(
        found["blocks.0.attn.out.weight"], saved["transformer.h.0.attn.c_proj.weight"]
    )


def test_progress_grows_to_one_and_only_needed_bytes_are_read(nanogpt: Save, gpt: Make) -> None:
    heavy = {"state": {0: torch.zeros(500_000)}}
    info = catalog.describe(nanogpt(optimizer=heavy))
    heard: list[float] = []
    weights.load(info, progress=heard.append)
    assert heard == sorted(heard) and heard[-1] == 1.0
    assert info.plan is not None and info.plan.nbytes < 20_000 < info.size


def test_loading_ends_when_it_is_cancelled(nanogpt: Save) -> None:
    with pytest.raises(weights.LoadCancelled):
        weights.load(catalog.describe(nanogpt()), cancelled=lambda: True)


def test_the_file_is_closed_afterwards(nanogpt: Save) -> None:
    info = catalog.describe(nanogpt())
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    weights.load(info)
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def damaged(info: CheckpointInfo) -> int:
    """The place of a byte inside the embedding."""
    assert info.plan is not None
    return info.plan.recipes["embed.weight"].parts[0].storage.begin + 5


def test_a_flipped_bit_in_the_weights_is_noticed(nanogpt: Save) -> None:
    path = nanogpt()
    at = damaged(catalog.describe(path))
    data = bytearray(Path(path).read_bytes())
    data[at] ^= 4
    Path(path).write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        weights.load(catalog.describe(path))


def test_a_file_that_changed_since_it_was_described_is_not_mixed(nanogpt: Save) -> None:
    info = catalog.describe(nanogpt())
    nanogpt(iter_num=20)  # the training saves its next step over it
    with pytest.raises(CheckpointError, match=r"being written.*[Tt]ry again"):
        weights.load(info)


def test_a_file_that_changes_while_it_is_read_is_not_mixed(nanogpt: Save) -> None:
    path = nanogpt()
    info = catalog.describe(path)

    def overwrite(done: float) -> None:
        os.utime(path, ns=(0, 1_000_000_000))

    with pytest.raises(CheckpointError, match="being written"):
        weights.load(info, progress=overwrite)


def test_a_file_that_shrinks_while_it_is_read_ends_in_a_sentence(nanogpt: Save) -> None:
    path = nanogpt()
    info = catalog.describe(path)

    def cut(done: float) -> None:
        with open(path, "r+b") as file:
            file.truncate(100)

    with pytest.raises(CheckpointError, match="being written"):
        weights.load(info, progress=cut)


def test_equal_weights_have_equal_fingerprints_whatever_the_step(nanogpt: Save, gpt: Make) -> None:
    saved = gpt()
    first = catalog.describe(nanogpt(saved, "a/ckpt.pt"))
    later: dict[str, Any] = {"iter_num": 99, "optimizer": None}
    again = catalog.describe(nanogpt(saved, "b/other.pt", **later))
    other = catalog.describe(nanogpt(gpt(), "c/ckpt.pt"))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert len(first.fingerprint) == 16 and int(first.fingerprint, 16) >= 0
