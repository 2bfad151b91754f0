"""The tests of compiling.py, in a process of their own: torch compiles many times slower beside all
that the other tests have left in memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_what_torch_compiles_is_taken_up_only_if_it_is_right() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(Path(__file__).with_name("compiling.py"))],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[100%]" in done.stdout
