"""The draw on a device against the sampler: the same tokens from the same logits and dice."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tui_chat.errors import EngineError
from tui_chat.knobs import SamplingParams
from tui_chat.model.cuda.draw import kind_of
from tui_chat.model.cuda.pipeline import Pipeline
from tui_chat.model.decoder import Decoder
from tui_chat.model.spec import ModelSpec
from tui_chat.sampler import Choice, Sampler

from .tape import TapeRecorder
from .tiny import random_weights

torch.set_num_threads(1)

NEUTRAL = SamplingParams(temperature=1.0, top_k=0)


class Device:
    """A pipeline that only draws."""

    def __init__(self, size: int, offered: int) -> None:
        spec = ModelSpec(vocab_size=size, n_layer=1, n_head=1, n_embd=2, context_length=8)
        model = Decoder(spec, random_weights(spec))
        self.recorder = TapeRecorder()
        self.pipeline = Pipeline(model.parts, offered, self.recorder)
        self.cache = model.new_cache()

    def draw(
        self, logits: Tensor, history: list[int], params: SamplingParams, dice: float
    ) -> Choice:
        self.pipeline.first(logits, self.cache, history, params, dice, 0)
        return self.pipeline.wait(0)


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "spread": lambda noise: noise * 3,
    "flat": lambda noise: noise * 0.01,
    "peaked": lambda noise: noise * 30,
    "of 16 bits": lambda noise: (noise * 3).bfloat16().float(),  # with many that are equal
    "in steps": lambda noise: noise.round(),
    "all equal": lambda noise: noise * 0 + 2.5,
    "with gaps": lambda noise: torch.where(noise > 1, noise, -torch.inf),
}


def knobs(draw: random.Random, size: int) -> SamplingParams:
    return SamplingParams(
        temperature=draw.choice([0.0, 0.3, 0.8, 1.0, 1.0, 1.7]),
        top_k=draw.choice([0, 0, 1, 2, 5, 50, size - 1]),
        top_p=draw.choice([1.0, 1.0, 0.0, 0.1, 0.5, 0.9, 0.99]),
        min_p=draw.choice([0.0, 0.0, 0.01, 0.3, 1.0]),
        repetition_penalty=draw.choice([1.0, 1.0, 1.3, 0.7]),
        repetition_window=draw.choice([0, 0, 1, 7]),
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "offered"), [(61, 61), (61, 50), (3000, 2900)])
def test_draws_what_the_sampler_draws(size: int, offered: int, shape: str) -> None:
    device, draw = Device(size, offered), random.Random(size)
    numbers = torch.Generator().manual_seed(5)
    drawn = set()
    for _ in range(150):
        logits = SHAPES[shape](torch.randn(size, generator=numbers))
        logits[draw.randrange(offered)] = 3.0  # one at least is finite
        params, seed = knobs(draw, offered), draw.randrange(1000)
        history = [draw.randrange(size) for _ in range(draw.randrange(1, 30))]
        expected = Sampler(params, seed, history)(logits[:offered])
        found = device.draw(logits, history, params, random.Random(seed).random())
        assert (found.id, found.kept) == (expected.id, expected.kept), params
        assert found.logprob == pytest.approx(expected.logprob, abs=1e-4)
        drawn.add(found.id)
    assert len(drawn) > 8
    assert device.recorder.recorded <= 6  # kinds of draws; all else is numbers


@pytest.mark.parametrize("dice", [0.0, 1 - 2**-53])
def test_the_ends_of_the_dice_are_tokens_that_can_be_drawn(dice: float) -> None:
    device = Device(8, 8)
    logits = torch.tensor([-torch.inf, 1.0, 5.0, 5.0, -torch.inf, 0.0, 4.0, -torch.inf])
    for params in (NEUTRAL, NEUTRAL.with_(top_k=4), NEUTRAL.with_(top_p=0.999)):
        found = device.draw(logits, [1], params, dice)
        assert found.logprob > -10
    assert device.draw(logits, [1], NEUTRAL.with_(top_k=2), dice).id == (3 if dice else 2)


def test_a_tiny_temperature_is_greedy_without_overflow() -> None:
    logits = torch.tensor([100.0, -50.0, 99.0, 0.0])
    assert Device(4, 4).draw(logits, [1], NEUTRAL.with_(temperature=1e-300), 0.99).id == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("params", [NEUTRAL, NEUTRAL.with_(temperature=0.0, top_k=3)])
def test_logits_that_are_none_raise_when_the_token_is_looked_at(
    value: float, params: SamplingParams
) -> None:
    logits = torch.zeros(9)
    logits[4] = value
    with pytest.raises(EngineError, match="holds"):
        Device(9, 9).draw(logits, [1], params, 0.5)
    with pytest.raises(EngineError, match="infinite"):
        Device(9, 9).draw(torch.full((9,), -torch.inf), [1], params, 0.5)


def test_a_penalty_that_is_turned_on_knows_what_was_drawn_without_it() -> None:
    spec = ModelSpec(vocab_size=61, n_layer=1, n_head=1, n_embd=8, context_length=64)
    model = Decoder(spec, random_weights(spec))
    plain = NEUTRAL.with_(seed=3)
    penalised = plain.with_(repetition_penalty=1.5, repetition_window=6)
    for turned in range(0, 20, 3):
        settings = [
            penalised if turned <= at < turned + 9 or at > 20 else plain for at in range(30)
        ]
        sampler, numbers = Sampler(plain, 3, [5, 9]), random.Random(3)
        pipeline = Pipeline(model.parts, 61, TapeRecorder())
        cache, other, history = model.new_cache(), model.new_cache(), [5, 9]
        logits = model.forward(history, other)
        first = model.forward(history, cache)
        pipeline.first(first, cache, history, settings[0], numbers.random(), 0)
        for at in range(29):
            sampler.params = settings[at]
            expected = sampler(logits)
            # As in a reply: the next is queued before this one is known.
            pipeline.next(cache, history, settings[at + 1], numbers.random(), at + 1)
            assert pipeline.wait(at).id == expected.id
            cache.append((expected.id,))
            history.append(expected.id)
            logits = model.forward((expected.id,), other)


def test_a_filter_that_keeps_all_is_no_filter() -> None:
    assert not kind_of(NEUTRAL.with_(top_k=61), 61).filtered
    assert kind_of(NEUTRAL.with_(top_k=60), 61).filtered
    assert not kind_of(NEUTRAL.with_(temperature=0.0, top_k=5, top_p=0.5), 61).filtered
