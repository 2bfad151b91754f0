"""Everything the user can do, in one table: keys, palette, slash commands, help and footer all
follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Action:
    """`id` names the method `action_<id>` of the chat screen; `keys` are Textual's names, the first
    is the one shown.

    `slash` is the command without its stroke; `argument` says what may follow it. `footer` is the
    word in the last row of the screen, "" to leave it out there.
    """

    id: str
    title: str
    keys: tuple[str, ...] = ()
    slash: str = ""
    argument: str = ""
    footer: str = ""


ACTIONS: tuple[Action, ...] = (
    Action("open_checkpoint", "Open a checkpoint", ("ctrl+o", "f2"), "open", "[PATH]", "open"),
    Action("card", "About the open checkpoint", (), "card"),
    Action(
        "draft",
        "Draft with PATH, lookup; off",
        (),
        "draft",
        "[PATH]",
    ),
    Action("show_prompt", "Show what the model gets, control tokens included", (), "prompt"),
    Action("sampling", "Sampling panel", ("ctrl+s", "f3"), "sampling", "", "sampling"),
    Action("set_knob", "Turn a sampling knob", (), "set", "KNOB VALUE"),
    Action("retry", "Retry the last reply", ("ctrl+r",), "retry", "", "retry"),
    Action("continue_reply", "Continue the last reply", (), "continue"),
    Action("new_chat", "New chat", ("ctrl+n",), "new", "", "new"),
    Action("toggle_mode", "Switch chat / raw mode", ("ctrl+t",), "mode", "[chat|raw]", "mode"),
    Action("chats", "Saved chats", ("ctrl+f", "f9"), "chats", "", "chats"),
    Action("system_prompt", "System prompt", ("f12",), "system", "[TEXT]"),
    Action("stop", "Stop the reply", ("escape",), "stop"),
    Action("copy_reply", "Copy the last reply", (), "copy"),
    Action("rename_chat", "Rename this chat", (), "rename", "[TITLE]"),
    Action("delete_chat", "Delete this chat", (), "delete"),
    Action("undelete_chat", "Bring back the chat deleted last", (), "undelete"),
    Action("theme", "Choose a theme", (), "theme", "[NAME]"),
    Action("next_pane", "Next pane", ("f6",)),
    Action("previous_pane", "Previous pane", ("shift+f6",)),
    Action("palette", "Command palette", ("ctrl+p", "ctrl+underscore"), "commands"),
    Action("help", "Help", ("f1",), "help", "", "help"),
    Action("repaint", "Repaint the screen", ("ctrl+l",), "repaint"),
    Action("quit", "Quit", ("ctrl+q",), "quit", "", "quit"),
)

BY_SLASH: Mapping[str, Action] = {action.slash: action for action in ACTIONS if action.slash}

_KEY_NAMES = {
    "escape": "Esc",
    "ctrl+underscore": "Ctrl+/",
    "pageup": "PgUp",
    "pagedown": "PgDn",
    "enter": "Enter",
}


def key_name(key: str) -> str:
    """A key as people write it: "Ctrl+O", "F2", "Esc"."""
    if key in _KEY_NAMES:
        return _KEY_NAMES[key]
    return "+".join(part.capitalize() if len(part) > 1 else part.upper() for part in key.split("+"))


def short_key(key: str) -> str:
    """A key for the footer: "^O", "F1", "Esc"."""
    return "^" + key[5:].upper() if key.startswith("ctrl+") and len(key) == 6 else key_name(key)


# Keys that belong to a part of the screen rather than to an action, for the help page.
OTHER_KEYS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "Prompt",
        (
            ("Enter", "send"),
            ("Ctrl+J", "new line; also \\ then Enter, or Shift+Enter"),
            ("Up / Down", "earlier prompts, from the first or last line"),
            ("/", "a command; Tab completes it"),
            ("Ctrl+C", "copy what is selected; stop a running reply"),
        ),
    ),
    (
        "Transcript",
        (
            ("PgUp / PgDn", "scroll, also from the prompt"),
            ("Shift+Up / Down", "scroll by a line"),
            ("Ctrl+Home / End", "first line / newest text"),
            ("j / k", "next / previous message, when the transcript has the focus (F6)"),
            ("[ / ]", "earlier / later version of a reply"),
            ("r  y  .  ?", "retry it, copy it, continue the last reply, this help"),
        ),
    ),
    (
        "Checkpoints",
        (
            ("F5", "all about the one under the cursor"),
            ("F7", "it drafts for the open one (again: no longer)"),
            ("F8", "lookup: the text so far drafts (again: no longer)"),
        ),
    ),
    (
        "Sampling panel",
        (
            ("Up / Down", "choose a knob"),
            ("Left / Right", "turn it; with Shift in larger steps"),
            ("digits, Enter", "type a value"),
            ("0 / Backspace", "neutral: the knob does nothing"),
            ("p  d  n", "next preset, the preset's value, all neutral"),
        ),
    ),
)
