"""A real pseudo-terminal with the app in it: keys go in, a screen and the raw bytes come out.

The screen is kept by pyte, a terminal emulator, so that a test sees what a reader would see.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

KEYS: Mapping[str, bytes] = {
    "enter": b"\r",
    "escape": b"\x1b",
    "tab": b"\t",
    "backspace": b"\x7f",
    "up": b"\x1b[A",
    "down": b"\x1b[B",
    "right": b"\x1b[C",
    "left": b"\x1b[D",
    "pageup": b"\x1b[5~",
    "pagedown": b"\x1b[6~",
    "home": b"\x1b[H",
    "end": b"\x1b[F",
    "delete": b"\x1b[3~",
    "shift+right": b"\x1b[1;2C",
    "shift+left": b"\x1b[1;2D",
    "f1": b"\x1bOP",
    "f2": b"\x1bOQ",
    "f3": b"\x1bOR",
    "f4": b"\x1bOS",
    "f6": b"\x1b[17~",
    "f9": b"\x1b[20~",
    "f12": b"\x1b[24~",
}

# Sequences pyte would print as text: kitty keyboard flags, private reports.
_UNKNOWN = re.compile(rb"\x1b\[[<>=][0-9;]*[a-zA-Z]|\x1b\[\?[0-9;]*\$p|\x1bP[^\x1b]*\x1b\\")


def key_bytes(name: str) -> bytes:
    if name in KEYS:
        return KEYS[name]
    if name.startswith("ctrl+") and len(name) == 6:
        return bytes([ord(name[5].upper()) & 0x1F])
    return name.encode()


class Terminal:
    """`python -m tui_chat ARGUMENTS` in a pty of the given size. Use as a context manager."""

    def __init__(
        self,
        arguments: Sequence[str] = (),
        *,
        columns: int = 120,
        rows: int = 40,
        home: Path,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str] = (sys.executable, "-m", "tui_chat"),
    ) -> None:
        self.raw = bytearray()
        self._screen = pyte.Screen(columns, rows)
        self._stream = pyte.ByteStream(self._screen)
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.before = termios.tcgetattr(slave)
        env = {
            **os.environ,
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "TEXTUAL_ANIMATIONS": "none",
            "TUI_CHAT_CONFIG_DIR": str(home / "config"),
            "TUI_CHAT_DATA_DIR": str(home / "data"),
            "TUI_CHAT_CACHE_DIR": str(home / "cache"),
            "TUI_CHAT_COMPILED": "0",  # a fresh cache would have it compiled for each test
            "HOME": str(home),
            **(environment or {}),
        }
        for name in ("NO_COLOR", "TMUX", "COLUMNS", "LINES"):
            env.pop(name, None)
        self.process = subprocess.Popen(
            [*command, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        self._master, self._slave = master, slave

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)
        for descriptor in (self._master, self._slave):
            with contextlib.suppress(OSError):
                os.close(descriptor)

    # ---- keys

    def press(self, *names: str) -> None:
        for name in names:
            os.write(self._master, key_bytes(name))
            self.read(0.02)

    def type(self, text: str) -> None:
        """Text as fingers give it: never so fast that it looks like a paste."""
        for character in text:
            os.write(self._master, character.encode())
            self.read(0.012)
        self.read(0.05)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self._screen.resize(rows, columns)
        os.killpg(self.process.pid, signal.SIGWINCH)

    # ---- what is seen

    def read(self, seconds: float) -> None:
        """Take in what the app writes for at least one pause of `seconds`."""
        while select.select([self._master], [], [], seconds)[0]:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                return
            if not data:
                return
            self.raw += data
            self._stream.feed(_UNKNOWN.sub(b"", data))
            seconds = min(seconds, 0.01)

    def watch(self, seconds: float) -> None:
        """Look on for so long."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.read(0.02)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def wait(self, seen: Callable[[str], object], what: str, timeout: float = 60.0) -> str:
        """The screen once `seen` says yes to it; an AssertionError with the screen when it never
        does.
        """
        limit = time.monotonic() + timeout
        while not seen(self.text):
            if self.process.poll() is not None:
                self.read(0.1)
                if seen(self.text):
                    break
                raise AssertionError(
                    f"the app ended ({self.process.returncode}) before {what}:\n{self.text}"
                )
            if time.monotonic() > limit:
                raise AssertionError(f"never seen: {what}\n{self.text}")
            self.read(0.05)
        return self.text

    def wait_for(self, text: str, timeout: float = 60.0) -> str:
        return self.wait(lambda screen: text in screen, repr(text), timeout)

    def wait_gone(self, text: str, timeout: float = 60.0) -> str:
        return self.wait(lambda screen: text not in screen, f"{text!r} gone", timeout)

    def wait_end(self, timeout: float = 20.0) -> int:
        """The exit status."""
        limit = time.monotonic() + timeout
        while self.process.poll() is None:
            if time.monotonic() > limit:
                raise AssertionError(f"the app did not end:\n{self.text}")
            self.read(0.05)
        self.read(0.05)
        return int(self.process.returncode)

    def restored(self) -> bool:
        """The terminal's settings are as before, the alternate screen and mouse reports are off."""
        text = bytes(self.raw)
        off = text.rfind(b"\x1b[?1049l") > text.rfind(b"\x1b[?1049h")
        mouse = text.rfind(b"\x1b[?1000l") > text.rfind(b"\x1b[?1000h")
        return off and mouse and termios.tcgetattr(self._slave)[:4] == self.before[:4]
