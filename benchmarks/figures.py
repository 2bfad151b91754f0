"""The figures that benchmarks have left in results/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

Figures = dict[str, Any]


def newest(benchmark: str) -> dict[str, Figures]:
    """Kind of machine and threads -> the newest figures of a benchmark."""
    found: dict[str, Figures] = {}
    for path in sorted(RESULTS.glob("*.json")):  # their names begin with the date
        named = re.fullmatch(rf"\d{{4}}-\d\d-\d\d-{re.escape(benchmark)}(-.*)?", path.stem)
        if named:
            kind = (named[1] or "").removeprefix("-")
            found[kind] = json.loads(path.read_text("utf-8"))
    return found


def one_thread(benchmark: str) -> Figures | None:
    """The newest figures of one CPU thread, if there are any."""
    found = [one for kind, one in newest(benchmark).items() if kind.startswith("cpu-1-of")]
    return max(found, key=lambda one: str(one["machine"]["date"]), default=None)


def clock(figures: Figures) -> str:
    """By which clock programs are compared: CPU time where others used the processor meanwhile."""
    machine = figures["machine"]
    busy = max(machine["load"], machine["load_at_the_end"] - machine["threads"]) > 1.0
    return "cpu" if busy else "wall"
