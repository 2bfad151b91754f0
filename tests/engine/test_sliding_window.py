"""Models that compute their whole window for every token, HipGPT's, through lane, stop rules,
window and worker: the ids of its own program, also beyond the window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tui_chat
from tui_chat.engine.api import Checkpoint
from tui_chat.engine.events import Failed, PrefillProgress, Prompt, Stepped, WindowMoved
from tui_chat.sampling import SamplingParams

from .small import Ran, chat, raw

S3 = Path(__file__).parent.parent / "fixtures/S3"
RUNS = {
    "tiny_fallback": "checkpoints/tiny",
    "flash_head32": "checkpoints/shakespeare_v1",
}
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=24)


def reference(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((S3 / name / "reference.json").read_text())
    return found


def opened(name: str, *, dropout: bool = True) -> Checkpoint:
    config = {} if dropout else {"dropout": False}
    return tui_chat.open(str(S3 / name / RUNS[name]), device="cpu", config=config)


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    return opened("tiny_fallback", dropout=False)


@pytest.mark.parametrize("mode", ["as_shipped", "no_dropout"])
@pytest.mark.parametrize("name", RUNS)
def test_writes_what_its_own_program_writes_also_past_the_window(name: str, mode: str) -> None:
    checkpoint = opened(name, dropout=mode == "as_shipped")
    cases = [case for case in reference(name)["cases"] if case["mode"] == mode]
    assert len(cases) >= 6
    for case in cases:
        made = [
            step.id
            for step in checkpoint.generate(case["prompt_ids"], temperature=0.0, max_new_tokens=24)
        ]
        assert made == case["greedy_ids"], case["name"]


def test_a_text_is_continued_as_its_own_program_prints_it() -> None:
    [reply] = reference("tiny_fallback")["replies"]
    ran = Ran(opened("tiny_fallback").lane.reply(raw(reply["text"]), GREEDY))
    assert ran.finished.text == reply["reply"] and ran.finished.reason == "length"


def test_a_text_longer_than_the_window_keeps_its_end(tiny: Checkpoint) -> None:
    text = "First Citizen: speak to the people and " * 6
    ids = tiny.encode(text)
    assert len(ids) > 64
    ran = Ran(tiny.lane.reply(raw(text), GREEDY))
    # Its program leaves room for one token more, where id 0 stands at first.
    assert list(ran.started.prompt_ids) == ids[-31:]
    assert ran.started.dropped_tokens == len(ids) - 31
    # White space is no token, so where the window begins is known to a few characters.
    kept = tiny.encode(text[ran.started.first_char :])
    assert 31 <= len(kept) <= 40 and kept[-31:] == ids[-31:]


def test_ids_longer_than_the_window_keep_all_that_it_shows(tiny: Checkpoint) -> None:
    ids = tuple(range(60))
    ran = Ran(tiny.lane.reply(Prompt(mode="raw", ids=ids), GREEDY))
    assert ran.started.prompt_ids == ids[-32:]


def test_the_window_moves_on_by_itself_and_it_is_told_where_it_begins(tiny: Checkpoint) -> None:
    params = GREEDY.with_(max_new_tokens=60)
    text = "First Citizen: speak"
    ran = Ran(tiny.lane.reply(raw(text), params))
    count = len(ran.started.prompt_ids)
    moves = [event for event in ran.events if isinstance(event, WindowMoved)]
    left_out = [event.dropped_tokens for event in moves]
    assert left_out[-1] == count + 59 - 32  # the last token was never read
    assert left_out == sorted(set(left_out)) and len(left_out) < 12
    chars = [event.first_char for event in moves]
    assert chars == sorted(chars) and len(text) < chars[-1] < len(text + ran.finished.text)
    assert len(list(ran.of(PrefillProgress))) == 1  # nothing is read anew
    assert (ran.finished.reason, len(ran.finished.ids)) == ("length", 60)


def test_each_token_is_shown_as_it_is_made_and_a_stop_string_ends_the_reply(
    tiny: Checkpoint,
) -> None:
    whole = Ran(tiny.lane.reply(raw("to be"), GREEDY))
    steps = [event.steps for event in whole.events if isinstance(event, Stepped)]
    assert [len(step) for step in steps] == [1] * 24
    words = whole.finished.text.split()
    stop = words[1]
    stopped = Ran(tiny.lane.reply(raw("to be"), GREEDY.with_(stop=(stop,))))
    assert stopped.finished.reason == "stop" and stopped.finished.detail == stop
    assert stopped.finished.text == whole.finished.text[: whole.finished.text.index(stop)]


def test_a_seed_makes_the_same_reply_again(tiny: Checkpoint) -> None:
    params = SamplingParams(temperature=1.0, top_k=0, max_new_tokens=50, seed=7)
    one, two = (Ran(tiny.lane.reply(raw("to be"), params)).finished.ids for _ in range(2))
    other = Ran(tiny.lane.reply(raw("to be"), params.with_(seed=8))).finished.ids
    assert one == two != other


def test_two_replies_in_turn_on_one_lane_do_not_disturb_each_other(tiny: Checkpoint) -> None:
    alone = [
        [step.id for step in tiny.generate(ids, temperature=0.0, max_new_tokens=40)]
        for ids in ([3, 4], [9, 8, 7])
    ]
    running = [
        tiny.generate(ids, temperature=0.0, max_new_tokens=40) for ids in ([3, 4], [9, 8, 7])
    ]
    in_turn = [[step.id for step in pair] for pair in zip(*running, strict=True)]
    assert [list(ids) for ids in zip(*in_turn, strict=True)] == alone


def test_scores_give_each_token_the_window_before_it(tiny: Checkpoint) -> None:
    ids = tiny.encode("First Citizen: speak to")
    scores = tiny.score(ids)
    assert scores[0] is None and len(scores) == len(ids)
    for n in range(1, len(ids)):
        wanted = tiny.next_logits(ids[:n]).log_softmax(-1)[ids[n]]
        assert scores[n] == pytest.approx(float(wanted), abs=1e-4)


def test_a_conversation_goes_on_past_the_window(tiny: Checkpoint) -> None:
    ran = Ran(tiny.lane.reply(chat("to be", "or not", "to be"), GREEDY.with_(max_new_tokens=60)))
    assert ran.finished.reason == "length" and len(ran.finished.ids) == 60


def test_an_empty_text_is_told_what_to_do(tiny: Checkpoint) -> None:
    for text in ("", "   "):
        last = Ran(tiny.lane.reply(raw(text), GREEDY)).events[-1]
        assert isinstance(last, Failed)
        assert ("no id for any of it" if text else "Type some text") in str(last.error)
