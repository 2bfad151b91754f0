"""Rows do not depend on how a stream was cut, and fit the screen."""

from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from tui_chat.display import visible
from tui_chat.tui.widgets.wrap import extend_rows, new_rows, row_text

_PIECES = st.sampled_from(
    [
        "a", "be", " ", "  ", "\n", "\t", "漢", "字", "é", "e\u0301", "👩\u200d👧", "\u200d",
        "❤\ufe0f", "🇩🇪", "🇩", "1\ufe0f", "x" * 13, " " * 15, "क\u094d", "\x1b[31m", "Привет", "。",
    ]
)  # fmt: skip
_TEXTS = st.lists(_PIECES, max_size=40).map("".join).map(visible)
_WIDTHS = st.integers(2, 20)


def rows_of(text: str, width: int) -> array[int]:
    rows = new_rows()
    extend_rows(rows, text, width)
    return rows


def lines_of(text: str, width: int) -> list[str]:
    rows = rows_of(text, width)
    ends = [*rows[1:], len(text)]
    return [row_text(text, start, end)[0] for start, end in zip(rows, ends, strict=True)]


@settings(max_examples=300)
@given(_TEXTS, _WIDTHS, st.lists(st.integers(1, 9), min_size=1))
def test_any_cutting_gives_the_rows_of_the_whole(text: str, width: int, sizes: list[int]) -> None:
    rows, at, turn = new_rows(), 0, 0
    while at < len(text):
        at += sizes[turn % len(sizes)]
        turn += 1
        extend_rows(rows, text[:at], width)
    assert rows == rows_of(text, width)


@settings(max_examples=300)
@given(_TEXTS, _WIDTHS)
def test_no_row_is_wider_than_the_screen_but_for_hanging_spaces(text: str, width: int) -> None:
    assert all(cell_len(line.rstrip(" ")) <= width for line in lines_of(text, width))


@settings(max_examples=300)
@given(_TEXTS, _WIDTHS)
def test_rows_hold_the_whole_text_and_know_where_each_character_came_from(
    text: str, width: int
) -> None:
    rows = rows_of(text, width)
    assert list(rows) == sorted(set(rows))
    for start, end in zip(rows, [*rows[1:], len(text)], strict=True):
        line, places = row_text(text, start, end)
        assert len(line) == len(places)
        for char, place in zip(line, places, strict=True):
            assert text[place] == char or (text[place] == "\t" and char == " ")


def test_words_stay_whole_and_long_ones_are_cut() -> None:
    assert lines_of("the quick brown fox", 10) == ["the quick ", "brown fox"]
    assert lines_of("abcdefghijklm no", 5) == ["abcde", "fghij", "klm ", "no"]
    assert lines_of("  indented-and-long", 8) == ["  indent", "ed-and-l", "ong"]
    assert lines_of("a\n\nb\n", 5) == ["a", "", "b", ""]


def test_spaces_hang_over_the_edge_but_not_without_end() -> None:
    assert lines_of("hello   world", 5) == ["hello   ", "world"]
    assert len(lines_of(" " * 1000, 10)) > 50


def test_wide_characters_break_between_each_other_and_stay_whole() -> None:
    assert lines_of("漢字漢字漢", 5) == ["漢字", "漢字", "漢"]
    assert lines_of("ab漢字", 5) == ["ab漢", "字"]
    assert lines_of("👩‍👧👩‍👧", 3) == ["👩‍👧", "👩‍👧"]
    assert lines_of("a🇩🇪", 2) == ["a", "🇩🇪"]


def test_tabs_reach_the_next_stop() -> None:
    assert lines_of("\ta\tb", 20) == ["    a   b"]


def test_a_wall_of_text_without_a_newline_is_cut_into_rows() -> None:
    text = "x" * 100_000
    assert lines_of(text, 80) == [text[at : at + 80] for at in range(0, len(text), 80)]
