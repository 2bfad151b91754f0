"""The sampling panel: every knob in a row, for keyboard and mouse.

The rows follow `sampling.KNOBS`. The panel holds one `SamplingParams` and answers each turn of a
knob with a new one (`SamplingPanel.Changed`), at most once per refresh of the screen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.strip import Strip
from textual.widget import Widget

from tui_chat.display import one_line
from tui_chat.errors import UsageError
from tui_chat.sampling import (
    KNOBS,
    PRESETS,
    Knob,
    SamplingParams,
    chain,
    random_seed,
    void_reason,
)
from tui_chat.tui.widgets import slider
from tui_chat.tui.widgets.knob_text import parse_value, typed_form, wrapped

_LABEL = 12  # cells
_VALUE = 8
_MOST_SLIDER = 24
PRESET_ROW = -1
"""The row above the knobs, where the cursor may stand too."""


@dataclass
class _Typing:
    """A value that is being typed into a row."""

    text: str = ""


class SamplingPanel(Widget, can_focus=True):
    """Knobs as rows of label, value and slider; below them the chain of filters in force.

    `params` may be set from outside, which posts nothing. What is not neutral is bold and marked,
    what has no effect is dimmed, with the reason in place of its slider.
    """

    class Changed(Message):
        """A knob was turned; `params` is the new setting of all of them."""

        def __init__(self, panel: SamplingPanel, params: SamplingParams) -> None:
            super().__init__()
            self.panel = panel
            self.params = params

        @property
        def control(self) -> SamplingPanel:
            return self.panel

    DEFAULT_CSS = """
    SamplingPanel {
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

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Knob up", show=False, id="sampling.up"),
        Binding("down,j", "move(1)", "Knob down", show=False, id="sampling.down"),
        Binding("left,h", "step(-1)", "Less", show=False, id="sampling.less"),
        Binding("right,l", "step(1)", "More", show=False, id="sampling.more"),
        Binding("shift+left,H", "step(-1, True)", "Much less", show=False, id="sampling.much_less"),
        Binding("shift+right,L", "step(1, True)", "Much more", show=False, id="sampling.much_more"),
        Binding("enter", "type", "Type a value", show=False, id="sampling.type"),
        Binding("backspace,delete,0", "neutral", "Neutral", show=False, id="sampling.neutral"),
        Binding("d", "preset_value", "Preset's value", show=False, id="sampling.preset_value"),
        Binding("n", "neutralise", "Neutralise all", show=False, id="sampling.neutralise"),
        Binding("r", "random_seed", "Random seed", show=False, id="sampling.random"),
        Binding("p", "preset(1)", "Next preset", show=False, id="sampling.preset"),
        Binding("P", "preset(-1)", "Previous preset", show=False, id="sampling.preset_back"),
    ]

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
        self.set_reactive(SamplingPanel.params, params or SamplingParams())
        self._cursor = 0
        self._typing: _Typing | None = None
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

    # ---- changing

    def watch_params(self) -> None:
        # Turning a knob onto another preset's values is no choice of that preset.
        if not self._turning and self.edited:
            self._preset = self._matching_preset() or self._preset

    def _turn(self, params: SamplingParams) -> None:
        self._error = ""
        if params == self.params:
            self.refresh()
            return
        self._turning = True
        self.params = params
        self._turning = False
        if not self._posting:
            self._posting = True
            self.call_after_refresh(self._post)

    def _post(self) -> None:
        self._posting = False
        self.post_message(self.Changed(self, self.params))

    def _set(self, knob: Knob, value: object) -> None:
        try:
            self._turn(self.params.with_(**{knob.name: value}))
        except UsageError as error:
            self._refuse(str(error))

    def _refuse(self, reason: str) -> None:
        self._error = reason
        self.refresh(layout=True)

    def choose_preset(self, name: str) -> None:
        """Take over a preset's knobs; seed and stop texts stay. Raises KeyError."""
        chosen = self.presets[name]
        self._preset = name
        self._turn(chosen.with_(seed=self.params.seed, stop=self.params.stop))
        self.refresh()

    def _end_typing(self) -> None:
        self._typing = None
        self.refresh(layout=True)

    # ---- actions

    def action_move(self, rows: int) -> None:
        self._error = ""
        self._cursor = max(PRESET_ROW, min(len(KNOBS) - 1, self._cursor + rows))
        self.refresh(layout=True)

    def action_step(self, steps: int, big: bool = False) -> None:
        knob = self.knob
        if knob is None:
            self.action_preset(steps)
        elif knob.kind == "texts":
            self.action_type()
        else:
            self._set(knob, knob.moved(getattr(self.params, knob.name), steps, big=big))

    def action_type(self) -> None:
        knob = self.knob
        if knob is None:
            self.action_preset(1)
            return
        text = typed_form(getattr(self.params, knob.name)) if knob.kind == "texts" else ""
        self._typing = _Typing(text)
        self._error = ""
        self.refresh(layout=True)

    def action_neutral(self) -> None:
        knob = self.knob
        if knob is None:
            return
        if knob.kind == "seed":
            self._set(knob, None)
        elif knob.neutral is None:
            self._set(knob, knob.default)
        else:
            self._set(knob, knob.neutral)

    def action_preset_value(self) -> None:
        knob, preset = self.knob, self.presets.get(self._preset)
        if knob is not None and preset is not None:
            self._set(knob, getattr(preset, knob.name))

    def action_neutralise(self) -> None:
        neutral = {k.name: k.neutral for k in KNOBS if k.neutral is not None and k.kind != "texts"}
        self._turn(self.params.with_(**neutral))

    def action_random_seed(self) -> None:
        """A seed of its own for every reply; pressed again: one drawn now, for all of them."""
        self._turn(self.params.with_(seed=random_seed() if self.params.seed is None else None))

    def action_preset(self, steps: int) -> None:
        names = list(self.presets)
        if names:
            at = names.index(self._preset) if self._preset in names else -1
            self.choose_preset(names[(at + steps) % len(names)])

    # ---- typing a value

    async def on_key(self, event: events.Key) -> None:
        char = event.character if event.is_printable else None
        if self._typing is None:
            knob = self.knob
            if knob is not None and knob.kind != "texts" and char and char in "123456789.":
                self._typing = _Typing(char)
                self._error = ""
                event.stop()
                event.prevent_default()
                self.refresh(layout=True)
            return
        typing = self._typing
        if event.key == "enter":
            self._commit(typing.text)
        elif event.key == "escape":
            self._end_typing()
        elif event.key == "backspace":
            typing.text = typing.text[:-1]
        elif event.key == "ctrl+u":
            typing.text = ""
        elif char is not None:
            typing.text += char
        elif event.key in ("up", "down"):
            self._commit(typing.text)
            return
        else:
            return
        event.stop()
        event.prevent_default()
        self.refresh()

    def on_paste(self, event: events.Paste) -> None:
        if self._typing is not None:
            self._typing.text += event.text.replace("\r\n", "\n").replace("\n", "\\n")
            event.stop()
            self.refresh()

    def _commit(self, text: str) -> None:
        knob = self.knob
        self._end_typing()
        if knob is None or (not text and knob.kind != "texts"):
            return
        try:
            self._set(knob, parse_value(knob, text))
        except UsageError as error:
            self._refuse(str(error))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        # While a value is typed, letters and digits are text, not commands.
        return self._typing is None or action not in _COMMANDS

    def on_blur(self) -> None:
        self._typing = None
        self.refresh()

    def on_focus(self) -> None:
        self.refresh()

    # ---- mouse

    def _knob_at(self, y: int) -> int | None:
        at = y - 1 + self._first
        return at if y >= 1 and y <= self._knob_rows and at < len(KNOBS) else None

    def on_mouse_down(self, event: events.MouseDown) -> None:
        if event.y == 0:
            self._cursor = PRESET_ROW
            self.action_preset(1 if event.button == 1 else -1)
            return
        at = self._knob_at(event.y)
        if at is None:
            return
        self._typing, self._error, self._cursor = None, "", at
        if slider.has_slider(KNOBS[at]) and event.x >= self._slider_x:
            self._dragging = at
            self.capture_mouse()
            self._drag(event.x)
        self.refresh(layout=True)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        if self._dragging is not None:
            self._drag(event.x)

    def on_mouse_up(self, event: events.MouseUp) -> None:
        if self._dragging is not None:
            self._dragging = None
            self.release_mouse()

    def _drag(self, x: int) -> None:
        assert self._dragging is not None
        knob = KNOBS[self._dragging]
        self._set(
            knob, slider.value_at(knob, (x - self._slider_x) / max(1, self._slider_cells - 1))
        )

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        self._wheel(event, 1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        self._wheel(event, -1)

    def _wheel(self, event: events.MouseEvent, steps: int) -> None:
        at = self._knob_at(event.y)
        if at is not None:
            event.stop()
            event.prevent_default()
            self._cursor = at
            self.action_step(steps, event.shift)

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


_COMMANDS = frozenset(
    {"move", "step", "type", "neutral", "preset_value", "neutralise", "random_seed", "preset"}
)
