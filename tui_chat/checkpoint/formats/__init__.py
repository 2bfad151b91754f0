"""The trainers whose checkpoints open, one module each.

A format is a module with `NAME`, `recognise(source)` (0 to 1, by content, never by file name) and
`describe(source)`; its tensor names are tables. To add one, write the module and put it here.
"""

from __future__ import annotations

from typing import Protocol

from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.formats import (
    gpt10,
    how_to_train,
    llama2c,
    llmc,
    nanogpt,
    native,
    rasbt,
    train_llm,
)
from tui_chat.checkpoint.source import Source


class Format(Protocol):
    """What a format module offers."""

    NAME: str

    def recognise(self, source: Source) -> float:
        """How surely `source` is of this format. Raises CheckpointError where the file cannot be
        read at all."""
        ...

    def describe(self, source: Source) -> Description:
        """What the file says. Raises CheckpointError."""
        ...


FORMATS: tuple[Format, ...] = (
    native,
    train_llm,
    nanogpt,
    rasbt,
    how_to_train,
    gpt10,
    llama2c,
    llmc,
)
