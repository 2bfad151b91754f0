"""Every family of Hugging Face models against the logits of its own code (make_hf_fixtures.py)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tui_chat.checkpoint import weights
from tui_chat.checkpoint.catalog import describe
from tui_chat.model.build import Model, build

FOLDER = Path(__file__).parents[1] / "fixtures" / "hf-families"
NAMES = sorted(path.name for path in FOLDER.iterdir())
RELATIVE = 1e-4


def opened(path: Path) -> Model:
    info = describe(str(path))
    assert info.plan is not None
    return build(info.spec, weights.load(info, dtype="float32"))


def agree(got: torch.Tensor, want: list[float]) -> bool:
    target = torch.tensor(want)
    return bool((got - target).abs().max() <= RELATIVE * target.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_familys_own_code(name: str) -> None:
    model = opened(FOLDER / name)
    for case in json.loads((FOLDER / name / "logits.json").read_text("utf-8"))["cases"]:
        prompt, greedy = case["prompt_ids"], case["greedy_ids"]
        cache = model.new_cache()
        now = model.forward(prompt, cache)
        assert agree(now, case["logits"])
        for wanted in greedy:  # one at a time, past every window
            assert int(now.argmax()) == wanted
            now = model.forward([wanted], cache)
        assert agree(now, case["after_logits"])
        # The same in two pieces of several tokens each.
        again = model.new_cache()
        ids = prompt + greedy
        model.forward(ids[: len(ids) // 2], again)
        assert agree(model.forward(ids[len(ids) // 2 :], again), case["after_logits"])
