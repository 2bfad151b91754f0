"""Replies whose tokens are made one ahead against plain ones: on a CPU, with a tape in place of
CUDA graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tui_chat.engine.engine import Lane, Reply
from tui_chat.engine.events import (
    Event,
    Failed,
    Finished,
    PrefillProgress,
    Prompt,
    Stepped,
)
from tui_chat.engine.load import LoadedCheckpoint
from tui_chat.engine.overlap import pipeline_for
from tui_chat.model.cuda.pipeline import Pipeline
from tui_chat.model.cuda.recorder import EagerRecorder, Recorder, Recording, Slot, Work
from tui_chat.model.decoder import Decoder
from tui_chat.sampling import SamplingParams

from ..model.tape import TapeRecorder
from .small import LETTERS, alphabet_weights, chat, opened, raw, run, save_nanogpt

GREEDY = SamplingParams(temperature=0.0, seed=1, max_new_tokens=8)
BOLD = SamplingParams(temperature=1.5, top_k=0, seed=11, max_new_tokens=20)


def ahead(loaded: LoadedCheckpoint, recorder: Recorder | None = None) -> Lane:
    """A lane as on a GPU."""
    lane = Lane(loaded)
    assert isinstance(loaded.model, Decoder)
    lane.pipeline = Pipeline(loaded.model.parts, loaded.offered, recorder or TapeRecorder())
    return lane


def told(events: list[Event]) -> list[Any]:
    """What events say, without what depends on the clock and the last digits of logprobs."""
    out: list[Any] = []
    for event in events:
        match event:
            case Stepped():
                out.append((event.text, [(s.id, s.text, round(s.logprob, 3)) for s in event.steps]))
            case Finished():
                stats = event.stats
                counts = (stats.prompt_tokens, stats.reused_tokens, stats.new_tokens)
                out.append((event.reason, event.detail, event.text, event.ids, counts))
            case Failed():
                out.append(str(event.error))
            case PrefillProgress():
                pass  # as often as the clock will have it
            case _:
                out.append(event)
    return out


KNOBS = {
    "greedy": GREEDY.with_(max_new_tokens=30),
    "one token": GREEDY.with_(max_new_tokens=1),
    "bold": BOLD,
    "top_k": BOLD.with_(top_k=7, top_p=0.9, min_p=0.02),
    "penalty": BOLD.with_(repetition_penalty=1.4, repetition_window=5, top_k=20),
    "greedy penalty": GREEDY.with_(repetition_penalty=1.4, max_new_tokens=20),
    "beyond the context": BOLD.with_(max_new_tokens=150),
    "a stop": BOLD.with_(stop=["q", "a", "5"], max_new_tokens=100),
}


@pytest.mark.parametrize("knobs", KNOBS)
@pytest.mark.parametrize("prompt", [raw("hello"), chat("hello", "you", "hi"), raw("")])
def test_a_reply_is_the_plain_one(noise: str, knobs: str, prompt: Prompt) -> None:
    # Two that know nothing of each other, for lanes of one checkpoint share what they have read.
    one_of, other_of = (opened(noise, stop_ids=(LETTERS.index("U"),), chat=True) for _ in range(2))
    plain, lane = Lane(one_of), ahead(other_of)
    for text in (prompt, prompt, raw("hello world")):  # with what the one before left behind
        one, other = run(plain, text, KNOBS[knobs]), run(lane, text, KNOBS[knobs])
        assert told(other.events) == told(one.events)
        assert lane.cache.tokens == plain.cache.tokens
    assert plain.pipeline is None


def test_it_was_recorded_and_replayed(noise: str) -> None:
    recorder = TapeRecorder()
    lane = ahead(opened(noise), recorder)
    for _ in range(3):
        run(lane, raw("hello"), BOLD)
    assert recorder.recorded == 2
    assert recorder.replayed > 100


def test_the_first_token_waits_for_no_recording(noise: str) -> None:
    recorder = TapeRecorder()
    reply = ahead(opened(noise), recorder).reply(raw("hello"), BOLD)
    for event in reply.events():
        if isinstance(event, Stepped):
            assert recorder.recorded == (1 if len(reply.ids) == 1 else 2)  # the draw, then the step


def test_stop_strings_across_tokens_and_a_template_that_ends(alphabet: str) -> None:
    loaded, another = opened(alphabet, chat=True), opened(alphabet, chat=True)
    for prompt, knobs in [
        (raw("abc"), GREEDY.with_(stop=["hij"])),
        (raw("abc"), GREEDY.with_(stop=["hix"], max_new_tokens=7)),
        (chat("hello"), GREEDY.with_(max_new_tokens=60)),
    ]:
        one, other = run(Lane(loaded), prompt, knobs), run(ahead(another), prompt, knobs)
        assert told(other.events) == told(one.events)


@pytest.mark.parametrize("at", [0, 1, 2, 5])
def test_cancelling_ends_it_before_another_token(noise: str, at: int) -> None:
    lane = ahead(opened(noise))
    reply = lane.reply(raw("hello"), BOLD)
    events = reply.events()
    for event in events:
        if len(reply.ids) == at and isinstance(event, Stepped if at else PrefillProgress):
            reply.cancel()
    assert isinstance(event, Finished)
    assert (event.reason, len(event.ids)) == ("cancelled", at)
    assert len(lane.cache) == len("hello") + max(0, at - 1)
    again = run(lane, raw("hello"), BOLD)
    assert again.finished.ids == run(Lane(lane.checkpoint), raw("hello"), BOLD).finished.ids


def turned(lane: Lane, at: int, params: SamplingParams) -> Reply:
    reply = lane.reply(raw("hello"), BOLD)
    for event in reply.events():
        if isinstance(event, Stepped) and len(reply.ids) == at:
            reply.params = params
    return reply


@pytest.mark.parametrize(
    "params",
    [
        GREEDY.with_(max_new_tokens=20),
        BOLD.with_(repetition_penalty=1.5),
        BOLD.with_(top_k=3),
        BOLD.with_(temperature=0.2),
    ],
)
def test_a_turned_knob_counts_from_the_token_after_the_next(
    noise: str, params: SamplingParams
) -> None:
    loaded = opened(noise)
    assert turned(ahead(loaded), 5, params).ids == turned(Lane(loaded), 6, params).ids


def test_how_many_tokens_may_be_turned_at_the_last_moment(noise: str) -> None:
    loaded = opened(noise)
    short = BOLD.with_(max_new_tokens=6)
    for before, after, count in [(short, BOLD, 20), (BOLD, short, 6)]:
        reply = ahead(loaded).reply(raw("hello"), before)
        for event in reply.events():
            if isinstance(event, Stepped) and len(reply.ids) == 6:
                reply.params = after
        assert len(reply.ids) == count
        assert reply.ids == list(run(Lane(loaded), raw("hello"), BOLD).finished.ids)[:count]


def test_next_turn_edit_and_retry_reuse_what_plain_replies_reuse(noise: str) -> None:
    plain, lane = Lane(opened(noise, chat=True)), ahead(opened(noise, chat=True))
    few = GREEDY.with_(max_new_tokens=3)
    reply = run(plain, chat("hello"), few).finished.text.replace("\n", "")
    run(lane, chat("hello"), few)
    for prompt in (chat("hello"), chat("hello", reply, "and"), chat("hello", reply, "or")):
        one, other = run(plain, prompt, few), run(lane, prompt, few)
        assert other.started.reused_tokens == one.started.reused_tokens > 0
        assert other.finished.ids == one.finished.ids


def test_two_replies_in_turn_on_one_lane_do_not_disturb_each_other(noise: str) -> None:
    lane = ahead(opened(noise))
    plain = Lane(lane.checkpoint)
    knobs = BOLD.with_(repetition_penalty=1.3)
    alone = [run(plain, raw(text), knobs).finished.ids for text in ("hello", "world")]
    replies = [lane.reply(raw(text), knobs) for text in ("hello", "world")]
    _in_turn([reply.events() for reply in replies])
    assert [tuple(reply.ids) for reply in replies] == alone


def test_two_lanes_in_turn_do_not_disturb_each_other(noise: str, alphabet: str) -> None:
    loaded = opened(noise)
    lanes = [ahead(loaded), ahead(loaded), ahead(opened(alphabet))]
    alone = [run(Lane(lane.checkpoint), raw("hello"), BOLD).finished.ids for lane in lanes]
    replies = [lane.reply(raw("hello"), BOLD) for lane in lanes]
    _in_turn([reply.events() for reply in replies])
    assert [tuple(reply.ids) for reply in replies] == alone


def _in_turn(running: list[Iterator[Event]]) -> None:
    while running:
        running = [events for events in running if next(events, None) is not None]


def test_somebody_asks_the_lane_for_logits_meanwhile(noise: str) -> None:
    lane = ahead(opened(noise))
    reply = lane.reply(raw("hello"), BOLD)
    for event in reply.events():
        if isinstance(event, Stepped) and len(reply.ids) in (3, 4):
            lane.next_logits([1, 2, 3])
    assert tuple(reply.ids) == run(Lane(lane.checkpoint), raw("hello"), BOLD).finished.ids


def test_a_lane_that_drafts_does_not_write_ahead(noise: str) -> None:
    from tui_chat.engine.speculate import lookup

    recorder = TapeRecorder()
    lane = ahead(opened(noise), recorder)
    lane.drafting = lookup(lane.checkpoint)
    assert run(lane, raw("hello"), BOLD).finished.reason == "length"
    assert recorder.recorded == 0


def test_forks_write_as_one_batch(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from tui_chat.engine import overlap
    from tui_chat.engine.together import serve

    monkeypatch.setitem(overlap.RECORDERS, "cpu", lambda device: TapeRecorder())
    lane = Lane(opened(noise))
    expected = run(lane, raw("hello"), BOLD).finished.ids
    assert lane.pipeline is not None
    replies = [lane.fork(name).reply(raw("hello"), BOLD) for name in "ab"]
    running, served = [reply.events() for reply in replies], 0
    while any([next(events, None) is not None for events in running]):  # each has its turn
        served += all(reply.wants is not None for reply in replies)
        serve(replies)
    assert served > 10
    assert {tuple(reply.ids) for reply in replies} == {expected}


# ---- faults


class Fragile(TapeRecorder):
    """Work fails once it has been done so many times."""

    def __init__(self, after: int, error: Exception) -> None:
        super().__init__()
        self._left, self._error = after, error

    def record(self, work: Work) -> Work:
        tape = super().record(work)

        def run() -> None:
            if not self._left:
                raise self._error
            self._left -= 1
            tape()

        return run


@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize(
    "error", [RuntimeError("an operator cannot"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_whatever_fails_goes_on_plainly_without_a_lost_or_doubled_token(
    noise: str, after: int, error: Exception
) -> None:
    loaded = opened(noise)
    knobs = BOLD.with_(repetition_penalty=1.3)
    expected = run(Lane(loaded), raw("hello"), knobs)
    lane = ahead(loaded, Fragile(after, error))
    first, second = run(lane, raw("hello"), knobs), run(lane, raw("hello"), knobs)
    assert first.finished.ids == second.finished.ids == expected.finished.ids
    assert first.shown == expected.shown
    assert str(error) in second.started.note  # said once, and at the next opportunity
    assert run(lane, raw("hello"), knobs).started.note == ""
    assert lane.cache.tokens == [LETTERS.index(letter) for letter in "hello"] + [
        *expected.finished.ids[:-1]
    ]


class Unrecordable(Recording):
    """What CudaGraphRecorder does when CUDA refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.tried = 0

    def _captured(self, work: Work) -> Work:
        self.tried += 1
        raise torch.OutOfMemoryError("CUDA out of memory\nwhile recording")

    def slot(self, size: int, found: int) -> Slot:
        return Slot(size, found, pinned=False)


