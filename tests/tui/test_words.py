"""Numbers as people say them."""

from __future__ import annotations

import pytest

from tui_chat.tui import words


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.0k"),
        (984_192, "984k"),
        (999_600, "1.0M"),
        (10_650_000, "11M"),
        (124_439_808, "124M"),
        (1_500_000_000, "1.5B"),
        (7_000_000_000, "7.0B"),
        (671_000_000_000, "671B"),
    ],
)
def test_counts(number: int, said: str) -> None:
    assert words.count(number) == said


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (999, "999 B"), (1981, "2.0 kB"), (1_981_234, "2.0 MB"), (498_000_000, "498 MB")],
)
def test_sizes(number: int, said: str) -> None:
    assert words.size(number) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "now"),
        (61, "1 min"),
        (7200, "2 h"),
        (86400 * 3, "3 d"),
        (86400 * 200, "6 mo"),
        (86400 * 900, "2 y"),
    ],
)
def test_ages(seconds: float, said: str) -> None:
    assert words.age(seconds) == said
