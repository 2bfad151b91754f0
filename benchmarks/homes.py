"""Homes for apps that are measured: empty but for the step that was compiled on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tui_chat.settings import Paths


def home_in(folder: Path) -> dict[str, str]:
    """The environment of an app whose files are all in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    cache, compiled = folder / "CACHE", Paths.find().cache / "compiled"
    cache.mkdir(exist_ok=True)
    if compiled.is_dir() and not (cache / "compiled").exists():
        (cache / "compiled").symlink_to(compiled)
    return {f"TUI_CHAT_{kind}_DIR": str(folder / kind) for kind in ("CONFIG", "DATA", "CACHE")}
