"""The chat screen: transcript, prompt, sampling panel and status rows around one conversation.

It lays widgets out, turns keys and slash commands into calls of the controller, and shows what the
controller says.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Protocol

from textual import events as textual_events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.content import Content
from textual.screen import Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Static

from tui_chat.checkpoint.info import Run
from tui_chat.conversation import Conversation, Message, Mode, new_id
from tui_chat.engine import events as ev
from tui_chat.errors import TuiChatError
from tui_chat.sampling import PRESETS, SamplingParams
from tui_chat.settings import user_path
from tui_chat.tui import lines
from tui_chat.tui.actions import ACTIONS, BY_SLASH, short_key
from tui_chat.tui.chat import Chat, Keeper
from tui_chat.tui.clipboard import OSC52, copy
from tui_chat.tui.commands import parse_slash, suggestions, turned
from tui_chat.tui.screens.chats import ChatShelf, ChatsScreen
from tui_chat.tui.screens.dialogs import ConfirmDialog, LineDialog, TextDialog
from tui_chat.tui.screens.help import HelpScreen
from tui_chat.tui.screens.picker import CheckpointPicker
from tui_chat.tui.transcript import WELCOME, block_of, blocks_of, receipt_line
from tui_chat.tui.widgets.conversation_view import Block, ConversationView
from tui_chat.tui.widgets.prompt import Prompt
from tui_chat.tui.widgets.rail import Rail
from tui_chat.tui.widgets.row_list import RowList
from tui_chat.tui.widgets.sampling_panel import SamplingPanel
from tui_chat.tui.widgets.status import HintBar, StatusBar, TitleBar

# The status rows follow a running reply this often, in seconds.
STATUS_EVERY = 0.1
COUNT_AFTER = 0.15
SAID_FOR = 5.0


HINTS = [(short_key(a.keys[0]), a.footer) for a in ACTIONS if a.footer and a.keys]
BROWSING = [
    ("j k", "move"), ("r", "retry"), ("y", "copy"), ("[ ]", "versions"), (".", "continue"),
    ("Esc", "to the prompt"), ("F1", "help"),
]  # fmt: skip


class Services(Protocol):
    """What the screen needs of the program around it."""

    def scan(self) -> Iterator[Run]: ...
    def roots(self) -> tuple[str, ...]: ...
    def places(self) -> list[tuple[str, str]]: ...
    def load_chat(self, chat_id: str) -> tuple[Conversation, SamplingParams | None]: ...
    def prompt_history(self) -> Sequence[str]: ...
    def remember(
        self,
        *,
        checkpoint: str | None = None,
        chat: str | None = None,
        panel_open: bool | None = None,
    ) -> None: ...


class ChatScreen(Screen[None]):
    """One conversation with one checkpoint."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(
                key,
                action.id,
                action.title,
                id=f"chat.{action.id}",
                show=False,
                priority=key != "escape",
            )
            for action in ACTIONS
            for key in [",".join(action.keys)]
            if key
        ),
        Binding("ctrl+c", "copy_or_stop", show=False, priority=True),
        Binding("pageup", "scroll_page(-1)", show=False, priority=True),
        Binding("pagedown", "scroll_page(1)", show=False, priority=True),
        Binding("shift+up", "scroll_line(-1)", show=False, priority=True),
        Binding("shift+down", "scroll_line(1)", show=False, priority=True),
        Binding("ctrl+home", "scroll_edge(0)", show=False, priority=True),
        Binding("ctrl+end", "scroll_edge(1)", show=False, priority=True),
        # Single letters reach the screen only while the transcript has the focus.
        Binding("r", "retry_message", show=False),
        Binding("y,c", "copy_message", show=False),
        Binding("full_stop", "continue_reply", show=False),
        Binding("left_square_bracket,left", "version(-1)", show=False),
        Binding("right_square_bracket,right", "version(1)", show=False),
        Binding("question_mark", "help", show=False),
    ]

    DEFAULT_CSS = """
    ChatScreen { layout: vertical; background: $background; }
    ChatScreen #body { height: 1fr; layout: horizontal; }
    ChatScreen #transcript { width: 1fr; height: 1fr; }
    ChatScreen Rail { display: none; }
    ChatScreen.-huge Rail { display: block; }
    ChatScreen SamplingPanel { display: none; }
    ChatScreen.-panel SamplingPanel { display: block; }
    ChatScreen.-wide SamplingPanel, ChatScreen.-huge SamplingPanel { width: 38; height: 1fr; }
    ChatScreen.-narrow #body { layout: vertical; }
    ChatScreen.-narrow SamplingPanel { width: 1fr; height: auto; max-height: 13; }
    ChatScreen #suggest {
        display: none; height: auto; max-height: 5; padding: 0 2; color: $chat-muted;
    }
    ChatScreen ToastRack { dock: top; align-vertical: top; margin: 1 0; }
    ChatScreen.-narrow Prompt { max-height: 7; }
    """

    def __init__(
        self,
        services: Services,
        shelf: ChatShelf,
        keeper: Keeper,
        send: Callable[[ev.Request], None],
        *,
        params: SamplingParams | None = None,
        presets: Mapping[str, SamplingParams] = PRESETS,
        system: str = "",
        panel_open: bool = True,
        in_screen: Callable[[Callable[[], None]], None],
    ) -> None:
        super().__init__()
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide"), (160, "-huge")]
        self._services = services
        self._shelf = shelf
        self.chat = Chat(self, send, keeper, in_screen=in_screen, params=params)
        self.chat.conversation.system = system
        self._presets = presets
        self._draft_tokens = 0
        self._counting: Timer | None = None
        # Where there is room; else only as long as it is asked for.
        self._panel_open = panel_open
        self._sheet_open = False
        self._error = ""
        self._said = ("", 0.0)  # a sentence, and until when it stands in the status row
        self._unread = 0

    # ---- layout

    def compose(self) -> ComposeResult:
        yield TitleBar(id="title")
        with Container(id="body"):
            yield Rail(self._services.scan, self._shelf.chats, id="rail")
            yield ConversationView(id="transcript")
            yield SamplingPanel(self.chat.params, presets=self._presets, id="sampling")
        yield Static("", id="suggest", markup=False)
        yield StatusBar(id="status")
        yield Prompt(id="prompt")
        yield HintBar(HINTS, id="hints")

    def on_mount(self) -> None:
        self.prompt.set_history(self._services.prompt_history())
        self.prompt.focus()
        self.set_interval(STATUS_EVERY, self._tick)
        self.conversation_changed()
        self._show_panel()

    def on_resize(self, event: textual_events.Resize) -> None:
        self._show_panel(event.size.width)
        self.call_after_refresh(self._show_rail)

    def _show_panel(self, width: int | None = None) -> None:
        wide = (width or self.size.width) >= 100
        self.set_class(self._panel_open if wide else self._sheet_open, "-panel")

    @property
    def prompt(self) -> Prompt:
        return self.query_one("#prompt", Prompt)

    @property
    def transcript(self) -> ConversationView:
        return self.query_one("#transcript", ConversationView)

    @property
    def panel(self) -> SamplingPanel:
        return self.query_one("#sampling", SamplingPanel)

    # ---- what the controller says (ChatView)

    def conversation_changed(self) -> None:
        if not self.is_attached:
            return
        self._error = ""
        self.chat.sync()
        conversation = self.chat.conversation
        running = self.chat.reply.message_id if self.chat.reply else ""
        blocks = list(blocks_of(conversation, window=self.chat.window, running=running))
        if not len(conversation):
            blocks.append(Block(id=WELCOME, kind="note", text=lines.welcome(self.chat)))
        self.transcript.set_blocks(blocks)
        self.transcript.set_writing(running or None)
        self.call_after_refresh(self._show_rail)

    def message_added(self, message: Message) -> None:
        self._error = ""
        if len(self.chat.conversation) == 1:  # in place of the welcome
            self.conversation_changed()
            return
        running = self.chat.reply is not None and message.id == self.chat.reply.message_id
        self.transcript.append_block(block_of(self.chat.conversation, message, running=running))
        if message.role == "user":
            self.transcript.follow()

    def text_added(self, message_id: str, text: str) -> None:
        self.transcript.append_text(message_id, text)
        self.transcript.set_writing(message_id)

    def message_changed(self, message: Message) -> None:
        writing = self.chat.reply.message_id if self.chat.reply else ""
        if message.id != writing:
            self.transcript.set_writing(writing or None)
        if message.id not in self.transcript:
            return  # another version has taken its place meanwhile
        block = block_of(self.chat.conversation, message)
        # A raw block may be shown from the middle, where the window begins: its text is there.
        if self.chat.conversation.mode == "raw" and isinstance(self.chat.window, int):
            self.conversation_changed()
        else:
            self.transcript.update_block(
                message.id, header=block.header, detail=block.detail, text=block.text
            )

    def give_back(self, text: str) -> None:
        self.prompt.give_back(text)

    def say(self, text: str, *, error: bool = False) -> None:
        text = text[:1].upper() + text[1:] if text[:1].isalpha() else text
        if error:
            self._error = text
            self.transcript.append_block(Block(id=new_id(), kind="error", text=text))
        elif len(text) <= self.size.width - 4:
            self._said = (text, time.monotonic() + SAID_FOR)
            self._tick()
        else:
            self.app.clear_notifications()  # the newest sentence is enough
            self.notify(text, markup=False, timeout=SAID_FOR)

    def _show_rail(self) -> None:
        if self.has_class("-huge"):
            path = self.chat.loaded.info.path if self.chat.loaded else ""
            self.query_one(Rail).show(checkpoint=path, chat=self.chat.conversation.id)

    def on_rail_checkpoint_chosen(self, event: Rail.CheckpointChosen) -> None:
        event.stop()
        self.chat.load(event.path)
        self.prompt.focus()

    def on_rail_chat_chosen(self, event: Rail.ChatChosen) -> None:
        event.stop()
        self.open_chat(event.chat_id)
        self.prompt.focus()

    # ---- status rows

    def _tick(self) -> None:
        if not self.is_current:
            return
        self.query_one("#title", TitleBar).show(lines.title(self.chat))
        self.query_one("#status", StatusBar).show(
            lines.status(
                self.chat,
                said=self._said[0] if time.monotonic() < self._said[1] else "",
                unread=self._unread,
                error=self._error,
                receipt=self._shown_receipt(),
            )
        )
        count = f"{self._draft_tokens} tok · " if self.prompt.text and self.chat.loaded else ""
        browsing = self.transcript.has_focus
        self.query_one("#hints", HintBar).show(BROWSING if browsing else HINTS)
        self.prompt.hint(
            self._placeholder(),
            count + ("Esc stops" if self.chat.reply else "Enter sends · ^J new line"),
        )

    def _shown_receipt(self) -> str:
        """What made the reply under the block cursor; in raw mode, whose text has no headers, else
        the last one.
        """
        conversation = self.chat.conversation
        browsing = self.transcript.has_focus
        at = self.transcript.cursor if browsing else None
        if at is None and conversation.mode == "raw" and self.chat.reply is None:
            at = conversation.leaf
        if at is None or at not in conversation:
            return ""
        versions = conversation.siblings(at)
        place = f"‹{versions.index(at) + 1}/{len(versions)}› " if len(versions) > 1 else ""
        return place + receipt_line(conversation[at].receipt, short=not browsing)

    def _placeholder(self) -> str:
        if self.chat.conversation.mode == "chat":
            return "Write a message"
        if not len(self.chat.conversation):
            return "Write a beginning"
        return "Enter goes on; or write what comes next"

    # ---- messages of the widgets

    def on_prompt_sent(self, event: Prompt.Sent) -> None:
        event.stop()
        command = parse_slash(event.text)
        if command == ("", ""):
            self.action_palette()
        elif command is not None:
            self._run_slash(*command)
        else:
            self._say(event.text)

    def _say(self, typed: str) -> None:
        text = typed[1:] if typed.startswith("//") else typed
        if self.chat.conversation.mode == "chat" and not (text := text.strip("\n")).strip():
            return
        if not self.chat.submit(text):
            self.prompt.give_back(typed)
            return
        if text:
            self._services.remember(chat=self.chat.conversation.id)
            self.prompt.remember(text)
        self.transcript.follow()

    def on_prompt_edited(self, event: Prompt.Edited) -> None:
        event.stop()
        found = suggestions(event.text)
        box = self.query_one("#suggest", Static)
        box.display = bool(found)
        if found:
            box.update(Content("  ".join(f"/{a.slash}" for a in found)))
        if self._counting:
            self._counting.stop()
        if event.text:
            self._counting = self.set_timer(COUNT_AFTER, lambda: self.chat.count(self.prompt.text))
        else:
            self._draft_tokens = 0

    def on_prompt_complete_requested(self, event: Prompt.CompleteRequested) -> None:
        event.stop()
        found = suggestions(event.text)
        if found:
            self.prompt.replace_text(f"/{found[0].slash}" + (" " if found[0].argument else ""))

    def on_sampling_panel_changed(self, event: SamplingPanel.Changed) -> None:
        event.stop()
        self.chat.set_params(event.params)

    def on_conversation_view_unread_changed(self, event: ConversationView.UnreadChanged) -> None:
        event.stop()
        self._unread = event.rows

    def handle(self, event: ev.Event) -> None:
        """One event of the worker."""
        if isinstance(event, ev.Counted) and event.request_id == "draft":
            self._draft_tokens = event.tokens
            return
        before = self.chat.loaded
        self.chat.handle(event)
        if isinstance(event, ev.Loaded) and self.chat.loaded is not before:
            self._services.remember(checkpoint=event.info.path)
            self._show_rail()
            if not len(self.chat.conversation):
                self.conversation_changed()

    # ---- actions (names follow the table)

    def _run_slash(self, name: str, argument: str) -> None:
        action = BY_SLASH.get(name)
        if action is None:
            self.prompt.give_back(f"/{name} {argument}".rstrip())
            self.say(
                f"There is no command /{name}. To say a text that begins so, double the stroke: //"
            )
            return
        if argument and not action.argument:
            self.prompt.give_back(f"/{name} {argument}")
            self.say(f"/{name} takes nothing after it.")
            return
        method = getattr(self, f"action_{action.id}")
        method(argument.strip("'\"")) if action.argument else method()

    def action_open_checkpoint(self, path: str = "") -> None:
        if path:
            self.chat.load(str(user_path(path)))
            return

        def chosen(answer: str | None) -> None:
            if answer:
                self.chat.load(answer)
            self.prompt.focus()

        current = self.chat.loaded.info.path if self.chat.loaded else ""
        self.app.push_screen(
            CheckpointPicker(self._services.scan, current=current, roots=self._services.roots()),
            chosen,
        )

    def action_sampling(self) -> None:
        """Show and focus the panel; again, from within it: hide it or go back to the prompt."""
        show = not (self.has_class("-panel") and self.panel.has_focus_within)
        if self.has_class("-narrow"):
            self._sheet_open = show
        else:
            self._panel_open = show
            self._services.remember(panel_open=show)
        self._show_panel()
        if show:
            self.call_after_refresh(self.panel.focus)
        else:
            self.prompt.focus()

    def action_set_knob(self, argument: str) -> None:
        try:
            params = turned(self.chat.params, argument, self.panel.presets)
        except TuiChatError as error:
            self.prompt.give_back(f"/set {argument}")
            self.say(str(error))
            return
        self.panel.params = params
        self.chat.set_params(params)

    def action_retry(self) -> None:
        self.chat.retry()

    def action_retry_message(self) -> None:
        """Retry the reply under the block cursor."""
        block = self.transcript.cursor
        known = block is not None and block in self.chat.conversation
        self.chat.retry(block if known else None)

    def action_continue_reply(self) -> None:
        self.chat.continue_reply()

    def action_new_chat(self) -> None:
        self.chat.new()
        self.prompt.focus()

    def action_toggle_mode(self, argument: str = "") -> None:
        now = self.chat.conversation.mode
        if argument not in ("", "chat", "raw"):
            self.say("There are two modes: /mode chat and /mode raw.")
            return
        mode: Mode = (
            "raw" if (argument or ("raw" if now == "chat" else "chat")) == "raw" else "chat"
        )
        if mode == now:
            return
        if len(self.chat.conversation):
            self.say(f"A new {mode} conversation; the other one is kept (Ctrl+F).")
        self.chat.set_mode(mode)

    def action_chats(self) -> None:
        def chosen(chat_id: str | None) -> None:
            here = self.chat.conversation
            here.title = self._shelf.renamed.pop(here.id, here.title)
            if self._shelf.is_deleted(here.id):
                self.chat.new()
            if chat_id:
                self.open_chat(chat_id)
            self.prompt.focus()

        self.app.push_screen(ChatsScreen(self._shelf, current=self.chat.conversation.id), chosen)

    def open_chat(self, chat_id: str) -> None:
        """Show a saved chat."""
        reply = self.chat.reply
        if chat_id == self.chat.conversation.id:
            return
        if reply is not None and reply.conversation.id == chat_id:
            self.chat.open(reply.conversation)  # still being written: the disk lags behind
        else:
            try:
                conversation, params = self._services.load_chat(chat_id)
            except TuiChatError as error:
                self.say(str(error), error=True)
                return
            self.chat.open(conversation)
            if params is not None:
                self.panel.params = params
                self.chat.set_params(params)
        self._services.remember(chat=chat_id)

    def action_system_prompt(self, argument: str = "") -> None:
        def given(text: str | None) -> None:
            if text is not None:
                self.chat.set_system(text.strip())
                self.conversation_changed()
            self.prompt.focus()

        if argument:
            given(argument)
            return
        hint = (
            "Raw mode does not use it; chat mode (Ctrl+T) does."
            if self.chat.conversation.mode == "raw"
            else "Stands before every turn, also when the context is full; acts from the next one."
        )
        self.app.push_screen(
            TextDialog("System prompt", self.chat.conversation.system, hint), given
        )

    def action_stop(self) -> None:
        """Stop what runs; else close the panel where it covers the transcript; else back to the
        prompt.
        """
        if self.chat.reply is not None and self.chat.stop():
            return
        if self.chat.loading:
            self.chat.cancel_load()
        elif self._sheet_open:
            self._sheet_open = False
            self._show_panel()
        self.prompt.focus()

    def action_copy_or_stop(self) -> None:
        selected = self.get_selected_text() or self.prompt.selected_text
        if selected:
            self._copy(selected)
        elif not self.chat.stop():
            self.say("Ctrl+Q quits.")

    def action_copy_message(self) -> None:
        """Copy the message under the block cursor."""
        block = self.transcript.cursor
        if block is not None and block in self.chat.conversation:
            self.chat.sync()
            self._copy(self.chat.conversation[block].text)

    def _copy(self, text: str) -> None:
        async def copied() -> None:
            way = await asyncio.to_thread(copy, text)
            if not way:
                self.app.copy_to_clipboard(text)
            self.say(way or OSC52)

        self.run_worker(copied())

    def action_version(self, by: int) -> None:
        """Go to the version of a message before or after the one under the block cursor."""
        block = self.transcript.cursor
        if block is None or block not in self.chat.conversation or self.chat.reply is not None:
            return
        versions = self.chat.conversation.siblings(block)
        at = versions.index(block) + by
        if 0 <= at < len(versions):
            self.chat.select(versions[at])
            self.transcript.select_block(versions[at])

    def action_copy_reply(self) -> None:
        self.chat.sync()
        replies = [m for m in self.chat.conversation.path() if m.role == "assistant"]
        if replies:
            self._copy(replies[-1].text)
        else:
            self.say("There is no reply to copy yet.")

    def action_rename_chat(self, argument: str = "") -> None:
        if argument:
            self.chat.rename(argument)
            return

        def given(title: str | None) -> None:
            if title:
                self.chat.rename(title)

        self.app.push_screen(LineDialog("Rename this chat", self.chat.conversation.title), given)

    def action_delete_chat(self) -> None:
        if not len(self.chat.conversation):
            self.say("This chat is empty.")
            return
        gone = self.chat.conversation.id

        def answered(yes: bool | None) -> None:
            if yes:
                self.chat.new()
                self._shelf.delete(gone)
                self.say("Deleted. /undelete brings it back.")

        self.app.push_screen(
            ConfirmDialog("Delete this chat?", yes="deletes it", no="keeps it"), answered
        )

    def action_undelete_chat(self) -> None:
        back = self._shelf.undelete()
        if back is None:
            self.say("Nothing was deleted since the program started.")
            return
        chat_id, done = back
        done.add_done_callback(lambda _: self.call_later(self.open_chat, chat_id))

    def action_theme(self, argument: str = "") -> None:
        if not argument:
            self.app.action_change_theme()
        elif argument in self.app.available_themes:
            self.app.theme = argument
        else:
            self.say(f"There is no theme {argument!r}.")

    def action_next_pane(self) -> None:
        self._focus_pane(1)

    def action_previous_pane(self) -> None:
        self._focus_pane(-1)

    def _focus_pane(self, by: int) -> None:
        panes: list[Widget] = [self.prompt, self.transcript]
        if self.has_class("-huge"):
            panes += self.query(Rail).first().query(RowList)
        if self.has_class("-panel"):
            panes.append(self.panel)
        at = next((i for i, pane in enumerate(panes) if pane.has_focus_within), 0)
        panes[(at + by) % len(panes)].focus()

    def action_palette(self) -> None:
        self.app.action_command_palette()

    def action_help(self) -> None:
        self.app.push_screen(HelpScreen(self._services.places()))

    def action_repaint(self) -> None:
        self.app.refresh(repaint=True, layout=True)

    def action_quit(self) -> None:
        if self.chat.reply is not None and not self.chat.waiting:

            def answered(yes: bool | None) -> None:
                if yes:
                    self.app.exit(0)

            question = "A reply is being written. What is there is kept. Quit?"
            self.app.push_screen(ConfirmDialog(question, yes="quits", no="goes on"), answered)
        else:
            self.app.exit(0)

    def action_scroll_page(self, by: int) -> None:
        (self.transcript.action_page_down if by > 0 else self.transcript.action_page_up)()

    def action_scroll_line(self, by: int) -> None:
        (self.transcript.scroll_down if by > 0 else self.transcript.scroll_up)(animate=False)

    def action_scroll_edge(self, end: int) -> None:
        if end:
            self.transcript.follow()
        else:
            self.transcript.scroll_home(animate=False)
