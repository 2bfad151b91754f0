"""build-nanogpt files: whatever its config object was, and everything people save beside it."""

from __future__ import annotations

import random
import sys
import types
from argparse import Namespace
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.plain_gpt import HEADS, oracle, same


@pytest.fixture(autouse=True)
def settled() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)


@dataclass
class GPTConfig:
    block_size: int = 16
    vocab_size: int = 65
    n_layer: int = 2
    n_head: int = HEADS
    n_embd: int = 8


class Slotted:
    __slots__ = tuple(GPTConfig.__dataclass_fields__)

    def __init__(self) -> None:
        for name, value in vars(GPTConfig()).items():
            setattr(self, name, value)


def from_script(script: str) -> Any:
    """A config whose class lives in a script that is not here when the file is read."""
    home = types.ModuleType(script)
    made: Any = type("GPTConfig", (), {"__module__": script})
    home.GPTConfig = made  # type: ignore[attr-defined]
    config = made()
    vars(config).update(vars(GPTConfig()))
    return home, config


CONFIGS: dict[str, Callable[[], Any]] = {
    "a dataclass": GPTConfig,
    "slots": Slotted,
    "a namespace": lambda: types.SimpleNamespace(**vars(GPTConfig())),
    "arguments": lambda: Namespace(**vars(GPTConfig())),
    "a dict": lambda: vars(GPTConfig()),
}


def build_nanogpt(path: Path, weights: Mapping[str, torch.Tensor], config: Any, **more: Any) -> str:
    path.parent.mkdir(exist_ok=True)
    saved = {"model": weights, "config": config, "step": 5000, "val_loss": 3.25}
    torch.save(saved | more, path)
    return str(path)


@pytest.mark.parametrize("kind", CONFIGS)
def test_build_nanogpt_opens_whatever_its_config_was(kind: str, gpt: Any, tmp_path: Path) -> None:
    weights = {name: w * 2 for name, w in gpt().items()}
    assert (oracle(weights) - oracle(weights, gelu="tanh")).abs().max() > 2e-4
    path = build_nanogpt(tmp_path / "log/model_05000.pt", weights, CONFIGS[kind]())
    info = same(path, oracle(weights, gelu="tanh")).info
    assert (info.format, info.step, info.losses) == ("build-nanogpt", 5000, {"val": 3.25})


@pytest.mark.parametrize("script", ["train_gpt2", "__mp_main__", "os"])
def test_the_config_may_come_from_any_script(
    script: str, gpt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, (home, config) = gpt(), from_script(script)
    with monkeypatch.context() as patch:
        if script == "os":
            patch.setattr("os.GPTConfig", home.GPTConfig, raising=False)
        else:
            patch.setitem(sys.modules, script, home)
        path = build_nanogpt(tmp_path / "m.pt", weights, config)
    same(path, oracle(weights, gelu="tanh"))


def test_build_nanogpt_with_everything_a_resume_needs(gpt: Any, tmp_path: Path) -> None:
    weights = gpt()
    state = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    more = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]},
        "rng": torch.get_rng_state(),
        "rngs": [random.getstate(), {"cuda": [torch.get_rng_state()]}],
        "step": torch.tensor(12),
        "val_loss": torch.tensor(2.5),
    }
    wrapped = {"module._orig_mod." + name: w for name, w in (weights | state).items()}
    path = build_nanogpt(tmp_path / "log/model_00012.pt", wrapped, GPTConfig(), **more)
    info = same(path, oracle(weights, gelu="tanh")).info
    assert (info.step, info.losses) == (12, {"val": 2.5})
