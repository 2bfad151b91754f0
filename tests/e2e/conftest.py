"""The real app on the real demo weights, in a pseudo-terminal, with a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import pytest

from .terminal import Terminal

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
CHAT = CHECKPOINTS / "demo-chat"
BASE = CHECKPOINTS / "demo-base"


class Open(Protocol):
    def __call__(
        self, *arguments: str | Path, columns: int = 120, rows: int = 40, **environment: str
    ) -> Terminal: ...


@pytest.fixture
def open_app(tmp_path: Path) -> Iterator[Open]:
    """Start the app; further starts in the same test share the home, as a user's do."""
    with ExitStack() as stack:

        def start(
            *arguments: str | Path, columns: int = 120, rows: int = 40, **environment: str
        ) -> Terminal:
            terminal = Terminal(
                [str(argument) for argument in arguments],
                columns=columns, rows=rows, home=tmp_path, environment=environment,
            )  # fmt: skip
            return stack.enter_context(terminal)

        yield start
