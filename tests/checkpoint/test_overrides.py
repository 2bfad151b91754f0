"""What may be said with --config: every field of the spec by a value it takes, and nothing else."""

from __future__ import annotations

import pytest

from tui_chat.checkpoint.description import build_spec
from tui_chat.errors import UsageError
from tui_chat.model.spec import ModelSpec

BASE: dict[str, object] = {
    "vocab_size": 8, "n_layer": 2, "n_head": 2, "n_embd": 8, "context_length": 8
}  # fmt: skip

TAKEN: dict[str, object] = {
    "n_head": 4,
    "n_kv_head": 1.0,
    "rope_theta": 5,
    "norm_eps": None,
    "logit_softcap": 15.0,
    "norm": "rmsnorm",
    "activation": "relu2",
    "rope_sign": -1,
    "gated": True,
    "window": [0, 4],
    "layer_rope": ["main", "none"],
    "residual": "parallel",
    "attention_scale": 0.25,
}
REFUSED: list[tuple[str, object, str]] = [
    ("rope_theta", "abc", "is a number"),
    ("rope_theta", True, "is a number"),
    ("norm_eps", "small", "is a number or none"),
    ("activation", "swish", "one of gelu, gelu_tanh, relu"),
    ("rope_sign", 2, "one of 1, -1"),
    ("gated", 1, "is true or false"),
    ("window", 5, "is a list, each a whole number"),
    ("layer_rope", ["main", "mine"], "a list, each one of main"),
    ("experts", 3, "there is no model setting 'experts'"),
    ("family", "x", "there is no model setting"),
    ("model.dim", 3, "there is no model setting 'model.dim'"),
]


@pytest.mark.parametrize("name", TAKEN)
def test_a_value_that_fits_is_taken(name: str) -> None:
    found = getattr(build_spec(BASE, {name: TAKEN[name]}), name)
    wanted = TAKEN[name]
    assert found == (tuple(wanted) if isinstance(wanted, list) else wanted)


@pytest.mark.parametrize(("name", "value", "reason"), REFUSED)
def test_a_value_that_does_not_fit_is_refused_in_words(
    name: str, value: object, reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        build_spec(BASE, {name: value})


@pytest.mark.parametrize("value", [2.5, "two", True, [1], None])
def test_a_count_is_a_whole_number(value: object) -> None:
    with pytest.raises(UsageError, match="n_head is a whole number"):
        build_spec(BASE, {"n_head": value})


def test_every_simple_field_can_be_said() -> None:
    default = ModelSpec(**BASE)  # type: ignore[arg-type]
    said = default.as_dict()
    for name in ("options", "rope_scaling", "experts", "family"):
        del said[name]
    assert build_spec(BASE, said) == default
