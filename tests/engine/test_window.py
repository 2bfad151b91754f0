"""What the model sees of a conversation that is longer than its context of 64 tokens (one a
letter).
"""

from __future__ import annotations

import pytest

from tui_chat.engine.engine import Lane
from tui_chat.engine.events import Failed, Prompt, WindowMoved
from tui_chat.engine.window import ContextWindow

from .small import GREEDY, LETTERS, chat, opened, raw, run

FEW = GREEDY.with_(max_new_tokens=4)


def text_of(ids: tuple[int, ...] | list[int]) -> str:
    return "".join(LETTERS[token] for token in ids)


@pytest.fixture
def lane(alphabet: str) -> Lane:
    return Lane(opened(alphabet, chat=True))


def test_a_conversation_that_fits_is_sent_whole(lane: Lane) -> None:
    started = run(lane, chat("one", "two", "three", system="sys"), FEW).started
    assert text_of(started.prompt_ids) == "Ssys\nUone\nAtwo\nUthree\nA"
    assert (started.first_turn, started.dropped_tokens) == (1, 0)


def test_the_oldest_whole_turns_go_once_and_down_to_about_half(lane: Lane) -> None:
    turns = ["aaaaaaaa", "bbbbbbbb", "cccccccc", "dddddddd", "eeeeeeee"]
    whole = run(lane, chat(*turns, system="s"), FEW).started
    assert whole.dropped_tokens == 0  # 3 + 50 + 1 tokens, and 4 to come

    turns += ["ffffffff", "gggggggg"]
    moved = run(lane, chat(*turns, system="s"), FEW).started
    assert text_of(moved.prompt_ids) == "Ss\nUgggggggg\nA"
    assert moved.first_turn == 7  # the system turn is number 0
    assert moved.dropped_tokens == 60

    # The turns after that only add to it: nothing moves, everything before is reused.
    turns += ["hhhhhhhh", "iiiiiiii"]
    after = run(lane, chat(*turns, system="s"), FEW).started
    assert text_of(after.prompt_ids) == "Ss\nUgggggggg\nAhhhhhhhh\nUiiiiiiii\nA"
    assert after.first_turn == 7
    assert after.reused_tokens >= len("Ss\nUgggggggg\nA")


def test_half_of_the_context_is_kept_where_the_turns_allow_it(lane: Lane) -> None:
    turns = [letter * 3 for letter in "abcdefghijklm"]  # 5 tokens each: 65 and an A
    started = run(lane, chat(*turns), FEW).started
    # 6 turns and the A are 31 tokens; but a window begins with the user's turn, so it is 5.
    assert text_of(started.prompt_ids) == "Uiii\nAjjj\nUkkk\nAlll\nUmmm\nA"
    assert started.first_turn == 8


def test_an_edit_before_the_window_makes_it_anew(lane: Lane) -> None:
    turns = [letter * 8 for letter in "abcdefg"]
    run(lane, chat(*turns), FEW)
    turns[0] = "x" * 6
    short = run(lane, chat(*turns[:3]), FEW).started
    assert (short.first_turn, short.dropped_tokens) == (0, 0)
    assert text_of(short.prompt_ids).startswith("Uxxxxxx\n")


def test_a_turn_too_long_for_the_context_is_refused_with_a_remedy(lane: Lane) -> None:
    events = run(lane, chat("short", "fine", "x" * 70, system="sys"), FEW).events
    assert len(events) == 1 and isinstance(events[0], Failed)
    assert "takes 78 tokens, and the context holds 64" in str(events[0].error)
    assert "Shorten it" in str(events[0].error)
    assert run(lane, chat("short"), FEW).shown == "S012"


def test_a_long_turn_that_leaves_little_room_is_still_answered(lane: Lane) -> None:
    ran = run(lane, chat("x" * 59), FEW.with_(max_new_tokens=1))
    assert ran.finished.text == "S"
    assert len(ran.started.prompt_ids) == 62


