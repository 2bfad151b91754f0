"""Slash commands: what is one, what is offered, and how knobs are turned by them."""

from __future__ import annotations

import pytest

from tui_chat.errors import UsageError
from tui_chat.sampling import PRESETS, SamplingParams
from tui_chat.tui.actions import ACTIONS
from tui_chat.tui.commands import parse_slash, suggestions, turned
from tui_chat.tui.screens.chat import ChatScreen

START = SamplingParams()


@pytest.mark.parametrize(
    ("typed", "command"),
    [
        ("/open a b.pt", ("open", "a b.pt")),
        ("/Quit", ("quit", "")),
        ("/", ("", "")),
        ("//not one", None),
        ("text", None),
        ("/set\nx", None),
    ],
)
def test_what_is_a_command(typed: str, command: tuple[str, str] | None) -> None:
    assert parse_slash(typed) == command


def test_commands_are_offered_as_their_name_is_typed() -> None:
    assert [action.slash for action in suggestions("/re")] == ["retry", "rename", "repaint"]
    assert len(suggestions("/")) == sum(bool(action.slash) for action in ACTIONS)
    assert suggestions("/set x") == []


def test_every_action_of_the_table_is_a_method_of_the_chat_screen() -> None:
    assert [a.id for a in ACTIONS if not hasattr(ChatScreen, f"action_{a.id}")] == []


@pytest.mark.parametrize(
    ("said", "knobs"),
    [
        ("temperature 0.5", {"temperature": 0.5}),
        ("Temperature=0.5", {"temperature": 0.5}),
        ("top-k 7", {"top_k": 7}),
        ("top_k off", {"top_k": 0}),
        ("max new 20", {"max_new_tokens": 20}),
        ("max_new_tokens 20", {"max_new_tokens": 20}),
        ("repetition 1.1", {"repetition_penalty": 1.1}),
        ("window 64", {"repetition_window": 64}),
        ("seed 7", {"seed": 7}),
        ("T 0.5", {"temperature": 0.5}),
        ("max 20", {"max_new_tokens": 20}),
        ("seed random", {"seed": None}),
        ("stop ROMEO: \\n\\n", {"stop": ("ROMEO:", "\n\n")}),
        ("stop none", {"stop": ()}),
        ("stop", {"stop": ()}),
    ],
)
def test_a_knob_is_turned_by_its_name_or_its_label(said: str, knobs: dict[str, object]) -> None:
    from_here = START.with_(stop=("x",), seed=3)
    assert turned(from_here, said, PRESETS) == from_here.with_(**knobs)


def test_a_preset_is_taken_whole() -> None:
    assert turned(START, "preset greedy", PRESETS) == PRESETS["greedy"]
    assert turned(START, "preset nanogpt", PRESETS) == PRESETS["nanoGPT"]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ("", "no knob"),
        ("self 1", "no knob"),
        ("temperature warm", "takes a number"),
        ("top-k 2.5", "takes a whole number"),
        ("top_p 3", "between"),
        ("preset nope", "no preset"),
    ],
)
def test_what_cannot_be_set_costs_one_sentence(said: str, found: str) -> None:
    with pytest.raises(UsageError, match=found):
        turned(START, said, PRESETS)
