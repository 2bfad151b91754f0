"""A reply from its first token to its last: stop rules, seeds, knobs, reuse of the cache,
faults.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tui_chat.engine.engine import Lane
from tui_chat.engine.events import Failed, PrefillProgress, Prompt, Stepped
from tui_chat.errors import UsageError
from tui_chat.model.cache import KVCache
from tui_chat.sampling import SamplingParams

from .small import GREEDY, LETTERS, alphabet_weights, chat, opened, raw, run, save_nanogpt

BOLD = SamplingParams(temperature=1.5, top_k=0, seed=11, max_new_tokens=20)


def test_a_reply_ends_at_max_new_tokens(alphabet: str) -> None:
    ran = run(Lane(opened(alphabet)), raw("abc"), GREEDY.with_(max_new_tokens=5))
    assert ran.finished.text == ran.shown == "defgh"
    assert ran.finished.reason == "length"
    assert ran.finished.ids == tuple(LETTERS.index(letter) for letter in "defgh")


def test_a_stop_string_ends_it_across_tokens_and_is_never_shown(alphabet: str) -> None:
    ran = run(Lane(opened(alphabet)), raw("abc"), GREEDY.with_(stop=["hij"]))
    assert (ran.finished.reason, ran.finished.detail) == ("stop", "hij")
    assert ran.finished.text == ran.shown == "defg"
    assert len(ran.finished.ids) == 7  # the tokens of the stop string are kept


def test_text_that_only_begins_like_a_stop_string_comes_out_late_but_whole(alphabet: str) -> None:
    ran = run(Lane(opened(alphabet)), raw("abc"), GREEDY.with_(stop=["hix"], max_new_tokens=7))
    assert [e.text for e in ran.events if isinstance(e, Stepped)] == [*"defg", "", "", "hij"]
    cut = run(Lane(opened(alphabet)), raw("abc"), GREEDY.with_(stop=["hix"], max_new_tokens=6))
    assert cut.shown == cut.finished.text == "defghi"


def test_a_stop_id_is_kept_among_the_ids_and_not_shown(alphabet: str) -> None:
    ran = run(Lane(opened(alphabet, stop_ids=(LETTERS.index("g"),))), raw("abc"))
    assert ran.finished.reason == "stop"
    assert ran.finished.text == "def"
    assert ran.finished.ids[-1] == LETTERS.index("g")


def test_the_template_ends_a_chat_reply(alphabet: str) -> None:
    ran = run(Lane(opened(alphabet, chat=True)), chat("hello"), GREEDY.with_(max_new_tokens=60))
    assert ran.finished.text == "S0123456abcdefghijklmnopqrstuvwxyz.:"
    assert ran.finished.reason == "stop"


def test_the_same_seed_gives_the_same_reply_on_a_warm_and_a_cold_cache(noise: str) -> None:
    warm = Lane(opened(noise))
    run(warm, raw("some other text"), BOLD)
    run(warm, raw("hello wor"), BOLD)
    one = run(warm, raw("hello world"), BOLD)
    other = run(Lane(opened(noise)), raw("hello world"), BOLD)
    assert one.started.reused_tokens > 0 == other.started.reused_tokens
    assert one.finished.ids == other.finished.ids
    assert run(warm, raw("hello world"), BOLD.with_(seed=12)).finished.ids != one.finished.ids


def test_without_a_seed_one_is_drawn_and_told(noise: str) -> None:
    lane = Lane(opened(noise))
    first = run(lane, raw("hello"), BOLD.with_(seed=None))
    again = run(lane, raw("hello"), BOLD.with_(seed=first.started.seed))
    assert again.finished.ids == first.finished.ids


def test_a_knob_turned_in_between_counts_from_the_next_token(noise: str) -> None:
    lane = Lane(opened(noise))
    reply = lane.reply(raw("hello"), BOLD)
    for event in reply.events():
        if isinstance(event, Stepped) and len(reply.ids) == 5:
            reply.params = GREEDY.with_(max_new_tokens=12)
    assert len(reply.ids) == 12
    start = [LETTERS.index(letter) for letter in "hello"] + reply.ids[:5]
    greedy = run(lane, Prompt(ids=tuple(start)), GREEDY.with_(max_new_tokens=7))
    assert reply.ids[5:] == list(greedy.finished.ids)
    assert reply.ids[:5] == list(run(lane, raw("hello"), BOLD).finished.ids[:5])


def test_cancelling_ends_it_before_another_token(noise: str) -> None:
    reply = Lane(opened(noise)).reply(raw("hello"), BOLD)
    for event in reply.events():
        if isinstance(event, Stepped) and len(reply.ids) == 3:
            reply.cancel()
    assert len(reply.ids) == 3
    assert event.reason == "cancelled"  # type: ignore[union-attr]


def test_a_long_prompt_is_read_in_chunks_and_can_be_cancelled_between_two(long_noise: str) -> None:
    lane = Lane(opened(long_noise))
    ids = tuple(at % 40 for at in range(700))
    progress = [e for e in run(lane, Prompt(ids=ids)).events if isinstance(e, PrefillProgress)]
    assert [(p.done, p.total) for p in progress] == [(256, 700), (512, 700), (700, 700)]
    fresh = Lane(opened(long_noise))
    reply = fresh.reply(Prompt(ids=ids), GREEDY)
    for event in reply.events():
        if isinstance(event, PrefillProgress):
            reply.cancel()
    assert len(fresh.cache) == 256
    assert run(fresh, Prompt(ids=ids)).started.reused_tokens == 256


def test_next_turn_edit_and_retry_prefill_only_what_changed(noise: str) -> None:
    lane = Lane(opened(noise, chat=True))
    few = GREEDY.with_(max_new_tokens=3)
    first = run(lane, chat("hello"), few)
    assert first.started.reused_tokens == 0
    retry = run(lane, chat("hello"), few)
    assert retry.started.reused_tokens == len("UhelloA") + 1 - 1  # all but the last token
    reply = retry.finished.text.replace("\n", "")
    again = run(lane, chat("hello", reply, "and"), few)
    assert again.started.reused_tokens >= len("Uhello\nA")
    edited = run(lane, chat("hello", reply, "or"), few)
    assert edited.started.reused_tokens == len(f"Uhello\nA{reply}\nU")
    other = run(lane, chat("hexxo"), few)
    assert other.started.reused_tokens == len("Uhe")


def test_two_replies_in_turn_on_one_lane_do_not_disturb_each_other(noise: str) -> None:
    lane = Lane(opened(noise))
    alone = [run(lane, raw(text), BOLD).finished.ids for text in ("hello", "world")]
    replies = [lane.reply(raw(text), BOLD) for text in ("hello", "world")]
    running = [reply.events() for reply in replies]
    while running:
        running = [events for events in running if next(events, None) is not None]
    assert [tuple(reply.ids) for reply in replies] == alone


def test_the_offered_ids_end_with_the_tokenizer(noise: str) -> None:
    loaded = opened(noise)
    object.__setattr__(loaded.tokenizer, "vocab_size", 10)
    lane = Lane(loaded)
    assert lane.next_logits([1, 2]).shape == (10,)
    assert max(run(lane, raw("abc"), BOLD).finished.ids) < 10


def test_characters_without_an_id_are_named(alphabet: str) -> None:
    ran = run(Lane(opened(alphabet)), raw("aÄbcÄ!"))
    assert ran.started.missing == "Ä!"
    assert ran.shown == "defghijk"


def test_an_empty_text_begins_from_a_new_line(alphabet: str) -> None:
    ran = run(Lane(opened(alphabet)), raw(""))
    assert ran.started.prompt_ids == (LETTERS.index("\n"),)


# ---- faults


def error_of(events: Sequence[object]) -> str:
    last = events[-1]
    assert isinstance(last, Failed)
    return str(last.error)


def test_nan_weights_end_the_reply_with_a_sentence_and_keep_what_was_made(tmp_path: object) -> None:
    weights = alphabet_weights()
    weights["position.weight"][6] = math.nan  # bites once position 6 is read
    lane = Lane(opened(save_nanogpt(tmp_path, weights)))  # type: ignore[arg-type]
    ran = run(lane, raw("abc"))
    assert ran.shown == "defg"
    assert "holds NaN" in error_of(ran.events)


@pytest.mark.parametrize("ids", [(1, 2, 40), (-1,), (2**40,)])
def test_an_id_outside_the_model_is_refused_before_the_first_step(
    alphabet: str, ids: tuple[int, ...]
) -> None:
    ran = run(Lane(opened(alphabet)), Prompt(ids=ids))
    assert len(ran.events) == 1
    assert "is not between 0 and 39" in error_of(ran.events)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_drops_the_cache_and_the_lane_lives_on(
    alphabet: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane = Lane(opened(alphabet))
    model = lane.checkpoint.model
    forward = model.forward

    def breaking(ids: Sequence[int], cache: KVCache) -> Tensor:
        if len(cache) == 5:
            raise error
        return forward(ids, cache)

    monkeypatch.setattr(model, "forward", breaking)
    ran = run(lane, raw("abc"))
    assert ran.shown == "def"
    assert "not enough memory" in error_of(ran.events)
    assert len(lane.cache) == 0
    monkeypatch.undo()
    assert run(lane, raw("abc")).shown == "defghijk"


def test_score_is_the_log_probability_of_each_next_id(noise: str) -> None:
    lane = Lane(opened(noise))
    ids = [5, 9, 22, 3, 17]
    scores = lane.score(ids)
    assert scores[0] is None
    for at in range(1, len(ids)):
        logprobs = lane.next_logits(ids[:at]).log_softmax(0)
        assert scores[at] == pytest.approx(float(logprobs[ids[at]]), abs=1e-4)
    with pytest.raises(UsageError, match="too long to score"):
        lane.score([1] * 65)
