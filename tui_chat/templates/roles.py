"""Chat templates that are data: what stands before and after the text of each role.

A control token in the data becomes its id. The text of a turn never does, whatever it spells: it is
encoded on its own, as ordinary text. Each part is encoded by itself, so a turn has the same ids
wherever it stands and its cache is reused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tui_chat.conversation import Turn
from tui_chat.errors import UsageError
from tui_chat.templates.base import Rendered, no_variables
from tui_chat.tokenizers.base import Tokenizer


class RoleTemplate:
    """A template from a table {role: (before, after)}. An empty system text counts as none.

    `text_start` are the ids that every text of the model begins with.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        turns: Mapping[str, tuple[str, str]],
        stop: Sequence[str] = (),
        text_start: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._tokenizer = tokenizer
        self._text_start = list(text_start)
        self._around = {
            role: (self._marks(before), self._marks(after))
            for role, (before, after) in turns.items()
        }
        self.stop_ids = frozenset(
            tokenizer.special[text] for text in stop if text in tokenizer.special
        )
        self.stop_strings = tuple(text for text in stop if text not in tokenizer.special)

    def _marks(self, text: str) -> list[int]:
        """Ids of a piece of the template itself, in which control tokens count."""
        special = self._tokenizer.special
        if not special:
            return self._tokenizer.encode(text)
        longest_first = sorted(special, key=len, reverse=True)
        parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
        ids: list[int] = []
        for n, part in enumerate(parts):
            ids += [special[part]] if n % 2 else self._tokenizer.encode(part)
        return ids

    def render(
        self, turns: Sequence[Turn], *, continue_last: bool = False, **variables: object
    ) -> Rendered:
        """See templates.base.Template."""
        no_variables(self.name, variables)
        ids = list(self._text_start)
        starts: list[int] = []
        for n, turn in enumerate(turns):
            before, after = around(self._around, turn.role, self.name)
            starts.append(len(ids) if n else 0)
            if turn.role == "system" and not turn.text:
                continue
            ids += before
            ids += self._tokenizer.encode(turn.text)
            last = n == len(turns) - 1
            if not (last and continue_last and turn.role == "assistant"):
                ids += after
        if not turns or turns[-1].role != "assistant":
            ids += self._around["assistant"][0]
        return Rendered(ids, starts)


def around(
    table: Mapping[str, tuple[list[int], list[int]]], role: str, name: str
) -> tuple[list[int], list[int]]:
    """What stands around a role's text. Raises UsageError for a role the template does not know."""
    if role not in table:
        raise UsageError(
            f"the template {name} has no role {str(role)[:40]!r}", "", f"It has {', '.join(table)}"
        )
    return table[role]
