"""The errors that people see.

Each says what went wrong, what was found (names, shapes, numbers) and what to try, so that the
command line and the screen can show the same one or two sentences.
"""

from __future__ import annotations


class TuiChatError(Exception):
    """An error meant for people.

    `title` is a short clause ("cannot open ckpt.pt"), `found` what was seen, `remedy` what to try.
    """

    exit_status = 1

    def __init__(self, title: str, found: str = "", remedy: str = "") -> None:
        super().__init__(title, found, remedy)
        self.title = title
        self.found = found
        self.remedy = remedy

    def __str__(self) -> str:
        text = f"{self.title}: {self.found}" if self.found else self.title
        if self.remedy:
            text = f"{text.rstrip('.')}. {self.remedy}"
        return text if text.endswith((".", "?", "!")) else f"{text}."


class UsageError(TuiChatError):
    """An argument or a setting that cannot be used."""

    exit_status = 2


class CheckpointError(TuiChatError):
    """A checkpoint, tokenizer or template that cannot be opened."""

    exit_status = 3


class SessionError(TuiChatError):
    """A saved chat, or the store of chats, that cannot be opened or written."""

    exit_status = 3


class EngineError(TuiChatError):
    """The model gave something that cannot be used (NaN logits, out of memory) while it ran."""

    exit_status = 1
