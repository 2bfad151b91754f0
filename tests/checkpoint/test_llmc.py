"""llm.c's GPT-2 files: float32 and bfloat16, with and without the project's vocabulary file."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest
import torch

from tui_chat.checkpoint import catalog, weights
from tui_chat.errors import CheckpointError

FIXTURE = Path(__file__).parent.parent / "fixtures/llmc/v5-bf16/model_00005000.bin"
MAGIC = 20240326
# version, context, ids, layers, heads, width, padded ids
TINY = (3, 16, 300, 2, 2, 8, 384)


def header(*numbers: int) -> bytes:
    return struct.pack("<8i", MAGIC, *numbers).ljust(1024, b"\0")


def body(numbers: tuple[int, ...]) -> torch.Tensor:
    """As many random numbers as a file with this header holds."""
    _, context, _, layers, _, width, padded = numbers
    per_layer = 12 * width * width + 13 * width
    return torch.randn(padded * width + context * width + layers * per_layer + 2 * width)


def tiny(numbers: tuple[int, ...] = TINY) -> bytes:
    values = body(numbers)
    return header(*numbers) + bytes(values.view(torch.uint8).tolist())


def vocabulary(pieces: list[bytes], end: int, version: int = 2) -> bytes:
    begin = struct.pack("<4i", 20240328, version, len(pieces), end if version == 2 else 0)
    return begin.ljust(1024, b"\0") + b"".join(bytes([len(p)]) + p for p in pieces)


PIECES = [*(bytes([b]) for b in range(256)), *(b"x" * n for n in range(2, 45)), b"<|endoftext|>"]


def test_says_what_the_header_says_and_cuts_the_padding() -> None:
    info = catalog.describe(str(FIXTURE))
    assert (info.format, info.step, info.dtype) == ("llm.c", 5000, "bfloat16")
    assert info.spec.vocab_size == info.tokenizer.vocab_size == 50257
    assert (info.spec.activation, info.stop_ids) == ("gelu_tanh", (50256,))
    assert weights.load(info)["embed.weight"].shape == (50257, info.spec.n_embd)


def test_float32_files_hold_their_tensors_in_the_trainers_order(tmp_path: Path) -> None:
    values = body(TINY)
    (tmp_path / "model_00000012.bin").write_bytes(
        header(*TINY) + bytes(values.view(torch.uint8).tolist())
    )
    info = catalog.describe(str(tmp_path / "model_00000012.bin"))
    found = weights.load(info)
    assert (info.step, info.dtype) == (12, "float32")
    assert torch.equal(found["embed.weight"].flatten(), values[: 300 * 8])
    assert torch.equal(found["final_norm.bias"], values[-8:])
    after = 384 * 8 + 16 * 8 + 2 * (8 + 8)  # wte, wpe, both of ln_1
    second = after + 3 * 8 * 8  # the second layer's qkv follows the first's
    assert torch.equal(
        found["blocks.1.attn.qkv.weight"].flatten(), values[second : second + 3 * 8 * 8]
    )


def test_a_run_lists_the_weights_and_not_the_optimizer(tmp_path: Path) -> None:
    shutil.copy(FIXTURE, tmp_path)
    (tmp_path / "model_00000012.bin").write_bytes(tiny())
    (tmp_path / "state_00005000_0.bin").write_bytes(struct.pack("<2i", 20240527, 1).ljust(4096))
    (tmp_path / "DONE_00005000").touch()
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(vocabulary(PIECES, 299))
    (run,) = catalog.scan([str(tmp_path)])
    assert [entry.step for entry in run.checkpoints] == [12, 5000]
    with pytest.raises(CheckpointError, match="optimizer state"):
        catalog.describe(str(tmp_path / "state_00005000_0.bin"))


@pytest.mark.parametrize("version", [1, 2])
def test_the_projects_own_vocabulary_is_used_where_its_size_fits(
    version: int, tmp_path: Path
) -> None:
    (tmp_path / "model.bin").write_bytes(tiny())
    bare = catalog.describe(str(tmp_path / "model.bin"))
    assert bare.tokenizer.kind == "none" and "gpt2_tokenizer.bin" in bare.warnings[0]
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(vocabulary(PIECES, 299, version))
    info = catalog.describe(str(tmp_path / "model.bin"))
    assert (info.tokenizer.kind, info.stop_ids, info.step) == ("llmc", (299,), None)
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(vocabulary(PIECES[1:], 298, version))
    assert catalog.describe(str(tmp_path / "model.bin")).tokenizer.kind == "none"
    (tmp_path / "gpt2_tokenizer.bin").write_bytes(vocabulary(PIECES, 299)[:-3])
    assert any("id 299" in w for w in catalog.describe(str(tmp_path / "model.bin")).warnings)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(4, *TINY[1:]), "version 4"),
        (header(3, 16, 300, 2**30, 2, 8, 384), "num_layers = 1073741824"),
        (header(3, 16, 300, 2, 2, 8, -1), "padded_vocab = -1"),
        (header(3, 16, 300, 2, 3, 8, 384), "3 heads"),
        (header(3, 16, 300, 2, 2, 8, 256), "300 ids in 256 rows"),
        (header(*TINY), "calls for more"),
        (header(*TINY)[:600], "ends at byte 600"),
        (tiny()[:-4], "calls for more"),
        (tiny() + b"\0\0\0\0", "calls for"),
        (struct.pack("<2i", 20240803, 3).ljust(1024, b"\0"), "Llama 3 export"),
    ],
)
def test_a_header_that_lies_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        catalog.describe(str(path))
    assert "model.bin" in str(caught.value) and "\n" not in str(caught.value)
