"""A mixture of experts in place of an MLP: a router gives each position to a few of many MLPs.

For one position only the chosen experts are multiplied; for many, each expert gets its positions in
one product. On a GPU nobody asks which they are for one position: their matrices are picked out by
number, and the host runs on. Settled when it is built, like the rest of a layer. Knows no cache and
no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tui_chat.model.layers import ACTIVATIONS, gate
from tui_chat.model.linear import Linear, Make, Map, matrix, times
from tui_chat.model.spec import Experts, ModelSpec

ASKING = ("cpu",)  # devices on which it costs nothing to look at which experts were chosen

_Choose = Callable[[Tensor], tuple[Tensor, Tensor]]


def mixture(
    spec: ModelSpec,
    weights: dict[str, Tensor],
    at: str,
    make: Make = matrix,
    make_down: Make = matrix,
) -> Map:
    """The mixture of layer `at` ("blocks.3") as a function (T, n_embd) -> (T, n_embd).

    `make` and `make_down` lay out the matrices of the experts; the router's stay dense, for they
    decide.

    Takes `{at}.mlp.router`, `.experts`, `.shared` and `.shared_gate` out of `weights`. All
    positions of a call are routed together, which a capacity factor lets one notice. Raises
    KeyError for a tensor that is missing.
    """
    experts = spec.experts
    assert experts is not None
    prefix = f"{at}.mlp"
    choose = _router(experts, weights, f"{prefix}.router")
    up_name = "gate_up" if spec.gated else "up"
    act = gate(spec.activation) if spec.gated else ACTIVATIONS[spec.activation]
    names = f"{prefix}.experts.{up_name}", f"{prefix}.experts.down"
    asking = weights[f"{names[0]}.weight"].device.type in ASKING
    picked = None if asking else _picking(experts.count, weights, *names, act)
    ups = _each(experts.count, weights, names[0], make)
    downs = _each(experts.count, weights, names[1], make_down)
    shared = _shared(spec, weights, prefix, act, make, make_down)

    def routed(x: Tensor) -> Tensor:
        scores, chosen = choose(x)  # (T, used) each
        if x.shape[0] == 1 and picked is not None:
            return picked(x, scores, chosen)
        if x.shape[0] == 1:
            out = torch.zeros_like(x)
            for expert, score in zip(chosen[0].tolist(), scores[0].tolist(), strict=True):
                out.add_(times(act(times(x, ups[expert])), downs[expert]), alpha=score)
            return out
        return _by_expert(x, scores, chosen, ups, downs, act)

    if shared is None:
        return routed
    return lambda x: routed(x).add_(shared(x))


def _by_expert(
    x: Tensor, scores: Tensor, chosen: Tensor, ups: list[Linear], downs: list[Linear], act: Map
) -> Tensor:
    """Every expert's product for the positions that chose it, added up: (T, n_embd)."""
    used = chosen.shape[1]
    flat = chosen.reshape(-1)
    order = flat.argsort(stable=True)  # by expert, in each by position
    positions = order // used
    by = scores.reshape(-1)[order][:, None].to(x.dtype)
    out = torch.zeros_like(x)
    begin = 0
    for expert, count in enumerate(torch.bincount(flat, minlength=len(ups)).tolist()):
        if not count:
            continue
        end = begin + count
        here = positions[begin:end]
        product = times(act(times(x[here], ups[expert])), downs[expert])
        out.index_add_(0, here, product.mul_(by[begin:end]))
        begin = end
    return out


