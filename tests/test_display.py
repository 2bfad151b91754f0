"""What a model says may not steer the terminal, and must still be readable."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tui_chat.display import MAX_MARKS, Cleaner, one_line, sources, visible

_CHARS = "ab \t\n\r\x00\x07\x1b\x7f\x9b\u0301\u200b\u200d\u202e\u2028\ud800\U000e0041漢👩"
_NASTY = st.text(alphabet=_CHARS, max_size=60)
_FORBIDDEN = {*range(0x20), *range(0x7F, 0xA0)} - {9, 10}


@given(_NASTY, st.lists(st.integers(1, 9), min_size=1))
def test_pieces_give_what_the_whole_gives(text: str, sizes: list[int]) -> None:
    cleaner, out, at, turn = Cleaner(), "", 0, 0
    while at < len(text):
        size = sizes[turn % len(sizes)]
        out += cleaner.feed(text[at : at + size])
        at, turn = at + size, turn + 1
    assert out == visible(text)


@given(st.integers(0, 30), st.integers(0, 30), st.sampled_from(["", "\u200b", "\n", "\r\n", "x"]))
def test_marks_are_counted_across_pieces(first: int, second: int, between: str) -> None:
    cleaner = Cleaner()
    pieces = ["a" + "\u0301" * first, between, "\u0301" * second]
    assert "".join(map(cleaner.feed, pieces)) == visible("".join(pieces))


@given(_NASTY)
def test_nothing_that_steers_is_left_and_every_character_has_its_source(text: str) -> None:
    shown = visible(text)
    assert not _FORBIDDEN.intersection(map(ord, shown))
    shown.encode()  # no lone surrogate
    places = sources(text)
    assert len(places) == len(shown)
    pairs = zip(places, shown, strict=True)
    assert all(text[place] == char for place, char in pairs if char in "ab 漢👩")
    assert list(places) == sorted(places)


def test_every_control_character_is_shown_as_something_harmless() -> None:
    assert visible("\x1b[31mred\x1b]52;c;eA==\x07\x7f\x00") == "␛[31mred␛]52;c;eA==␇␡␀"
    assert visible("a\x9d0;t\x9c\u202eb\u2066\udcff\ufdd0") == "a�0;t��b���"
    assert visible("p\u200bo\ufeffl\u00adi\U000e0041te\U000e0101") == "polite"
    assert visible("one\r\ntwo\rthree\u2028four\tfive") == "one\ntwo\nthree\nfour\tfive"


def test_emoji_and_scripts_stay_whole() -> None:
    for text in ("👨‍👩‍👧", "👋🏽", "❤️", "नमस्ते", "שלום", "می‌خواهم", "e\u0301"):
        assert visible(text) == text


def test_marks_that_paint_over_other_rows_are_cut() -> None:
    assert visible("a" + "\u0301" * 2000 + "b") == "a" + "\u0301" * MAX_MARKS + "b"


@pytest.mark.parametrize(
    ("text", "width", "line"),
    [
        ("a title", 20, "a title"),
        ("two\nlines\there", 20, "two lines here"),
        ("0123456789", 5, "0123…"),
        ("漢字漢字", 5, "漢字…"),
        ("\x1b]0;x\x07", 0, "␛]0;x␇"),
        ("", 5, ""),
    ],
)
def test_one_line_fits(text: str, width: int, line: str) -> None:
    assert one_line(text, width) == line


def test_plain_text_passes_fast() -> None:
    text = "The quick brown fox jumps over the lazy dog.\n" * 50_000
    start = time.process_time()
    assert visible(text) is text
    assert time.process_time() - start < len(text) / 5e6
