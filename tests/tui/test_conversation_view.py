"""The transcript: what is seen, where it stands while text arrives, what copying gives."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from textual.geometry import Offset
from textual.selection import Selection

from tui_chat.tui.widgets.blocks import Block
from tui_chat.tui.widgets.conversation_view import ConversationView
from tui_chat.tui.widgets.layout import Layout

from .host import Host, screen_rows

CHAT = [
    Block("u1", "user", "What is 13 + 29?", header="You"),
    Block("a1", "assistant", "The sum is 42.", header="Assistant ‹1/2›", detail="demo · seed 42"),
]


def host_of(*blocks: Block) -> tuple[Host, ConversationView]:
    view = ConversationView()
    host = Host(view, ConversationView.UnreadChanged, ConversationView.BlockSelected)
    view.set_blocks(blocks)
    return host, view


def long_chat(count: int = 60) -> list[Block]:
    return [
        Block(f"m{i}", "assistant" if i % 2 else "user", f"message {i}", f"Head {i}")
        for i in range(count)
    ]


async def test_messages_have_a_header_and_kinds_differ_by_more_than_colour() -> None:
    host, _ = host_of(*CHAT)
    async with host.run_test(size=(50, 7)):
        assert screen_rows(host) == [
            "▌ You",
            "▌ What is 13 + 29?",
            "",
            "  Assistant ‹1/2›                 demo · seed 42",
            "  The sum is 42.",
            "",
            "",
        ]
        head = host.widget.get_component_rich_style("conversation--user-head")
        assert head.bold


async def test_text_is_drawn_literally_and_made_safe() -> None:
    host, view = host_of(
        Block("a", "assistant", "[b]x[/b] [@click=app.quit]q[/] \x1b[31mr\x9b[/x]")
    )
    async with host.run_test(size=(60, 3)) as pilot:
        assert screen_rows(host)[0] == "  [b]x[/b] [@click=app.quit]q[/] ␛[31mr�[/x]"
        await pilot.click(ConversationView, offset=(15, 0))
        assert host.is_running
        assert view.text_of("a") == "[b]x[/b] [@click=app.quit]q[/] \x1b[31mr\x9b[/x]"


async def test_raw_blocks_are_one_text_and_the_window_is_a_dotted_rule() -> None:
    host, view = host_of(
        Block("t", "raw-typed", "Once upon a"),
        Block("g", "raw-generated", " time\nthere"),
    )
    async with host.run_test(size=(30, 5)) as pilot:
        view.append_text("g", " was a princess")
        await pilot.pause()
        assert screen_rows(host)[:2] == [" Once upon a time", " there was a princess"]
        typed = view.get_component_rich_style("conversation--raw-typed")
        assert typed.bold and not view.get_component_rich_style("conversation--raw-generated").bold
        view.insert_block(Block("w", "rule", "not sent"), before="g")
        await pilot.pause()
        rows = screen_rows(host)
        assert rows[0] == " Once upon a"
        assert rows[1].startswith(" ┄┄") and " not sent " in rows[1]
        assert rows[2:4] == ["  time", " there was a princess"]
        view.remove_block("w")
        await pilot.pause()
        assert screen_rows(host)[0] == " Once upon a time"


async def test_streaming_shows_what_the_whole_text_shows() -> None:
    text = "The quick\r\nbrown\tfox 漢字 jumps over\x1b[0m the lazy dog. " * 5
    host, view = host_of(Block("a", "assistant", ""))
    async with host.run_test(size=(32, 20)) as pilot:
        for char in text:
            view.append_text("a", char)
        await pilot.pause()
        streamed = screen_rows(host)
        view.set_blocks([Block("b", "assistant", text)])
        await pilot.pause()
        assert screen_rows(host) == streamed
        assert streamed[0] == "  The quick"


_BLOCK_TEXT = st.text(alphabet="ab \n漢\r\t\u0301", max_size=30)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["user", "raw-typed", "raw-generated", "note"]), _BLOCK_TEXT)
    ),
    st.lists(st.tuples(st.integers(0, 9), st.sampled_from("+-ia"), _BLOCK_TEXT), max_size=12),
)
def test_a_layout_that_was_changed_is_that_of_its_blocks(
    start: list[tuple[str, str]], edits: list[tuple[int, str, str]]
) -> None:
    layout = Layout(12)
    layout.set(Block(f"s{i}", kind, text) for i, (kind, text) in enumerate(start))  # type: ignore[arg-type]
    for number, (at, edit, text) in enumerate(edits):
        ids = [block.id for block in layout]
        if edit == "+" or not ids:
            layout.add(Block(f"n{number}", "raw-typed", text))
        elif edit == "-":
            layout.remove(ids[at % len(ids)])
        elif edit == "i":
            layout.insert(Block(f"n{number}", "user", text), before=ids[at % len(ids)])
        else:
            layout.append(ids[at % len(ids)], text)
    fresh = Layout(12)
    fresh.set(list(layout))

    def picture(of: Layout) -> list[object]:
        return [(f.at, f.gap, f.shown, list(f.rows), f.borders, of.top(f)) for f in of.flows]

    assert picture(layout) == picture(fresh)
    assert layout.height == fresh.height == sum(flow.height for flow in fresh.flows)


async def test_it_follows_the_end_until_scrolled_up_and_counts_what_it_misses() -> None:
    host, view = host_of(*long_chat(), Block("a", "assistant", "start"))
    async with host.run_test(size=(40, 10)) as pilot:
        await pilot.pause()
        assert screen_rows(host)[-1] == "  start"
        view.append_text("a", "\none\ntwo")
        await pilot.pause()
        assert screen_rows(host)[-1] == "  two"
        view.scroll_up(animate=False)
        await pilot.pause()
        before = screen_rows(host, 39)
        assert not view.following
        view.append_text("a", "\nthree\nfour")
        view.append_block(Block("b", "user", "more", "You"))
        await pilot.pause()
        assert screen_rows(host, 39) == before
        assert view.unread == 5
        assert [m.rows for m in host.messages if hasattr(m, "rows")] == [2, 5]
        view.focus()
        await pilot.press("end")
        await pilot.pause()
        assert view.following and view.unread == 0
        assert screen_rows(host, 39)[-1].endswith("more")


async def test_reading_keeps_its_place_over_changes_above_and_a_new_width() -> None:
    host, view = host_of(*long_chat())
    async with host.run_test(size=(40, 10)) as pilot:
        view.scroll_to(y=91, animate=False)
        await pilot.pause()
        top = screen_rows(host)[0]
        assert top
        view.update_block("m2", text="much longer\n" * 20)
        view.remove_block("m4")
        view.insert_block(Block("new", "note", "a note"), before="m6")
        await pilot.pause()
        assert screen_rows(host)[0] == top
        await pilot.resize_terminal(25, 10)
        await pilot.pause()
        assert screen_rows(host)[0] == top
        view.set_blocks(view.blocks)
        await pilot.pause()
        assert screen_rows(host)[0] == top
        view.set_blocks(CHAT)
        await pilot.pause()
        assert view.following


async def test_the_block_cursor_moves_over_messages_and_shows_them() -> None:
    host, view = host_of(*long_chat(20), Block("n", "note", "not a message"))
    async with host.run_test(size=(40, 10)) as pilot:
        view.focus()
        await pilot.press("up", "k", "up")
        await pilot.pause()
        assert view.cursor == "m16"
        assert any(row.startswith("┃ Head 16") for row in screen_rows(host))
        await pilot.press("down")
        assert view.cursor == "m17"
        await pilot.press("home")
        await pilot.pause()
        assert screen_rows(host)[0].endswith("Head 0")
        selected = [m.block_id for m in host.messages if hasattr(m, "block_id")]
        assert selected == ["m19", "m18", "m17", "m16", "m17"]
        await pilot.click(ConversationView, offset=(4, 4))
        assert view.cursor == "m1"


async def test_a_message_taller_than_the_view_is_read_through() -> None:
    host, view = host_of(Block("a", "user", "x"), Block("b", "assistant", "line\n" * 40))
    async with host.run_test(size=(40, 10)) as pilot:
        view.focus()
        view.select_block("a")
        await pilot.press("down")
        await pilot.pause()
        assert view.cursor == "b"
        places = [view.scroll_offset.y]
        while not view.following:
            await pilot.press("down")
            await pilot.pause()
            assert view.cursor == "b"
            assert view.scroll_offset.y > places[-1]
            places.append(view.scroll_offset.y)
        assert len(places) > 5


async def test_copying_gives_the_original_with_wrapped_rows_joined() -> None:
    text = "tab\there \x1b[1m and a\u200b long line that is wrapped\r\nsecond"
    host, view = host_of(CHAT[0], Block("b", "assistant", text, "Assistant"))
    async with host.run_test(size=(24, 12)) as pilot:
        await pilot.pause()
        assert view.get_selection(Selection(None, None)) == (f"{CHAT[0].text}\n\n{text}", "\n")
        rows = screen_rows(host)
        first = next(y for y, row in enumerate(rows) if "tab" in row)
        last = next(y for y, row in enumerate(rows) if "second" in row)
        got = view.get_selection(Selection(Offset(2, first), Offset(5, last)))
        assert got == (text[: text.index("second") + 3], "\n")
        got = view.get_selection(Selection(Offset(6, first), Offset(10, first)))
        assert got == ("here", "\n")


async def test_dragging_the_mouse_selects_and_shows_it() -> None:
    host, _ = host_of(*CHAT)
    async with host.run_test(size=(50, 7)) as pilot:
        await pilot.mouse_down(ConversationView, offset=(7, 1))
        await pilot.hover(ConversationView, offset=(8, 1))
        await pilot.mouse_up(ConversationView, offset=(8, 1))
        await pilot.pause()
        assert host.screen.get_selected_text() == "is"


async def test_a_theme_or_a_size_leaves_no_old_row_behind() -> None:
    host, view = host_of(*CHAT)
    async with host.run_test(size=(50, 7)) as pilot:
        before = view.render_line(1)
        host.theme = "textual-light"
        await pilot.pause()
        after = view.render_line(1)
        assert after.text == before.text
        assert [s.style.bgcolor for s in after if s.style] != [
            s.style.bgcolor for s in before if s.style
        ]
        await pilot.resize_terminal(20, 7)
        await pilot.pause()
        assert all(len(row) <= 20 for row in screen_rows(host))


async def test_unknown_and_repeated_blocks_are_refused() -> None:
    host, view = host_of(*CHAT)
    async with host.run_test():
        with pytest.raises(KeyError):
            view.append_text("nobody", "x")
        with pytest.raises(ValueError, match="u1"):
            view.append_block(CHAT[0])
        assert "u1" in view and "nobody" not in view


async def test_the_sign_of_writing_stands_at_the_end_of_the_text() -> None:
    host, view = host_of(Block("a", "assistant", "so far"))
    async with host.run_test(size=(30, 3)) as pilot:
        view.set_writing("a")
        await pilot.pause()
        assert screen_rows(host)[0] == "  so far▌"
        view.set_writing(None)
        await pilot.pause()
        assert screen_rows(host)[0] == "  so far"


async def test_a_token_costs_the_same_in_a_long_chat() -> None:
    host, view = host_of(*long_chat(10_000), Block("a", "assistant", "word " * 20_000))
    async with host.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        began = time.process_time()
        for _ in range(100):
            view.append_text("a", "word ")
        assert (time.process_time() - began) / 100 < 0.002


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (3, 2), (4, 3)])
async def test_a_tiny_terminal_does_no_harm(size: tuple[int, int]) -> None:
    host, view = host_of(*CHAT, Block("r", "rule", "x"), Block("w", "raw-typed", "漢字\ta"))
    async with host.run_test(size=size) as pilot:
        view.append_text("w", "more 👩‍👧 text")
        await pilot.pause()
        assert host.is_running
