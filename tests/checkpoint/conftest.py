"""Checkpoints written by torch for a test, tiny and with random weights."""

from __future__ import annotations

import base64
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*NumPy.*")
    import torch

from tests.checkpoint.hf_folder import MODELS, Folder

torch.set_num_threads(1)

FIXTURES = Path(__file__).parent.parent / "fixtures"
Weights = dict[str, "torch.Tensor"]


@pytest.fixture
def fixtures() -> Path:
    return FIXTURES


@pytest.fixture
def gpt() -> Callable[..., Weights]:
    """The weights of a nanoGPT model: 2 layers, 2 heads, width 8, 16 positions, 65 ids."""

    def make(*, bias: bool = True, width: int = 8, rows: int = 65, layers: int = 2) -> Weights:
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.wte.weight": (rows, width),
            "transformer.wpe.weight": (16, width),
        }
        for i in range(layers):
            h = f"transformer.h.{i}"
            shapes |= {
                f"{h}.ln_1.weight": (width,),
                f"{h}.attn.c_attn.weight": (3 * width, width),
                f"{h}.attn.c_proj.weight": (width, width),
                f"{h}.ln_2.weight": (width,),
                f"{h}.mlp.c_fc.weight": (4 * width, width),
                f"{h}.mlp.c_proj.weight": (width, 4 * width),
            }
        shapes["transformer.ln_f.weight"] = (width,)
        if bias:
            inner = [name for name in shapes if ".h." in name or "ln_f" in name]
            shapes |= {n.replace(".weight", ".bias"): shapes[n][:1] for n in inner}
        weights = {name: torch.randn(shape) for name, shape in shapes.items()}
        weights["lm_head.weight"] = weights["transformer.wte.weight"]
        return weights

    return make


@pytest.fixture
def nanogpt(tmp_path: Path, gpt: Callable[..., Weights]) -> Callable[..., str]:
    """Saves a nanoGPT checkpoint and returns its path; keywords replace top-level values, None
    drops one."""

    def save(weights: Weights | None = None, name: str = "out/ckpt.pt", **top: Any) -> str:
        weights = gpt() if weights is None else weights
        args = {
            "n_layer": 2,
            "n_head": 2,
            "n_embd": 8,
            "block_size": 16,
            "bias": any(name.endswith("c_fc.bias") for name in weights),
            "vocab_size": 65,
        }
        root = {
            "model": weights,
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(4)}}},
            "model_args": args,
            "iter_num": 10,
            "best_val_loss": torch.tensor(1.5),
            "config": {"dataset": "tiny"},
        } | top
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({key: value for key, value in root.items() if value is not None}, path)
        return str(path)

    return save


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many pieces as GPT-2 has: the 256 bytes and pairs of them."""
    pieces = [bytes([n]) for n in range(256)]
    pieces += [bytes(divmod(n, 256)) for n in range(50_000)]
    lines = (f"{base64.b64encode(p).decode()} {n}\n" for n, p in enumerate(pieces))
    (tmp_path / "gpt2.tiktoken").write_text("".join(lines))
    monkeypatch.setenv("TUI_CHAT_TOKENIZERS_DIR", str(tmp_path))


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., Folder]:
    """Copies a model of hf-families to where it may be changed."""

    def copied(name: str, to: str = "model") -> Folder:
        return Folder(Path(shutil.copytree(MODELS / name, tmp_path / "runs" / to)))

    return copied
