"""What the controller of a chat needs: where messages are kept, and who is told of them."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Protocol

from tui_chat.conversation import Message, Receipt
from tui_chat.sessions.records import ChatMeta


class Keeper(Protocol):
    """Where messages are kept. Calls return at once; the future is done when the disk has it."""

    def save_conversation(self, meta: ChatMeta) -> Future[Any]: ...
    def add_message(
        self, conversation: str, message: Message, *, finished: bool = True
    ) -> Future[Any]: ...
    def reopen_reply(self, message_id: str) -> Future[Any]: ...
    def update_reply(
        self, message_id: str, text: str, receipt: Receipt | None, finished: bool
    ) -> Future[Any]: ...


class ChatView(Protocol):
    """What the controller tells the screen."""

    def conversation_changed(self) -> None:
        """Another conversation, another branch, or another window: draw the path anew."""

    def message_added(self, message: Message) -> None: ...
    def text_added(self, message_id: str, text: str) -> None: ...
    def message_changed(self, message: Message) -> None: ...
    def give_back(self, text: str) -> None:
        """A prompt that could not be asked."""

    def say(self, text: str, *, error: bool = False) -> None:
        """One sentence for the reader that does not belong to the conversation."""


class NoView:
    """The view once the screen is gone: what still comes is kept, and shown to nobody."""

    def conversation_changed(self) -> None:
        pass

    def message_added(self, message: Message) -> None:
        pass

    def text_added(self, message_id: str, text: str) -> None:
        pass

    def message_changed(self, message: Message) -> None:
        pass

    def give_back(self, text: str) -> None:
        pass

    def say(self, text: str, *, error: bool = False) -> None:
        pass
