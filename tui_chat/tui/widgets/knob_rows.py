"""How the sampling panel looks: its state, and the rows drawn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.geometry import Size
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from tui_chat.display import one_line
from tui_chat.sampling import KNOBS, PRESETS, Knob, SamplingParams, chain, void_reason
from tui_chat.tui.widgets import slider
from tui_chat.tui.widgets.knob_text import wrapped

_LABEL = 12  # cells
_VALUE = 8
_MOST_SLIDER = 24
PRESET_ROW = -1
"""The row above the knobs, where the cursor may stand too."""


@dataclass
class Typing:
    """A value that is being typed into a row."""

    text: str = ""


class KnobRows(Widget):
    """A title with the preset, a row for each knob, a line of help and the chain of filters."""

    DEFAULT_CSS = """
    KnobRows {
        height: auto;
        width: 36;
        background: $surface;
        color: $foreground;

        & > .sampling--title { color: $primary; text-style: bold; }
        & > .sampling--set { color: $foreground; text-style: bold; }
        & > .sampling--neutral { color: $foreground 80%; }
        & > .sampling--void { color: $foreground 55%; text-style: italic; }
        & > .sampling--track { color: $foreground 40%; }
        & > .sampling--thumb { color: $primary; text-style: bold; }
        & > .sampling--help { color: $foreground 70%; }
        & > .sampling--error { color: $error; text-style: bold; }
        & > .sampling--typing { text-style: underline; }
        & > .sampling--cursor { background: $primary 20%; }
    }
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        f"sampling--{name}"
        for name in (
            "title", "set", "neutral", "void", "track", "thumb", "help", "error", "typing",
            "cursor",
        )
    }  # fmt: skip

    params: reactive[SamplingParams] = reactive(SamplingParams, layout=True)

    def __init__(
        self,
        params: SamplingParams | None = None,
        *,
        presets: Mapping[str, SamplingParams] = PRESETS,
        name: str | None = None,
        id: str | None = None,
        classes: str | None = None,
        disabled: bool = False,
    ) -> None:
        super().__init__(name=name, id=id, classes=classes, disabled=disabled)
        self.presets = dict(presets)
        self.set_reactive(KnobRows.params, params or SamplingParams())
        self._cursor = 0
        self._typing: Typing | None = None
        self._error = ""
        self._posting = False
        self._turning = False  # `params` is being set by a key or the mouse
        self._dragging: int | None = None
        self._preset = self._matching_preset() or next(iter(self.presets), "")

    # ---- reading

    @property
    def preset(self) -> str:
        """The preset last chosen, or that the knobs agree with."""
        return self._preset

    @property
    def edited(self) -> bool:
        """Whether the knobs differ from the preset; seed and stop texts are no part of it."""
        return self._essence(self.params) != self._essence(self.presets.get(self._preset))

    @property
    def typing(self) -> bool:
        """Whether a value is being typed: keys are text then."""
        return self._typing is not None

    @staticmethod
    def _essence(params: SamplingParams | None) -> SamplingParams | None:
        return params and params.with_(seed=None, stop=())

    def _matching_preset(self) -> str:
        wanted = self._essence(self.params)
        return next((n for n, p in self.presets.items() if self._essence(p) == wanted), "")

    @property
    def knob(self) -> Knob | None:
        """The knob under the cursor; None on the preset row."""
        return None if self._cursor == PRESET_ROW else KNOBS[self._cursor]

    # ---- drawing

    @property
    def _slider_x(self) -> int:
        return 2 + _LABEL + _VALUE + 1

    @property
    def _slider_cells(self) -> int:
        return max(0, min(_MOST_SLIDER, self.size.width - self._slider_x - 1))

    def _foot(self, width: int) -> list[tuple[str, str]]:
        """The rows below the knobs: help or error, then the chain."""
        knob = self.knob
        if self._error:
            foot = [(line, "error") for line in wrapped(self._error, width - 2, 3)]
        elif knob is None:
            foot = [(one_line("Left and right: another preset.", width - 2), "help")]
        else:
            reason = void_reason(knob.name, self.params)
            text = f"No effect: {reason}." if reason else knob.help
            if self._typing is not None and knob.kind == "texts":
                text = r"Several are parted by |; \n is a new line, \s a space at an end."
            foot = [(line, "help") for line in wrapped(text, width - 2, 2 if width > 60 else 3)]
        foot += [(line, "title") for line in wrapped(chain(self.params), width - 2, 3)]
        return foot

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return 1 + len(KNOBS) + len(self._foot(width))

    @property
    def _knob_rows(self) -> int:
        """Knob rows that fit between title and foot."""
        return max(1, min(len(KNOBS), self.size.height - 1 - len(self._foot(self.size.width))))

    @property
    def _first(self) -> int:
        """The first knob shown, such that the one under the cursor is."""
        return max(0, min(self._cursor - self._knob_rows + 1, len(KNOBS) - self._knob_rows))

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        rows = self._knob_rows
        if y == 0:
            segments = self._title(width)
        elif y <= rows:
            segments = self._knob_line(self._first + y - 1, width)
        else:
            foot = self._foot(width)
            line, style = foot[y - rows - 1] if y - rows - 1 < len(foot) else ("", "help")
            segments = [Segment(f" {line}", self._style(style))]
        used = sum(cell_len(segment.text) for segment in segments)
        base = self.rich_style if not segments else (segments[-1].style or self.rich_style)
        blank = Style(bgcolor=base.bgcolor) if base.bgcolor else self.rich_style
        segments.append(Segment(" " * max(0, width - used), blank))
        return Strip(segments).crop(0, width)

    def _style(self, name: str, row: int | None = None) -> Style:
        style = self.get_component_rich_style(f"sampling--{name}")
        if row is not None and row == self._cursor and self.has_focus:
            cursor = self.get_component_styles("sampling--cursor").background
            style += Style(bgcolor=(self.background_colors[1] + cursor).rich_color)
        return style

    def _title(self, width: int) -> list[Segment]:
        mark = "*edited " if self.edited else ""
        name = one_line(self._preset, max(4, width - 20 - len(mark)))
        left, right = " SAMPLING", f"{mark}preset {name} ▾ "
        space = max(1, width - cell_len(left) - cell_len(right))
        return [Segment(left + " " * space + right, self._style("title", PRESET_ROW))]

    def _knob_line(self, row: int, width: int) -> list[Segment]:
        knob = KNOBS[row]
        value = getattr(self.params, knob.name)
        reason = void_reason(knob.name, self.params)
        neutral = knob.is_neutral(value) or (knob.neutral is None and value == knob.default)
        name = "void" if reason else "neutral" if neutral else "set"
        style = self._style(name, row)
        here = row == self._cursor and self.has_focus
        # The mark says what the bold type says, for terminals that show none.
        mark = ("▸" if here else " ") + ("•" if name == "set" else " ")
        head = Segment(mark + set_cell_size(knob.label, _LABEL), style)
        room = max(0, width - 2 - _LABEL)
        if row == self._cursor and self._typing is not None:
            text = one_line(self._typing.text[-max(1, room - 2) :]) + "▏"
            return [head, Segment(text, style + self._style("typing", row))]
        shown = one_line(knob.shown(value), _VALUE if slider.has_slider(knob) else room - 1)
        if not slider.has_slider(knob):
            return [head, Segment(shown, style)]
        segments = [head, Segment(shown.rjust(_VALUE), style)]
        if reason:
            room = width - self._slider_x - 1
            text = reason if len(reason) <= room else one_line("no effect", max(1, room))
            return [*segments, Segment(f" {text}", style)]
        before, thumb, after = slider.draw(knob, value, self._slider_cells)
        track, knob_style = self._style("track", row), self._style("thumb", row)
        return [
            *segments,
            Segment(" " + before, track),
            Segment(thumb, knob_style),
            Segment(after, track),
        ]
