"""All keys and commands on one page, made from the tables of actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from tui_chat.tui.actions import ACTIONS, OTHER_KEYS, key_name


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


class HelpScreen(ModalScreen[None]):
    """Keys, commands, and where everything lies."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,f1,q,question_mark", "dismiss(None)", "Close", show=False),
    ]

    DEFAULT_CSS = """
    HelpScreen { align: center middle; }
    HelpScreen > VerticalScroll {
        width: 92; max-width: 100%; height: auto; max-height: 100%; padding: 0 2;
        background: $surface; border: round $primary; border-title-color: $primary;
        border-subtitle-color: $chat-muted;
    }
    HelpScreen Static { height: auto; }
    """

    def __init__(self, places: Sequence[tuple[str, str]]) -> None:
        super().__init__()
        self._places = places

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = Content("Help")
            box.border_subtitle = Content("Esc closes · arrows scroll")
            yield Static(self._page())

    def _page(self) -> Content:
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
        for name, place in self._places:
            parts += [f"  {name:<17}", (f"{place}\n", "$chat-muted")]
        return Content.assemble(*parts)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()
