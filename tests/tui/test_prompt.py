"""The prompt: what sends, what makes a new line, what comes back from the history."""

from __future__ import annotations

from textual import events
from textual.app import App, ComposeResult

from tui_chat.tui.widgets.prompt import Prompt


class Host(App[None]):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return {"chat-muted": "grey"}

    def compose(self) -> ComposeResult:
        yield Prompt()

    def on_prompt_sent(self, event: Prompt.Sent) -> None:
        self.sent.append(event.text)
        event.prompt.take()

    @property
    def prompt(self) -> Prompt:
        return self.query_one(Prompt)


async def type_text(pilot, text: str) -> None:
    for character in text:
        await pilot.press(character)
    # What follows comes from a finger, not from the same paste.
    pilot.app.prompt._typed_at = 0.0


async def test_enter_sends_and_leaves_the_prompt_empty() -> None:
    async with Host().run_test() as pilot:
        await type_text(pilot, "hi")
        await pilot.press("enter")
        assert pilot.app.sent == ["hi"]
        assert pilot.app.prompt.text == ""


async def test_every_newline_key_makes_a_new_line() -> None:
    async with Host().run_test() as pilot:
        await type_text(pilot, "a")
        for key in ("ctrl+j", "shift+enter", "alt+enter", "ctrl+enter"):
            await pilot.press(key)
        assert pilot.app.prompt.text == "a\n\n\n\n"
        assert pilot.app.sent == []


async def test_a_backslash_before_enter_makes_a_new_line_and_goes_away() -> None:
    async with Host().run_test() as pilot:
        await type_text(pilot, "ab\\")
        await pilot.press("enter")
        assert pilot.app.prompt.text == "ab\n"
        assert pilot.app.sent == []


async def test_an_enter_in_the_middle_of_a_paste_without_brackets_does_not_send() -> None:
    async with Host().run_test() as pilot:
        for key, character in (("a", "a"), ("enter", "\r"), ("b", "b")):
            pilot.app.prompt.post_message(events.Key(key, character))
        await pilot.pause()
        assert pilot.app.prompt.text == "a\nb"
        assert pilot.app.sent == []


async def test_a_bracketed_paste_keeps_its_lines_and_is_inserted_once() -> None:
    async with Host().run_test() as pilot:
        pilot.app.prompt.post_message(events.Paste("one\rtwo\r\nthree"))
        await pilot.pause()
        assert pilot.app.prompt.text == "one\ntwo\nthree"


async def test_up_and_down_walk_the_history_and_bring_the_draft_back() -> None:
    async with Host().run_test() as pilot:
        pilot.app.prompt.set_history(["first", "second"])
        await type_text(pilot, "draft")
        seen = []
        for key in ("up", "up", "up", "down", "down"):
            await pilot.press(key)
            seen.append(pilot.app.prompt.text)
        assert seen == ["second", "first", "first", "second", "draft"]


async def test_up_inside_a_text_of_several_lines_moves_the_cursor_first() -> None:
    async with Host().run_test() as pilot:
        pilot.app.prompt.set_history(["old"])
        await type_text(pilot, "a")
        await pilot.press("ctrl+j")
        await type_text(pilot, "b")
        await pilot.press("up")
        assert pilot.app.prompt.text == "a\nb"
        await pilot.press("up")
        assert pilot.app.prompt.text == "old"


async def test_the_prompt_grows_with_its_text_up_to_a_limit() -> None:
    async with Host().run_test(size=(80, 40)) as pilot:
        low = pilot.app.prompt.outer_size.height
        for _ in range(30):
            await pilot.press("ctrl+j")
        await pilot.pause()
        assert low == 3
        assert pilot.app.prompt.outer_size.height == 12
