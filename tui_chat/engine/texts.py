"""Texts to measure a checkpoint on: the end of what it was trained with, found beside it, or short
passages that come with the program."""

from __future__ import annotations

import os
from importlib import resources
from typing import NamedTuple

from tui_chat.checkpoint.files import RegularFile, shown_path
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.errors import CheckpointError

PASSAGES = {"play": "a scene of Shakespeare's", "story": "a children's story", "plain": "an essay"}
_NAMES = ("val.txt", "valid.txt", "validation.txt", "test.txt", "input.txt", "train.txt")
_FOLDERS = ("", "..", "../..")
MOST = 256 * 1024  # bytes looked at
_TAIL = 0.95  # where a held-out part begins, if there is one: nanoGPT keeps the last tenth


class Text(NamedTuple):
    """A text and, in words, where it comes from. `seen`: its kind is what the model was trained
    on."""

    source: str
    text: str
    seen: bool


def given(path: str) -> Text:
    """The beginning of the file that the user named. Raises CheckpointError."""
    with RegularFile(os.path.expanduser(path)) as file:
        raw = file.read(0, min(file.size, MOST))
    text = raw.decode("utf-8", "replace")
    if "\0" in text or not text.strip():
        raise CheckpointError(
            f"{shown_path(path)} cannot be measured on", "it is not text" if text else "it is empty"
        )
    return Text(shown_path(path), text, True)


def beside(info: CheckpointInfo) -> Text | None:
    """What the model was probably trained on: a text in the folder of its tokenizer's data or near
    the checkpoint."""
    folder = info.path if os.path.isdir(info.path) else os.path.dirname(info.path)
    places = [os.path.normpath(os.path.join(folder, up)) for up in _FOLDERS]
    if info.tokenizer.path:
        places.insert(0, os.path.dirname(info.tokenizer.path))
    for place in dict.fromkeys(places):
        for name in _NAMES:
            found = _end_of(os.path.join(place, name))
            if found is not None:
                return found
    return None


def passages() -> list[Text]:
    """The texts that come with the program."""
    folder = resources.files("tui_chat.engine") / "passages"
    return [
        Text(
            f"{words} that comes with the program",
            (folder / f"{name}.txt").read_text("utf-8"),
            False,
        )
        for name, words in PASSAGES.items()
    ]


def _end_of(path: str) -> Text | None:
    """The last part of a text file; None where it is no text."""
    if not os.path.isfile(path):
        return None
    try:
        with RegularFile(path) as file:
            begin = int(file.size * _TAIL) if file.size > MOST else file.size // 2
            raw = file.read(begin, min(file.size - begin, MOST))
    except (CheckpointError, ValueError):
        return None
    if b"\0" in raw:
        return None
    text = raw.decode("utf-8", "replace")
    # From the beginning of a line on, where there is one.
    line = text.find("\n", 0, 2000)
    text = text[line + 1 :]
    if len(text) < 200 or text.count("\ufffd") > len(text) // 100:
        return None
    return Text(f"the end of {shown_path(path)}", text, True)
