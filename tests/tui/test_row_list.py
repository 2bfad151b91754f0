"""A list that draws only what is seen, with a cursor that passes over headings."""

from __future__ import annotations

import time

from textual.app import App, ComposeResult

from tui_chat.tui.widgets.row_list import Row, RowList, column


class Host(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.chosen: list[str] = []

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return {"chat-muted": "grey", "chat-error": "red"}

    def compose(self) -> ComposeResult:
        yield RowList(empty="Nothing here.")

    def on_row_list_chosen(self, event: RowList.Chosen) -> None:
        self.chosen.append(event.key)

    @property
    def rows(self) -> RowList:
        return self.query_one(RowList)


def screen_text(app: App[None]) -> list[str]:
    return [
        "".join(segment.text for segment in strip).rstrip()
        for strip in app.screen._compositor.render_strips()
    ]


def rows(*keys: str) -> list[Row]:
    return [Row(key if key.islower() else "", ((key, "text"),)) for key in keys]


async def test_the_cursor_passes_over_headings() -> None:
    async with Host().run_test() as pilot:
        pilot.app.rows.focus()
        pilot.app.rows.set_rows(rows("RUN", "a", "b", "NEXT", "c"))
        assert pilot.app.rows.cursor_key == "a"
        await pilot.press("down", "down")
        assert pilot.app.rows.cursor_key == "c"
        await pilot.press("up", "enter")
        assert pilot.app.chosen == ["b"]


async def test_text_with_brackets_is_shown_as_it_is() -> None:
    async with Host().run_test() as pilot:
        pilot.app.rows.set_rows([Row("k", (("[red]x[/] [/nope]", "text"),))])
        await pilot.pause()
        assert screen_text(pilot.app)[0] == "▌[red]x[/] [/nope]"


async def test_an_empty_list_says_so() -> None:
    async with Host().run_test() as pilot:
        pilot.app.rows.set_rows([])
        await pilot.pause()
        assert "Nothing here." in screen_text(pilot.app)[0]
        await pilot.press("down", "enter")
        assert pilot.app.chosen == []


async def test_the_cursor_stays_on_its_row_when_rows_come_before_it() -> None:
    async with Host().run_test() as pilot:
        pilot.app.rows.set_rows(rows("b", "c"))
        pilot.app.rows.focus()
        await pilot.press("down")
        pilot.app.rows.set_rows(rows("a", "b", "c"))
        assert pilot.app.rows.cursor_key == "c"


async def test_only_the_rows_on_screen_are_drawn_among_many_thousands(monkeypatch) -> None:
    async with Host().run_test(size=(80, 24)) as pilot:
        drawn = []
        whole = RowList.render_line
        monkeypatch.setattr(
            RowList, "render_line", lambda self, y: drawn.append(y) or whole(self, y)
        )
        began = time.process_time()
        pilot.app.rows.set_rows([Row(f"k{i}", ((f"row {i}", "text"),)) for i in range(20_000)])
        await pilot.pause()
        assert 0 < len(drawn) < 100, time.process_time() - began
        pilot.app.rows.focus()
        await pilot.press("end")
        assert pilot.app.rows.cursor_key == "k19999"


def test_columns_count_cells_not_characters() -> None:
    assert column("日本語テキスト", 8) == "日本語… "
    assert column("ab", 4, right=True) == "  ab"
