"""All that is known of a checkpoint, and how: what `tui-chat inspect` prints, to scroll through."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content

from tui_chat.checkpoint.card import card, notes
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.display import visible
from tui_chat.errors import TuiChatError
from tui_chat.tui.screens.page import Page

log = logging.getLogger(__name__)


class CheckpointCard(Page):
    """Shows what `describe` answers, which is asked in a thread: it reads headers from the disk."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f5", "dismiss(None)", show=False),
    ]

    TITLE = "About this checkpoint"

    def __init__(self, describe: Callable[[], CheckpointInfo]) -> None:
        super().__init__("Reading …")
        self._describe = describe

    def on_mount(self) -> None:
        threading.Thread(target=self._read, name="card", daemon=True).start()

    def _read(self) -> None:
        try:
            page = card_page(self._describe())
        except TuiChatError as error:
            page = Content(visible(str(error)))
        except Exception as error:  # the edge of the thread: shown, not lost
            log.exception("cannot describe a checkpoint")
            page = Content(visible(str(error)))
        self.call_later(self.show, page)


def card_page(info: CheckpointInfo) -> Content:
    """The facts, then what was inferred, filled in and left out, each with its reason."""
    rows = card(info)
    width = max(len(label) for label, _ in rows) + 2
    parts: list[Content | str | tuple[str, str]] = []
    for label, text in rows:
        lines = visible(text).split("\n")
        parts += [(f"{label:<{width}}", "bold"), lines[0] + "\n"]
        parts += [" " * width + line + "\n" for line in lines[1:]]
    for title, sentences in notes(info):
        parts += ["\n", (f"{title}\n", "bold $primary")]
        parts += [f"  {visible(sentence)}\n" for sentence in sentences]
    return Content.assemble(*parts)
