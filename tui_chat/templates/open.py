"""Chooses the chat template that a hint or the user names."""

from __future__ import annotations

from tui_chat.checkpoint.info import TemplateHint
from tui_chat.errors import UsageError
from tui_chat.templates.base import Template
from tui_chat.templates.nanochat import NanoChatTemplate
from tui_chat.templates.plain import PlainTemplate
from tui_chat.templates.roles import RoleTemplate
from tui_chat.tokenizers.base import Tokenizer


def open_template(hint: TemplateHint, tokenizer: Tokenizer, name: str = "") -> Template | None:
    """The template of a checkpoint, or the one called `name`; None where there is none.

    Raises UsageError for a name that is not known.
    """
    wanted = name or hint.name
    if wanted in ("", "none"):
        return None
    if wanted == "plain":
        return PlainTemplate(tokenizer)
    if wanted == NanoChatTemplate.name:
        if not name and not tokenizer.special:  # ids alone: there is no text to wrap
            return None
        return NanoChatTemplate(tokenizer)
    if wanted != hint.name or not hint.turns:
        raise UsageError(
            f"there is no template {wanted[:80]!r}",
            "",
            "There are none, plain and the checkpoint's own",
        )
    return RoleTemplate(wanted, tokenizer, hint.turns, hint.stop)
