"""Turns as lines of a play, for base models that were never taught a template: "User: ...",
"Assistant: ...".

Works with any tokenizer, since it is ordinary text; the reply ends where the model begins the
user's next line.
"""

from __future__ import annotations

from collections.abc import Sequence

from tui_chat.conversation import Turn
from tui_chat.errors import UsageError
from tui_chat.templates.base import Rendered, no_variables
from tui_chat.tokenizers.base import Tokenizer

_LABELS = {"system": "", "user": "User:", "assistant": "Assistant:"}


class PlainTemplate:
    """Each turn is one paragraph, encoded as one text: a base model knows "User: Hi" with its usual
    tokens only."""

    name = "plain"

    def __init__(self, tokenizer: Tokenizer, text_start: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._text_start = list(text_start)
        self.stop_ids: frozenset[int] = frozenset()
        self.stop_strings: tuple[str, ...] = ("\nUser:", "\nAssistant:")

    def render(
        self, turns: Sequence[Turn], *, continue_last: bool = False, **variables: object
    ) -> Rendered:
        """See templates.base.Template."""
        no_variables(self.name, variables)
        ids = list(self._text_start)
        starts: list[int] = []
        for n, turn in enumerate(turns):
            if turn.role not in _LABELS:
                raise UsageError(
                    f"the template plain has no role {str(turn.role)[:40]!r}",
                    "",
                    f"It has {', '.join(_LABELS)}",
                )
            starts.append(len(ids) if n else 0)
            if turn.role == "system" and not turn.text:
                continue
            open_end = continue_last and n == len(turns) - 1 and turn.role == "assistant"
            text = turn.text.lstrip(" ") if open_end else turn.text.strip()
            label = _LABELS[turn.role]
            line = f"{label} {text}" if label else text
            ids += self._tokenizer.encode(line if open_end else line + "\n\n")
        if not turns or turns[-1].role != "assistant":
            ids += self._tokenizer.encode(_LABELS["assistant"])
        return Rendered(ids, starts)
