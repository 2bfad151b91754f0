"""A real pseudo-terminal: what goes in never ends the app, what comes out never steers the
terminal, and at the end the terminal is as it was.
"""

from __future__ import annotations

import fcntl
import json
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
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.segment import Segment
from rich.style import Style
from textual.color import Color

from tui_chat.tui.terminal import ControlFilter, SafeParser, is_dark

HERE = Path(__file__).parent
TEXTS = HERE.parent / "hostile" / "text.jsonl"


class Program:
    """tests/tui/terminal_app.py in a pseudo-terminal, and every byte it wrote."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        self.before = termios.tcgetattr(slave)
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.slave = slave
        self.raw = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.tui.terminal_app", *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=HERE.parent.parent,
            start_new_session=True,
            env={
                **os.environ,
                "TERM": "xterm-256color",
                "TERMINAL_LOG": str(log),
                "COLORFGBG": "15;0",
                "TEXTUAL_ANIMATIONS": "none",
            },
        )

    def read(self) -> None:
        if select.select([self.master], [], [], 0.1)[0]:
            self.raw += os.read(self.master, 1 << 16)

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        end = time.monotonic() + seconds
        while text.encode() not in self.raw:
            assert time.monotonic() < end, self.raw[-2000:]
            assert self.process.poll() is None, self.raw[-2000:]
            self.read()

    def wait_end(self, seconds: float = 20.0) -> int:
        end = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end, "it does not end"
            self.read()
        while select.select([self.master], [], [], 0)[0]:
            self.read()
        return self.process.returncode

    def send(self, data: bytes) -> None:
        os.write(self.master, data)

    @property
    def restored(self) -> bool:
        off = (b"\x1b[?1049l", b"\x1b[?25h", b"\x1b[?1003l", b"\x1b[?2004l")
        return termios.tcgetattr(self.slave) == self.before and all(o in self.raw for o in off)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self.master)
        os.close(self.slave)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    running = Program(tmp_path / "log", "keys")
    running.wait_for("READY")
    yield running
    running.close()


def test_any_bytes_may_come_in(program: Program, tmp_path: Path) -> None:
    program.send(b"\xff\xfe\x80")
    program.send(b"\x1b[97:65;2;65u")
    program.wait_for("KEY<A>")
    program.send(b"\x1b[98;2:1;66u")
    program.wait_for("KEY<B>")
    program.send(b"\x1b\r")
    program.wait_for("KEY<alt+enter>")
    program.send(b"\x1b[<32;NaN;NaNM\x1b[9999999999999u\x1b]11;rgb:1/2/3\x1b\\\x1b[?64;1c")
    program.send(b"q")
    program.wait_for("KEY<q>")
    assert b"KEY<N>" not in program.raw and b"KEY<c>" not in program.raw
    program.send(b"\x11")
    assert program.wait_end() == 0
    assert program.restored
    assert (tmp_path / "log").read_text() == "native words\n"
    assert b"native words" not in program.raw


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_gives_the_terminal_back(program: Program, number: signal.Signals) -> None:
    program.process.send_signal(number)
    status = program.wait_end()
    assert program.restored
    if number != signal.SIGINT:
        assert status == 128 + number


def test_it_ends_when_its_terminal_goes(tmp_path: Path) -> None:
    program = Program(tmp_path / "log", "keys")
    program.wait_for("READY")
    os.close(program.slave)
    os.close(program.master)
    try:
        assert program.process.wait(20) == 128 + signal.SIGHUP
    finally:
        program.process.kill()


def test_hostile_text_leaves_no_control_byte_on_the_terminal(tmp_path: Path) -> None:
    cases = [json.loads(line) for line in TEXTS.read_text("utf-8").splitlines()]
    program = Program(tmp_path / "log", "hostile", str(TEXTS))
    try:
        program.wait_for("ALL SHOWN", 120)
        program.send(b"\x11")
        assert program.wait_end() == 0
        assert program.restored
    finally:
        program.close()
    for case in cases:
        for forbidden in case.get("must_not_emit", ()):
            assert bytes.fromhex(forbidden) not in program.raw, case["id"]
    text = program.raw.decode("utf-8", "replace")
    for case in cases:
        if must := case.get("must_show"):
            assert must in text, case["id"]
    # Beyond the corpus: what may stand in the stream at all. The question for the background and
    # the shape of the mouse pointer are our own.
    raw = re.sub(rb"\x1b\]11;\?\x1b\\\\|\x1b\]22;[a-z]*\x07", b"", program.raw)
    assert not any("\x7f" <= char <= "\x9f" for char in text)
    for forbidden in (b"\x07", b"\x08", b"\x1bc", b"\x1b]", b"\x1bP", b"\x1b^", b"\x1b("):
        assert forbidden not in raw, forbidden


def test_the_filter_takes_out_what_steers_and_keeps_the_rest() -> None:
    line = [
        Segment("plain"),
        Segment("a\x1b]52;c;eA==\x07b\x9b\u202e", Style(bold=True)),
        Segment("\ud800"),
        Segment("link", Style(link="file:///etc/passwd")),
    ]
    out = ControlFilter().apply(line, Color(0, 0, 0))
    assert [segment.text for segment in out] == ["plain", "a]52;c;eA==b", "\ufffd", "link"]
    assert out[1].style == Style(bold=True)
    assert not any(segment.style and segment.style.link for segment in out)
    clean = [Segment("just text 漢字")]
    assert ControlFilter().apply(clean, Color(0, 0, 0)) is clean
    assert ControlFilter() is ControlFilter()


@pytest.mark.parametrize(
    ("typed", "keys"),
    [
        ("\x1b\r", ["alt+enter"]),
        ("\r", ["enter"]),
        ("\n", ["ctrl+j"]),
        ("\x1b[13;2u", ["shift+enter"]),
        ("\x1b[97:65;2;65u", ["A"]),
        ("\x1b[99999999999999u", []),
        ("\x1b[A", ["up"]),
    ],
)
def test_keys_are_read(typed: str, keys: list[str]) -> None:
    found = [getattr(event, "key", "") for event in SafeParser().feed(typed)]
    assert [key for key in found if not key.startswith("<")] == keys


@pytest.mark.parametrize(
    ("colours", "dark"), [("15;0", True), ("0;15", False), ("0;default;15", False), ("", True)]
)
def test_the_background_is_guessed(
    colours: str, dark: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLORFGBG", colours)
    assert is_dark() is dark
