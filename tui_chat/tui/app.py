"""The app: builds settings, store and worker, hands them to the chat screen, and carries events
between them.

Nothing here imports torch: the first frame is painted before the worker does.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any, ClassVar

from textual.app import App, SystemCommand
from textual.filter import LineFilter
from textual.screen import Screen

from tui_chat import settings as settings_module
from tui_chat.checkpoint.info import CheckpointInfo, Run
from tui_chat.conversation import Conversation
from tui_chat.engine import events as ev
from tui_chat.engine.worker import Worker
from tui_chat.errors import SessionError, TuiChatError
from tui_chat.sampling import PRESETS, SamplingParams
from tui_chat.sessions.store import Store
from tui_chat.sessions.writer import SessionWriter
from tui_chat.settings import Paths, bundled, load_state, save_state, user_path
from tui_chat.tui import terminal
from tui_chat.tui.actions import ACTIONS
from tui_chat.tui.commands import ActionCommands
from tui_chat.tui.mailbox import Mailbox
from tui_chat.tui.rows import ChatRow
from tui_chat.tui.screens.chat import ChatScreen
from tui_chat.tui.theme import DEFAULT_THEME, LIGHT_THEME, load_themes, token_defaults

log = logging.getLogger(__name__)


class Program:
    """What lives as long as the process: places, settings, saved chats. The screen's `Services` and
    `ChatShelf`.
    """

    def __init__(self, paths: Paths, given: Iterable[str] = ()) -> None:
        self.paths = paths
        self.given = tuple(given)
        self.theme_names: tuple[str, ...] = ()  # ours and the user's
        self.renamed: dict[str, str] = {}
        self.opened: list[str] = []  # checkpoints opened since the start
        self.deleted: list[str] = []  # ids of chats deleted since the start, newest last
        self.settings, self.notices = settings_module.load(paths)
        self.state = load_state(paths)
        self.store = Store.open(paths.database)
        if self.store.notice:
            self.notices.append(self.store.notice)
        self.on_save_error: Callable[[SessionError | None], None] = lambda error: None
        self.keeper = SessionWriter(self.store, lambda error: self.on_save_error(error))

    def close(self) -> bool:
        """Write what waits. False when something could not be saved."""
        save_state(self.paths, self.state)
        saved = self.keeper.close()
        self.store.close()
        return saved

    # ---- Services

    def roots(self) -> tuple[str, ...]:
        """Where the picker looks, without repeats: what was named, the user's roots, ./checkpoints,
        the bundled demo.
        """
        named = [user_path(path) for path in (*self.opened, *self.given, *self.settings.roots)]
        if self.state.last_checkpoint:
            named.append(Path(self.state.last_checkpoint).parent)
        named += [Path("checkpoints"), bundled("checkpoints")]
        roots: dict[str, None] = {}
        too_wide = (Path("/"), Path.home())  # whoever keeps a checkpoint there named it by itself
        for path in named:
            with contextlib.suppress(OSError, ValueError):
                full = path.resolve()
                folder = full if full.is_dir() else full.parent
                if full.is_dir() or (full.is_file() and folder not in too_wide):
                    roots[str(folder)] = None
        # A root inside another one is found with it.
        return tuple(
            r for r in roots if not any(r != o and Path(r).is_relative_to(o) for o in roots)
        )

    def scan(self) -> Iterator[Run]:
        from tui_chat.checkpoint import catalog

        return catalog.scan(self.roots())

    def look_in(self, folder: str) -> None:
        """Have the picker look there first."""
        self.opened.insert(0, folder)

    def describe(self, path: str) -> CheckpointInfo:
        from tui_chat.checkpoint import catalog

        return catalog.describe(path)

    def places(self) -> list[tuple[str, str]]:
        return [
            ("settings", str(self.paths.settings_file)),
            ("themes", str(self.paths.themes)),
            ("chats", str(self.paths.database)),
            ("tokenizers", str(self.paths.data / "tokenizers")),
            ("log", str(self.paths.log)),
        ]

    def load_chat(self, chat_id: str) -> tuple[Conversation, SamplingParams | None]:
        self.keeper.flush(1.0)  # what was said a moment ago belongs to it
        conversation = self.store.load(chat_id)
        sampling = self.store.meta(chat_id).sampling
        params: SamplingParams | None = None
        if sampling:
            with contextlib.suppress(TuiChatError):
                params = SamplingParams().with_(**sampling)
        return conversation, params

    def themes(self) -> Sequence[str]:
        return self.theme_names

    def prompt_history(self) -> Sequence[str]:
        try:
            return self.store.prompts()
        except SessionError:
            return ()

    def remember(
        self,
        *,
        checkpoint: str | None = None,
        chat: str | None = None,
        theme: str | None = None,
        panel_open: bool | None = None,
    ) -> None:
        """Note how the program is left, at once: it may be killed."""
        if checkpoint is not None and checkpoint not in self.opened:
            self.opened.append(checkpoint)
        changes = {
            "last_checkpoint": checkpoint,
            "last_session": chat,
            "theme": theme,
            "panel_open": panel_open,
        }
        state = replace(self.state, **{k: v for k, v in changes.items() if v is not None})  # type: ignore[arg-type]
        if state != self.state:
            self.state = state
            save_state(self.paths, state)

    # ---- ChatShelf

    def chats(self, limit: int | None = None) -> list[ChatRow]:
        """The latest chats; none, and a sentence, when they cannot be read."""
        try:
            rows = self.store.list(limit=limit)
        except SessionError as error:
            self.on_save_error(error)
            return []
        return [
            ChatRow(
                id=row.id,
                title=row.title,
                preview=row.preview,
                updated=row.updated,
                messages=row.messages,
                checkpoint=Path(row.checkpoint).parent.name if row.checkpoint else "",
                mode=row.mode,
            )
            for row in rows
        ]

    # Through the writer: after whatever is still to be written, and never waiting for the disk.

    def rename(self, chat_id: str, title: str) -> Future[None]:
        self.renamed[chat_id] = title
        return self.keeper.rename(chat_id, title)

    def delete(self, chat_id: str) -> Future[None]:
        self.deleted.append(chat_id)
        return self.keeper.delete(chat_id)

    def undelete(self) -> tuple[str, Future[None]] | None:
        if not self.deleted:
            return None
        chat_id = self.deleted.pop()
        return chat_id, self.keeper.undelete(chat_id)

    def is_deleted(self, chat_id: str) -> bool:
        return chat_id in self.deleted

    # ---- what to start with

    def first_checkpoint(self) -> str:
        """The path named, else the last one used if it is still there, else the bundled demo."""
        if self.given:
            return self.given[0]
        last = self.state.last_checkpoint
        if last and os.path.exists(last):
            return last
        demo = bundled("checkpoints") / "demo-chat"
        return str(demo) if demo.is_dir() else ""

    def first_chat(self) -> str:
        """The chat that was open last; with a path named, only if it was held with that."""
        chat = self.state.last_session
        try:
            if not chat or all(row.id != chat for row in self.store.list()):
                return ""
            if self.given:
                used = Path(self.store.meta(chat).checkpoint or "-").resolve()
                named = user_path(self.given[0]).resolve()
                return chat if named in (used, used.parent) else ""
        except (SessionError, OSError):
            return ""
        return chat


class TuiChat(App[int]):
    """The whole program in a terminal."""

    TITLE = "tui-chat"
    COMMANDS: ClassVar[set[Any]] = {ActionCommands}
    ENABLE_COMMAND_PALETTE = True
    CSS = """
    Toast { max-width: 76; }
    CommandPalette > Vertical { max-width: 96; }
    """

    def __init__(
        self,
        program: Program,
        options: ev.LoadOptions | None = None,
        *,
        draft: str = "",
        lookup: bool = False,
    ) -> None:
        super().__init__()
        self.program = program
        self._options = options or ev.LoadOptions()
        self._draft, self._lookup = draft and str(user_path(draft)), lookup
        self.mailbox = Mailbox(self._deliver)
        self.worker = Worker(self.mailbox.put)
        self._ui_thread = threading.get_ident()
        self._started = False
        self._told = ""  # the last error of saving
        self.chat_screen = ChatScreen(
            program,
            program,
            program.keeper,
            self.worker.send,
            params=program.settings.sampling,
            presets={**PRESETS, **program.settings.presets},
            system=program.settings.system,
            panel_open=program.state.panel_open,
            in_screen=self._in_screen,
        )

    def _handle_exception(self, error: Exception) -> None:
        """Textual's edge: what nobody caught is in the log too. While the app is ending anyway, a
        widget that is gone is no reason to end in another way.
        """
        log.error("an exception reached the app", exc_info=error)
        if not self._exit:
            super()._handle_exception(error)

    # ---- theme and text safety

    def get_theme_variable_defaults(self) -> dict[str, str]:
        return token_defaults(self.current_theme)

    async def action_quit(self) -> None:
        """From anywhere; asks while a reply is being written."""
        self.chat_screen.action_quit()

    def action_command_palette(self) -> None:
        """Its commands are those of the chat screen: nothing to choose over a dialog."""
        if self.screen is self.chat_screen:
            super().action_command_palette()

    def get_line_filters(self) -> list[LineFilter]:
        return [*super().get_line_filters(), terminal.ControlFilter()]

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """None of Textual's own: the palette shows our table of actions."""
        return ()

    def watch_theme(self, name: str) -> None:
        if self._started:
            self.program.remember(theme=name)

    def _set_up_themes(self) -> None:
        themes, notices = load_themes(bundled("themes"), self.program.paths.themes)
        for theme in themes:
            self.register_theme(theme)
        self.program.theme_names = tuple(theme.name for theme in themes)
        wanted = self.program.settings.theme
        if wanted == "auto":
            wanted = self.program.state.theme or (
                DEFAULT_THEME if terminal.is_dark() else LIGHT_THEME
            )
        if wanted not in self.available_themes:
            notices.append(f"There is no theme {wanted!r}: {DEFAULT_THEME} instead.")
            wanted = DEFAULT_THEME
        self.program.notices += notices
        if wanted in self.available_themes:
            self.theme = wanted

    def _set_up_keys(self) -> None:
        """The keys of the settings; what cannot be used costs one notice."""
        known = {f"chat.{action.id}" for action in ACTIONS}
        keymap: dict[str, str] = {}
        for name, keys in self.program.settings.keymap.items():
            binding = name if "." in name else f"chat.{name}"
            if binding not in known:
                self.program.notices.append(
                    f"settings.toml: there is no action {name!r} for a key."
                )
            elif keys in ("enter", "tab"):
                self.program.notices.append(f"settings.toml: {keys} belongs to the prompt.")
            else:
                keymap[binding] = keys
        self.set_keymap(keymap)

    # ---- life

    def on_mount(self) -> None:
        terminal.exit_on_signals(self)
        self._set_up_keys()
        self.program.on_save_error = lambda error: self._in_screen(lambda: self._saving(error))
        self._set_up_themes()
        self.push_screen(self.chat_screen)
        self.call_after_refresh(self._start)

    def _start(self) -> None:
        """After the first frame: the worker, the checkpoint, the chat that was open."""
        gc.freeze()
        self._started = True
        self.mailbox.start(self)
        self.worker.start()
        if self.program.notices:
            self.notify(
                "\n".join(self.program.notices), severity="warning", markup=False, timeout=12
            )
        if chat := self.program.first_chat():
            self.chat_screen.open_chat(chat)
        if path := self.program.first_checkpoint():
            self.chat_screen.chat.load(path, self._options)
        if self._draft or self._lookup:
            draft = self.chat_screen.chat.draft
            draft.choose(self._draft, lookup=self._lookup, options=self._options)

    def _deliver(self, events: list[ev.Event]) -> None:
        for event in events:
            self.chat_screen.handle(event)

    def _in_screen(self, call: Callable[[], None]) -> None:
        """Run `call` in the thread of the screen, at once when we are in it. Never waits."""
        if threading.get_ident() == self._ui_thread:
            call()
        else:
            with contextlib.suppress(RuntimeError):  # the loop is gone: so is the screen
                self.call_later(call)

    def _saving(self, error: SessionError | None) -> None:
        if error is not None:
            if str(error) != self._told:  # once is enough
                self._told = str(error)
                self.chat_screen.say(self._told, error=True)
        else:
            self._told = ""
            self.notify("Saving works again; nothing is lost.", markup=False)

    def close(self) -> None:
        """After the terminal is restored: stop the model, write what waits."""
        self.chat_screen.chat.leave_screen()
        self.worker.close(timeout=2.0)
        for event in self.mailbox.drain_all():
            self.chat_screen.chat.handle(event)


def _log_to(path: Path) -> None:
    """Send what the program has to say of itself to a file of bounded size."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = RotatingFileHandler(path, maxBytes=1_000_000, backupCount=1, encoding="utf-8")
    except OSError:
        return  # a log is no reason not to start
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("tui_chat")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False


def run(
    paths: Iterable[str] = (),
    options: ev.LoadOptions | None = None,
    *,
    draft: str = "",
    lookup: bool = False,
) -> int:
    """Open the app on the given checkpoints, with who is to draft. Returns the exit status."""
    terminal.harden()
    _log_to(Paths.find().log)
    program = Program(Paths.find(), paths)
    status = 1
    try:
        with terminal.guarded(program.paths.log):
            app = TuiChat(program, options, draft=draft, lookup=lookup)
            try:
                app.run(mouse=program.settings.mouse)
                status = app.return_code or app.return_value or 0
            finally:
                app.close()
    finally:
        saved = program.close()
    if not saved:
        print("tui-chat: the last words of this chat could not be saved.", file=sys.stderr)
    return status if saved else status or 1
