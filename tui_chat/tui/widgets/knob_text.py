"""The values of knobs as people type them."""

from __future__ import annotations

import re

from tui_chat.errors import UsageError
from tui_chat.sampling import Knob

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "s": " ", "\\": "\\", "|": "|"}
_WRITTEN = {"\n": r"\n", "\t": r"\t", "\r": r"\r", "\\": "\\\\", "|": r"\|"}


def parse_value(knob: Knob, text: str) -> object:
    r"""What was typed, in the knob's type and range. Raises UsageError.

    Stop texts are parted by `|`, spaces around them are dropped; \n, \t, \s (a space), \| and \\.
    """
    if knob.kind == "texts":
        pieces = re.findall(r"(?:\\.|[^|\\]|\\$)+", text)
        return knob.checked([read for piece in pieces if (read := _unescaped(piece.strip()))])
    text = text.strip().lower().replace(",", ".")
    if knob.kind == "seed" and text in ("", "random"):
        return None
    if knob.off and text == knob.off:
        return knob.neutral
    try:
        number = float(text)
    except ValueError:
        raise UsageError(f"{knob.name} takes a number, not {text!r}") from None
    # Beyond 2**53 a float no longer holds a seed exactly.
    return knob.checked(int(text) if text.isascii() and text.isdigit() else number)


def typed_form(texts: object) -> str:
    """Stop texts as `parse_value` reads them."""
    assert isinstance(texts, (tuple, list))
    forms = []
    for text in texts:
        form = "".join(_WRITTEN.get(char, char) for char in text)
        if form.startswith(" "):
            form = r"\s" + form[1:]
        if form.endswith(" "):
            form = form[:-1] + r"\s"
        forms.append(form)
    return " | ".join(forms)


def wrapped(text: str, width: int, rows: int) -> list[str]:
    """A sentence of ours in at most `rows` rows of `width` cells, cut with an ellipsis."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and len(lines[-1]) + 1 + len(word) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    if len(lines) > rows:
        lines = lines[:rows]
        lines[-1] = lines[-1][: max(0, width - 1)] + "…"
    return [line[:width] for line in lines]


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", lambda match: _ESCAPES.get(match[1], match[0]), text)
