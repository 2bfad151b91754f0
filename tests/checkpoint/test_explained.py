"""How a file was read is said: what was concluded, filled in and left out, in each format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tui_chat.checkpoint import catalog
from tui_chat.checkpoint.explain import Notes

FIXTURES = Path(__file__).parent.parent / "fixtures"
Save = Callable[..., str]
Make = Callable[..., dict[str, torch.Tensor]]


def test_every_key_of_a_file_is_used_or_said_to_be_left_out(nanogpt: Save) -> None:
    extra: dict[str, Any] = {"optimizer": {"state": {}}, "scaler": 1.0, "rng": [1, 2]}
    settings = {"dataset": "x", "learning_rate": 1e-3, "wandb_log": False}
    info = catalog.describe(nanogpt(**extra, config=settings))
    assert info.unused == (
        "optimizer, scaler and rng of the file",
        "learning_rate and wandb_log of config",
    )


def test_masks_are_said_to_be_left_out(nanogpt: Save, gpt: Make) -> None:
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 16, 16) for i in range(2)}
    info = catalog.describe(nanogpt(gpt() | masks))
    assert "2 tensors *.attn.bias: not needed to compute the model" in info.unused


def test_what_the_user_says_is_no_conclusion_and_no_default(nanogpt: Save) -> None:
    path = nanogpt()
    plain = catalog.describe(path)
    assert any("context_length 16" in note for note in plain.inferred)
    assert any("activation gelu" in note for note in plain.defaults)
    told = catalog.describe(path, config={"context_length": 16, "activation": "relu"})
    assert not any("context_length" in note for note in told.inferred)
    assert not any("activation" in note for note in told.defaults)


def test_a_head_is_said_to_be_tied_or_its_own(nanogpt: Save, gpt: Make) -> None:
    tied = catalog.describe(nanogpt())
    assert "the head is tied: lm_head.weight repeats the embedding" in tied.inferred
    alone = {name: weight for name, weight in gpt().items() if name != "lm_head.weight"}
    info = catalog.describe(nanogpt(alone, "alone/ckpt.pt"))
    assert "the head is tied: there is no lm_head.weight" in info.inferred
    own = gpt() | {"lm_head.weight": torch.randn(65, 8)}
    info = catalog.describe(nanogpt(own, "own/ckpt.pt"))
    assert any("matrix of its own" in note for note in info.inferred)


@pytest.mark.parametrize(
    "path",
    [
        "S0/grpo/grpo.pt",
        "S1/small_vocab/out/ckpt.pt",
        "S4/main_model_pt/model.pt",
        "llama2c/v2-int8/model_q80.bin",
        "nanogpt/char-bias/out-shakespeare-char/ckpt.pt",
        "build-nanogpt/pickled-config/log/model_05000.pt",
    ],
)
def test_every_format_says_what_it_concluded_and_filled_in(path: str) -> None:
    info = catalog.describe(str(FIXTURES / path))
    assert info.inferred and info.defaults
    sentences = (*info.inferred, *info.defaults, *info.unused, *info.warnings)
    assert len(set(sentences)) == len(sentences)
    assert all("norm_eps" in note for note in info.defaults[:1])


def test_very_many_and_very_long_keys_are_cut() -> None:
    notes = Notes({})
    notes.keys({f"key{i}" + "x" * 1000: i for i in range(100_000)}, (), "the file")
    (sentence,) = notes.unused
    assert len(sentence) < 3000 and "99940 more" in sentence
