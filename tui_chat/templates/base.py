"""What the program asks of a chat template: turns to ids, with the place of each turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from tui_chat.conversation import Turn
from tui_chat.errors import UsageError


@dataclass(frozen=True, slots=True)
class Rendered:
    """`ids` ready for a reply; `starts[i]` is the index in `ids` at which turn i begins. `note`
    says what became of a turn that the template has no place for."""

    ids: list[int]
    starts: list[int]
    note: str = ""


class Template(Protocol):
    name: str
    stop_ids: frozenset[int]
    stop_strings: tuple[str, ...]  # where a reply ends in text rather than at an id

    def render(
        self, turns: Sequence[Turn], *, continue_last: bool = False, **variables: object
    ) -> Rendered:
        """Turns as ids, ending where a reply begins.

        When the last turn is the assistant's, nothing is added after it; with `continue_last` it is
        also left open, so that the model goes on with it. `variables` are those of a template in
        Jinja (enable_thinking); others know none. Raises UsageError for a role or a variable it
        does not know.
        """
        ...


def no_variables(name: str, variables: Mapping[str, object]) -> None:
    """Raises UsageError where a template that has no variables was given some."""
    if variables:
        raise UsageError(
            f"the template {name} has no variables", f"{next(iter(variables))[:40]!r} was given"
        )
