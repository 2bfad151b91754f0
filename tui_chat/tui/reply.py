"""A reply that is being made: what it was asked with, what has come of it, and its receipt."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from tui_chat.conversation import Conversation, Receipt, Turn
from tui_chat.engine import events as ev
from tui_chat.sampling import SamplingParams


@dataclass(slots=True)
class RunningReply:
    """A reply from the moment it is asked for to its last token."""

    request_id: str
    conversation: Conversation  # its own: another one may be on screen before it ends
    parent: str | None  # the message it answers
    params: SamplingParams
    continues: str = ""  # the message that is gone on with, "" for a new one
    turn_ids: tuple[str, ...] = ()  # message of each turn of the prompt, "" for the system prompt
    message_id: str = ""  # "" until the worker has started it
    before: str = ""  # text the message had when it was gone on with
    first: Receipt | None = None  # and its receipt
    said: str = ""  # the prompt, when it was given with this reply
    text: list[str] = field(default_factory=list)
    tokens: int = 0
    drafted: int = 0  # tokens that were proposed, and of those
    accepted: int = 0  # the ones that were drawn
    draft: str = ""  # who proposed them
    seed: int = 0
    reused: int = 0
    prompt_tokens: int = 0
    dropped: int = 0  # tokens left out before it began
    left_out: int = 0  # and since then, because the context filled up
    prefill: tuple[int, int] = (0, 0)
    changes: list[tuple[int, Mapping[str, object]]] = field(default_factory=list)
    first_at: float = 0.0
    saved_at: float = 0.0
    ready: bool = False  # what it answers is on disk
    asked: bool = False  # the worker knows of it
    stopping: bool = False

    @property
    def tokens_per_second(self) -> float:
        seconds = time.monotonic() - self.first_at
        return (self.tokens - 1) / seconds if self.first_at and self.tokens > 1 else 0.0

    @property
    def context_used(self) -> int:
        """Tokens of the window."""
        return self.prompt_tokens + self.tokens - self.left_out

    @property
    def whole_text(self) -> str:
        """The text of the message so far."""
        return self.before + "".join(self.text)

    def turn(self, old: SamplingParams, new: SamplingParams) -> None:
        """Take other knobs from the next token on, and remember where."""
        # A retry may run on a seed of its own; the seed counts at the start only.
        self.params = new.with_(seed=self.params.seed)
        before = old.as_dict()
        turned = {name: value for name, value in new.as_dict().items() if before[name] != value}
        if self.changes and self.changes[-1][0] == self.tokens:
            turned = {**self.changes.pop()[1], **turned}
        self.changes.append((self.tokens, turned))

    def prompt(self) -> ev.Prompt:
        """What to ask with, as the conversation stands."""
        conversation = self.conversation
        end = self.continues or self.parent
        path = conversation.path(end) if end else []
        if conversation.mode == "raw":
            return ev.Prompt(mode="raw", text="".join(message.text for message in path))
        # Replies stopped before their first word are kept but not sent.
        sent = [m for m in path if m.text or m.role != "assistant" or m.id == self.continues]
        turns = [Turn(message.role, message.text) for message in sent]
        ids = [message.id for message in sent]
        if conversation.system:
            turns.insert(0, Turn("system", conversation.system))
            ids.insert(0, "")
        self.turn_ids = tuple(ids)
        return ev.Prompt(mode="chat", turns=tuple(turns), continue_last=bool(self.continues))

    def window(self, first_turn: int, first_char: int) -> str | int | None:
        """Where the window that is sent begins: a message, a character of a raw text, or None for
        the very beginning. Arguments as in `events.Started`.
        """
        if self.conversation.mode == "raw":
            return first_char or None
        first = 1 if self.turn_ids[:1] == ("",) else 0
        return self.turn_ids[first_turn] if first < first_turn < len(self.turn_ids) else None

    def failed(self, lane: str) -> ev.Finished:
        """The end of a reply that could not go on."""
        stats = ev.Stats(
            prompt_tokens=self.prompt_tokens,
            reused_tokens=self.reused,
            prefill_seconds=0.0,
            new_tokens=self.tokens,
            decode_seconds=0.0,
            drafted_tokens=self.drafted,
            accepted_tokens=self.accepted,
        )
        return ev.Finished(
            request_id=self.request_id,
            lane=lane,
            reason="error",
            text="".join(self.text),
            ids=(),
            stats=stats,
        )

    def receipt(self, loaded: ev.Loaded, ended: ev.Finished | None) -> Receipt:
        """What made the reply; `ended` None while it is being made."""
        info, raw = loaded.info, self.conversation.mode == "raw"
        stats = ended.stats if ended else None
        if self.first is not None and ended is not None and not ended.text:
            return replace(self.first, stop_reason=ended.reason)  # nothing was added
        receipt = Receipt(
            checkpoint=info.label,
            path=info.path,
            fingerprint=info.fingerprint,
            step=info.step,
            mode=self.conversation.mode,
            template="" if raw else info.template.name,
            seed=self.seed,
            sampling=self.params.as_dict(),
            sampling_changes=tuple(self.changes),
            dtype=loaded.dtype,
            device=loaded.device,
            prompt_tokens=stats.prompt_tokens if stats else self.prompt_tokens,
            reused_tokens=stats.reused_tokens if stats else self.reused,
            new_tokens=stats.new_tokens if stats else 0,
            prefill_seconds=stats.prefill_seconds if stats else 0.0,
            decode_seconds=stats.decode_seconds if stats else 0.0,
            draft=self.draft,
            drafted_tokens=stats.drafted_tokens if stats else 0,
            accepted_tokens=stats.accepted_tokens if stats else 0,
            stop_reason=ended.reason if ended else None,
        )
        return receipt if self.first is None else _joined(self.first, receipt)


def _joined(first: Receipt, more: Receipt) -> Receipt:
    """The receipt of a reply that was gone on with: the seed it began with, and at which token it
    went on with which seed, checkpoint and knobs.
    """
    at = first.new_tokens
    turned = {k: v for k, v in more.sampling.items() if first.sampling.get(k) != v}
    went_on = {**turned, "seed": more.seed}
    if more.fingerprint != first.fingerprint:
        went_on["checkpoint"] = more.checkpoint
    return replace(
        more,
        checkpoint=first.checkpoint,
        path=first.path,
        fingerprint=first.fingerprint,
        step=first.step,
        seed=first.seed,
        sampling=first.sampling,
        sampling_changes=(
            *first.sampling_changes,
            (at, went_on),
            *((at + token, knobs) for token, knobs in more.sampling_changes),
        ),
        new_tokens=at + more.new_tokens,
        decode_seconds=first.decode_seconds + more.decode_seconds,
        draft=more.draft or first.draft,
        drafted_tokens=first.drafted_tokens + more.drafted_tokens,
        accepted_tokens=first.accepted_tokens + more.accepted_tokens,
    )
