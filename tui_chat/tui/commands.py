"""The command palette and the slash commands, both from the table of actions."""

from __future__ import annotations

from functools import partial

from textual.command import DiscoveryHit, Hit, Hits, Provider

from tui_chat.tui.actions import ACTIONS, BY_SLASH, Action, key_name


def described(action: Action) -> str:
    """Keys and slash command of an action, for the second line of the palette."""
    ways = [key_name(key) for key in action.keys]
    if action.slash:
        ways.append(f"/{action.slash} {action.argument}".strip())
    return "   ".join(ways)


class ActionCommands(Provider):
    """Every action of the table whose argument may be left out."""

    def _run(self, action: Action) -> object:
        return partial(self.screen.run_action, f"screen.{action.id}")

    def _offered(self) -> list[Action]:
        return [
            a
            for a in ACTIONS
            if not (a.argument and not a.argument.startswith("[")) and a.id != "palette"
        ]

    async def discover(self) -> Hits:
        for action in self._offered():
            yield DiscoveryHit(action.title, self._run(action), help=described(action))  # type: ignore[arg-type]

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
                )  # type: ignore[arg-type]


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
