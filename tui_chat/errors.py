"""The errors that people see.

Each says what went wrong, what was found (names, shapes, numbers) and what to try, so that the
command line and the screen can show the same one or two sentences.
"""

from __future__ import annotations

from tui_chat.display import visible

_LONGEST = 4000  # characters of each part


class TuiChatError(Exception):
    """An error meant for people.

    `title` is a short clause ("cannot open ckpt.pt"), `found` what was seen, `remedy` what to try.
    Each may quote a file: control characters in it are made visible, so that the error is safe to
    print, and it stays on one line.
    """

    exit_status = 1

    def __init__(self, title: str, found: str = "", remedy: str = "") -> None:
        self.title, self.found, self.remedy = (_line(text) for text in (title, found, remedy))
        super().__init__(self.title, self.found, self.remedy)

    def __str__(self) -> str:
        text = f"{self.title}: {self.found}" if self.found else self.title
        if self.remedy:
            text = f"{text.rstrip('.')}. {self.remedy}"
        return text if text.endswith((".", "?", "!")) else f"{text}."


def _line(text: str) -> str:
    return visible(text[:_LONGEST]).replace("\n", " ").replace("\t", " ")


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
