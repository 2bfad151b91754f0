"""A prompt as the model gets it, for people: the text, and the control tokens told from what only
spells one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tui_chat.conversation import Turn
from tui_chat.templates.base import Template
from tui_chat.tokenizers.base import Tokenizer

EXAMPLE = (
    Turn("system", "Answer briefly."),
    Turn("user", "Who are you?"),
    Turn("assistant", "A model."),
    Turn("user", "Since when?"),
)
BEFORE, AFTER = "⟦", "⟧"


def preview(
    template: Template, tokenizer: Tokenizer, turns: Sequence[Turn] = EXAMPLE, **variables: Any
) -> str:
    """The prompt that `template` makes of `turns`, each control token as ⟦<|name|>⟧. Raises
    UsageError where the template refuses the turns."""
    ids = template.render(turns, **variables).ids
    return shown(ids, tokenizer)


def shown(ids: Sequence[int], tokenizer: Tokenizer) -> str:
    """Ids as text, each control token as ⟦<|name|>⟧."""
    marks: Mapping[str, int] = getattr(tokenizer, "marks", {})
    names = {token: text for text, token in (*marks.items(), *tokenizer.special.items())}
    parts: list[str] = []
    held = b""
    for token in ids:
        if token in names:
            parts += [held.decode("utf-8", "replace"), BEFORE + names[token] + AFTER]
            held = b""
        else:
            held += tokenizer.token_bytes(token)
    return "".join([*parts, held.decode("utf-8", "replace")])
