"""The terminal as a place where anything may come in and anything may end.

Bytes that are no text must not end the app, control characters must not leave it, and the terminal
is given back as it was found, whether the app ends by a key, a signal or because its terminal went.
Textual 8.2.8 is taken as it is; what is replaced of it stands here and nowhere else.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import select
import signal
import sys
import termios
import time
import tty
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from rich.segment import Segment
from textual import events
from textual._parser import ParseError
from textual._xterm_parser import XTermParser
from textual.color import Color
from textual.drivers import linux_driver
from textual.drivers._writer_thread import WriterThread
from textual.drivers.linux_driver import LinuxDriver
from textual.filter import LineFilter
from textual.keys import Keys
from textual.message import Message

if TYPE_CHECKING:
    from textual.app import App

# C0, DEL, C1 and what reorders text has no width and is dropped; a lone surrogate has one.
_STEERING = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_SURROGATE = re.compile("[\ud800-\udfff]")


class ControlFilter(LineFilter):
    """The last defence: takes control characters and hyperlinks out of every row of every widget.

    There is one of it, however often it is made: strips cache by filter what it gave.
    """

    _only: ControlFilter | None = None

    def __new__(cls, enabled: bool = True) -> ControlFilter:
        if cls._only is None:
            cls._only = super().__new__(cls)
        return cls._only

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        for segment in segments:
            style = segment.style
            if not segment.text.isprintable() or (style is not None and style._link is not None):
                return [self._safe(segment) for segment in segments]
        return segments

    @staticmethod
    def _safe(segment: Segment) -> Segment:
        text, style, control = segment
        if control:
            return segment
        text = _SURROGATE.sub("\ufffd", _STEERING.sub("", text))
        if style is not None and style._link is not None:
            style = style.update_link(None)
        return Segment(text, style)


class SafeParser(XTermParser):
    """Textual's parser of key presses, which does not end on input that it cannot read."""

    def _sequence_to_key_events(self, sequence: str, alt: bool = False) -> Iterable[events.Key]:
        if sequence == "\x1b\r":  # Alt+Enter in terminals without the kitty protocol
            return [events.Key("alt+enter", None)]
        try:
            return list(super()._sequence_to_key_events(sequence, alt))
        except (ValueError, OverflowError):
            plain = _without_alternates(sequence)
            if plain != sequence:
                return self._sequence_to_key_events(plain, alt)
            return [events.Key(Keys.Ignore.value, sequence)]

    def parse_mouse_code(self, code: str) -> Message | None:
        try:
            return super().parse_mouse_code(code)
        except (ValueError, OverflowError, ZeroDivisionError):
            return None


def _without_alternates(sequence: str) -> str:
    """A kitty key report without what follows ":" in it: alternate keys, kinds of event."""
    match = re.fullmatch(r"\x1b\[(\d*)(?::\d*)*(?:;(\d*)(?::\d*)*)?((?:;[\d:]*)?[u~A-Z])", sequence)
    if match is None:
        return sequence
    code, modifiers, rest = match.groups(default="")
    return f"\x1b[{code};{modifiers}{rest}" if modifiers else f"\x1b[{code}{rest}"


# What is no key and no mouse: VS Code's mouse at "NaN", and answers that come after their time.
_NOISE = re.compile(
    r"\x1b\[<\d+;(?:NaN;(?:NaN|-?\d+)|-?\d+;NaN)[Mm]"
    r"|\x1b\]1[01];[^\x07\x1b]{1,40}(?:\x07|\x1b\\)"
    r"|\x1b\[\?[\d;]*c"
)


class SafeWriter(WriterThread):
    """Goes on taking what is written when the terminal is gone, so that nobody waits for it."""

    def __init__(self, file: IO[str]) -> None:
        super().__init__(file)
        guarded_write, guarded_flush = file.write, file.flush

        class Quiet:
            def write(self, text: str) -> None:
                with contextlib.suppress(OSError, ValueError):
                    guarded_write(text)

            def flush(self) -> None:
                with contextlib.suppress(OSError, ValueError):
                    guarded_flush()

            fileno = file.fileno

        self._file = cast("IO[str]", Quiet())


