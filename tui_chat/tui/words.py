"""Numbers as people say them on the screen: sizes, counts, ages."""

from __future__ import annotations

from tui_chat.display import size as size
from tui_chat.engine.events import Memory


def count(number: int) -> str:
    """984192 -> "984k", 124439808 -> "124M", 7e9 -> "7.0B"."""
    for limit, divisor, unit in (
        (1e3, 1.0, ""),
        (1e6, 1e3, "k"),
        (1e9, 1e6, "M"),
        (1e12, 1e9, "B"),
    ):
        if number < limit * 0.9995:
            value = number / divisor
            return f"{value:.0f}{unit}" if not unit or value >= 9.95 else f"{value:.1f}{unit}"
    return f"{number / 1e12:.1f}T"


def age(seconds: float) -> str:
    """Seconds ago: "now", "5 min", "3 h", "2 d", "7 mo"."""
    for limit, divisor, unit in (
        (60, 0, "now"),
        (3600, 60, "min"),
        (86400, 3600, "h"),
        (86400 * 60, 86400, "d"),
    ):
        if seconds < limit:
            return unit if not divisor else f"{int(seconds / divisor)} {unit}"
    months = int(seconds / (86400 * 30.4))
    return f"{months} mo" if months < 24 else f"{months // 12} y"


def no_room(memory: Memory, *, quantised: bool) -> str:
    """What is said before a prompt is sent whose reply the memory may not hold; `quantised`: its
    cache is int8 already.
    """
    other = "start a new chat" if quantised else "open the checkpoint with --kv-cache int8"
    return (
        f"{memory.tokens:,} tokens need {size(memory.needs)} more memory, and "
        f"{size(memory.free + memory.idle)} is free: lower max new tokens (Ctrl+S), or {other}."
    )
