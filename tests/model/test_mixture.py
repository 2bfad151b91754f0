"""Mixtures of experts against the sum written out position by position in float64, for one position
and many, with and without a shared expert, gates, biases and capacity."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tui_chat.model import mixture as module
from tui_chat.model.mixture import mixture
from tui_chat.model.spec import Experts, ModelSpec

WIDTH, INNER, SHARED, COUNT = 16, 24, 40, 5
SPEC = ModelSpec(
    vocab_size=8,
    n_layer=1,
    n_head=1,
    n_embd=WIDTH,
    context_length=64,
    activation="silu",
    gated=True,
    experts=Experts(count=COUNT, used=2),
)


def spec(**settings: Any) -> ModelSpec:
    """SPEC with other experts, or another MLP."""
    mlp = {name: settings.pop(name) for name in ("activation", "gated") if name in settings}
    assert SPEC.experts is not None
    return replace(SPEC, experts=replace(SPEC.experts, **settings), **mlp)


def weights(
    spec: ModelSpec, *, router_bias: bool = False, shared: str = "", bias: bool = False
) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    up, wide = ("gate_up", 2) if spec.gated else ("up", 1)
    assert spec.experts is not None
    count = spec.experts.count
    shapes: dict[str, tuple[int, ...]] = {
        "router.weight": (count, WIDTH),
        f"experts.{up}.weight": (count * wide * INNER, WIDTH),
        "experts.down.weight": (count * WIDTH, INNER),
    }
    if router_bias:
        shapes["router.bias"] = (count,)
    if bias:
        shapes[f"experts.{up}.bias"] = (count * wide * INNER,)
        shapes["experts.down.bias"] = (count * WIDTH,)
    if shared:
        shapes[f"shared.{up}.weight"] = (wide * SHARED, WIDTH)
        shapes["shared.down.weight"] = (WIDTH, SHARED)
    if shared == "gated":
        shapes["shared_gate.weight"] = (1, WIDTH)
    return {
        f"blocks.3.mlp.{name}": 0.4 * torch.randn(shape, generator=draw)
        for name, shape in shapes.items()
    }


def activate(spec: ModelSpec, x: Tensor) -> Tensor:
    def act(z: Tensor) -> Tensor:
        if spec.activation == "relu":
            return z * (z > 0)
        if spec.activation == "gelu":
            return z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        return z / (1 + torch.exp(-z))

    if not spec.gated:
        return act(x)
    half = len(x) // 2
    return act(x[:half]) * x[half:]


def written_out(spec: ModelSpec, given: dict[str, Tensor], inputs: Tensor) -> Tensor:
    """(T, WIDTH) float64: every position and every one of its experts for itself."""
    w = {name.removeprefix("blocks.3.mlp."): t.double() for name, t in given.items()}
    chosen_by, scores_of = [], []
    experts = spec.experts
    assert experts is not None
    for x in inputs.double():
        logits = w["router.weight"] @ x + w.get("router.bias", torch.zeros(experts.count))
        powers = torch.exp(logits)
        every = powers / powers.sum() if experts.router == "softmax" else powers / (1 + powers)
        best = sorted(range(experts.count), key=lambda e: -float(every[e]))[: experts.used]
        total = sum(float(every[e]) for e in best) if experts.renormalised else 1.0
        chosen_by.append(best)
        scores_of.append([float(every[e]) / total for e in best])
    if experts.capacity_factor:
        room = math.ceil(len(inputs) * experts.used / experts.count * experts.capacity_factor)
        for rank in range(experts.used):
            taken = [0] * experts.count
            for at, best in enumerate(chosen_by):
                taken[best[rank]] += 1
                if taken[best[rank]] > room:
                    scores_of[at][rank] = 0.0
    up = "gate_up" if spec.gated else "up"
    rows = len(w[f"experts.{up}.weight"]) // experts.count
    out = []
    for x, best, scores in zip(inputs.double(), chosen_by, scores_of, strict=True):
        total_of_x = torch.zeros(WIDTH, dtype=torch.float64)
        for e, score in zip(best, scores, strict=True):
            inner = w[f"experts.{up}.weight"][e * rows : (e + 1) * rows] @ x
            if f"experts.{up}.bias" in w:
                inner = inner + w[f"experts.{up}.bias"][e * rows : (e + 1) * rows]
            back = w["experts.down.weight"][e * WIDTH : (e + 1) * WIDTH] @ activate(spec, inner)
            if "experts.down.bias" in w:
                back = back + w["experts.down.bias"][e * WIDTH : (e + 1) * WIDTH]
            total_of_x += score * back
        if "shared.down.weight" in w:
            one = w["shared.down.weight"] @ activate(spec, w[f"shared.{up}.weight"] @ x)
            if "shared_gate.weight" in w:
                one = one / (1 + torch.exp(-(w["shared_gate.weight"] @ x)))
            total_of_x += one
        out.append(total_of_x)
    return torch.stack(out)


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "softmax": ({}, {}),
    "not renormalised": ({"renormalised": False}, {}),
    "sigmoid with bias": ({"router": "sigmoid"}, {"router_bias": True}),
    "sigmoid, not renormalised": ({"router": "sigmoid", "renormalised": False}, {}),
    "one expert": ({"used": 1}, {}),
    "all experts": ({"used": COUNT}, {}),
    "relu": ({"activation": "relu", "gated": False}, {"shared": "plain"}),
    "gelu": ({"activation": "gelu", "gated": False}, {}),
    "shared": ({}, {"shared": "plain"}),
    "shared with a gate": ({}, {"shared": "gated"}),
    "biases": ({}, {"bias": True, "router_bias": True}),
    "capacity": ({"capacity_factor": 0.6}, {"shared": "plain"}),
    "tight capacity": ({"capacity_factor": 0.01}, {}),
    "loose capacity": ({"capacity_factor": 4.0}, {}),
}


@pytest.fixture(params=["asked for", "picked"])
def one_position(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to the experts of one position: a CPU's, and a GPU's."""
    if request.param == "picked":
        monkeypatch.setattr(module, "ASKING", ())


