"""Messages and the tree they form.

A conversation is a tree: retrying or editing adds a sibling, nothing is ever overwritten. What is
shown and sent is the path from the root to `leaf`. The system prompt is a field of the
conversation, not a message in the tree. This module knows no file, no model and no screen.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

Role = Literal["system", "user", "assistant"]
Mode = Literal["chat", "raw"]
StopReason = Literal["stop", "length", "context", "cancelled", "error"]


def new_id() -> str:
    """A random identifier, unique without asking a database."""
    return secrets.token_hex(8)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the engine needs of a message: who speaks, and the text."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """Which weights, knobs and seed made a reply, and how it went. Everything in it is JSON."""

    checkpoint: str = ""  # "run/step", for people
    path: str = ""
    fingerprint: str = ""
    step: int | None = None
    mode: Mode = "chat"
    template: str = ""
    seed: int = 0
    sampling: Mapping[str, object] = field(default_factory=dict)
    # [[number of tokens already made, {knob: value}], ...] for knobs turned while the reply ran
    sampling_changes: tuple[tuple[int, Mapping[str, object]], ...] = ()
    dtype: str = ""
    device: str = ""
    prompt_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft: str = ""  # who proposed tokens, where somebody did
    drafted_tokens: int = 0
    accepted_tokens: int = 0  # of the proposed ones, those that were drawn
    stop_reason: StopReason | None = None  # None: still being written, or the process died

    @property
    def tokens_per_second(self) -> float:
        return self.new_tokens / self.decode_seconds if self.decode_seconds > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message. In raw mode "user" is text that was typed and "assistant" text that the model
    continued.
    """

    id: str = field(default_factory=new_id)
    parent: str | None
    role: Role
    text: str
    created: float = field(default_factory=time.time)  # seconds since the epoch
    receipt: Receipt | None = None  # replies only


class Conversation:
    """A tree of messages with one active path. Not thread-safe: it belongs to one screen."""

    def __init__(
        self,
        *,
        id: str | None = None,
        title: str = "",
        mode: Mode = "chat",
        system: str = "",
        created: float | None = None,
    ) -> None:
        self.id = id or new_id()
        self.title = title
        self.mode: Mode = mode
        self.system = system
        self.created = time.time() if created is None else created
        self.leaf: str | None = None
        self._messages: dict[str, Message] = {}
        self._children: dict[str | None, list[str]] = {}

    def __len__(self) -> int:
        return len(self._messages)

    def __contains__(self, message_id: str) -> bool:
        return message_id in self._messages

    def __getitem__(self, message_id: str) -> Message:
        return self._messages[message_id]

    def __iter__(self) -> Iterator[Message]:
        """All messages of all branches, oldest first."""
        return iter(self._messages.values())

    def add(
        self, role: Role, text: str, *, parent: str | None = None, receipt: Receipt | None = None
    ) -> Message:
        """Append below `parent` (default: the active leaf) and make the new message the leaf."""
        under = self.leaf if parent is None else parent
        message = Message(parent=under, role=role, text=text, receipt=receipt)
        self.insert(message)
        self.leaf = message.id
        return message

    def insert(self, message: Message) -> None:
        """Put an existing message in its place, without moving the leaf. Its parent must be here
        already.
        """
        if message.parent is not None and message.parent not in self._messages:
            raise KeyError(message.parent)
        if message.id not in self._messages:
            self._children.setdefault(message.parent, []).append(message.id)
        self._messages[message.id] = message

    def update(
        self, message_id: str, *, text: str | None = None, receipt: Receipt | None = None
    ) -> Message:
        """Give a message that is being written its new text or receipt."""
        old = self._messages[message_id]
        new = replace(old, text=old.text if text is None else text, receipt=receipt or old.receipt)
        self._messages[message_id] = new
        return new

    def path(self, leaf: str | None = None) -> list[Message]:
        """Messages from the root to `leaf` (default: the active one)."""
        at = self.leaf if leaf is None else leaf
        found: list[Message] = []
        while at is not None:
            message = self._messages[at]
            found.append(message)
            at = message.parent
        found.reverse()
        return found

    def siblings(self, message_id: str) -> list[str]:
        """Ids of all versions of a message, itself included, oldest first."""
        return list(self._children[self._messages[message_id].parent])

    def children(self, message_id: str | None) -> list[str]:
        return list(self._children.get(message_id, ()))

    def select(self, message_id: str) -> None:
        """Make the newest leaf below `message_id` the active one."""
        at = message_id
        while below := self._children.get(at):
            at = below[-1]
        self.leaf = at

    def turns(self) -> tuple[Turn, ...]:
        """The active path as the engine wants it, the system prompt first when there is one."""
        turns = [Turn(message.role, message.text) for message in self.path()]
        if self.system:
            turns.insert(0, Turn("system", self.system))
        return tuple(turns)

    def raw_text(self) -> str:
        """Raw mode: the active path as one text."""
        return "".join(message.text for message in self.path())
