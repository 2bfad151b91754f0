"""A page to read and scroll through."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static


class Page(ModalScreen[None]):
    """Shows `content` under `TITLE`. Esc closes, arrows scroll."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "Close", show=False),
    ]

    DEFAULT_CSS = """
    Page { align: center middle; }
    Page > VerticalScroll {
        width: 100; max-width: 100%; height: auto; max-height: 100%; padding: 0 2;
        background: $surface; border: round $primary; border-title-color: $primary;
        border-subtitle-color: $chat-muted;
    }
    Page Static { height: auto; }
    """

    TITLE: ClassVar[str] = ""

    def __init__(self, content: Content | str = "") -> None:
        super().__init__()
        self._content = content

    def compose(self) -> ComposeResult:
        with VerticalScroll() as box:
            box.border_title = Content(self.TITLE)
            box.border_subtitle = Content("arrows scroll · Esc closes")
            yield Static(self._content, markup=False)

    def on_mount(self) -> None:
        self.query_one(VerticalScroll).focus()

    def show(self, content: Content) -> None:
        """Another content in place of what there is."""
        self.query_one(Static).update(content)
