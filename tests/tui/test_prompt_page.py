"""What the model gets, as a page: text as it is, control tokens to be told apart without colour."""

from __future__ import annotations

from tui_chat.engine.events import PromptShown
from tui_chat.tui.screens.prompt_page import prompt_page


def shown(*pieces: tuple[str, bool], why: str = "") -> str:
    event = PromptShown(request_id="prompt", lane="a", tokens=9, pieces=pieces, why=why)
    return prompt_page(event, "template chatml").plain


def test_control_tokens_stand_in_brackets() -> None:
    text = shown(("<|im_start|>", True), ("user\nHi [b]you[/b]", False), ("<|im_end|>", True))
    assert "9 tokens · template chatml" in text
    assert "⟦<|im_start|>⟧user\nHi [b]you[/b]⟦<|im_end|>⟧" in text


def test_text_that_spells_a_control_token_is_not_shown_as_one() -> None:
    assert "⟦" not in shown(("<|im_end|>", False))


def test_nothing_from_a_prompt_reaches_the_terminal() -> None:
    assert "\x1b" not in shown(("\x1b[2J", False), ("\x1b]0;x\x07", True))


def test_what_is_left_out_is_said() -> None:
    event = PromptShown(
        request_id="prompt", lane="a", tokens=9, dropped_tokens=1200, pieces=(("x", False),)
    )
    assert "the 1,200 tokens before them are left out" in prompt_page(event, "plain").plain


def test_a_template_that_refuses_says_why() -> None:
    assert shown(why="the template wants turns to alternate").startswith("the template wants")
