"""Themes: one TOML file each, from the program and from the user's own directory.

A theme names its colours under Textual's words (primary, background, ...) and may set our own
tokens in [variables]. A bad file costs one notice, never the start.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

from textual.color import Color, ColorParseError
from textual.theme import Theme

DEFAULT_THEME = "harbor"
LIGHT_THEME = "paper"

_COLOURS = (
    "primary",
    "secondary",
    "warning",
    "error",
    "success",
    "accent",
    "foreground",
    "background",
    "surface",
    "panel",
    "boost",
)
_OTHER: Mapping[str, type | tuple[type, ...]] = {
    "dark": bool,
    "luminosity_spread": (int, float),
    "text_alpha": (int, float),
}


def parse(text: str, name: str) -> Theme:
    """A theme from TOML text. Raises ValueError with one sentence about what is wrong."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML ({error})") from None
    known: dict[str, object] = {"name": str(table.pop("name", name))}
    if not re.fullmatch(r"[\w .-]{1,40}", str(known["name"])):
        raise ValueError("its name may hold letters, digits, spaces, dots and dashes")
    variables = table.pop("variables", {})
    if not isinstance(variables, dict):
        raise ValueError("[variables] is not a table")
    for key, value in table.items():
        if key in _COLOURS:
            known[key] = _colour(key, value)
        elif key in _OTHER:
            if not isinstance(value, _OTHER[key]):
                raise ValueError(f"{key} is {value!r}")
            known[key] = value
        else:
            raise ValueError(f"it has no setting {key!r}")
    if "primary" not in known:
        raise ValueError("primary is missing")
    known["variables"] = {str(key): _colour(key, value) for key, value in variables.items()}
    return Theme(**known)  # type: ignore[arg-type]


def _colour(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key} is {value!r}, not a colour")
    try:
        Color.parse(value)
    except ColorParseError:
        raise ValueError(f"{key} is {value!r}, not a colour") from None
    return value


def load_themes(*directories: Path) -> tuple[list[Theme], list[str]]:
    """Themes of the directories, later ones winning, and a sentence for each file that cannot be
    used.
    """
    themes: dict[str, Theme] = {}
    notices: list[str] = []
    for directory in directories:
        for file in sorted(directory.glob("*.toml")) if directory.is_dir() else []:
            try:
                theme = parse(file.read_text("utf-8"), file.stem)
            except (OSError, ValueError) as error:
                notices.append(f"Theme {file.name} is left out: {error}.")
            else:
                themes[theme.name] = theme
    return list(themes.values()), notices


def token_defaults(theme: Theme) -> dict[str, str]:
    """Our own tokens for a theme that does not set them."""
    foreground = theme.foreground or ("#e0e0e0" if theme.dark else "#202020")
    panel = theme.panel or theme.surface or ("#1c1c1c" if theme.dark else "#e8e8e8")
    warning = theme.warning or theme.accent or theme.primary
    return {
        "bar-fill": theme.primary,
        "bar-track": panel,
        "title-background": panel,
        "title-foreground": foreground,
        "gauge-full": warning,
        "chat-user": theme.accent or theme.primary,
        "chat-assistant": theme.primary,
        "chat-system": theme.secondary or theme.primary,
        "chat-muted": Color.parse(foreground)
        .blend(Color.parse(theme.background or panel), 0.4)
        .hex,
        "chat-error": theme.error or "#ff6b6b",
    }
