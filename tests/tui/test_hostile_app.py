"""No text of a model, a file or a name steers the terminal, wherever the app shows it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ROOT / "tests" / "hostile" / "text.jsonl"
NAMES = (
    b"a\x1b[31;1mred.pt",
    b"b\x1b]52;c;eA==\x07.pt",
    b"\xff\xfe.safetensors",
    b"[@click=app.quit]x[b.pt",
    "c\u202e\u2066.pt".encode(),
)


def test_every_place_that_shows_foreign_text_shows_it_safely(tmp_path: Path) -> None:
    for name in NAMES:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(b"no checkpoint")
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 180, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.tui.hostile_app", str(TEXTS), str(tmp_path)],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=ROOT,
        start_new_session=True,
        env={
            **{k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")},
            "TERM": "xterm-256color",
            "TEXTUAL_ANIMATIONS": "none",
        },
    )
    raw, end = b"", time.monotonic() + 60
    try:
        while process.poll() is None or select.select([master], [], [], 0)[0]:
            assert time.monotonic() < end, raw[-3000:]
            if select.select([master], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    raw += os.read(master, 1 << 16)
    finally:
        process.kill()
        process.wait()
        os.close(master)
        os.close(slave)
    assert process.returncode == 0, raw[-3000:].decode("utf-8", "replace")
    assert b"Traceback" not in raw
    for line in TEXTS.read_text("utf-8").splitlines():
        case = json.loads(line)
        for forbidden in case.get("must_not_emit", ()):
            assert bytes.fromhex(forbidden) not in raw, case["id"]
    text = raw.decode("utf-8", "replace")
    assert "[@click=app.quit]x[/] literal" in text
    assert "[/nope] literal" in text
    for place in ("Open a checkpoint", "Saved chats", "System prompt", "a␛[31;1mred.pt"):
        assert place in text, f"never on the screen: {place}"
    # The question for the background, the pointer's shape and the title are the app's own.
    own = rb"\x1b\]11;\?\x1b\\|\x1b\]22;[a-z]*\x07"
    rest = re.sub(own, b"", raw)
    for forbidden in (b"\x07", b"\x08", b"\x1bc", b"\x1b]", b"\x1bP", b"\x1b^", b"\x1b("):
        assert forbidden not in rest, rest[rest.find(forbidden) - 60 :][:200]
    assert not any("\x7f" <= character <= "\x9f" for character in text)
