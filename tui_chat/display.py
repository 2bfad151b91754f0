"""Makes foreign text safe to draw: what a model, a file or a server says must not steer the
terminal.

Control characters become visible pictures, what reorders or hides text becomes U+FFFD or is
dropped. Only what is drawn is changed; what is kept, copied and exported stays the original. Each
character of the original gives one character or none, so that a place on the screen can be traced
back (`sources`). Knows no widget and no markup.
"""

from __future__ import annotations

import re
from unicodedata import category, east_asian_width

MAX_MARKS = 8
"""Combining marks and joiners that may follow one another; more only paint over other rows."""

_REPLACEMENT = 0xFFFD
_JOINERS = "\u200c\u200d"
# U+0600..: signs of the category "format" that are drawn; U+200C, U+200D shape scripts and emoji.
_KEPT_FORMATS = {*map(ord, _JOINERS), *range(0x600, 0x606), 0x6DD, 0x70F, 0x8E2, 0x110BD, 0x110CD}
_BIDI = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
# Variation selectors beyond the emoji ones have no look of their own, and carry hidden payloads.
_DROPPED = {*range(0xE0100, 0xE01F0), 0x115F, 0x1160, 0x3164, 0xFFA0}

_PLAIN = re.compile(r"[^\t\n\x20-\x7e]")  # what needs a closer look
_LONG_RUN = re.compile(rf"[^\w\x00-\x7f]{{{MAX_MARKS + 1},}}")  # marks are no word characters


class _Table(dict[int, int | None]):
    """What becomes of a character, worked out when it first occurs. None drops it."""

    def __missing__(self, code: int) -> int | None:
        kind = category(chr(code))
        target: int | None = code
        if code < 0x20:
            target = code if code in (9, 10) else 0x2400 + code
        elif code == 0x7F:
            target = 0x2421
        elif code in (0x2028, 0x2029):
            target = 10
        elif kind in ("Cc", "Cs") or code in _BIDI or _is_noncharacter(code):
            target = _REPLACEMENT
        elif (kind == "Cf" and code not in _KEPT_FORMATS) or code in _DROPPED:
            target = None
        if len(self) < 0x4000:  # a text that walks through all of Unicode must not fill the memory
            self[code] = target
        return target


def _is_noncharacter(code: int) -> bool:
    return code & 0xFFFE == 0xFFFE or 0xFDD0 <= code <= 0xFDEF


_TABLE = _Table()


def _is_mark(char: str) -> bool:
    return char in _JOINERS or category(char) in ("Mn", "Me")


class Cleaner:
    """Makes a text safe that arrives in pieces; where it is cut makes no difference."""

    __slots__ = ("_after_return", "_marks")

    def __init__(self) -> None:
        self._after_return = False  # the last character was CR: an LF now belongs to it
        self._marks = 0  # combining marks at the end of what was given out

    def feed(self, piece: str) -> str:
        """The safe form of the next piece."""
        if not piece:
            return piece
        if self._after_return and piece[0] == "\n":
            piece = piece[1:]
        self._after_return = piece.endswith("\r")
        if _PLAIN.search(piece) is None:
            self._marks = 0 if piece else self._marks
            return piece
        if "\r" in piece:
            piece = piece.replace("\r\n", "\n").replace("\r", "\n")
        piece = piece.translate(_TABLE)
        if piece.isascii():
            self._marks = 0 if piece else self._marks
            return piece
        return self._capped(piece)

    def _capped(self, piece: str) -> str:
        """`piece` without the marks beyond MAX_MARKS, those before it counted."""
        leading = 0
        while leading < len(piece) and _is_mark(piece[leading]):
            leading += 1
        head = piece[: min(leading, MAX_MARKS - self._marks)]
        if leading == len(piece):
            self._marks += len(head)
            return head
        tail = _LONG_RUN.sub(_cut_run, piece[leading:])
        self._marks = 0
        for char in reversed(tail):
            if not _is_mark(char):
                break
            self._marks += 1
        return head + tail


def _cut_run(match: re.Match[str]) -> str:
    kept: list[str] = []
    marks = 0
    for char in match[0]:
        marks = marks + 1 if _is_mark(char) else 0
        if marks <= MAX_MARKS:
            kept.append(char)
    return "".join(kept)


def visible(text: str) -> str:
    """`text` as it may be drawn.

    C0 controls but tab and newline become U+2400 pictures, DEL U+2421; C1 controls, lone
    surrogates, noncharacters, bidirectional overrides and isolates U+FFFD; tags and zero-width
    characters vanish (ZWJ and ZWNJ stay); CRLF, CR and the Unicode line separators become newlines;
    more than MAX_MARKS combining marks in a row are cut. A stream must go through one `Cleaner`
    instead: a CR and its LF may lie in two pieces.
    """
    return text if _PLAIN.search(text) is None else Cleaner().feed(text)


def sources(text: str) -> range | list[int]:
    """For each character of `visible(text)` the index in `text` that it came from."""
    if len(visible(text)) == len(text):
        return range(len(text))
    cleaner = Cleaner()
    return [index for index, char in enumerate(text) if cleaner.feed(char)]


def one_line(text: str, width: int = 0) -> str:
    """`text` for a title, a path or a list row: one line, at most `width` cells (0: any), cut with
    an ellipsis.
    """
    line = " ".join(visible(text[: width * 16] if width else text).split())
    if not width or (line.isascii() and len(line) <= width):
        return line
    cells, kept, room = 0, 0, True
    for index, char in enumerate(line):
        size = 0 if _is_mark(char) else 2 if east_asian_width(char) in "WF" else 1
        if cells + size > width - 1 and room:
            kept, room = index, False
        cells += size
        if cells > width:
            return line[:kept] + "…"
    return line


def size(number: int) -> str:
    """Bytes: 1981234 -> "2.0 MB"."""
    value, unit = float(number), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" or value >= 9.95 else f"{value:.1f} {unit}"
