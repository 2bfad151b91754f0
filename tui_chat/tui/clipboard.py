"""Copying that works where people work: inside tmux, over ssh, on the desktop. Says which way it
went.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping

# Programs that take the text on standard input, by what must be set for them to reach a clipboard.
_PROGRAMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("", ("pbcopy",)),
    ("", ("clip.exe",)),
)


OSC52 = "Copied through the terminal (OSC 52); if nothing arrives, it does not allow that."


def copy(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Copy `text` with a program of this machine; a sentence about the way it took, "" when there
    is none and the terminal's own sequence (OSC 52) has to do. May wait for a program: not for the
    thread of the screen.

    Inside tmux that sequence does not reach the outer terminal in the default configuration;
    `load-buffer -w` does.
    """
    if environment.get("TMUX") and _run(("tmux", "load-buffer", "-w", "-"), text):
        return "Copied through tmux (its buffer, and the terminal's clipboard where it allows)."
    if not environment.get("SSH_CONNECTION"):
        for variable, command in _PROGRAMS:
            if (not variable or environment.get(variable)) and _run(command, text):
                return f"Copied with {command[0]}."
    return ""


def _run(command: tuple[str, ...], text: str) -> bool:
    if not shutil.which(command[0]):
        return False
    try:
        done = subprocess.run(
            command,
            input=text.encode("utf-8", "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=1,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0
