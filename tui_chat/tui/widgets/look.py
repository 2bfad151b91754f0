"""The colours of the transcript: which theme variables they come from, how they combine."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

from rich.style import Style

from tui_chat.tui.widgets.blocks import Kind
from tui_chat.tui.widgets.strips import Look

if TYPE_CHECKING:
    from textual.widget import Widget

# Defaults of the theme variables drawn with. They suit dark and light; themes bring their own.
CHAT_VARIABLES: dict[str, str] = {
    "chat-user": "#3f93d6",
    "chat-assistant": "#3f9c6b",
    "chat-system": "#9a78c8",
    "chat-muted": "auto 65%",
    "chat-error": "#d9534f",
}

_KINDS: tuple[str, ...] = get_args(Kind)
_HEADS = ("user", "assistant", "system", "error")

COMPONENTS: set[str] = {
    *(f"conversation--{kind}" for kind in _KINDS),
    *(f"conversation--{kind}-head" for kind in _HEADS),
    "conversation--detail",
    "conversation--faint",
    "conversation--cursor",
    "conversation--cursor-bar",
    "conversation--writing",
}

CSS = """
ConversationView {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        scrollbar-background-hover: $background;
        scrollbar-background-active: $background;
        background: $background;
        color: $foreground;

        & > .conversation--user { color: $chat-user; }
        & > .conversation--user-head { color: $chat-user; text-style: bold; }
        & > .conversation--assistant { color: $foreground; }
        & > .conversation--assistant-head { color: $chat-assistant; text-style: bold; }
        & > .conversation--system { color: $chat-system; text-style: italic; }
        & > .conversation--system-head { color: $chat-system; text-style: bold; }
        & > .conversation--note { color: $chat-muted; }
        & > .conversation--error { color: $chat-error; }
        & > .conversation--error-head { color: $chat-error; text-style: bold; }
        & > .conversation--rule { color: $chat-muted; }
        & > .conversation--raw-typed { color: $chat-user; text-style: bold; }
        & > .conversation--raw-generated { color: $foreground; }
        & > .conversation--detail { color: $chat-muted; }
        & > .conversation--faint { color: $chat-muted; }
        & > .conversation--cursor { background: $primary 14%; }
        & > .conversation--cursor-bar { color: $accent; text-style: bold; }
        & > .conversation--writing { color: $accent; }
    }
"""


def look_of(view: Widget, inner: int) -> Look:
    """The look of a view whose rows are `inner` cells wide without the scroll bar."""
    component = view.get_component_rich_style
    text: dict[str, Style] = {kind: component(f"conversation--{kind}") for kind in _KINDS}
    head = {kind: component(f"conversation--{kind}-head") for kind in _HEADS}
    head["note"] = head["rule"] = text["note"]
    background = view.background_colors[1]
    cursor = background + view.get_component_styles("conversation--cursor").background
    return Look(
        width=view.size.width,
        inner=inner,
        base=view.rich_style,
        text=text,
        bar={**text, **head},
        head=head,
        detail=component("conversation--detail"),
        faint=component("conversation--faint"),
        cursor=Style(bgcolor=cursor.rich_color),
        cursor_bar=component("conversation--cursor-bar"),
        writing=component("conversation--writing"),
        selection=view.screen.get_component_rich_style("screen--selection"),
        background=background,
        filters=view.get_line_filters(),
    )
