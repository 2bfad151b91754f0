"""Settings that something has changed at random: a model opens, or is refused in a sentence."""

from __future__ import annotations

import copy
import json
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.hf_folder import FIXTURES, MODELS
from tui_chat.checkpoint.catalog import describe
from tui_chat.errors import TuiChatError

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 3, 1e308, float("nan"), float("inf"), 10**30, 2**31, "", "0",
    "x" * 5000, "relu", [], [[]], {}, {"a": {}}, [1, 2, 3], ["sliding_attention"] * 2, [None] * 2,
    [[["global", "local"], 10**12]], [["x", 5]],
]  # fmt: skip
ALSO = (
    "layer_types", "rope_scaling", "rope_parameters", "sliding_window", "text_config",
    "num_experts", "attention_layers", "no_rope_layers", "sliding_window_pattern", "rotary_dim",
    "quantization_config", "use_sliding_window", "logit_scale", "alpha_pattern", "rank_pattern",
)  # fmt: skip
COUNT = 250


def mutated(value: Any, rng: random.Random, depth: int = 0) -> Any:
    if isinstance(value, dict) and value and depth < 3 and (not depth or rng.random() < 0.7):
        key = rng.choice(list(value))
        if rng.random() < 0.15:
            del value[key]
        else:
            value[key] = mutated(value[key], rng, depth + 1)
        return value
    return copy.deepcopy(rng.choice(VALUES))


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_mutated_settings_open_or_are_refused(seed: int, tmp_path: Path) -> None:
    print("seed", seed)  # shown when the test fails
    rng = random.Random(seed)
    folders = sorted(MODELS.iterdir()) + sorted((FIXTURES / "hf-lora").iterdir())
    types = [
        json.loads((path / "config.json").read_text("utf-8"))["model_type"]
        for path in sorted(MODELS.iterdir())
    ]
    opened = 0
    for number in range(COUNT):
        original = rng.choice(folders)
        folder = Path(shutil.copytree(original, tmp_path / str(number)))
        name = "config.json" if original.parent == MODELS else "adapter_config.json"
        config = json.loads((folder / name).read_text("utf-8"))
        if name == "adapter_config.json":
            base = original / config["base_model_name_or_path"]
            config["base_model_name_or_path"] = str(base.resolve())
        elif rng.random() < 0.2:
            config["model_type"] = rng.choice(types)
        if rng.random() < 0.3:
            config[rng.choice(ALSO)] = rng.choice(VALUES)
        for _ in range(rng.randint(1, 3)):
            config = mutated(config, rng)
        (folder / name).write_text(json.dumps(config), "utf-8")
        try:
            describe(str(folder))
            opened += 1
        except TuiChatError as error:
            assert len(str(error)) < 2000
    assert 0 < opened < COUNT