def _picking(
    count: int, weights: dict[str, Tensor], up: str, down: str, act: Map
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What one position gets of its experts, without asking which they are: x (1, n_embd), their
    scores and numbers (1, used) -> (1, n_embd). Reads the tensors where they lie, and leaves them.
    """

    def stacked(name: str) -> tuple[Tensor, Tensor | None]:
        rows, bias = weights[f"{name}.weight"], weights.get(f"{name}.bias")
        return (
            rows.view(count, -1, rows.shape[1]),  # (count, out, in)
            None if bias is None else bias.view(count, 1, -1),
        )

    def product(x: Tensor, by: tuple[Tensor, Tensor | None], chosen: Tensor) -> Tensor:
        """(used, 1, in) -> (used, 1, out)."""
        weight, bias = by
        made = torch.bmm(x, weight.index_select(0, chosen).transpose(1, 2))
        return made if bias is None else made.add_(bias.index_select(0, chosen))

    ups, downs = stacked(up), stacked(down)

    def picked(x: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        numbers = chosen[0]
        opened = product(x.expand(len(numbers), 1, -1), ups, numbers)
        made = product(act(opened[:, 0])[:, None], downs, numbers)
        return (made[:, 0] * scores[0][:, None].to(x.dtype)).sum(0, keepdim=True)

    return picked


def _router(experts: Experts, weights: dict[str, Tensor], name: str) -> _Choose:
    """Scores and numbers of the experts chosen for (T, n_embd): (T, used) float32 and int64."""
    bias = weights.pop(f"{name}.bias", None)
    to_logits = matrix(
        weights.pop(f"{name}.weight").float(), None if bias is None else bias.float()
    )
    used, softmax = experts.used, experts.router == "softmax"

    def choose(x: Tensor) -> tuple[Tensor, Tensor]:
        logits = times(x.float(), to_logits)
        all_scores = logits.softmax(-1) if softmax else logits.sigmoid_()
        scores, chosen = all_scores.topk(used, -1)
        if experts.renormalised:
            scores = scores / scores.sum(-1, keepdim=True)
        # A single position never exceeds a capacity, which is at least one.
        if experts.capacity_factor > 0 and x.shape[0] > 1:
            scores = scores * _within(chosen, experts)
        return scores, chosen

    return choose


def _within(chosen: Tensor, experts: Experts) -> Tensor:
    """1 for the choices that an expert still has room for, else 0: (T, used).

    Each rank of choice is counted for itself, in the order of the positions.
    """
    count, used = chosen.shape
    capacity = max(1, math.ceil(count * used / experts.count * experts.capacity_factor))
    picks = torch.nn.functional.one_hot(chosen, experts.count)  # (T, used, experts)
    before = picks.cumsum(0).gather(2, chosen[..., None])[..., 0]
    return before <= capacity


def _each(count: int, weights: dict[str, Tensor], name: str, make: Make) -> list[Linear]:
    """The matrices of the single experts, which lie one below the other."""
    rows = weights.pop(f"{name}.weight").chunk(count)
    bias = weights.pop(f"{name}.bias", None)
    biases = [None] * count if bias is None else bias.chunk(count)
    return [make(weight, one) for weight, one in zip(rows, biases, strict=True)]


def _shared(
    spec: ModelSpec,
    weights: dict[str, Tensor],
    prefix: str,
    act: Map,
    make: Make,
    make_down: Make,
) -> Map | None:
    """The expert that every position has, or None. Its gate, where there is one, is a sigmoid."""

    def linear(name: str, make: Make) -> Linear:
        found = weights.pop(f"{prefix}.{name}.weight")
        return make(found, weights.pop(f"{prefix}.{name}.bias", None))

    if f"{prefix}.shared.down.weight" not in weights:
        return None
    up = linear("shared.gate_up" if spec.gated else "shared.up", make)
    down = linear("shared.down", make_down)

    def shared(x: Tensor) -> Tensor:
        return times(act(times(x, up)), down)

    if f"{prefix}.shared_gate.weight" not in weights:
        return shared
    gate_weight = weights.pop(f"{prefix}.shared_gate.weight").float()
    bias = weights.pop(f"{prefix}.shared_gate.bias", None)
    opening = matrix(gate_weight, None if bias is None else bias.float())
    return lambda x: shared(x).mul_(times(x.float(), opening).sigmoid_())
