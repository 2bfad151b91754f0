"""Matrices of fewer bits against dense ones, and models made of them."""

from __future__ import annotations

import pytest
import torch

from tui_chat.errors import UsageError
from tui_chat.model.build import build
from tui_chat.model.linear import MAKERS, Held, HeldTable, Linear, Precision, matrix
from tui_chat.model.parts import lies_turned
from tui_chat.model.spec import ModelSpec

from .oracle import Oracle
from .tiny import SPECS, weights_of

torch.set_num_threads(1)

# How far the product may be from the dense one, over the size of that.
LOSS: dict[Precision, float] = {"dense": 1e-6, "float16": 1e-3, "bfloat16": 5e-3, "int8": 2e-2}


def pair(precision: Precision, *, biased: bool) -> tuple[Linear, Linear, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    weight = torch.randn(96, 64, generator=draw) * torch.linspace(0.01, 4, 96)[:, None]
    weight[5] = 0  # a row of nothing has a scale too
    bias = torch.randn(96, generator=draw) if biased else None
    return MAKERS[precision](weight, bias), matrix(weight, bias), torch.randn(7, 64, generator=draw)


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("biased", [True, False])
@pytest.mark.parametrize("precision", LOSS)
def test_a_held_matrix_multiplies_like_the_dense_one(precision: Precision, biased: bool) -> None:
    held, dense, x = pair(precision, biased=biased)
    wanted = dense.many(x)
    assert held.rows == 96
    assert off(held.many(x), wanted) < LOSS[precision]
    out = torch.empty(1, 96)
    made = held.into(out)(x[:1])
    assert made.data_ptr() == out.data_ptr() and off(out, wanted[:1]) < LOSS[precision]
    start = torch.ones(1, 96)
    held.onto(start)(x[:1])
    assert off(start, wanted[:1] + 1) < LOSS[precision]


def test_a_huge_row_does_not_take_the_bits_of_the_others() -> None:
    """The first token of many models has activations a thousand times as large."""
    held, dense, x = pair("int8", biased=True)
    x[0] *= 1000
    assert off(held.many(x)[1:], dense.many(x)[1:]) < LOSS["int8"]


@pytest.mark.parametrize("precision", ["int8", "float16", "bfloat16"])
def test_a_held_table_gives_the_rows(precision: Precision) -> None:
    rows = torch.randn(11, 32) * torch.linspace(0.001, 9, 11)[:, None]
    of = MAKERS[precision](rows, None)
    assert isinstance(of, Held)
    table = HeldTable(of)
    assert off(table.many(torch.tensor([3, 0, 10])), rows[[3, 0, 10]]) < 1e-2
    torch.testing.assert_close(table.one(7), table.many(torch.tensor([7]))[0])


@pytest.mark.parametrize("precision", ["int8", "float16", "bfloat16"])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_held_model_stays_near_the_arithmetic_written_out(
    name: str, precision: Precision
) -> None:
    spec = SPECS[name]
    ids = [(11 * n + 5) % spec.vocab_size for n in range(30)]
    wanted = Oracle(spec, weights_of(name))(ids).float()
    held = build(spec, weights_of(name), precision)
    assert held.dtype == torch.float32
    cache = held.new_cache()
    found = [held.forward_all(ids[:20], cache)]
    found += [held.forward([token], cache)[None] for token in ids[20:]]
    # Of random weights, which have no structure to be robust by; routers may tip over.
    limit = {"int8": 0.4 if spec.experts else 0.12, "bfloat16": 0.05, "float16": 0.02}[precision]
    assert off(torch.cat(found), wanted) < limit


def test_a_model_that_keeps_nothing_is_not_held() -> None:
    spec = ModelSpec(vocab_size=8, n_layer=1, n_head=1, n_embd=4, context_length=4, family="hipgpt")
    with pytest.raises(UsageError, match="int8 is not to be had for this model"):
        build(spec, {}, "int8")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["mismatched-rotary", "experts-softmax"])
def test_a_matrix_that_lies_turned_is_not_copied(name: str, tied: bool) -> None:
    """What `lies_turned` says of a name must be what the build then does with it."""
    weights = {
        key: tensor.t().contiguous().t()
        if tensor.dim() == 2 and lies_turned(SPECS[name], key, tied=tied)
        else tensor
        for key, tensor in weights_of(name).items()
    }
    if tied:
        del weights["head.weight"]
        weights.pop("head.bias", None)
    places = {
        tensor.data_ptr()
        for key, tensor in weights.items()
        if lies_turned(SPECS[name], key, tied=tied)
    }
    assert len(places) > 2
    parts = build(SPECS[name], dict(weights))._parts  # type: ignore[attr-defined]
    kept = {parts.head.weight.data_ptr()}
    for block in parts.blocks:
        kept |= {block.qkv.weight.data_ptr(), block.out.weight.data_ptr()}
        if hasattr(block.mlp, "up"):
            kept |= {block.mlp.up.weight.data_ptr(), block.mlp.down.weight.data_ptr()}
    assert places <= kept