class SafeDriver(LinuxDriver):
    """Textual's driver with another way of reading: any bytes, and an end of the input."""

    def run_input_thread(self) -> None:
        parser = SafeParser(self._debug)
        decode = getincrementaldecoder("utf-8")(errors="replace").decode
        try:
            while not self.exit_event.is_set():
                if select.select([self.fileno], [], [], 0.1)[0]:
                    try:
                        data = os.read(self.fileno, 4096)
                    except OSError:
                        data = b""
                    if not data:  # the terminal is gone; reading on would spin
                        self._end(128 + signal.SIGHUP)
                        return
                    text = decode(data)
                    for event in parser.feed(_NOISE.sub("", text)) if text else ():
                        self.process_message(event)
                for event in parser.tick():
                    self.process_message(event)
        finally:
            with contextlib.suppress(EOFError, ParseError):
                for _ in parser.feed(""):
                    pass

    def _end(self, return_code: int) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(lambda: self._app.exit(return_code=return_code))


def harden() -> None:
    """Make Textual use a terminal driver that survives any input and any end of it.

    Bytes that are not UTF-8 become U+FFFD, unreadable key and mouse reports are dropped, Alt+Enter
    is told from Enter, and the end of the input ends the app.
    """
    linux_driver.LinuxDriver = SafeDriver  # type: ignore[misc]
    linux_driver.WriterThread = SafeWriter  # type: ignore[attr-defined]


def exit_on_signals(app: App[Any]) -> None:
    """Let SIGTERM and SIGHUP end the app as a key would. To be called in its loop.

    The exit status is 128 and the signal's number. A SIGHUP that is ignored (nohup) stays so.
    """
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:
            loop.add_signal_handler(number, partial(app.exit, return_code=128 + number))


@contextlib.contextmanager
def guarded(log: Path | None = None) -> Iterator[None]:
    """Keep the terminal's settings, and give them back at the end whatever happens between.

    Meanwhile what native code prints on standard error goes to `log` instead of over the screen.
    The background colour is asked for here, before anything else reads the input: see `is_dark`.
    """
    file = sys.__stdin__.fileno() if sys.__stdin__ is not None else 0
    try:
        kept = termios.tcgetattr(file)
    except (termios.error, OSError):
        kept = None
    global _background_dark
    _background_dark = _ask_background(file) if kept is not None else None
    with _native_errors_to(log):
        try:
            yield
        finally:
            if kept is not None:
                with contextlib.suppress(termios.error, OSError):
                    termios.tcsetattr(file, termios.TCSANOW, kept)


@contextlib.contextmanager
def _native_errors_to(log: Path | None) -> Iterator[None]:
    """File descriptor 2 to the log; Python's own stderr, which Textual draws on, stays."""
    if log is None:
        yield
        return
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    except OSError:
        yield  # a log is no reason not to start
        return
    terminal = os.dup(2)
    before = sys.stderr, sys.__stderr__
    file = open(terminal, "w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
    sys.stderr = sys.__stderr__ = file  # type: ignore[misc]
    os.dup2(target, 2)
    os.close(target)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            file.flush()
        os.dup2(terminal, 2)
        sys.stderr, sys.__stderr__ = before  # type: ignore[misc]
        with contextlib.suppress(OSError):
            file.close()


_background_dark: bool | None = None


def is_dark() -> bool:
    """Whether the terminal's background is dark: as it said when `guarded` began, else by the
    variable COLORFGBG, else yes.
    """
    if _background_dark is not None:
        return _background_dark
    colour = os.environ.get("COLORFGBG", "").rpartition(";")[2]
    return not colour.isdigit() or int(colour) not in (7, *range(9, 16))


def _ask_background(file: int, patience: float = 0.1) -> bool | None:
    """The answer to OSC 11, None without one in time. Terminals answer in order, and all of them
    the second question: so one that knows no OSC 11 costs no waiting.
    """
    try:
        before = termios.tcgetattr(file)
        if os.tcgetpgrp(file) != os.getpgrp():
            return None
        tty.setcbreak(file, termios.TCSANOW)
    except (termios.error, OSError):
        return None
    answer = b""
    try:
        os.write(file, b"\x1b]11;?\x1b\\\x1b[c")
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0 and not re.search(rb"\[\?[\d;]*c", answer):
            if select.select([file], [], [], left)[0]:
                answer += os.read(file, 256)
    except OSError:
        return None
    finally:
        with contextlib.suppress(termios.error, OSError):
            termios.tcsetattr(file, termios.TCSANOW, before)
    match = re.search(rb"11;rgba?:([\da-fA-F]+)/([\da-fA-F]+)/([\da-fA-F]+)", answer)
    if match is None:
        return None
    red, green, blue = (int(part, 16) / (16 ** len(part) - 1) for part in match.groups())
    return bool(0.299 * red + 0.587 * green + 0.114 * blue < 0.5)
