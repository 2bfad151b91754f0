"""Which part of a conversation the model sees when not all of it fits.

The oldest whole turns are left out, once and down to about half of the context, so that the
turns after that only add to what the cache holds; the system prompt always stays. A text without
turns keeps its last half; where nothing is kept from token to token, all that fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tui_chat.conversation import Turn
from tui_chat.engine.events import Prompt
from tui_chat.errors import UsageError
from tui_chat.templates.base import Rendered, Template
from tui_chat.tokenizers.base import Tokenizer


@dataclass(frozen=True, slots=True)
class Fitted:
    """Ids that fit, and where in the prompt they begin (fields as in `events.Started`)."""

    ids: list[int]
    first_turn: int = 0
    first_char: int = 0
    dropped_tokens: int = 0
    note: str = ""  # what the template says of how it took the turns


class ContextWindow:
    """The window of one lane. Remembers where it began, until that prefix of the conversation
    changes.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        context_length: int,
        start_ids: Sequence[int],
        text_start: Sequence[int] = (),
        incremental: bool = True,
        variables: Mapping[str, object] | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.template = template
        self.context_length = context_length
        self._incremental = incremental
        self._variables = dict(variables or {})
        # A window that is computed anew for each token may as well begin anywhere.
        self._kept = context_length // 2 if incremental else context_length
        self._start_ids = list(start_ids)  # what an empty text begins with
        self._text_start = list(text_start)  # what stands before every other
        self._dropped_turns: tuple[Turn, ...] = ()
        self._dropped_text = ""

    def slides(self, prompt: Prompt) -> bool:
        """Whether the window of a reply moves on by itself, token by token, once it is full."""
        return not self._incremental and (prompt.ids is not None or prompt.mode == "raw")

    def fit(self, prompt: Prompt, reply_tokens: int) -> Fitted:
        """The ids to send. Some room is left for the reply: an eighth of the context, or
        `reply_tokens` if less.

        Raises UsageError when the last turn alone does not fit.
        """
        room = self.context_length - max(1, min(reply_tokens, self.context_length // 8))
        if self.slides(prompt):
            room = self.context_length - 1
        if prompt.ids is not None:
            return self._fit_ids(list(prompt.ids))
        if prompt.mode == "raw":
            return self._fit_text(prompt.text, room)
        return self._fit_turns(prompt, room)

    def move(self, prompt: Prompt, sent: Fitted, made: list[int]) -> Fitted | None:
        """The context is full of `sent` and the reply `made` so far: what to go on with, None if
        there is no room.
        """
        if prompt.ids is None and prompt.mode == "chat":
            return self._move_turns(prompt, sent, made)
        everything = sent.ids + made
        kept = everything[-self._kept :]
        left_out = len(everything) - len(kept)
        chars = 0
        if prompt.ids is None:
            # The window may have moved into the reply itself, which is part of the next prompt.
            pieces = b"".join(map(self.tokenizer.token_bytes, made))
            text = prompt.text + pieces.decode("utf-8", "replace")
            chars = self._chars(text[sent.first_char :], everything[:left_out]) + sent.first_char
            self._dropped_text = text[:chars]
        return Fitted(kept, 0, chars, sent.dropped_tokens + left_out)

    def whole(self, prompt: Prompt) -> list[int]:
        """All ids of a prompt, whether they fit or not."""
        if prompt.ids is not None:
            return list(prompt.ids)
        if prompt.mode == "raw":
            return self._text_start + self.tokenizer.encode_raw(prompt.text)
        return self._render(prompt, prompt.turns).ids if prompt.turns else []

    # ---- ids and texts

    def _fit_ids(self, ids: list[int]) -> Fitted:
        if len(ids) <= self.context_length:
            return Fitted(ids)
        kept = ids[-self._kept :]
        return Fitted(kept, dropped_tokens=len(ids) - len(kept))

    def _fit_text(self, text: str, room: int) -> Fitted:
        ids = self.tokenizer.encode_raw(text) if text else list(self._start_ids)
        if text and not ids:
            raise UsageError(
                "the text cannot be read by this model",
                f"its tokenizer ({self.tokenizer.name}) has no id for any of it",
                "Write token ids, such as 15 496 29, or name a tokenizer with --tokenizer"
                if self.tokenizer.name == "ids only"
                else "Name another one with --tokenizer, or give token ids with --ids",
            )
        if len(self._text_start) + len(ids) <= room:
            self._dropped_text = ""
            return Fitted((self._text_start if text else []) + ids)
        if not self._incremental:
            # As its own program: the last ids that leave room for one, never a word read anew.
            kept = ids[-max(1, self.context_length - 1) :]
            left_out = len(ids) - len(kept)
            return Fitted(kept, 0, self._chars(text, ids[:left_out]), left_out)
        cut = len(self._dropped_text)
        if cut and text.startswith(self._dropped_text):
            kept = self.tokenizer.encode_raw(text[cut:])
            if 0 < len(kept) <= room:
                return Fitted(kept, 0, cut, len(ids) - len(kept))
        cut = self._chars(text, ids[: len(ids) - self.context_length // 2])
        kept = self.tokenizer.encode_raw(text[cut:])
        # Cut in the middle of a word, the text can take more tokens than before; never more than
        # fit.
        kept = kept[-room:] or ids[-1:]
        self._dropped_text = text[:cut]
        return Fitted(kept, 0, cut, len(ids) - len(kept))

    def _chars(self, text: str, ids: Sequence[int]) -> int:
        """How many characters of `text` the first `ids` of it stand for."""
        size = sum(len(self.tokenizer.token_bytes(token)) for token in ids)
        skipped = set(self.tokenizer.missing(text))
        for at, character in enumerate(text):
            if size <= 0:
                return at
            if character not in skipped:
                size -= len(character.encode("utf-8", "replace"))
        return len(text)

    # ---- turns

    def _render(self, prompt: Prompt, turns: Sequence[Turn]) -> Rendered:
        return self.template.render(turns, continue_last=prompt.continue_last, **self._variables)

    def _fit_turns(self, prompt: Prompt, room: int) -> Fitted:
        turns = prompt.turns
        if not turns:
            raise UsageError("there is nothing to answer", "", "Type a message")
        head = 1 if turns[0].role == "system" else 0
        full = self._render(prompt, turns)
        if len(full.ids) <= room:
            self._dropped_turns = ()
            return Fitted(full.ids, head, note=full.note)
        before = self._dropped_turns
        if before and turns[head : head + len(before)] == before:
            kept = self._render(prompt, turns[:head] + turns[head + len(before) :])
            if len(kept.ids) <= room:
                left_out = len(full.ids) - len(kept.ids)
                return Fitted(kept.ids, head + len(before), 0, left_out, kept.note)
        first, kept = self._shortened(prompt, full, self.context_length // 2)
        if len(kept.ids) >= self.context_length:
            return self._cut_reply(prompt, full, first, kept)
        self._dropped_turns = turns[head:first]
        return Fitted(kept.ids, first, 0, len(full.ids) - len(kept.ids), kept.note)

    def _shortened(self, prompt: Prompt, full: Rendered, target: int) -> tuple[int, Rendered]:
        """The longest end of the conversation, beginning with a user's turn, of at most `target`
        tokens.

        The last user's turn stays whatever its length. Returns its first turn, and the ids with
        the system prompt.
        """
        turns = prompt.turns
        head = 1 if turns[0].role == "system" else 0
        system = full.starts[head] if head < len(full.starts) else 0
        begins = [i for i in range(head, len(turns)) if turns[i].role == "user"] or [len(turns) - 1]
        for first in begins:
            if first != begins[-1] and system + len(full.ids) - full.starts[first] > target:
                continue  # by the whole rendering it is too long: not worth rendering again
            kept = self._render(prompt, turns[:head] + turns[first:])
            if len(kept.ids) <= target or first == begins[-1]:
                return first, kept
        raise AssertionError("the last beginning is always taken")

    def _cut_reply(self, prompt: Prompt, full: Rendered, first: int, kept: Rendered) -> Fitted:
        """The last exchange alone is too long: a reply to be continued loses its beginning, a
        question cannot.
        """
        if prompt.turns[-1].role == "assistant" and len(kept.starts) > 1:
            begin = kept.starts[-1]
            ids = self._joined(kept.ids[:begin], kept.ids[begin:])
            if ids is not None:
                return Fitted(ids, first, 0, len(full.ids) - len(ids))
        raise UsageError(
            "the message is too long for this model",
            f"it takes {len(kept.ids)} tokens, and the context holds {self.context_length}",
            "Shorten it, or the system prompt",
        )

    def _move_turns(self, prompt: Prompt, sent: Fitted, made: list[int]) -> Fitted | None:
        full = self._render(prompt, prompt.turns)
        total = len(full.ids) + len(made)
        half = self.context_length // 2
        first, kept = self._shortened(prompt, full, half - len(made))
        head = 1 if prompt.turns[0].role == "system" else 0
        self._dropped_turns = prompt.turns[head:first]
        ids: list[int] | None = kept.ids + made
        if len(kept.ids) + len(made) > self.context_length * 3 // 4:
            ids = self._joined(kept.ids, made)
        return None if ids is None else Fitted(ids, first, 0, total - len(ids))

    def _joined(self, head: list[int], reply: list[int]) -> list[int] | None:
        """The head and as much of the end of the reply as makes half a context, None if nothing
        fits.
        """
        tail = max(self.context_length // 2 - len(head), self.context_length // 8, 1)
        return head + reply[-tail:] if len(head) + tail < self.context_length else None
