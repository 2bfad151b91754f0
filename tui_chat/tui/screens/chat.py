"""The chat screen: transcript, prompt, sampling panel and status rows around one conversation.

It lays widgets out, turns keys and slash commands into calls of the controller, and shows what the
controller says.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from textual import events as textual_events
from textual.app import ComposeResult
from textual.containers import Container
from textual.content import Content
from textual.timer import Timer
from textual.widgets import Static

from tui_chat.conversation import Message, new_id
from tui_chat.engine import events as ev
from tui_chat.sampling import PRESETS, SamplingParams
from tui_chat.tui import lines
from tui_chat.tui.actions import ACTIONS, short_key
from tui_chat.tui.chat import Chat
from tui_chat.tui.chat_view import Keeper
from tui_chat.tui.commands import parse_slash, suggestions
from tui_chat.tui.screens.chat_actions import WIDE, ChatActions
from tui_chat.tui.screens.chats import ChatShelf
from tui_chat.tui.screens.prompt_page import PromptPage
from tui_chat.tui.screens.services import Services
from tui_chat.tui.transcript import WELCOME, block_of, blocks_of, receipt_line
from tui_chat.tui.widgets.conversation_view import Block, ConversationView
from tui_chat.tui.widgets.prompt import Prompt
from tui_chat.tui.widgets.rail import Rail
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


class ChatScreen(ChatActions):
    """One conversation with one checkpoint."""

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
        self.HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (WIDE, "-wide"), (160, "-huge")]
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

    # ---- what the controller says (ChatView)

    def conversation_changed(self) -> None:
        if not self.is_attached:
            return
        self._error, self._said = "", ("", 0.0)
        self.chat.sync()
        conversation = self.chat.conversation
        running = self.chat.reply.message_id if self.chat.reply else ""
        blocks = list(blocks_of(conversation, window=self.chat.window, running=running))
        if not len(conversation):
            blocks.append(Block(id=WELCOME, kind="note", text=lines.welcome(self.chat)))
        view, cursor = self.transcript, self.transcript.cursor
        view.set_blocks(blocks)
        view.set_writing(running or None)
        if view.has_focus and len(conversation):
            # Whoever goes over messages goes on from the same one, or from its new version.
            at = cursor if cursor in view else conversation.leaf
            view.select_block(at if at in view else None)
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

    def unsay(self) -> None:
        self._error, self._said = "", ("", 0.0)

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
        if self.chat.draft.handle(event):
            return
        if isinstance(event, ev.Counted) and event.request_id == "draft":
            self._draft_tokens = event.tokens
        if isinstance(event, ev.PromptShown):
            self._show_prompt(event)
            return
        before = self.chat.loaded
        if isinstance(event, (ev.Started, ev.Finished, ev.Loaded)):
            self._error, self._said = "", ("", 0.0)  # there is something newer to say
        self.chat.handle(event)
        if isinstance(event, ev.Loaded) and self.chat.loaded is not before:
            self._services.remember(checkpoint=event.info.path)
            self._show_rail()
            if not len(self.chat.conversation):
                self.conversation_changed()
        folder = Path(event.path) if isinstance(event, ev.LoadFailed) else None
        if folder is not None and folder.is_dir() and self.chat.loading is None:
            # A directory that is no checkpoint and no run may hold some: they are offered.
            self._services.look_in(str(folder))
            self.action_open_checkpoint()

    def _show_prompt(self, event: ev.PromptShown) -> None:
        loaded, mode = self.chat.loaded, self.chat.conversation.mode
        template = "raw text"
        if mode == "chat" and loaded is not None:
            hint = loaded.info.template
            template = f"template {hint.name or 'plain'}"
            template += f", {hint.source}" if hint.source else ""
        self.app.push_screen(PromptPage(event, template))
