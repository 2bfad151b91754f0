"""All keys and commands on one page, made from the tables of actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content

from tui_chat.tui.actions import ACTIONS, OTHER_KEYS, key_name
from tui_chat.tui.screens.page import Page


def help_rows() -> list[tuple[str, list[tuple[str, str, str]]]]:
    """Sections of (keys, slash command, what it does)."""
    actions = [
        (
            "  ".join(key_name(key) for key in action.keys),
            f"/{action.slash} {action.argument}".strip() if action.slash else "",
            action.title,
        )
        for action in ACTIONS
    ]
    return [
        ("Everywhere", actions),
        *((title, [(key, "", text) for key, text in rows]) for title, rows in OTHER_KEYS),
    ]


class HelpScreen(Page):
    """Keys, commands, and where everything lies."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f1,question_mark", "dismiss(None)", show=False),
    ]

    TITLE = "Help"

    def __init__(self, places: Sequence[tuple[str, str]]) -> None:
        super().__init__(_page(places))


def _page(places: Sequence[tuple[str, str]]) -> Content:
    parts: list[Content | str | tuple[str, str]] = []
    for title, rows in help_rows():
        parts.append((f"{title}\n", "bold $primary"))
        for keys, slash, text in rows:
            parts += [
                (f"  {keys:<17}", "bold"),
                (f"{slash:<18}", "$accent") if title == "Everywhere" else "",
                f"{text}\n",
            ]
        parts.append("\n")
    parts.append(("Where everything lies\n", "bold $primary"))
    for name, place in places:
        parts += [f"  {name:<17}", (f"{place}\n", "$chat-muted")]
    return Content.assemble(*parts)
