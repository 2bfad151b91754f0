"""Breaks text into screen rows, greedily, so that appending never touches a row that is complete.

A row ends after a newline, after the last space that fits, between two wide characters, or within a
word that is wider than the screen. Whether a row is complete depends on the text before its end and
the next few characters alone: cutting a stream into other pieces gives the same rows. The text must
have passed `tui_chat.display`. Widths are counted as Rich counts them, in cells.
"""

from __future__ import annotations

import re
from array import array

from rich._unicode_data import load as load_cell_table
from rich.cells import get_character_cell_size

TAB = 4
HANG = 8
"""Spaces that may hang over the edge at the end of a row; further ones begin the next row."""

_JOINER = "\u200d"
_EMOJI_STYLE = "\ufe0f"
_MAX_JOINED = 16  # one character on the screen must not hold an endless chain

# Two shapes of text that need no look at single characters: all one cell wide, all two cells wide.
_NARROW = re.compile("[\n\x20-\x7e\xa0-\xac\xae-\u02ff\u0370-\u0482\u2010-\u2027\u2500-\u25fc]*")
_WIDE = re.compile("[\n\u3001-\u3029\u3041-\u3096\u309b-\u30ff\u4e00-\u9fff\uff01-\uff60]*")


def new_rows() -> array[int]:
    """The rows of an empty text: one, starting at 0."""
    return array("L", [0])


def extend_rows(starts: array[int], text: str, width: int) -> None:
    """Append the starts of the rows that follow the last one in `starts`.

    Row i is `text[starts[i]:starts[i + 1]]`, its newline and hanging spaces included; the last row
    is open. To go on after text was added, call it again with the longer text.
    """
    start, length, append = starts[-1], len(text), starts.append
    while True:
        window = text[start : start + width + 1]
        if (window.isascii() and "\t" not in window) or _NARROW.fullmatch(window):
            end = window.find("\n") + 1
            if end:
                start += end
            elif len(window) <= width:
                return
            elif window[width] == " ":
                start = _after_hanging(text, start + width, length)
            else:
                space = window.rfind(" ", 0, width)
                if space > 0 and not window[:space].isspace():
                    start += space + 1
                else:
                    start += width
        elif width > 3 and _WIDE.fullmatch(half := window[: width // 2 + 1]):
            end = half.find("\n") + 1
            if end:
                start += end
            elif len(half) <= width // 2:
                return
            else:
                start += width // 2
        else:
            start = _row_end(text, start, width)
        if start < 0:
            return
        append(start)


def _after_hanging(text: str, start: int, length: int) -> int:
    """Where the row ends whose blanks from `start` on do not fit; -1 while that is open."""
    end, limit = start, start + HANG
    while end < length and end < limit and text[end] in " \t":
        end += 1
    if end >= length:
        return -1
    return end + 1 if text[end] == "\n" else end


def _row_end(text: str, start: int, width: int) -> int:
    """The end of the row at `start` in a text with tabs or wide characters; -1: it is open."""
    column = 0
    index, length = start, len(text)
    break_at = -1  # the last place where the row may be broken
    seen = False  # something other than blanks
    after_wide = False
    while index < length:
        char = text[index]
        if char == "\n":
            return index + 1
        if char in " \t":
            size = 1 if char == " " else TAB - column % TAB
            if column + size > width:
                return _after_hanging(text, index, length)
            column += size
            index += 1
            if seen:
                break_at = index
            after_wide = False
            continue
        end, size = _cluster(text, index, length)
        # Judged by the first code point alone: what follows it may not have arrived yet.
        wide = _is_flag_letter(char) or get_character_cell_size(char) == 2
        if seen and (wide or after_wide):
            break_at = index
        after_wide = wide
        if column + size > width:
            if break_at > start:
                return break_at
            return index if index > start else end
        column += size
        index = end
        seen = True
    return -1


def _cluster(text: str, index: int, length: int) -> tuple[int, int]:
    """End and cells of what the terminal draws as one character at `index`."""
    char = text[index]
    size = get_character_cell_size(char)
    end = index + 1
    if _is_flag_letter(char) and end < length and _is_flag_letter(text[end]):
        return end + 1, 2
    measured = char
    joined = 0
    while end < length:
        follower = text[end]
        if follower == _JOINER:
            if end + 1 < length and is_joined(text[end + 1]) and joined < _MAX_JOINED:
                joined += 1
                end += 1
            end += 1
        elif follower == _EMOJI_STYLE:
            if measured and measured in load_cell_table("auto").narrow_to_wide:
                size += 1
                measured = ""
            end += 1
        elif follower not in "\n\t " and get_character_cell_size(follower) == 0:
            end += 1
        else:
            break
    return end, size


def _is_flag_letter(char: str) -> bool:
    return "\U0001f1e6" <= char <= "\U0001f1ff"


def is_joined(char: str) -> bool:
    """Whether a zero-width joiner before `char` makes one picture of the two."""
    return "\u2190" <= char <= "\u2bff" or "\U0001f000" <= char <= "\U0001faff"


def row_text(text: str, start: int, end: int) -> tuple[str, range | list[int]]:
    """What is drawn of the row, and for each character drawn its index in `text`.

    Tabs become spaces; joiners that join nothing vanish, as terminals disagree about their width.
    """
    row = text[start:end]
    if row.endswith("\n"):
        row = row[:-1]
    if "\t" not in row and _JOINER not in row:
        return row, range(start, start + len(row))
    shown: list[str] = []
    sources: list[int] = []
    column = index = 0
    while index < len(row):
        if row[index] == "\t":
            end, size = index + 1, TAB - column % TAB
            piece = " " * size
        elif row[index] in " ":
            end, size, piece = index + 1, 1, " "
        else:
            end, size = _cluster(row, index, len(row))
            piece = row[index:end]
        piece = piece.rstrip(_JOINER)
        for offset, char in enumerate(piece):
            stray = char == _JOINER and not is_joined(piece[offset + 1])
            if not stray:
                shown.append(char)
                sources.append(start + index if row[index] == "\t" else start + index + offset)
        column += size
        index = end
    return "".join(shown), sources
