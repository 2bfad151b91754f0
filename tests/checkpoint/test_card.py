"""What the card says of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tui_chat.checkpoint import catalog
from tui_chat.checkpoint.architecture import architecture
from tui_chat.checkpoint.card import bytes_in_words, card, notes
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.model.spec import Experts, ModelSpec, RopeScaling

Save = Callable[..., str]
Make = Callable[..., dict[str, torch.Tensor]]


@pytest.fixture
def info(nanogpt: Save) -> CheckpointInfo:
    return catalog.describe(nanogpt())


def words(info: CheckpointInfo, **spec: object) -> dict[str, str]:
    sizes = {"n_layer": 4, "n_head": 4, "n_embd": 64, "vocab_size": 65, "context_length": 128}
    found = ModelSpec(**{**sizes, **spec})  # type: ignore[arg-type]
    return dict(architecture(replace(info, spec=found)))


def test_the_tensors_say_what_the_spec_does_not(nanogpt: Save, gpt: Make) -> None:
    found = dict(card(catalog.describe(nanogpt())))
    assert found["MLP"] == "GELU, 32 wide · biases"
    assert found["attention"] == "2 heads of 4 · biases"
    assert found["head"] == "tied to the embedding"
    assert found["norms"] == "LayerNorm, eps 1e-05 · biases"
    untied = gpt(bias=False)
    untied["lm_head.weight"] = torch.randn(65, 8)
    found = dict(card(catalog.describe(nanogpt(untied))))
    assert found["head"] == "a matrix of its own" and "biases" not in found["MLP"]


def test_every_choice_that_makes_a_difference_is_said(info: CheckpointInfo) -> None:
    found = words(
        info,
        position="rope", rope_theta=5e5, rotary_dim=8, rope_sign=-1,
        rope_scaling=RopeScaling(kind="llama3", factor=8.0),
        layer_rope=("main", "none", "main", "none"),
        n_kv_head=2, qk_norm="after_rope", attention_softcap=50.0, window=(0, 32, 0, 32),
        norm="rmsnorm", final_norm=False, residual="parallel", shared_norm=True,
        activation="gelu_tanh", gated=True, logit_softcap=30.0, embed_scale=8.0,
    )  # fmt: skip
    assert found["positions"] == (
        "rotary, base 500,000 · halves turned together, backwards · 8 of 16 numbers of a head · "
        "stretched 8 times as in Llama 3.1 · no positions in every other layer"
    )
    assert found["attention"].startswith(
        "4 heads of 16, 2 for keys and values · queries and keys normed after they are turned · "
        "scores capped at 50 · a window of 32 in every other layer"
    )
    assert found["MLP"].startswith("GeGLU (tanh form)")
    assert "side by side behind one norm" in found["norms"] and "none at the end" in found["norms"]
    assert "embedding times 8 · logits capped at 30" in found["head"]


def test_experts_are_counted(info: CheckpointInfo) -> None:
    found = words(info, experts=Experts(count=8, used=2, router="sigmoid"))
    assert found["MLP"].startswith("2 of 8 experts by sigmoid")


def test_notes_come_by_kind_and_warnings_last(info: CheckpointInfo) -> None:
    noted = replace(info, warnings=("w",), unused=("u",), inferred=("i",), defaults=())
    assert notes(noted) == [("inferred", ["i"]), ("ignored", ["u"]), ("warnings", ["w"])]


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_999, "1 MB")]
)
def test_bytes_have_three_digits(number: int, text: str) -> None:
    assert bytes_in_words(number) == text
