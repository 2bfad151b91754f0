"""The main job, with real keys on real weights: talk, turn a knob, stop, retry, switch, quit, come
back.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import BASE, CHAT, Open
from .terminal import Terminal

pytestmark = pytest.mark.e2e


def say(app: Terminal, text: str) -> None:
    app.type(text)
    app.press("enter")


def answered(app: Terminal, expected: str) -> str:
    app.wait(lambda screen: re.search(expected, screen), f"an answer like {expected!r}")
    return app.wait(lambda screen: "the model stopped" in screen, "the end of the reply")


def greedy(app: Terminal) -> None:
    say(app, "/set temperature 0")
    app.wait_for("greedy")


def test_three_turns_then_knob_stop_retry_switch_quit_and_reopen(open_app: Open) -> None:
    app = open_app()
    app.wait_for("demo-chat/")
    app.wait_for("ready")
    assert "about one million weights" in " ".join(app.text.split()), (
        "the first screen says what the demo is"
    )
    greedy(app)

    say(app, "What is 13 + 29?")
    answered(app, r"42")
    say(app, "My name is Anna.")
    answered(app, r"Anna[\s\S]*Anna")
    say(app, "What is my name?")
    answered(app, r"Your name is Anna")
    assert re.search(r"prompt \d+, [1-9]\d* reused", app.text), "the second turn reuses the cache"

    # A long reply of the base model: turn a knob while it writes, then stop it.
    app.press("ctrl+o")
    app.wait_for("Open a checkpoint")
    app.type("demo-base")
    app.wait(
        lambda screen: "demo-chat" not in screen.split("Open a checkpoint")[1], "only the base run"
    )
    app.press("enter")
    app.wait_for("demo-base/")
    app.wait_for("ready")
    assert "Your name is Anna" in app.text, "switching keeps the conversation"
    say(app, "/set max_new_tokens 100000")
    app.press("ctrl+t")
    app.wait_for("RAW")
    say(app, "ROMEO:")
    app.wait_for("writing")
    app.press("ctrl+s")
    app.press("right", "right", "right", "right")
    app.wait_for("T 0.20")
    app.wait_for("writing")
    app.press("escape")
    app.wait_for("stopped")
    app.wait_gone("writing")

    # Back to the chat model and the chat, another try at the last question.
    app.press("ctrl+f")
    app.wait_for("Saved chats")
    app.type("13 + 29")
    app.wait(lambda screen: "ROMEO" not in screen.split("Saved chats")[1], "the chat alone")
    app.press("enter")
    app.wait_for("Your name is Anna")
    app.press("ctrl+o")
    app.wait_for("Open a checkpoint")
    app.type("demo-chat")
    app.wait(
        lambda screen: "demo-base" not in screen.split("Open a checkpoint")[1], "only the chat run"
    )
    app.press("enter")
    app.wait(lambda screen: "demo-chat/" in screen.splitlines()[0], "the chat model")
    app.press("ctrl+r")
    app.wait_for("‹2/2›")
    answered(app, r"‹2/2›[\s\S]*Your name is Anna")

    app.press("ctrl+q")
    assert app.wait_end() == 0
    assert app.restored()

    again = open_app()
    again.wait_for("‹2/2›")
    assert "Your name is Anna" in again.text
    again.wait_for("ready")
    say(again, "What is my name?")
    answered(again, r"Your name is Anna")
    again.press("ctrl+q")
    assert again.wait_end() == 0


def test_a_reply_cut_by_kill_is_there_when_the_app_comes_back(
    open_app: Open, tmp_path: Path
) -> None:
    app = open_app(BASE)
    app.wait_for("ready")
    say(app, "/set max_new_tokens 100000")
    say(app, "KING")
    app.wait(
        lambda screen: (m := re.search(r"writing · (\d+) tok", screen)) and int(m[1]) > 900,
        "900 tokens",
    )
    left = [line[:78].strip() for line in app.lines[3:12]]  # beside them lies the sampling panel
    shown = [line for line in left if len(line) > 20 and "above this line" not in line]
    app.watch(1.2)  # at most the last second may be lost
    os.killpg(app.process.pid, signal.SIGKILL)
    app.process.wait()

    again = open_app(BASE)
    again.wait_for("ready")
    again.press("ctrl+home")
    again.wait_for("KING")
    again.press("ctrl+q")
    again.wait_end()
    kept = subprocess.run(
        [sys.executable, "-m", "tui_chat", "sessions", "show", "1"],
        env={**os.environ, "TUI_CHAT_DATA_DIR": str(tmp_path / "data")},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    whole = " ".join(kept.split())
    assert shown
    assert all(" ".join(line.split()) in whole for line in shown), (shown, kept)


@pytest.mark.parametrize("columns, rows", [(80, 24), (120, 40), (200, 60)])
def test_the_screen_of_three_sizes_shows_what_must_always_be_seen(
    open_app: Open, columns: int, rows: int
) -> None:
    app = open_app(CHAT, columns=columns, rows=rows)
    app.wait_for("ready")
    say(app, "hi")
    app.wait_for("the model stopped")
    for words in (
        "demo-chat/",
        "CHAT",
        "T 0.80",
        "seed",
        "ctx ",
        "Assistant",
        "^Q quit",
        "F1 help",
    ):
        assert words in app.text, f"{words!r} is missing:\n{app.text}"


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_in_the_middle_of_a_reply_restores_the_terminal_and_keeps_it(
    open_app: Open, name: str
) -> None:
    number = getattr(signal, name)
    app = open_app(BASE)
    app.wait_for("ready")
    say(app, "/set max_new_tokens 100000")
    say(app, "QUEEN")
    app.wait_for("writing")
    os.kill(app.process.pid, number)
    status = app.wait_end()
    assert status == 128 + number, app.text()
    assert app.restored()
    again = open_app(BASE)
    again.press("ctrl+home")
    again.wait_for("QUEEN")


def test_resizing_while_it_writes_keeps_the_app_alive(open_app: Open) -> None:
    app = open_app(BASE)
    app.wait_for("ready")
    say(app, "/set max_new_tokens 100000")
    say(app, "KING")
    app.wait_for("writing")
    for size in ((80, 24), (40, 10), (1, 1), (200, 60), (20, 60), (120, 40)):
        app.resize(*size)
        app.watch(0.2)
    app.wait_for("writing")
    app.press("escape")
    app.wait_for("stopped")


def test_a_file_that_is_no_checkpoint_costs_one_sentence_and_the_app_stays(
    open_app: Open, tmp_path
) -> None:
    bad = tmp_path / "notes.pt"
    bad.write_text("this is not a checkpoint")
    app = open_app(bad)
    app.wait_for("notes.pt")
    app.press("ctrl+o")
    app.wait_for("Open a checkpoint")
    app.type("demo-chat")
    app.wait_for("step")
    app.press("enter")
    app.wait_for("ready")
    assert "Traceback" not in app.text
