"""The prompt: a text area that sends on Enter, grows with its text and remembers what was sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import TextArea

NEWLINE_KEYS = frozenset(
    {"ctrl+j", "shift+enter", "alt+enter", "ctrl+enter", "shift+\r", "ctrl+\r"}
)
# An Enter this soon after a typed character comes from a paste without brackets, not from a finger.
# Seconds.
PASTE_GAP = 0.01


class Prompt(TextArea):
    """Where the user writes. Posts `Sent` and `Edited`; knows nothing of models or chats."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("tab", "complete", show=False)]

    DEFAULT_CSS = """
    Prompt {
        height: auto;
        min-height: 3;
        max-height: 12;
        border: round $primary 40%;
        border-subtitle-color: $chat-muted;
        border-title-color: $chat-muted;
        background: $background;
        padding: 0 1;
    }
    Prompt:focus { border: round $primary; }
    Prompt .text-area--cursor-line { background: transparent; }
    """

    class Sent(Message):
        """The user pressed Enter. The prompt is empty now; see `give_back`."""

        def __init__(self, prompt: Prompt, text: str) -> None:
            super().__init__()
            self.prompt = prompt
            self.text = text

        @property
        def control(self) -> Prompt:
            return self.prompt

    class Edited(Message):
        """The draft changed."""

        def __init__(self, prompt: Prompt, text: str) -> None:
            super().__init__()
            self.prompt = prompt
            self.text = text

    class CompleteRequested(Message):
        """Tab in a slash command."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id,
            soft_wrap=True,
            show_line_numbers=False,
            tab_behavior="focus",
            compact=False,
            highlight_cursor_line=False,
            placeholder="Write a message",
        )
        self.cursor_blink = False
        self._history: list[str] = []
        self._at: int | None = None  # where in the history; None: the draft
        self._draft = ""
        self._typed_at = 0.0
        self._hints = ("", "")

    def set_history(self, entries: Sequence[str]) -> None:
        """Earlier prompts, oldest first."""
        self._history = list(entries)
        self._at = None

    def remember(self, text: str) -> None:
        """Add a prompt to the end of the history."""
        self._history = [entry for entry in self._history if entry != text] + [text]
        self._at = None

    def hint(self, placeholder: str, subtitle: str) -> None:
        """Words where the text will stand, and on the lower border."""
        if (placeholder, subtitle) != self._hints:
            self._hints = (placeholder, subtitle)
            self.placeholder, self.border_subtitle = placeholder, Content(subtitle)

    def give_back(self, text: str) -> None:
        """Put a text that was not taken before what has been written since."""
        self.replace_text(text + self.text)

    def take(self) -> str:
        """The text, leaving the prompt empty."""
        text = self.text
        self.clear()
        self._at = None
        return text

    def replace_text(self, text: str) -> None:
        """Put `text` in place of the draft, the cursor at its end. Undo brings the draft back."""
        self.replace(text, (0, 0), self.document.end)
        self.move_cursor(self.document.end)

    async def _on_key(self, event: events.Key) -> None:
        if event.key in NEWLINE_KEYS:
            self._take_key(event)
            self.insert("\n")
        elif event.key == "enter":
            self._take_key(event)
            # By the times at which the keys came in: the screen may have been busy since.
            if event.time - self._typed_at < PASTE_GAP:
                self.insert("\n")
            elif self.text.endswith("\\") and self.cursor_location == self.document.end:
                self.action_delete_left()
                self.insert("\n")
            else:
                self.post_message(self.Sent(self, self.take()))
        elif (event.key == "up" and self.cursor_at_first_line and self._recall(-1)) or (
            event.key == "down" and self.cursor_at_last_line and self._recall(+1)
        ):
            self._take_key(event)
        elif event.is_printable:
            self._typed_at = event.time
        # What is not taken goes on to TextArea's own handler.

    @staticmethod
    def _take_key(event: events.Key) -> None:
        event.stop()
        event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        # tmux ends pasted lines with CR. TextArea's own handler, which comes next, inserts the
        # text.
        event.text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        event.stop()

    def _recall(self, direction: int) -> bool:
        """Step through the history. False when there is nothing that way."""
        at = len(self._history) if self._at is None else self._at
        to = at + direction
        if not 0 <= to <= len(self._history) or (self._at is None and direction > 0):
            return False
        if self._at is None:
            self._draft = self.text
        self._at = None if to == len(self._history) else to
        self.replace_text(self._draft if self._at is None else self._history[self._at])
        return True

    def action_complete(self) -> None:
        if self.text.startswith("/"):
            self.post_message(self.CompleteRequested(self.text))
        else:
            self.screen.focus_next()

    def on_text_area_changed(self, event: TextArea.Changed) -> None:
        event.stop()
        self.post_message(self.Edited(self, self.text))
