"""What is called while a checkpoint loads, so that a reply need not wait for it."""

from __future__ import annotations

import pytest
import torch

from tui_chat.engine import overlap
from tui_chat.engine.lane import Lane
from tui_chat.engine.warm import warm_up
from tui_chat.model.decoder import Decoder
from tui_chat.model.spec import ModelSpec

from ..model.tape import TapeRecorder
from ..model.tiny import SMALL, random_weights
from .small import opened, raw, run

torch.set_num_threads(1)


class Counted(Decoder):
    """Notes how many ids it was asked to read."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec, random_weights(spec))
        self.read: list[int] = []

    def forward(self, ids, cache):  # type: ignore[no-untyped-def]
        self.read.append(len(ids))
        return super().forward(ids, cache)


def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[TapeRecorder]:
    made: list[TapeRecorder] = []

    def recorder(device: torch.device) -> TapeRecorder:
        made.append(TapeRecorder())
        return made[-1]

    monkeypatch.setitem(overlap.RECORDERS, "cpu", recorder)
    return made


@pytest.mark.parametrize("context_length", [1, 2, 3, 48, 1024])
def test_prompts_of_several_lengths_are_read_and_draws_recorded(
    context_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = as_on_a_gpu(monkeypatch)
    model = Counted(ModelSpec(**{**SMALL, "context_length": context_length}))
    warm_up(model)
    assert len(set(model.read)) > (3 if context_length > 40 else 0)
    assert max(model.read) == max(1, min(256, context_length // 2))
    (recorder,) = made
    assert recorder.recorded == (5 if context_length > 1 else 4)  # a step, and four draws
    assert recorder.replayed >= (11 if context_length > 3 else 0)


def test_on_a_cpu_one_token_is_enough() -> None:
    model = Counted(ModelSpec(**SMALL))
    warm_up(model)
    assert model.read == [1]


def test_a_checkpoint_that_was_warmed_up_writes_what_it_writes_anyway(
    noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(Lane(opened(noise)), raw("hello"))
    made = as_on_a_gpu(monkeypatch)
    lane = Lane(opened(noise))
    assert lane.pipeline is not None
    assert run(lane, raw("hello")).finished.ids == plain.finished.ids
    assert [recorder.recorded for recorder in made] == [5, 2]
