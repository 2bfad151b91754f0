"""What the help says, and that the README says the same."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tui_chat.cli import options
from tui_chat.sampling import KNOBS

from .conftest import Run

README = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")


@pytest.mark.parametrize("command", ["", *options.COMMANDS])
def test_every_command_has_its_help(run: Run, command: str) -> None:
    done = run(*filter(None, [command]), "--help")
    assert done.status == 0 and done.err == "" and done.out.startswith("usage: tui-chat")
    if command == "":
        for name in options.COMMANDS:
            assert f"\n  {name} " in done.out
    if command in ("ask", "next"):
        for row in KNOBS:
            assert f"--{row.name.replace('_', '-')} " in done.out


def shown_in_the_readme() -> list[list[str]]:
    """The words after `tui-chat` wherever the README shows it, as code or in the text."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    lines = [line for language, block in blocks if not language for line in block.splitlines()]
    lines += re.findall(r"`(tui-chat [^`]*)`", README)
    split = (shlex.split(line, comments=True) for line in lines)
    return [words[words.index("tui-chat") + 1 :] for words in split if "tui-chat" in words]


def test_the_help_understands_what_the_readme_shows() -> None:
    named = set()
    for first, *rest in filter(None, shown_in_the_readme()):
        if first in options.COMMANDS:
            options.command_parser(first).parse_args(rest)
            named.add(first)
        else:
            assert "/" in first, f"{first} is neither a command nor a path"
            options.app_parser().parse_args([first, *rest])
    assert len(named) > 4


def test_the_readme_names_every_command_of_the_help() -> None:
    assert {words[0] for words in shown_in_the_readme() if words} >= options.COMMANDS.keys()
