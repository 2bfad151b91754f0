"""nanochat's conversations: one begin of text, then user and assistant in turn, each between two
control tokens.

The system prompt has no tokens of its own: it stands before the first user's text, with a blank
line between. The text of a turn is encoded as ordinary text, so it never becomes a control token,
and a reply that was cut short gets its end like any other.
"""

from __future__ import annotations

from collections.abc import Sequence

from tui_chat.checkpoint.nanochat.encodings import TURN_TOKENS
from tui_chat.conversation import Turn
from tui_chat.errors import UsageError
from tui_chat.templates.base import Rendered, no_variables
from tui_chat.tokenizers.base import Tokenizer

_JOIN = "\n\n"


class NanoChatTemplate:
    """The template `nanochat`. Raises UsageError for a tokenizer without its control tokens."""

    name = "nanochat"

    def __init__(self, tokenizer: Tokenizer) -> None:
        missing = [name for name in TURN_TOKENS if name not in tokenizer.special]
        if missing:
            raise UsageError(
                "the template nanochat cannot be used",
                f"the tokenizer {tokenizer.name} has no {missing[0]}",
                "Name another one with --template, or the right tokenizer with --tokenizer",
            )
        self._tokenizer = tokenizer
        bos, user, user_end, assistant, assistant_end = (
            tokenizer.special[name] for name in TURN_TOKENS
        )
        self._bos = bos
        self._around = {"user": (user, user_end), "assistant": (assistant, assistant_end)}
        self.stop_ids: frozenset[int] = frozenset((bos, assistant_end))
        self.stop_strings: tuple[str, ...] = ()

    def render(
        self, turns: Sequence[Turn], *, continue_last: bool = False, **variables: object
    ) -> Rendered:
        """See templates.base.Template. User and assistant must alternate, the user first."""
        no_variables(self.name, variables)
        ids, starts = [self._bos], []
        encode = self._tokenizer.encode
        system, expected = "", "user"
        for n, turn in enumerate(turns):
            if turn.role == "system" and n == 0:
                starts.append(len(ids))
                system = turn.text and turn.text + _JOIN
                continue
            if turn.role != expected:
                raise UsageError(
                    f"the template {self.name} has no place for this turn",
                    f"turn {n + 1} is of the role {str(turn.role)[:40]!r}, not {expected!r}",
                    "A system prompt may come first; then user and assistant alternate",
                )
            before, after = self._around[turn.role]
            # Where the system prompt stands in the user's turn, that turn begins after it.
            starts.append(len(ids) + (1 + len(encode(system)) if system else 0))
            ids.append(before)
            ids += encode(system + turn.text)
            system = ""
            expected = "assistant" if turn.role == "user" else "user"
            if not (continue_last and turn.role == "assistant" and n == len(turns) - 1):
                ids.append(after)
        if system:
            raise UsageError(
                f"the template {self.name} has no place for a system prompt alone",
                "it stands before the first text of the user",
            )
        if expected == "assistant" or not turns:
            ids.append(self._around["assistant"][0])
        return Rendered(ids, starts)
