"""The command palette and the slash commands, both from the table of actions."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui_chat.errors import UsageError
from tui_chat.sampling import KNOBS, Knob, SamplingParams, knob
from tui_chat.tui.actions import ACTIONS, BY_SLASH, Action, key_name


def described(action: Action) -> str:
    """Keys and slash command of an action, for the second line of the palette."""
    ways = [key_name(key) for key in action.keys]
    if action.slash:
        ways.append(f"/{action.slash}")
    return "   ".join(ways)


class ActionCommands(Provider):
    """Every action of the table whose argument may be left out."""

    def _run(self, action: Action) -> Callable[[], Awaitable[object]]:
        return partial(self.screen.run_action, f"screen.{action.id}")

    def _offered(self) -> list[Action]:
        return [
            a
            for a in ACTIONS
            if not (a.argument and not a.argument.startswith("[")) and a.id != "palette"
        ]

    async def discover(self) -> Hits:
        for action in self._offered():
            yield DiscoveryHit(action.title, self._run(action), help=described(action))

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for action in self._offered():
            score = matcher.match(f"{action.title} {action.slash}")
            if score > 0:
                yield Hit(
                    score,
                    matcher.highlight(action.title),
                    self._run(action),
                    help=described(action),
                )


def parse_slash(text: str) -> tuple[str, str] | None:
    """("open", "PATH") from "/open PATH"; None when the text is not a command ("//x" is the text
    "/x").
    """
    if not text.startswith("/") or text.startswith("//") or "\n" in text.strip():
        return None
    name, _, argument = text[1:].strip().partition(" ")
    return name.lower(), argument.strip()


def suggestions(text: str) -> list[Action]:
    """Commands that begin like what is typed."""
    if not text.startswith("/") or " " in text or "\n" in text or text.startswith("//"):
        return []
    return [action for slash, action in BY_SLASH.items() if slash.startswith(text[1:].lower())]


# What people type besides the names and labels of the knobs.
SHORT = {
    "temp": "temperature", "t": "temperature", "topk": "top_k", "topp": "top_p", "minp": "min_p",
    "max": "max_new_tokens", "max tokens": "max_new_tokens", "penalty": "repetition_penalty",
}  # fmt: skip


def turned(
    params: SamplingParams, argument: str, presets: Mapping[str, SamplingParams]
) -> SamplingParams:
    """The knobs after "/set KNOB VALUE" or "/set preset NAME". Raises UsageError.

    A knob may be called as the panel labels it; "off" is its neutral value.
    """
    said = argument.replace("=", " ").strip()
    names = {"preset": "preset"}
    for row in KNOBS:
        names |= {row.name: row.name, row.label.strip(): row.name}
    names |= SHORT
    # The longest name first: "max new 20" is the knob "max new" and the value 20.
    for name in sorted(names, key=len, reverse=True):
        if re.match(rf"{_spoken(name)}(\s|$)", _spoken(said)):
            break
    else:
        known = ", ".join(row.name for row in KNOBS)
        raise UsageError(f"there is no knob {said!r}", "", f"There are {known}, preset")
    value, name = said[len(name) :].strip(), names[name]
    if name == "preset":
        found = [preset for preset in presets if preset.casefold() == value.casefold()]
        if not found:
            raise UsageError(f"there is no preset {value!r}", "", f"There are {', '.join(presets)}")
        return presets[found[0]]
    return params.with_(**{name: _value(knob(name), value)})


def _spoken(text: str) -> str:
    """Case, dashes and underscores aside."""
    return re.sub(r"[-_]", " ", text.casefold())


def _value(row: Knob, typed: str) -> object:
    if typed in ("off", "none", "neutral", "random"):
        if row.kind == "seed":
            return None
        if row.neutral is not None and typed != "random":
            return row.neutral
    if row.kind == "texts":
        return tuple(text.replace("\\n", "\n") for text in typed.split())
    try:
        return float(typed) if row.kind == "float" else int(typed)
    except ValueError:
        number = "a number" if row.kind == "float" else "a whole number"
        raise UsageError(f"{row.name} takes {number}, not {typed!r}") from None