def test_what_cannot_be_recorded_is_called_instead(noise: str) -> None:
    recorder = Unrecordable()
    lane = ahead(opened(noise), recorder)
    ran = run(lane, raw("hello"), BOLD)
    assert ran.finished.ids == run(Lane(lane.checkpoint), raw("hello"), BOLD).finished.ids
    assert recorder.tried == 1
    assert lane.pipeline is not None and lane.pipeline.works
    again = run(lane, raw("hello"), BOLD)
    assert "no CUDA graph could be recorded: CUDA out of memory" in again.started.note
    assert "while recording" not in again.started.note


def test_a_quantised_cache_is_written_plainly(noise: str) -> None:
    loaded = opened(noise)
    model = loaded.model
    assert isinstance(model, Decoder)
    model._quantised_cache = True
    lane, plain = ahead(loaded), Lane(loaded)
    assert run(lane, raw("hello"), BOLD).finished.ids == run(plain, raw("hello"), BOLD).finished.ids
    assert "8 bits" in run(lane, raw("hello"), BOLD).started.note


def test_nan_weights_end_the_reply_with_a_sentence_and_keep_what_was_made(tmp_path: Any) -> None:
    weights = alphabet_weights()
    weights["position.weight"][6] = torch.nan  # bites once position 6 is read
    lane = ahead(opened(save_nanogpt(tmp_path, weights)))
    for _ in range(2):
        ran = run(lane, raw("abc"))
        assert ran.shown == "defg"
        assert "holds NaN" in str(told(ran.events)[-1])
    # Nothing of it is left where a shorter text is read.
    assert run(lane, raw("abc"), GREEDY.with_(max_new_tokens=4)).shown == "defg"


def test_a_cache_that_is_dropped_is_let_go_of(noise: str) -> None:
    lane = ahead(opened(noise))
    run(lane, raw("hello"), BOLD)
    assert lane.pipeline is not None and lane.pipeline._bound is not None
    lane.drop_cache()
    assert lane.pipeline._bound is None
    expected = run(Lane(lane.checkpoint), raw("hello"), BOLD)
    assert run(lane, raw("hello"), BOLD).finished.ids == expected.finished.ids


def test_there_is_one_on_a_gpu_only(noise: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = opened(noise)
    assert pipeline_for(loaded) is None
    from tui_chat.engine import overlap

    monkeypatch.setitem(overlap.RECORDERS, "cpu", lambda device: EagerRecorder())
    assert pipeline_for(loaded) is not None
    object.__setattr__(loaded, "model", object.__new__(_Other))
    assert pipeline_for(loaded) is None


class _Other:
    """A model that is no Decoder."""

    device = torch.device("cpu")
