"""A lane: one checkpoint in use, with the cache of what it has read."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tui_chat.engine import memory
from tui_chat.engine.events import Prompt
from tui_chat.engine.generate import at_once, check_ids, prefill, reusable, score, use_threads
from tui_chat.engine.load import LoadedCheckpoint
from tui_chat.engine.overlap import pipeline_for
from tui_chat.engine.window import ContextWindow
from tui_chat.errors import UsageError
from tui_chat.model.cache import KVCache
from tui_chat.sampling import SamplingParams

if TYPE_CHECKING:
    from tui_chat.engine.engine import Reply
    from tui_chat.engine.speculate import Drafting


class Lane:
    """One conversation with one checkpoint. Not for two threads at once."""

    def __init__(self, checkpoint: LoadedCheckpoint, name: str = "") -> None:
        self.name = name
        self.checkpoint = checkpoint
        self.cache: KVCache = checkpoint.model.new_cache()
        self.writer: Reply | None = None  # the reply whose tokens the cache ends with
        self.drafting: Drafting | None = None  # who proposes what replies may go on with
        self.pipeline = pipeline_for(checkpoint)  # writes ahead on a GPU
        self._remark = ""
        if checkpoint.compile and self.pipeline is None:
            self._remark = f"--compile does nothing for this model on {checkpoint.device}"
        self.window = ContextWindow(
            checkpoint.tokenizer,
            checkpoint.chat_template,
            checkpoint.context_length,
            checkpoint.start_ids,
            checkpoint.info.text_start,
            checkpoint.model.incremental,
            checkpoint.template_variables,
        )
        # Asked for so many bytes, says how many there are: whoever holds more may give some up.
        self.make_room: Callable[[int], int] = lambda needed: memory.available_memory(
            checkpoint.device
        )
        checkpoint.prefixes.join(self)

    def fork(self, name: str = "") -> Lane:
        """A lane that has read the same, without reading it. Each goes its own way from there."""
        made = Lane(self.checkpoint, name)
        made.cache, made.window = self.cache.fork(), copy.copy(self.window)
        made.make_room = self.make_room
        made.pipeline = None  # several forks write as one batch, not each by itself
        return made

    def reply(self, prompt: Prompt, params: SamplingParams, request_id: str = "") -> Reply:
        from tui_chat.engine.engine import Reply

        return Reply(self, prompt, params, request_id)

    def drop_cache(self) -> None:
        self.cache = self.checkpoint.model.new_cache()
        if self.pipeline is not None:
            self.pipeline.forget()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def remark(self) -> str:
        """What there is to say about how its tokens are made, said once."""
        said, self._remark = self._remark, ""
        return said if self.pipeline is None else self.pipeline.remark()

    def count(self, prompt: Prompt) -> int:
        """How many tokens the whole prompt takes."""
        return len(self.window.whole(prompt))

    def missing(self, prompt: Prompt) -> str:
        """Characters of the prompt that the tokenizer has no id for."""
        if prompt.ids is not None:
            return ""
        texts = [prompt.text] if prompt.mode == "raw" else [turn.text for turn in prompt.turns]
        return "".join(dict.fromkeys("".join(map(self.checkpoint.tokenizer.missing, texts))))

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Logits after `ids` (their last context_length): (offered,) float32 on the CPU."""
        recent = list(ids[-self.checkpoint.context_length :])
        model = self.checkpoint.model
        check_ids(model, recent)
        self.writer = None
        use_threads(self.checkpoint.threads)
        self.start_from(recent)
        for _, logits in prefill(model, self.cache, recent, self.checkpoint.pieces):
            if logits is not None:
                return self.offered(logits)
        raise AssertionError("a prefill ends with logits")

    def start_from(self, ids: Sequence[int]) -> int:
        """Bring the cache as near to `ids` as that needs no computing; returns how many tokens of
        them it then holds. What it held beyond is put aside, for who comes back to it.
        """
        held = reusable(self.checkpoint.model, self.cache, ids)
        self.checkpoint.prefixes.put_aside(self.cache, held)
        self.cache.truncate(held)
        return held + self.take_more(ids)

    def take_more(self, ids: Sequence[int]) -> int:
        """The same for a cache that holds nothing but a beginning of `ids`; returns how many tokens
        it gained.
        """
        if at_once(self.checkpoint.model):
            return 0
        return self.checkpoint.prefixes.extend(self.cache, ids)

    def check_room(self, tokens: int) -> None:
        """Raise EngineError where the memory does not hold so many tokens, before it is used up."""
        needed = self.cache.cache_bytes(tokens) - self.cache.nbytes
        if needed > memory.SMALL and needed > (free := self.make_room(needed)):
            remedy = "Start a new chat, or shorten the prompt"
            if not self.cache.quantised:
                remedy = "Shorten the prompt, or open the checkpoint with --kv-cache int8"
            raise memory.too_little(needed, free, f"{tokens:,} tokens", remedy)

    def offered(self, logits: Tensor) -> Tensor:
        """The logits a token is drawn from: those of the tokenizer's ids, on the CPU."""
        return logits[: self.checkpoint.offered].cpu()

    def score(self, ids: Sequence[int]) -> list[float | None]:
        """Log-probability of each id given those before it; the first has none."""
        model = self.checkpoint.model
        check_ids(model, ids)
        if len(ids) > self.checkpoint.context_length:
            raise UsageError(
                "the text is too long to score",
                f"{len(ids)} tokens, and the context holds {self.checkpoint.context_length}",
                "Score it in parts",
            )
        use_threads(self.checkpoint.threads)
        pieces = score(model, ids, self.checkpoint.offered)
        return [None, *(value for piece in pieces for value in piece)]
