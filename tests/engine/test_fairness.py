"""Nobody waits long for somebody else: shares of the time, pieces of prompts, pauses in them."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from itertools import count, pairwise
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from torch import Tensor

from tui_chat.engine import generate
from tui_chat.engine import schedule as schedule_module
from tui_chat.engine.engine import Lane
from tui_chat.engine.events import Finished, PrefillProgress, Prompt, Stepped
from tui_chat.engine.fairness import Shares
from tui_chat.engine.generate import LONGEST, Pieces, prefill
from tui_chat.engine.schedule import Schedule
from tui_chat.model.cache import KVCache
from tui_chat.model.decoder import Decoder

from ..model.tiny import SPECS, random_weights
from .small import GREEDY, opened, raw


def test_who_has_had_least_is_next_and_a_newcomer_owes_and_is_owed_nothing() -> None:
    shares = Shares()
    order = []
    for _ in range(6):
        key = shares.next(["slow", "fast"])
        order.append(key)
        shares.charge(key, 3.0 if key == "slow" else 1.0)
    assert order == ["slow", "fast", "fast", "fast", "slow", "fast"]  # 6 and 4 seconds
    assert shares.next(["slow", "fast", "new"]) == "fast"
    shares.charge("fast", 1.0)
    assert shares.next(["slow", "fast", "new"]) == "new"  # which starts with 4, as "fast" had then
    shares.charge("new", 1.5)
    assert shares.next(["slow", "fast", "new"]) == "fast"
    assert shares.next(["slow"]) == "slow"
    assert shares.next(["fast", "slow"]) == "fast"  # it left and comes back as a newcomer


def small(name: str = "gpt") -> Decoder:
    return Decoder(SPECS[name], random_weights(SPECS[name]))


def test_pieces_follow_what_was_measured() -> None:
    pieces = Pieces(small())
    assert pieces.next() == 256
    pieces.took(256, LONGEST / 10)
    assert pieces.next() == 256
    pieces.took(256, LONGEST * 1.55)
    assert pieces.next() == 160
    pieces.took(160, LONGEST * 100)  # believed by half
    assert pieces.next() == 80
    pieces.took(20, LONGEST / 2)  # the end of a prompt says nothing of a full piece
    assert pieces.next() == 80
    pieces.took(80, LONGEST / 100)
    assert pieces.next() == 160
    for _ in range(10):
        pieces.took(pieces.next(), LONGEST * 100)
    assert pieces.next() == 16


def test_the_first_piece_of_a_large_model_is_small() -> None:
    model = small()
    model.parameters = 7_000_000_000
    assert Pieces(model).next() == 16


@pytest.mark.parametrize("name", ["gpt", "llama-half", "nanochat-like", "gemma2-like"])
def test_a_piece_pauses_after_each_layer_and_can_be_left_there(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "PAUSE", -1.0)
    model = small(name)
    tokens = list(range(30))
    expected = model.forward(tokens, model.new_cache())
    cache = model.new_cache()
    model.forward(tokens[:8], cache)
    running = cast(Generator[object, None, None], prefill(model, cache, tokens))
    for _ in range(model.spec.n_layer):
        assert next(running) == (8, None)
        model.forward(list(range(40, 45)), model.new_cache())  # others have their turn
    assert len(cache) == 8
    running.close()
    *pauses, (done, logits) = prefill(model, cache, tokens)
    assert pauses == [(8, None)] * model.spec.n_layer and done == 30 and logits is not None
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_others_write_in_one_batch_while_a_long_prompt_is_read(
    long_noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    together = Decoder.forward_each

    def counted(model: Decoder, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        batches.append(len(tokens))
        return together(model, tokens, caches)

    monkeypatch.setattr(Decoder, "forward_each", counted)
    ticks = count()  # every look at the clock takes a second: each turn is a single round
    monkeypatch.setattr(schedule_module, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    loaded = opened(long_noise)
    events: list[object] = []

    def blame(lane: str, request_id: str, error: BaseException) -> None:
        raise error

    schedule = Schedule(events.append, blame)
    endless = GREEDY.with_(max_new_tokens=900)
    for name in ("a", "b"):
        schedule.add(name, Lane(loaded, name).reply(raw(f"{name} text"), endless, name))
    while sum(isinstance(event, Stepped) for event in events) < 8:
        schedule.turn()
    long = Prompt(mode="raw", ids=tuple(range(3, 39)) * 25)
    schedule.add("c", Lane(loaded, "c").reply(long, GREEDY, "c"))
    while not any(isinstance(event, Finished) for event in events):
        schedule.turn()
    places = [
        at
        for at, event in enumerate(events)
        if isinstance(event, PrefillProgress) and event.request_id == "c"
    ]
    assert len(places) >= 4  # 900 tokens
    for begin, end in pairwise(places):
        between = [event.request_id for event in events[begin:end] if isinstance(event, Stepped)]
        assert "a" in between and "b" in between
    assert set(batches) == {2, 3}
