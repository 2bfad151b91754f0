"""What the commands write: the result to stdout, everything else to stderr.

To a pipe go the bytes of the text as it is. To a terminal everything passes the display filter, for
a file name or a reply may hold sequences that steer it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from tui_chat.display import Cleaner, one_line, visible

STOPPED = 4  # exit status of what ended before the end


def write(text: str) -> None:
    """Text to stdout, at once: as it is into a pipe, made visible on a terminal."""
    if sys.stdout.isatty():
        _to_terminal(sys.stdout, visible(text))
    else:
        _to_pipe(text)


def write_line(text: str = "") -> None:
    write(text + "\n")


def write_json(value: object) -> None:
    """One JSON object and a line break. Lone surrogates, which UTF-8 cannot say, are escaped."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = json.dumps(value, default=str)
    if sys.stdout.isatty():
        # Escapes are JSON's own way to keep control characters visible; C1 and bidi it leaves.
        text = visible(text)
    _to_pipe(text + "\n")


def remark(text: str) -> None:
    """One line to stderr."""
    _to_terminal(sys.stderr, visible(text) + "\n")


class Stream:
    """A text that arrives in pieces, each written as it comes."""

    def __init__(self) -> None:
        self._cleaner = Cleaner() if sys.stdout.isatty() else None
        self._last = ""

    def __call__(self, piece: str) -> None:
        if not piece:
            return
        self._last = piece[-1]
        if self._cleaner is None:
            _to_pipe(piece)
        else:
            _to_terminal(sys.stdout, self._cleaner.feed(piece))

    @property
    def begun(self) -> bool:
        return bool(self._last)

    def end(self) -> None:
        """End the last line, so that what follows (a shell's prompt, another reply) begins its
        own."""
        if self._last != "\n":
            self("\n")


class Progress:
    """What goes on while a checkpoint loads: one line on stderr that is wiped away at the end.

    Only when stderr is a terminal. A new stage is drawn at once, its percentage ten times a second.
    """

    def __init__(self) -> None:
        self._shows = sys.stderr.isatty()
        self._stage = ""
        self._next = 0.0

    def __call__(self, stage: str, done: float = 0.0) -> None:
        now = time.monotonic()
        if not self._shows or (stage == self._stage and now < self._next):
            return
        self._stage, self._next = stage, now + 0.1
        percent = f" {done:.0%}" if done > 0 else ""
        _to_terminal(sys.stderr, f"\r\x1b[K{one_line(stage, 60)}{percent} …")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.wipe()

    def wipe(self) -> None:
        if self._stage:
            _to_terminal(sys.stderr, "\r\x1b[K")
            self._stage = ""


def table(
    rows: Sequence[Sequence[str]], *, head: Sequence[str] = (), right: Sequence[int] = ()
) -> str:
    """Rows as aligned lines, columns two spaces apart; `right` names columns aligned to the right.

    Cells are made safe first, so that what is measured is what is drawn.
    """
    clean = [[one_line(cell) for cell in row] for row in ([head, *rows] if head else rows)]
    if not clean:
        return ""
    widths = [max(_width(row[i]) for row in clean) for i in range(len(clean[0]))]
    lines = []
    for row in clean:
        cells = [
            " " * (widths[i] - _width(cell)) + cell
            if i in right
            else cell + " " * (widths[i] - _width(cell))
            for i, cell in enumerate(row)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def columns() -> int:
    """Cells of a line to write to; 0 into a pipe, where lines are for programs and stay whole."""
    return max(40, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 0


def labelled(rows: Sequence[tuple[str, str]], width: int) -> str:
    """Labels and texts in two columns; a text that does not fit into `width` cells goes on below
    itself."""
    widest = max((_width(label) for label, _ in rows), default=0)
    return "\n".join(hanging(f"{label:{widest}}  ", text, width) for label, text in rows)


def hanging(begin: str, text: str, width: int) -> str:
    """`begin` and a text that goes on below itself where the line ends; 0: it does not end."""
    text = one_line(text)
    if not width or _width(begin) + _width(text) <= width:
        return f"{begin}{text}".rstrip()
    lines, line = [], ""
    room = max(20, width - _width(begin))
    for word in text.split():
        if line and _width(line) + 1 + _width(word) > room:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return begin + ("\n" + " " * _width(begin)).join([*lines, line])


def _width(text: str) -> int:
    """Columns on a terminal, near enough to align a table."""
    if text.isascii():
        return len(text)
    from unicodedata import category, east_asian_width

    return sum(
        0 if category(char) in ("Mn", "Me") else 2 if east_asian_width(char) in "WF" else 1
        for char in text
    )


def _to_pipe(text: str) -> None:
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:  # a program that calls main() may have put something simpler in its place
        sys.stdout.write(text)
    else:
        buffer.write(text.encode("utf-8", "surrogatepass"))
    sys.stdout.flush()


def _to_terminal(stream: TextIO, text: str) -> None:
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