def inputs(count: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(11))


@pytest.mark.usefixtures("one_position")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("count", [1, 2, 23])
def test_gives_the_sum_written_out(name: str, count: int) -> None:
    settings, tensors = CASES[name]
    model = spec(**settings)
    given = weights(model, **tensors)
    expected = written_out(model, given, inputs(count))
    got = mixture(model, dict(given), "blocks.3")(inputs(count))
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=1e-5)


def test_capacity_takes_weight_from_the_later_positions_only() -> None:
    model, free = spec(capacity_factor=0.6), spec()
    given = weights(model)
    tight = mixture(model, dict(given), "blocks.3")(inputs(23))
    loose = mixture(free, dict(given), "blocks.3")(inputs(23))
    same = [bool(torch.allclose(a, b, atol=1e-6)) for a, b in zip(tight, loose, strict=True)]
    assert same[0] and not all(same)


@pytest.mark.usefixtures("one_position")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_and_in_its_type(dtype: torch.dtype) -> None:
    model = spec()
    given = {n: t.to(dtype) for n, t in weights(model, shared="gated").items()}
    many = mixture(model, dict(given), "blocks.3")
    x = inputs(9).to(dtype)
    assert many(x).dtype == many(x[:1]).dtype == dtype
    expected = written_out(model, given, x)
    torch.testing.assert_close(many(x).double(), expected, atol=0.06, rtol=0.05)


@pytest.mark.usefixtures("one_position")
def test_one_position_multiplies_the_chosen_experts_only() -> None:
    model = spec()
    given = weights(model)
    chosen = (given["blocks.3.mlp.router.weight"] @ inputs(1)[0]).topk(2).indices.tolist()
    expected = written_out(model, given, inputs(1))
    for e in set(range(COUNT)) - set(chosen):
        rows = given["blocks.3.mlp.experts.gate_up.weight"].view(COUNT, 2 * INNER, WIDTH)
        rows[e] = float("nan")  # poisons whatever touches it
    got = mixture(model, dict(given), "blocks.3")(inputs(1))
    torch.testing.assert_close(got.double(), expected, atol=2e-6, rtol=1e-5)


def test_takes_its_tensors_and_leaves_the_others() -> None:
    model = spec(router="sigmoid")
    given = weights(model, router_bias=True, shared="gated") | {"head.weight": torch.ones(1)}
    mixture(model, given, "blocks.3")
    assert list(given) == ["head.weight"]


def test_leaves_its_input_as_it_was() -> None:
    model = spec(activation="relu", gated=False)
    layer = mixture(model, weights(model, shared="plain"), "blocks.3")
    for count in (1, 6):
        x = inputs(count)
        layer(x)
        assert torch.equal(x, inputs(count))


def test_a_missing_expert_tensor_is_named() -> None:
    given = weights(SPEC)
    del given["blocks.3.mlp.experts.down.weight"]
    with pytest.raises(KeyError, match=r"experts\.down\.weight"):
        mixture(SPEC, given, "blocks.3")
