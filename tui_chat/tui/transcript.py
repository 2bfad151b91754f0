"""From a conversation to the blocks of the transcript. Pure: no widget is touched here."""

from __future__ import annotations

from collections.abc import Iterator

from tui_chat.conversation import Conversation, Message, Receipt, StopReason
from tui_chat.tui.widgets.conversation_view import Block, Kind

SYSTEM = "system"
WINDOW = "window"
WELCOME = "welcome"

_REASONS: dict[StopReason, str] = {
    "stop": "",
    "length": "cut at max new",
    "context": "context full",
    "cancelled": "stopped",
    "error": "failed",
}


def reason_words(reason: StopReason | None) -> str:
    """Why a reply ended, where that is worth a word beside it."""
    return "interrupted" if reason is None else _REASONS[reason]


def receipt_line(receipt: Receipt | None, *, running: bool = False, short: bool = False) -> str:
    """What made a reply: "demo-chat/2400 · seed 42 · 21 tok · stopped"; `short` leaves out how it
    went.
    """
    if receipt is None:
        return ""
    parts = [receipt.checkpoint, f"seed {receipt.seed}"]
    if short:
        parts.append("" if receipt.stop_reason or running else reason_words(None))
        return " · ".join(part for part in parts if part)
    if receipt.new_tokens:
        parts.append(f"{receipt.new_tokens} tok")
    if receipt.sampling_changes:
        turned = sorted({name for _, knobs in receipt.sampling_changes for name in knobs})
        parts.append("turned " + ", ".join(turned))
    if not running and (words := reason_words(receipt.stop_reason)):
        parts.append(words)
    return " · ".join(part for part in parts if part)


def block_of(conversation: Conversation, message: Message, *, running: bool = False) -> Block:
    """The block of one message."""
    if conversation.mode == "raw":
        kind: Kind = "raw-typed" if message.role == "user" else "raw-generated"
        return Block(id=message.id, kind=kind, text=message.text)
    if message.role == "user":
        return Block(id=message.id, kind="user", header="You", text=message.text)
    versions = conversation.siblings(message.id)
    place = f" ‹{versions.index(message.id) + 1}/{len(versions)}›" if len(versions) > 1 else ""
    return Block(
        id=message.id,
        kind="assistant",
        header=f"Assistant{place}",
        detail=receipt_line(message.receipt, running=running),
        text=message.text,
    )


def blocks_of(
    conversation: Conversation, *, window: str | int | None = None, running: str = ""
) -> Iterator[Block]:
    """Blocks of the active path, with a dotted rule where the window that is sent begins.

    `window` is a message id in chat mode, a character in raw mode; `running` the message that is
    being written.
    """
    if conversation.mode == "chat" and conversation.system:
        yield Block(id=SYSTEM, kind="system", header="System", text=conversation.system)
    passed = 0
    for message in conversation.path():
        block = block_of(conversation, message, running=message.id == running)
        if conversation.mode == "chat" and message.id == window:
            yield Block(id=WINDOW, kind="rule", text="above this line: no longer sent to the model")
        if isinstance(window, int) and passed < window <= passed + len(message.text):
            cut = window - passed
            yield Block(id=f"{message.id}/before", kind=block.kind, text=message.text[:cut])
            yield Block(id=WINDOW, kind="rule", text="above this line: no longer sent to the model")
            block = Block(id=message.id, kind=block.kind, text=message.text[cut:])
        passed += len(message.text)
        yield block
