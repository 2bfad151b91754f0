"""Choose a theme: each is put on while the cursor is on it, Esc brings the old one back."""

from __future__ import annotations

from collections.abc import Sequence

from textual.theme import Theme

from tui_chat.tui.rows import matches
from tui_chat.tui.screens.sheet import Sheet
from tui_chat.tui.widgets.row_list import Row, column


class ThemeSheet(Sheet):
    """Answers with the name of the chosen theme, or None."""

    DEFAULT_CSS = """
    ThemeSheet { align: right middle; background: $background 0%; }
    ThemeSheet > Vertical { width: 44; }
    """

    TITLE = "Theme"
    KEYS = "Enter keeps it · Esc leaves it"

    def __init__(self, themes: Sequence[Theme], own: Sequence[str], *, current: str) -> None:
        """`own` names the themes that come with the program or are the user's: they stand first."""
        super().__init__(current=current)
        self._themes = sorted(themes, key=lambda theme: (theme.name not in own, theme.name))
        self._own = own

    def on_mount(self) -> None:
        self.refill()

    def rows(self, query: str, now: float, width: int) -> Sequence[Row]:
        return [
            Row(
                theme.name,
                (
                    ("● " if theme.name == self._current else "  ", "accent"),
                    (column(theme.name, 24), "strong" if theme.name in self._own else "text"),
                    ("dark" if theme.dark else "light", "muted"),
                ),
            )
            for theme in self._themes
            if matches(query, theme.name, "dark" if theme.dark else "light")
        ]

    def moved_to(self, key: str) -> None:
        if key:
            self.app.theme = key
