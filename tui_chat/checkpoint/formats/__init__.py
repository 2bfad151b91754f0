"""The trainers whose checkpoints open, one module each.

A format is a module with `NAME`, `recognise(source)` (0 to 1, by content, never by file name) and
`describe(source)`; its tensor names are tables. One whose checkpoint is a directory also has
`claims(names)`. To add one, write the module and put it here; other packages add theirs through
the entry point group `tui_chat.formats` (docs/formats.md).
"""

from __future__ import annotations

import functools
import warnings
from typing import Protocol

from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.formats import (
    gguf,
    gpt10,
    hipgpt,
    how_to_train,
    huggingface,
    kempnerforge,
    litgpt,
    llama2c,
    llmc,
    nanochat,
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

    # claims(names: frozenset[str]) -> bool, optional: whether a directory with these names in it
    # is one checkpoint of this format. Such a format is asked about directories, others never.
    # READS_CONFIG_FILE = True, optional: it reads `source.config_file` itself; for others its sizes
    # are put into `source.config`.
    # latest(folder: Source) -> str, optional: the file or directory in a run's folder that the run
    # itself marks as its newest, "" for none. It goes before the one with the highest step.


FORMATS: tuple[Format, ...] = (
    native,
    train_llm,
    nanogpt,
    nanochat,
    rasbt,
    how_to_train,
    gpt10,
    litgpt,
    gguf,
    llama2c,
    llmc,
    hipgpt,
    kempnerforge,
    huggingface,
)

GROUP = "tui_chat.formats"


@functools.cache
def plug_ins() -> tuple[Format, ...]:
    """The formats of installed packages. One that cannot be imported, or is none, is left out with
    a warning."""
    import importlib.metadata  # slow, and only needed for what ours do not know

    found: list[Format] = []
    for entry in importlib.metadata.entry_points(group=GROUP):
        try:
            form = entry.load()
            missing = [n for n in ("NAME", "recognise", "describe") if not hasattr(form, n)]
            if missing:
                raise TypeError(f"it has no {missing[0]}")
        except Exception as error:  # a stranger's package may fail in any way
            warnings.warn(
                f"the format {entry.value[:80]!r} is left out: {str(error)[:200]}", stacklevel=2
            )
            continue
        found.append(form)
    return tuple(found)


def claimed(names: frozenset[str]) -> tuple[Format, ...]:
    """The formats that take a directory with these names in it for one checkpoint; those of other
    packages are asked where none of ours does."""
    return claiming(FORMATS, names) or claiming(plug_ins(), names)


def claiming(among: tuple[Format, ...], names: frozenset[str]) -> tuple[Format, ...]:
    """Those of the formats that take a directory with these names for one checkpoint."""
    return tuple(
        form for form in among if (claims := getattr(form, "claims", None)) and claims(names)
    )
