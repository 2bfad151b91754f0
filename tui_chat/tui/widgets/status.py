"""The rows that are always on screen: which checkpoint, what it is doing, which knobs, how full the
context is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.cells import cell_len
from textual.content import Content
from textual.widget import Widget

from tui_chat.display import one_line

Tone = Literal["idle", "busy", "done", "error", "note"]

Level = Literal["calm", "tight", "full"]

_KNOBS = 28  # cells they keep beside a warning
_LEVELS = {"calm": "$chat-muted", "tight": "bold $gauge-full", "full": "bold $chat-error"}
_TONES = {
    "idle": "$chat-muted",
    "busy": "$accent",
    "done": "$chat-muted",
    "error": "$chat-error",
    "note": "$accent",
}


@dataclass(frozen=True, slots=True)
class Title:
    """`facts` are dropped from the end when the row is too narrow."""

    name: str = "no checkpoint"
    facts: tuple[str, ...] = ()
    mode: str = "chat"
    chat: str = ""
    guessed: bool = False


@dataclass(frozen=True, slots=True)
class Status:
    """`used` and `limit` are tokens of the context; limit 0 hides the gauge. `memory` is shown
    where the knobs leave room, `memory_short` in its place elsewhere. `progress` 0..1, negative:
    none.
    """

    activity: str = ""
    tone: Tone = "idle"
    detail: str = ""
    knobs: str = ""
    used: int = 0
    limit: int = 0
    memory: str = ""
    memory_short: str = ""
    memory_level: Level = "calm"
    progress: float = -1.0


def gauge(fraction: float, width: int) -> str:
    """A bar of `width` cells, filled in eighths."""
    eighths = round(max(0.0, min(1.0, fraction)) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (" ▏▎▍▌▋▊▉"[part] if part else "")).ljust(width)


def spread(left: Content, right: Content, width: int) -> Content:
    """`left` and `right` at the two ends of a row; the left one is cut where they would meet."""
    room = max(0, width - right.cell_length - 1)
    if left.cell_length > room:
        left = left.truncate(room, ellipsis=True)
    return Content.assemble(left, " " * max(0, width - left.cell_length - right.cell_length), right)


class TitleBar(Widget):
    """Which checkpoint answers, in which mode, in which chat."""

    DEFAULT_CSS = """
    TitleBar { height: 1; background: $title-background; color: $title-foreground; padding: 0 1; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._title = Title()

    def show(self, title: Title) -> None:
        if title != self._title:
            self._title = title
            self.refresh()

    def render(self) -> Content:
        title, width = self._title, self.size.width
        mode = Content.styled(f" {title.mode.upper()} ", "bold $background on $primary")
        chat = one_line(title.chat, max(0, width // 3))
        right = Content.assemble((f"{chat} " if chat and width >= 60 else "", "$chat-muted"), mode)
        room = width - right.cell_length - 3
        facts: list[str] = []
        used = cell_len(title.name)
        for fact in title.facts:
            if used + cell_len(fact) + 3 > room:
                break
            facts.append(fact)
            used += cell_len(fact) + 3
        left = Content.assemble(
            ("▸ ", "$accent"),
            (one_line(title.name, max(8, room)), "bold $warning" if title.guessed else "bold"),
            ("".join(f" · {one_line(fact, 40)}" for fact in facts), "$chat-muted"),
        )
        return spread(left, right, width)


class StatusBar(Widget):
    """Two rows: what happens now and how to stop it; the knobs in force and the context gauge."""

    DEFAULT_CSS = """
    StatusBar { height: 2; background: $background; padding: 0 1; }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._status = Status()

    @property
    def status(self) -> Status:
        return self._status

    def show(self, status: Status) -> None:
        if status != self._status:
            self._status = status
            self.refresh()

    def render(self) -> Content:
        status, width = self._status, self.size.width
        sign = {"busy": "● ", "error": "✗ "}.get(status.tone, "")
        parts: list[tuple[str, str]] = [(sign + status.activity, _TONES[status.tone])]
        if status.progress >= 0:
            bar = 12 if width < 100 else 24
            parts.append((" " + gauge(status.progress, bar), "$bar-fill on $bar-track"))
            parts.append((f" {status.progress:4.0%}", "$chat-muted"))
        first = spread(
            Content.assemble(*parts), Content.styled(status.detail, "$chat-muted"), width
        )
        knobs, context = Content.styled(status.knobs, "$foreground 80%"), self._context_gauge(width)
        # Only what someone should act on takes room from the knobs.
        least = knobs.cell_length if status.memory_level == "calm" else _KNOBS
        room = width - context.cell_length - least - 4
        memory = status.memory if cell_len(status.memory) <= room else status.memory_short
        right = Content.assemble(
            (memory, _LEVELS[status.memory_level]), "  " if memory else "", context
        )
        second = spread(knobs, right, width)
        return Content.assemble(first, "\n", second)

    def _context_gauge(self, width: int) -> Content:
        status = self._status
        if not status.limit:
            return Content("")
        fraction = status.used / status.limit
        colour = "$gauge-full" if fraction > 0.85 else "$bar-fill"
        return Content.assemble(
            ("ctx ", "$chat-muted"),
            (gauge(fraction, 8 if width < 100 else 16), f"{colour} on $bar-track"),
            (f" {status.used}/{status.limit}", "$chat-muted"),
        )


class HintBar(Widget):
    """The last row: keys and what they do, as many as fit; the last two always stay."""

    DEFAULT_CSS = """
    HintBar { height: 1; background: $background; color: $chat-muted; padding: 0 1; }
    """

    def __init__(self, hints: Sequence[tuple[str, str]], *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._hints = tuple(hints)

    def show(self, hints: Sequence[tuple[str, str]]) -> None:
        if tuple(hints) != self._hints:
            self._hints = tuple(hints)
            self.refresh()

    def render(self) -> Content:
        width = self.size.width
        most, last = self._hints[:-2], self._hints[-2:]
        room = width - sum(cell_len(" ".join(hint)) + 2 for hint in last)
        shown: list[tuple[str, str]] = []
        for hint in most:
            room -= cell_len(" ".join(hint)) + 2
            if room < 0:
                break
            shown.append(hint)
        pieces: list[tuple[str, str]] = []
        for key, word in (*shown, *last):
            pieces += [(key, "bold $foreground"), (f" {word}  ", "$chat-muted")]
        return Content.assemble(*pieces)
