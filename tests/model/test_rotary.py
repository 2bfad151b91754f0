"""Rotary positions that are made as far as they are used."""

from __future__ import annotations

import cmath

import pytest
import torch

from tui_chat.model.build import build
from tui_chat.model.rotary import FIRST_ROWS, KEPT_ROWS, Rotary
from tui_chat.model.spec import ModelSpec

from .tiny import ROPE, SMALL, random_weights

FREQUENCY = torch.tensor([1.0, 0.05], dtype=torch.float64)


def rotary(limit: int) -> Rotary:
    def made(positions: torch.Tensor) -> torch.Tensor:
        angle = -torch.outer(positions, FREQUENCY)
        return torch.polar(torch.full_like(angle, 1.5), angle)

    return Rotary(made, limit, torch.device("cpu"))


@pytest.mark.parametrize("asked", [[3], [FIRST_ROWS - 1, FIRST_ROWS], [5000, 17, 20000], [29999]])
def test_rows_are_right_however_far_they_were_grown(asked: list[int]) -> None:
    turns = rotary(30_000)
    for position in asked:
        row = turns.at(position)
        wanted = [1.5 * cmath.exp(-1j * position * f) for f in FREQUENCY.tolist()]
        torch.testing.assert_close(row[0], torch.tensor(wanted), atol=2e-4, rtol=0)
        assert torch.equal(turns.upto(position + 1)[position], row)


def test_rows_end_at_the_limit() -> None:
    assert len(rotary(7).upto(7)) == 7
    assert len(rotary(KEPT_ROWS + 5).upto(KEPT_ROWS + 5)) == KEPT_ROWS + 5


def test_a_context_of_two_billion_costs_nothing_until_it_is_used() -> None:
    spec = ModelSpec(**SMALL | {"context_length": 2**31 - 1}, **ROPE)
    model = build(spec, random_weights(spec, bias=False))
    cache = model.new_cache()
    logits = model.forward([1, 2, 3], cache)
    assert torch.isfinite(logits).all() and cache.nbytes < 10**6


def test_a_text_longer_than_the_first_rows_goes_on() -> None:
    spec = ModelSpec(**SMALL | {"context_length": 4096, "n_layer": 1}, **ROPE)
    model = build(spec, random_weights(spec, bias=False))
    ids = [(7 * n) % spec.vocab_size for n in range(FIRST_ROWS + 40)]
    whole = model.forward(ids, model.new_cache())
    cache = model.new_cache()
    model.forward(ids[: FIRST_ROWS - 3], cache)
    for token in ids[FIRST_ROWS - 3 :]:
        logits = model.forward([token], cache)
    torch.testing.assert_close(logits, whole, atol=1e-4, rtol=1e-4)
