"""Themes load, bad ones cost a sentence, and all of ours can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.color import Color

from tui_chat.settings import bundled
from tui_chat.tui.theme import DEFAULT_THEME, LIGHT_THEME, load_themes, parse, token_defaults

THEMES, NOTICES = load_themes(bundled("themes"))
TEXT_TOKENS = (
    "chat-user",
    "chat-assistant",
    "chat-system",
    "chat-muted",
    "chat-error",
    "title-foreground",
)


def contrast(first: str, second: str) -> float:
    """WCAG 2 contrast ratio."""
    light, dark = sorted(
        (luminance(Color.parse(first)), luminance(Color.parse(second))), reverse=True
    )
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: Color) -> float:
    def linear(part: int) -> float:
        value = part / 255
        return value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4

    return 0.2126 * linear(colour.r) + 0.7152 * linear(colour.g) + 0.0722 * linear(colour.b)


def test_at_least_four_themes_come_with_the_program_dark_and_light() -> None:
    names = {theme.name for theme in THEMES}
    assert not NOTICES
    assert len(names) >= 4
    assert {DEFAULT_THEME, LIGHT_THEME} <= names
    assert {theme.dark for theme in THEMES} == {True, False}


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_every_text_colour_of_a_theme_reads_on_its_backgrounds(theme) -> None:
    tokens = {**token_defaults(theme), **theme.variables, "foreground": theme.foreground}
    for name in (*TEXT_TOKENS, "foreground"):
        for ground in (theme.background, theme.surface):
            assert contrast(tokens[name], ground) >= 4.5, (name, ground)


def test_a_theme_of_the_user_replaces_one_of_the_same_name_and_bad_files_cost_one_sentence(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine.toml").write_text('primary = "#123456"\n[variables]\nchat-user = "red"\n')
    (tmp_path / "harbor.toml").write_text('name = "harbor"\nprimary = "#ff0000"\n')
    (tmp_path / "colour.toml").write_text('primary = "notacolor"\n')
    (tmp_path / "key.toml").write_text('primary = "red"\nsparkle = true\n')
    (tmp_path / "broken.toml").write_text("primary = \n")
    (tmp_path / "missing.toml").write_text('background = "#000000"\n')
    themes, notices = load_themes(bundled("themes"), tmp_path)
    by_name = {theme.name: theme for theme in themes}
    assert by_name["mine"].variables == {"chat-user": "red"}
    assert by_name["harbor"].primary == "#ff0000"
    assert [notice.split()[1] for notice in notices] == [
        "broken.toml", "colour.toml", "key.toml", "missing.toml",
    ]  # fmt: skip
    assert "notacolor" in notices[1]


def test_a_theme_may_not_smuggle_a_name_that_is_not_one() -> None:
    with pytest.raises(ValueError, match="name"):
        parse('name = "a\\u001b[31m"\nprimary = "red"', "x")
