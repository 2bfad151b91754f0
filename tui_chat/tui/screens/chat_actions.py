"""What the user can do on the chat screen: a method for each action of the table, the keys that
lead to them, and the slash commands.
"""

from __future__ import annotations

import asyncio
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.screen import Screen
from textual.widget import Widget

from tui_chat.conversation import Mode
from tui_chat.errors import TuiChatError
from tui_chat.sampling import chain
from tui_chat.settings import user_path
from tui_chat.tui.actions import ACTIONS, BY_SLASH
from tui_chat.tui.chat import Chat
from tui_chat.tui.clipboard import OSC52, copy
from tui_chat.tui.commands import turned
from tui_chat.tui.draft import LOOKUP
from tui_chat.tui.screens.card import CheckpointCard
from tui_chat.tui.screens.chats import ChatShelf, ChatsScreen
from tui_chat.tui.screens.dialogs import ConfirmDialog, LineDialog, TextDialog
from tui_chat.tui.screens.help import HelpScreen
from tui_chat.tui.screens.picker import CheckpointPicker
from tui_chat.tui.screens.services import Services
from tui_chat.tui.screens.themes import ThemeSheet
from tui_chat.tui.widgets.conversation_view import ConversationView
from tui_chat.tui.widgets.prompt import Prompt
from tui_chat.tui.widgets.rail import Rail
from tui_chat.tui.widgets.row_list import RowList
from tui_chat.tui.widgets.sampling_panel import SamplingPanel

# Columns from which the panel stands beside the transcript, which keeps 76 of them.
WIDE = 114


class ChatActions(Screen[None]):
    """The actions of a screen that shows one chat; what it looks like is ChatScreen's affair."""

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

    chat: Chat
    _services: Services
    _shelf: ChatShelf
    _panel_open: bool  # where there is room
    _sheet_open: bool  # where the panel covers the transcript

    def say(self, text: str, *, error: bool = False) -> None:
        """One sentence for the reader."""

    def unsay(self) -> None:
        """What was said last is over."""

    def conversation_changed(self) -> None:
        """Draw the conversation anew."""

    @property
    def prompt(self) -> Prompt:
        return self.query_one("#prompt", Prompt)

    @property
    def transcript(self) -> ConversationView:
        return self.query_one("#transcript", ConversationView)

    @property
    def panel(self) -> SamplingPanel:
        return self.query_one("#sampling", SamplingPanel)

    def _show_panel(self, width: int | None = None) -> None:
        wide = (width or self.size.width) >= WIDE
        self.set_class(self._panel_open if wide else self._sheet_open, "-panel")

    # ---- slash commands

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

    # ---- actions (names follow the table)

    def action_open_checkpoint(self, path: str = "") -> None:
        if path:
            self.chat.load(str(user_path(path)))
            return

        def chosen(answer: str | None) -> None:
            if answer:
                self.chat.load(answer)
            self.prompt.focus()

        def drafts(answer: str) -> None:
            """F7 and F8: what drafts already is let go."""
            draft = self.chat.draft
            lookup = answer == LOOKUP
            if draft.lookup if lookup else draft.path == answer:
                self._draft_with("")
            elif answer == current:
                self.say("The open checkpoint would take as long to draft as to write.")
            else:
                self._draft_with("" if lookup else answer, lookup=lookup)

        current = self.chat.loaded.info.path if self.chat.loaded else ""
        picker = CheckpointPicker(
            self._services.scan,
            self._services.describe,
            current=current,
            draft=self.chat.draft.path,
            lookup=self.chat.draft.lookup,
            on_draft=drafts,
            roots=self._services.roots(),
        )
        self.app.push_screen(picker, chosen)

    def action_draft(self, argument: str = "") -> None:
        """Choose who drafts; without an argument say who does."""
        draft = self.chat.draft
        if argument in ("off", "none"):
            self._draft_with("")
        elif argument == "lookup":
            self._draft_with("", lookup=True)
        elif argument:
            self._draft_with(str(user_path(argument)))
        elif draft.active:
            self.say(draft.said)
        else:
            self.say("Nobody drafts. /draft lookup, /draft PATH, or F7 among the checkpoints.")

    def _draft_with(self, path: str, *, lookup: bool = False) -> None:
        self.chat.draft.choose(path, lookup=lookup, options=self.chat.load_options)

    def action_card(self) -> None:
        """What was understood of the open checkpoint, and from what."""
        loaded = self.chat.loaded
        if loaded is None:
            self.say("No checkpoint is open. Ctrl+O opens one.")
        else:
            self.app.push_screen(CheckpointCard(lambda: loaded.info))

    def action_show_prompt(self) -> None:
        """The answer comes as an event."""
        if not self.chat.show_prompt(self.prompt.text):
            self.say("No checkpoint is open. Ctrl+O opens one.")

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
        self.say(chain(params))

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
        left = len(self.chat.conversation)
        self.chat.set_mode(mode)
        if left:  # said last: a conversation that changes clears what was said
            self.say(f"A new {mode} conversation; the other one is kept (Ctrl+F).")

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
            self.unsay()
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
        before = self.app.theme
        if argument in self.app.available_themes:
            self.app.theme = argument
            self.unsay()
        elif argument:
            self.say(f"There is no theme {argument!r}: /theme shows them all.")
        else:

            def chosen(name: str | None) -> None:
                self.app.theme = name or before

            themes = list(self.app.available_themes.values())
            sheet = ThemeSheet(themes, self._services.themes(), current=before)
            self.app.push_screen(sheet, chosen)

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
