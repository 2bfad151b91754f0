"""Small dialogs whose answer is their type: a line or a page of text, yes or no."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Input, Static, TextArea


class Entry(ModalScreen[str | None]):
    """What the two dialogs that ask for text share: a titled box with a hint."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Cancel", show=False)
    ]

    DEFAULT_CSS = """
    Entry { align: center middle; }
    Entry > Vertical {
        background: $surface; border: round $primary; border-title-color: $primary;
        border-subtitle-color: $chat-muted;
    }
    Entry Static { color: $chat-muted; height: auto; }
    """

    KEYS: ClassVar[str] = ""

    def __init__(self, title: str, value: str = "", hint: str = "") -> None:
        super().__init__()
        self._title = title
        self._value = value
        self._hint = hint

    def compose(self) -> ComposeResult:
        with Vertical() as box:
            box.border_title = Content(self._title)
            box.border_subtitle = Content(self.KEYS)
            if self._hint:
                yield Static(Content(self._hint))
            yield self.field()

    def field(self) -> Widget:
        """Where the answer is written."""
        return Static("")


class LineDialog(Entry):
    """Asks for one line; Enter accepts it, Esc gives None."""

    DEFAULT_CSS = """
    LineDialog > Vertical { width: 72; max-width: 96%; height: auto; padding: 1 2; }
    LineDialog Input { margin-top: 1; }
    """

    KEYS = "Enter keeps it · Esc leaves it"

    def field(self) -> Widget:
        return Input(value=self._value, compact=True)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.dismiss(event.value)


class TextDialog(Entry):
    """Asks for a text of any length; Ctrl+S accepts it, Esc gives None."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "accept", "Save", show=False, priority=True),
    ]

    DEFAULT_CSS = """
    TextDialog > Vertical {
        width: 84; max-width: 98%; height: 16; max-height: 90%; padding: 0 1;
    }
    TextDialog TextArea, TextDialog TextArea:focus {
        height: 1fr; border: none; background: $surface;
    }
    """

    KEYS = "Ctrl+S keeps it · Esc leaves it as it was"

    def field(self) -> Widget:
        area = TextArea(self._value, soft_wrap=True, tab_behavior="focus", show_line_numbers=False)
        area.cursor_blink = False
        return area

    def on_mount(self) -> None:
        area = self.query_one(TextArea)
        area.move_cursor(area.document.end)
        area.focus()

    def action_accept(self) -> None:
        self.dismiss(self.query_one(TextArea).text)


class ConfirmDialog(ModalScreen[bool]):
    """Asks yes or no: y or Enter, n or Esc."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,n", "dismiss(False)", "No", show=False),
        Binding("enter,y", "dismiss(True)", "Yes", show=False),
    ]

    DEFAULT_CSS = """
    ConfirmDialog { align: center middle; }
    ConfirmDialog > Vertical {
        width: auto; max-width: 96%; height: auto; padding: 1 3;
        background: $surface; border: round $warning;
    }
    ConfirmDialog Static { width: auto; height: auto; }
    ConfirmDialog .keys { color: $chat-muted; margin-top: 1; }
    """

    def __init__(self, question: str, *, yes: str = "Yes", no: str = "No") -> None:
        super().__init__()
        self._question = question
        self._keys = f"Enter {yes}   Esc {no}"

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Content(self._question))
            yield Static(Content(self._keys), classes="keys")
