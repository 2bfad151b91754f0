"""What the store of chats keeps about a chat, and how a receipt is written as JSON.

Knows no database.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args

from tui_chat.conversation import Conversation, Mode, Receipt, StopReason

PREVIEW = 120  # characters
_TITLE = 48  # characters


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMeta:
    """A chat without its messages: a snapshot that may travel to the writer thread.

    `checkpoint` is the path last used. An empty title or checkpoint and a `sampling` or `leaf` of
    None leave what is stored as it is.
    """

    id: str
    title: str = ""
    mode: Mode = "chat"
    system: str = ""
    created: float = 0.0  # seconds since the epoch
    leaf: str | None = None
    checkpoint: str = ""
    sampling: Mapping[str, object] | None = None

    @classmethod
    def of(
        cls,
        conversation: Conversation,
        *,
        checkpoint: str = "",
        sampling: Mapping[str, object] | None = None,
    ) -> ChatMeta:
        return cls(
            id=conversation.id,
            title=conversation.title,
            mode=conversation.mode,
            system=conversation.system,
            created=conversation.created,
            leaf=conversation.leaf,
            checkpoint=checkpoint,
            sampling=sampling,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """One line of the list of chats. Times are seconds since the epoch."""

    id: str
    title: str  # given by the user, else the first words of the first message
    created: float
    updated: float
    messages: int  # of all branches
    preview: str  # the beginning of the newest message, on one line
    checkpoint: str
    mode: Mode = "chat"
    pinned: bool = False
    deleted_at: float | None = None


def first_words(text: str, limit: int = _TITLE) -> str:
    """The beginning of a text on one line, cut between words where there is a space to cut at."""
    line = " ".join(text[: 4 * limit].split())
    if len(line) <= limit:
        return line
    head = line[:limit]
    cut = head.rfind(" ")
    return (head[:cut] if cut > limit // 2 else head).rstrip(" ,.;:") + "…"


def receipt_to_json(receipt: Receipt | None) -> str | None:
    if receipt is None:
        return None
    values = {f.name: getattr(receipt, f.name) for f in fields(receipt)}
    return json.dumps(values, default=dict, separators=(",", ":"))


def receipt_from_json(text: str | None) -> Receipt | None:
    """The receipt, or None where there is none that can be read.

    Keys of later versions are passed over.
    """
    if not text:
        return None
    try:
        stored = json.loads(text)
        known: dict[str, Any] = {k: v for k, v in stored.items() if k in _RECEIPT}
        if changes := known.get("sampling_changes"):
            known["sampling_changes"] = tuple((int(at), dict(knobs)) for at, knobs in changes)
        else:
            known["sampling_changes"] = ()
        if known.get("stop_reason") not in _REASONS:
            known["stop_reason"] = None
        return Receipt(**known)
    except (ValueError, TypeError, AttributeError):
        return None


_REASONS = frozenset(get_args(StopReason))
_RECEIPT = frozenset(f.name for f in fields(Receipt))
