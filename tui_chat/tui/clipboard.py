"""Copying that works where people work: inside tmux, over ssh, on the desktop. Says which way it
went.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Mapping

# Programs that take the text on standard input, by what must be set for them to reach a clipboard.
_PROGRAMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("", ("pbcopy",)),
    ("", ("clip.exe",)),
)


def copy(
    text: str, osc52: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> str:
    """Copy `text` and return a sentence about the way it took. `osc52` writes the terminal's own
    copy sequence.

    Inside tmux the sequence does not reach the outer terminal in the default configuration,
    `load-buffer -w` does.
    """
    if environment.get("TMUX") and _run(("tmux", "load-buffer", "-w", "-"), text):
        return (
            "Copied through tmux (its paste buffer, and the terminal's clipboard where it allows)."
        )
    if not environment.get("SSH_CONNECTION"):
        for variable, command in _PROGRAMS:
            if (not variable or environment.get(variable)) and _run(command, text):
                return f"Copied with {command[0]}."
    osc52(text)
    return "Copied through the terminal (OSC 52); if nothing arrives, it does not allow that."


def _run(command: tuple[str, ...], text: str) -> bool:
    if not shutil.which(command[0]):
        return False
    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=2,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
