"""The command line on the real demo weights, with a home of its own."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from tui_chat.cli.main import main

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
CHAT = str(CHECKPOINTS / "demo-chat")
BASE = str(CHECKPOINTS / "demo-base")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Run(Protocol):
    def __call__(self, *arguments: str, stdin: bytes | None = None) -> Done: ...


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("CONFIG", "DATA", "CACHE"):
        monkeypatch.setenv(f"TUI_CHAT_{name}_DIR", str(tmp_path / name.lower()))
    monkeypatch.setenv("TUI_CHAT_COMPILED", "0")  # each home would have it compiled
    return tmp_path


@pytest.fixture
def run(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Run:
    """One command line in this process; what it wrote is decoded strictly."""

    def run(*arguments: str, stdin: bytes | None = None) -> Done:
        capfdbinary.readouterr()
        with monkeypatch.context() as patch:
            if stdin is not None:
                patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
            status = main(arguments)
        out, err = capfdbinary.readouterr()
        return Done(status, out.decode(), err.decode())

    return run