def test_raw_text_keeps_its_last_half_and_then_stays(lane: Lane) -> None:
    text = "abcdefghijklmnopqrstuvwxyz" * 3
    first = run(lane, raw(text), FEW).started
    assert text_of(first.prompt_ids) == text[-32:]
    assert (first.first_char, first.dropped_tokens) == (46, 46)
    longer = run(lane, raw(text + "abcdefgh"), FEW).started
    assert longer.first_char == 46
    assert longer.reused_tokens >= 32
    again = run(lane, raw(text * 2), FEW).started
    assert again.first_char == 2 * 78 - 32


def test_dropped_characters_are_counted_where_the_tokenizer_skips_some(lane: Lane) -> None:
    text = "Ä" * 10 + "abcdefghij" * 8
    started = run(lane, raw(text), FEW).started
    assert text[started.first_char :] == text_of(started.prompt_ids)


def test_given_ids_longer_than_the_context_keep_their_last_half(lane: Lane) -> None:
    ids = tuple(at % 26 for at in range(100))
    started = run(lane, Prompt(ids=ids), FEW).started
    assert started.prompt_ids == ids[-32:]
    assert started.dropped_tokens == 68
    exact = run(lane, Prompt(ids=ids[:64]), FEW)
    assert exact.started.prompt_ids == ids[:64]
    assert exact.shown == text_of([(ids[63] + n) % 40 for n in (1, 2, 3, 4)])


def test_a_raw_reply_goes_on_when_the_context_fills(lane: Lane) -> None:
    ran = run(lane, raw("abc"), GREEDY.with_(max_new_tokens=150))
    assert ran.shown == (LETTERS * 5)[3:153]
    moves = [event for event in ran.events if isinstance(event, WindowMoved)]
    assert [move.dropped_tokens for move in moves] == [33, 66, 99]
    assert [move.first_char for move in moves] == [33, 66, 99]  # counts on into the reply
    assert ran.finished.reason == "length"


def test_a_chat_reply_goes_on_without_the_oldest_turns(alphabet: str) -> None:
    loaded = opened(alphabet, chat=True)
    object.__setattr__(loaded.template, "stop_strings", ())
    lane = Lane(loaded)
    turns = ["aaaaaaaa", "bbbbbbbb", "cccccccc"]
    ran = run(lane, chat(*turns, system="s"), GREEDY.with_(max_new_tokens=100))
    assert ran.shown == (LETTERS * 4)[LETTERS.index("S") :][:100]
    moves = [event for event in ran.events if isinstance(event, WindowMoved)]
    assert moves[0].first_turn == 3
    assert len(moves) >= 2  # later the reply alone fills it, and loses its own beginning
    assert lane.cache.tokens[: len("Ss\nUcccccccc\nA")] == [
        LETTERS.index(letter) for letter in "Ss\nUcccccccc\nA"
    ]


def test_a_reply_ends_when_the_question_leaves_it_no_room(alphabet: str) -> None:
    loaded = opened(alphabet, chat=True)
    object.__setattr__(loaded.template, "stop_strings", ())
    ran = run(Lane(loaded), chat("x" * 56), GREEDY.with_(max_new_tokens=100))
    assert ran.finished.reason == "context"
    assert len(ran.finished.ids) == 64 - 59 + 1


def test_an_endless_reply_can_be_continued(alphabet: str) -> None:
    loaded = opened(alphabet, chat=True)
    window = ContextWindow(loaded.tokenizer, loaded.chat_template, 64, [0])
    prompt = chat("go", "x" * 100)
    fitted = window.fit(Prompt(turns=prompt.turns, continue_last=True), 8)
    assert text_of(fitted.ids) == "Ugo\n" + "x" * 28


def test_counting_counts_all_of_a_prompt(lane: Lane) -> None:
    assert lane.count(chat("x" * 70)) == 73
    assert lane.count(raw("abcÄ")) == 3
    assert lane.count(Prompt(ids=(1, 2))) == 2
    assert lane.count(chat()) == 0
