"""The sampling panel: every knob in a row, for keyboard and mouse.

The rows follow `sampling.KNOBS`. The panel holds one `SamplingParams` and answers each turn of a
knob with a new one (`SamplingPanel.Changed`), at most once per refresh of the screen.
"""

from __future__ import annotations

from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message

from tui_chat.errors import UsageError
from tui_chat.sampling import KNOBS, Knob, SamplingParams, random_seed
from tui_chat.tui.widgets import slider
from tui_chat.tui.widgets.knob_rows import PRESET_ROW, KnobRows, Typing
from tui_chat.tui.widgets.knob_text import parse_value, typed_form


class SamplingPanel(KnobRows, can_focus=True):
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
        self._typing = Typing(text)
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
                self._typing = Typing(char)
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


_COMMANDS = frozenset(
    {"move", "step", "type", "neutral", "preset_value", "neutralise", "random_seed", "preset"}
)
