"""One conversation in talk with one lane of the worker: what is asked, what comes back, what is
kept.

Owns the conversation, the knobs and the running reply; sends requests, takes events, writes to the
store, and tells a view what changed. Knows nothing of widgets, and everything here runs in the
thread of the screen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from tui_chat.conversation import Conversation, Message, Mode, Receipt, Turn, new_id
from tui_chat.engine import events as ev
from tui_chat.sampling import MAX_SEED, SamplingParams
from tui_chat.sessions.records import ChatMeta
from tui_chat.tui import words
from tui_chat.tui.chat_view import ChatView, Keeper, NoView
from tui_chat.tui.draft import Draft
from tui_chat.tui.reply import RunningReply

# How often the part of a reply already shown is given to the store, in seconds.
SAVE_EVERY = 0.25


class Chat:
    """The conversation on screen. `lane` names the checkpoint slot of the worker it talks to."""

    def __init__(
        self,
        view: ChatView,
        send: Callable[[ev.Request], None],
        keeper: Keeper,
        *,
        in_screen: Callable[[Callable[[], None]], None],
        lane: str = "main",
        params: SamplingParams | None = None,
    ) -> None:
        """`in_screen` runs a call in the thread of the screen, from any thread."""
        self._view = view
        self._send = send
        self._keeper = keeper
        self._in_screen = in_screen
        self.lane = lane
        self.params = params or SamplingParams()
        self.conversation = Conversation()
        self.loaded: ev.Loaded | None = None
        self.loading: ev.LoadProgress | None = None
        self.load_path = ""  # of the checkpoint asked for last
        self.load_options = ev.LoadOptions()  # and how
        self.draft = Draft(lane, send, lambda text, error: self._view.say(text, error=error))
        self.reply: RunningReply | None = None
        self._loads_due = 0  # loads that the worker has not answered yet
        self._mode: Mode | None = None  # what the user chose; None: the checkpoint's own
        self.context_used = 0
        self.memory: ev.Memory | None = None  # as the worker forecast it last
        self._missing = ""  # characters said to have no token
        self._noted = ""  # what the template was last heard to say
        self.window: str | int | None = (
            None  # message (chat) or character (raw) at which the sent window begins
        )
        self.last: ev.Finished | None = None

    @property
    def waiting(self) -> bool:
        """A prompt was given before the checkpoint was there."""
        return self.reply is not None and self.reply.ready and not self.reply.asked

    def leave_screen(self) -> None:
        """The screen ends: what the worker still says is kept without it."""
        self._view = NoView()

    # ---- checkpoint

    def load(self, path: str, options: ev.LoadOptions | None = None) -> None:
        """Put a checkpoint into the lane. A running reply is stopped, one that waits goes to the
        new one; the conversation stays.
        """
        if not self.waiting and self.stop():
            self._view.say("The reply is stopped; what was written is kept.")
        self._mode = None
        self._loads_due += 1
        self.loading = ev.LoadProgress(lane=self.lane, stage="reading", done=0.0)
        self.load_path, self.load_options = path, options or ev.LoadOptions()
        self._send(ev.Load(lane=self.lane, path=path, options=self.load_options))

    def cancel_load(self) -> None:
        if self.loading:
            self._send(ev.CancelLoad(lane=self.lane))

    # ---- the conversation

    def open(self, conversation: Conversation) -> None:
        """Show another conversation; what runs is stopped and kept."""
        elsewhere = self.reply is not None and self.reply.conversation is not conversation
        if elsewhere and self.stop():
            self._view.say("The reply is stopped; what was written is kept.")
        self.conversation = conversation
        self.window = None
        self.last = None
        self.context_used = 0
        self._view.conversation_changed()
        self._count_context()

    def new(self) -> None:
        """An empty conversation with the same system prompt, in the mode the user chose or the
        checkpoint's own.
        """
        own: Mode = self.loaded.info.mode if self.loaded else self.conversation.mode
        self.open(Conversation(mode=self._mode or own, system=self.conversation.system))

    def set_mode(self, mode: Mode) -> None:
        """Choose the mode: of this conversation while it is empty, else of a new one."""
        self._mode = mode
        if len(self.conversation):
            self.new()
        else:
            self.conversation.mode = mode
            self._view.conversation_changed()

    def set_system(self, text: str) -> None:
        self.conversation.system = text
        if len(self.conversation):
            self._save_meta()
        self._count_context()

    def rename(self, title: str) -> None:
        self.conversation.title = title
        if len(self.conversation):
            self._save_meta()

    def select(self, message_id: str) -> None:
        """Go to another version of a message."""
        self.conversation.select(message_id)
        self._save_meta()
        self.window = self.last = None
        self._view.conversation_changed()
        self._count_context()

    # ---- asking

    def submit(self, text: str) -> bool:
        """Say `text` and ask for a reply. In raw mode an empty text only continues. False: nothing
        was done.
        """
        if self._busy():
            return False
        if not text and (self.conversation.mode == "chat" or not len(self.conversation)):
            return False
        saved: Future[Any] | None = None
        if text and self._reads_words and not text[-1].isspace():
            text += " "  # the reply begins with a word of its own
        if text:
            message = self.conversation.add("user", text)
            # The row of the chat first: messages refer to it.
            self._save_meta()
            saved = self._keeper.add_message(self.conversation.id, message)
            self._view.message_added(message)
        if self.memory is not None and not self.memory.fits:
            quantised = self.loaded is not None and self.loaded.dtype.endswith("int8 cache")
            self._view.say(words.no_room(self.memory, quantised=quantised))
        self._ask(self.conversation.leaf, after=saved, said=text)
        return True

    @property
    def _reads_words(self) -> bool:
        """Whether a text is continued by a tokenizer that takes its end for the end of a word."""
        kind = "" if self.loaded is None else self.loaded.info.tokenizer.kind
        return kind == "hipgpt" and self.conversation.mode == "raw"

    def _busy(self) -> bool:
        """Whether something is asked already; says so."""
        if self.waiting:
            self._view.say("A prompt waits for a checkpoint: Ctrl+O opens one, Esc lets it go.")
        elif self.reply is not None:
            self._view.say("A reply is being written: Esc stops it.")
        return self.reply is not None

    def retry(self, message_id: str | None = None) -> None:
        """Another reply to the same prompt, beside the one there is. Default: the last reply."""
        if self._busy():
            return
        path = self.conversation.path()
        target = self.conversation[message_id] if message_id else path[-1] if path else None
        if target is None:
            self._view.say("There is nothing to retry yet.")
            return
        if target.role == "user":
            self._ask(target.id)
            return
        params = self.params
        if params.seed is not None:
            # A locked seed would only repeat the reply: the next version takes the next seed.
            tries = len(self.conversation.siblings(target.id))
            params = params.with_(seed=(params.seed + tries) % (MAX_SEED + 1))
        self._ask(target.parent, params=params)

    def continue_reply(self) -> None:
        """Go on with the last reply where it ended."""
        if self._busy():
            return
        path = self.conversation.path()
        if not path or path[-1].role != "assistant":
            self._view.say("There is no reply to continue.")
        elif self.conversation.mode == "raw":
            self._ask(path[-1].id)
        else:
            self._ask(path[-1].parent, continues=path[-1].id)

    def _ask(
        self,
        parent: str | None,
        *,
        continues: str = "",
        params: SamplingParams | None = None,
        after: Future[Any] | None = None,
        said: str = "",
    ) -> None:
        """Ask for a reply below `parent`, once `after` is on disk and a checkpoint is there."""
        self.reply = RunningReply(
            request_id=new_id(),
            conversation=self.conversation,
            parent=parent,
            params=params or self.params,
            continues=continues,
            said=said,
        )
        self.last = None
        reply = self.reply
        if after is None:
            self._ready(reply)
        else:
            # What was said is on disk before the model sees it; if saving fails the store says so
            # and we go on.
            after.add_done_callback(lambda _: self._in_screen(lambda: self._ready(reply)))

    def _ready(self, reply: RunningReply) -> None:
        reply.ready = True
        self._request()

    def _request(self) -> None:
        """Ask what waits, if the checkpoint is there."""
        reply = self.reply
        if reply is None or not self.waiting or self.loaded is None or self.loading is not None:
            return
        reply.asked = True
        self._send(
            ev.Generate(
                lane=self.lane,
                request_id=reply.request_id,
                prompt=reply.prompt(),
                params=reply.params,
            )
        )

    def stop(self) -> bool:
        """Stop the running reply, or drop the one that waits. False when there was none."""
        reply = self.reply
        if reply is None:
            return False
        if not reply.asked:
            self.reply = None  # the worker has never heard of it
        elif not reply.stopping:
            reply.stopping = True
            self._send(ev.Stop(request_id=reply.request_id))
        return True

    def set_params(self, params: SamplingParams) -> None:
        """Turn knobs; a running reply follows at its next token and remembers where."""
        old, self.params = self.params, params
        if params == old:
            return
        if params.max_new_tokens != old.max_new_tokens:
            self._count_memory()
        reply = self.reply
        if reply is None or reply.stopping or not self._on_screen(reply):
            return
        if reply.asked:
            reply.turn(old, params)
            self._send(ev.SetSampling(lane=self.lane, params=reply.params))
        else:
            reply.params = params

    def count(self, text: str, request_id: str = "draft") -> None:
        """Ask how many tokens `text` takes; the answer is a `Counted` event."""
        if self.loaded is not None and self.loading is None:
            self._send(
                ev.CountTokens(
                    lane=self.lane,
                    request_id=request_id,
                    prompt=ev.Prompt(mode="raw", text=text),
                    behind=self.context_used,
                    reply_tokens=self.params.max_new_tokens,
                )
            )

    def show_prompt(self, draft: str) -> bool:
        """Ask what the model would get if `draft` were sent; the answer is a `PromptShown` event.
        False when no checkpoint is there to say.
        """
        if self.loaded is None or self.loading is not None:
            return False
        prompt = self._prompt(draft)
        self._send(
            ev.ShowPrompt(
                lane=self.lane,
                request_id="prompt",
                prompt=prompt,
                reply_tokens=self.params.max_new_tokens,
            )
        )
        return True

    def _count_context(self) -> None:
        if self.loaded is not None and self.loading is None:
            self._send(
                ev.CountTokens(
                    lane=self.lane,
                    request_id="context",
                    prompt=self._prompt(),
                    reply_tokens=self.params.max_new_tokens,
                )
            )

    def _count_memory(self) -> None:
        """Ask what memory the next reply would take, nothing being typed."""
        if self.loaded is not None and self.loading is None:
            self._send(
                ev.CountTokens(
                    lane=self.lane,
                    request_id="memory",
                    prompt=ev.Prompt(mode="raw", ids=()),
                    behind=self.context_used,
                    reply_tokens=self.params.max_new_tokens,
                )
            )

    def _prompt(self, draft: str = "") -> ev.Prompt:
        """The conversation as it stands, with a draft behind it."""
        conversation = self.conversation
        if conversation.mode == "raw":
            return ev.Prompt(mode="raw", text=conversation.raw_text() + draft)
        said = (Turn("user", draft),) if draft else ()
        return ev.Prompt(mode="chat", turns=(*conversation.turns(), *said))

    # ---- what the worker says

    def handle(self, event: ev.Event) -> None:
        """Take one event of the worker. Events of replies that are gone are dropped."""
        if self.draft.handle(event):
            return
        match event:
            case ev.LoadProgress(lane=self.lane):
                self.loading = event
            case ev.Loaded(lane=self.lane):
                self._on_loaded(event)
            case ev.LoadFailed(lane=self.lane):
                self._on_load_failed(event)
            case ev.Counted(lane=self.lane):
                self.memory = event.memory or self.memory
                if event.request_id == "context" and self.reply is None:
                    self.context_used = event.tokens
            case ev.Failed(request_id="") if event.lane in ("", self.lane):
                self._on_stumble(event)
            case (
                ev.Started()
                | ev.PrefillProgress()
                | ev.WindowMoved()
                | ev.Stepped()
                | ev.Finished()
                | ev.Failed()
            ) if self.reply is not None and event.request_id == self.reply.request_id:
                self._on_reply(self.reply, event)

    def _on_loaded(self, event: ev.Loaded) -> None:
        self._loads_due = max(0, self._loads_due - 1)
        self.loaded, self.last = event, None
        self.draft.target_loaded()
        if self._loads_due <= 0:
            self.loading = None
        if not len(self.conversation):
            self.conversation.mode = self._mode or event.info.mode
            self._view.conversation_changed()
        self._missing, self._noted = "", ""
        for warning in event.info.warnings:
            self._view.say(warning)
        if self.conversation.mode == "chat" and not event.info.template.name:
            self._view.say(
                "No chat template: turns go as plain User: and Assistant: (Ctrl+T: raw)."
            )
        if self.reply is None:
            self._count_context()
        self._request()

    def _on_load_failed(self, event: ev.LoadFailed) -> None:
        self._loads_due = max(0, self._loads_due - 1)
        if self._loads_due > 0:
            return  # a newer one is on its way
        self.loading = None
        if self.waiting and self.loaded is None:
            self.reply = None  # the prompt stays in the conversation; Ctrl+R asks it again
        if not event.cancelled:
            self._view.say(str(event.error), error=True)
        self._request()

    def _on_stumble(self, event: ev.Failed) -> None:
        """Something failed in the worker that belongs to no reply: nothing that ran goes on."""
        self.loading, self._loads_due = None, 0
        if self.reply is not None:
            self._on_failed(self.reply, event)
        else:
            self._view.say(str(event.error), error=True)

    def _on_reply(self, reply: RunningReply, event: ev.Event) -> None:
        match event:
            case ev.Started():
                self._on_started(reply, event)
            case ev.PrefillProgress():
                reply.prefill = (event.done, event.total)
            case ev.WindowMoved():
                reply.left_out = event.dropped_tokens - reply.dropped
                self._move_window(reply, event.first_turn, event.first_char)
            case ev.Stepped():
                self._on_stepped(reply, event)
            case ev.Finished():
                self._on_finished(reply, event)
            case ev.Failed():
                self._on_failed(reply, event)

    def _on_started(self, reply: RunningReply, event: ev.Started) -> None:
        reply.seed, reply.reused = event.seed, event.reused_tokens
        reply.prompt_tokens = len(event.prompt_ids)
        reply.dropped = event.dropped_tokens
        if reply.continues:
            reply.message_id = reply.continues
            message = reply.conversation[reply.continues]
            reply.before, reply.first = message.text, message.receipt
            self._keeper.reopen_reply(reply.message_id)
        else:
            receipt = self._receipt(reply, None)
            message = reply.conversation.add("assistant", "", parent=reply.parent, receipt=receipt)
            reply.message_id = message.id
            self._keeper.add_message(reply.conversation.id, message, finished=False)
            self._save_meta(reply.conversation)
            if self._on_screen(reply):
                beside = len(reply.conversation.siblings(message.id)) > 1
                if beside:  # it takes the place of the version that was shown
                    self._view.conversation_changed()
                else:
                    self._view.message_added(message)
        if event.note and event.note != self._noted:
            self._noted = event.note
            self._view.say(f"{event.note[0].upper()}{event.note[1:]}.")
        if new := "".join(c for c in event.missing if c not in self._missing):
            self._missing += new
            self._view.say(f"The tokenizer has no token for {' '.join(new)}: left out.")
        self._move_window(reply, event.first_turn, event.first_char)

    def _move_window(self, reply: RunningReply, first_turn: int, first_char: int) -> None:
        if not self._on_screen(reply):
            return
        window = reply.window(first_turn, first_char)
        if window != self.window:
            self.window = window
            self._view.conversation_changed()

    def _on_stepped(self, reply: RunningReply, event: ev.Stepped) -> None:
        now = time.monotonic()
        if not reply.first_at:
            reply.first_at = reply.saved_at = now
        reply.tokens += len(event.steps)
        reply.drafted, reply.accepted = event.drafted_tokens, event.accepted_tokens
        if event.drafted_tokens:
            reply.draft = self.draft.label or reply.draft
        reply.text.append(event.text)
        if self._on_screen(reply):
            self.context_used = reply.context_used
        if event.text and self._on_screen(reply):
            self._view.text_added(reply.message_id, event.text)
        if now - reply.saved_at >= SAVE_EVERY:
            reply.saved_at = now
            self._keep(reply, None)

    def sync(self) -> None:
        """Bring the conversation up to the last word that has come."""
        reply = self.reply
        if reply is not None and reply.message_id:
            reply.conversation.update(reply.message_id, text=reply.whole_text)

    def _keep(self, reply: RunningReply, receipt: Receipt | None) -> Future[Any]:
        text = reply.whole_text
        reply.text = [text[len(reply.before) :]]
        message = reply.conversation.update(reply.message_id, text=text, receipt=receipt)
        return self._keeper.update_reply(message.id, text, receipt, receipt is not None)

    def _on_finished(self, reply: RunningReply, event: ev.Finished) -> None:
        self.reply = None
        if self._on_screen(reply):
            self.last = event
            self.context_used = reply.context_used
            self._count_memory()
        if not reply.message_id:
            return
        reply.text = [event.text]
        saved = self._keep(reply, self._receipt(reply, event))
        message = reply.conversation[reply.message_id]

        def shown(_: Future[Any]) -> None:
            self._in_screen(lambda: self._changed(reply, message))

        saved.add_done_callback(shown)  # a finished reply is on disk before it is shown as finished

    def _on_failed(self, reply: RunningReply, event: ev.Failed) -> None:
        self.reply = None
        if reply.message_id:
            self._keep(reply, self._receipt(reply, reply.failed(self.lane)))
            self._changed(reply, reply.conversation[reply.message_id])
        elif reply.said and self._on_screen(reply) and reply.parent is not None:
            # It never began: the prompt goes back to where it was written, to be changed there.
            self.conversation.leaf = self.conversation[reply.parent].parent
            self._save_meta()
            self._view.conversation_changed()
            self._view.give_back(reply.said)
        self._view.say(str(event.error), error=True)

    def _on_screen(self, reply: RunningReply) -> bool:
        return reply.conversation is self.conversation

    def _changed(self, reply: RunningReply, message: Message) -> None:
        if self._on_screen(reply):
            self._view.message_changed(message)

    # ---- what is kept

    def _receipt(self, reply: RunningReply, ended: ev.Finished | None) -> Receipt:
        assert self.loaded is not None  # a reply is asked for only once there is a checkpoint
        return reply.receipt(self.loaded, ended)

    def _save_meta(self, conversation: Conversation | None = None) -> None:
        path = self.loaded.info.path if self.loaded else ""
        self._keeper.save_conversation(
            ChatMeta.of(
                conversation or self.conversation, checkpoint=path, sampling=self.params.as_dict()
            )
        )
