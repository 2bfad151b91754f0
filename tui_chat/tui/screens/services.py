"""What the chat screen asks of the program around it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from tui_chat.checkpoint.info import CheckpointInfo, Run
from tui_chat.conversation import Conversation
from tui_chat.sampling import SamplingParams


class Services(Protocol):
    """What the screen needs of the program around it."""

    def scan(self) -> Iterator[Run]: ...
    def describe(self, path: str) -> CheckpointInfo: ...
    def look_in(self, folder: str) -> None:
        """Have the picker look there too."""

    def roots(self) -> tuple[str, ...]: ...
    def places(self) -> list[tuple[str, str]]: ...
    def load_chat(self, chat_id: str) -> tuple[Conversation, SamplingParams | None]: ...
    def themes(self) -> Sequence[str]: ...
    def prompt_history(self) -> Sequence[str]: ...
    def remember(
        self,
        *,
        checkpoint: str | None = None,
        chat: str | None = None,
        panel_open: bool | None = None,
    ) -> None: ...
