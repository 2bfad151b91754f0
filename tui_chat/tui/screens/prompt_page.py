"""What the model would get: the prompt with its control tokens to be seen."""

from __future__ import annotations

from textual.content import Content

from tui_chat.display import visible
from tui_chat.engine.events import PromptShown
from tui_chat.tui.screens.page import Page


class PromptPage(Page):
    """The prompt of the conversation as it stands, with what is in the prompt line."""

    TITLE = "What the model gets"

    def __init__(self, shown: PromptShown, template: str) -> None:
        super().__init__(prompt_page(shown, template))


def prompt_page(shown: PromptShown, template: str) -> Content:
    """Control tokens stand out by form and colour: in brackets, reversed."""
    if shown.why:
        return Content(visible(shown.why))
    if not shown.pieces:
        return Content("Nothing yet.")
    head = f"{shown.tokens:,} tokens · {template}\n"
    if shown.dropped_tokens:
        head += f"the {shown.dropped_tokens:,} tokens before them are left out: too long\n"
    if shown.note:
        head += f"{visible(shown.note)}\n"
    parts: list[str | tuple[str, str]] = [(head + "\n", "$chat-muted")]
    for text, control in shown.pieces:
        parts.append((f"⟦{visible(text)}⟧", "reverse $accent") if control else visible(text))
    return Content.assemble(*parts)
