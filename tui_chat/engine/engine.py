"""A reply, as a generator of events.

Each step of the generator runs at most one prefill chunk or one token, so that whoever drives it
(the worker thread, the command line, a Python program) can stop, turn a knob or serve another
lane in between.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator

from torch import Tensor

from tui_chat.conversation import StopReason
from tui_chat.engine.events import (
    Event,
    Failed,
    Finished,
    PrefillProgress,
    Prompt,
    Started,
    Stats,
    Step,
    Stepped,
    WindowMoved,
)
from tui_chat.engine.generate import at_once, check_ids, prefill, use_threads
from tui_chat.engine.lane import Lane as Lane
from tui_chat.engine.memory import out_of_memory
from tui_chat.engine.overlap import Overlap, Queued
from tui_chat.engine.speculate import Speculation
from tui_chat.engine.stops import StopText
from tui_chat.engine.window import Fitted
from tui_chat.errors import EngineError, TuiChatError
from tui_chat.sampler import Choice, Sampler
from tui_chat.sampling import SamplingParams, random_seed
from tui_chat.tokenizers.stream import TextStream


class Reply:
    """One reply being made. `params` may be replaced at any time and counts from the next token."""

    def __init__(self, lane: Lane, prompt: Prompt, params: SamplingParams, request_id: str) -> None:
        self.lane = lane
        self.prompt = prompt
        self.request_id = request_id
        self.seed = random_seed() if params.seed is None else params.seed
        self.ids: list[int] = []  # made so far
        self.wants: int | None = None  # the token whose logits are next to be computed, if one is
        self.reading: list[int] | None = None  # what is being read, while others could take it over
        self.text = ""  # shown so far
        self._params = params
        self._cancelled = False
        self._context: list[int] = []  # what the cache holds while this reply runs
        self._told = 0  # tokens that a sliding window was said to have left behind
        self._sampler: Sampler | None = None
        self._given: Tensor | None = None
        self._ahead = Speculation(lane)
        self._overlap: Overlap | None = None
        opening = prompt.ids is None and prompt.mode == "raw" and not prompt.text
        self._stream = TextStream(lane.checkpoint.tokenizer, opening=opening)
        self._stops = StopText(self._stop_strings())
        self._sent, self._reused = 0, 0
        self._prefill_seconds, self._decode_seconds = 0.0, 0.0

    @property
    def params(self) -> SamplingParams:
        return self._params

    @params.setter
    def params(self, params: SamplingParams) -> None:
        self._params = params
        self._stops.stops = self._stop_strings()
        if self._sampler is not None:
            self._sampler.params = params

    def give(self, logits: Tensor, seconds: float) -> None:
        """The logits after `wants`, (vocab_size,), from whoever computed them for several replies
        at once and appended to the lane's cache; `seconds` is this one's share of the time.
        """
        self._given, self.wants = logits, None
        self._decode_seconds += seconds

    def cancel(self) -> None:
        """End at the next step."""
        self._cancelled = True

    def events(self) -> Iterator[Event]:
        """Started, then progress and tokens, then Finished or Failed."""
        try:
            yield from self._run()
        except TuiChatError as error:
            yield from self._failed(error)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            self.lane.drop_cache()
            yield from self._failed(
                EngineError(
                    "there is not enough memory",
                    f"{len(self._context)} tokens were in use on {self.lane.checkpoint.device}",
                    "Start a new chat, or open a smaller checkpoint",
                )
            )

    # ---- the course of a reply

    def _run(self) -> Generator[Event, None, None]:
        lane, checkpoint = self.lane, self.lane.checkpoint
        sent = lane.window.fit(self.prompt, self._params.max_new_tokens)
        check_ids(checkpoint.model, sent.ids)
        self._sent = len(sent.ids)
        lane.check_room(len(sent.ids) + 1)
        held = self._begin(sent.ids)
        self._reused = held if checkpoint.model.incremental else 0
        self.reading = None if at_once(checkpoint.model) else sent.ids
        yield Started(
            request_id=self.request_id,
            lane=lane.name,
            seed=self.seed,
            prompt_ids=tuple(sent.ids),
            reused_tokens=self._reused,
            first_turn=sent.first_turn,
            first_char=sent.first_char,
            dropped_tokens=sent.dropped_tokens,
            missing=lane.missing(self.prompt),
            note=" ".join(filter(None, (sent.note, lane.remark()))),
        )
        self._sampler = Sampler(self._params, self.seed, sent.ids)
        drafts = lane.drafting is not None and lane.drafting.pace.take_reply()
        if lane.pipeline is not None and not drafts:
            self._overlap = Overlap(lane.pipeline, self.seed, sent.ids)
        logits: Tensor | Queued | None = yield from self._prefill(sent.ids, begun=True)
        stop_ids = frozenset(checkpoint.info.stop_ids)
        while logits is not None and not self._cancelled:
            began = time.perf_counter()
            choice = self._choose(self._sampler, logits)
            self._spent(began)
            self.ids.append(choice.id)
            stopped = choice.id in stop_ids
            piece = self._stream.flush() if stopped else self._stream.push(choice.id)
            shown, hit = self._stops.push(piece)
            if stopped and not hit:
                shown += self._stops.flush()
            self.text += shown
            step = Step(choice.id, shown, choice.logprob)
            goes_on = not stopped and not hit and self._goes_on(choice.id)
            self.wants = choice.id if goes_on else None
            yield Stepped(
                request_id=self.request_id,
                text=shown,
                steps=(step,),
                drafted_tokens=self._ahead.drafted,
                accepted_tokens=self._ahead.accepted,
            )
            given, self._given, self.wants = self._given, None, None
            if stopped or hit:
                yield from self._ended(sent, "stop", hit or f"token {choice.id}")
                return
            if self._cancelled:
                break
            if len(self.ids) >= self._params.max_new_tokens:
                yield from self._ended(sent, "length")
                return
            slides = lane.window.slides(self.prompt)
            if len(self._context) >= checkpoint.context_length and not slides:
                moved = lane.window.move(self.prompt, sent, self.ids)
                if moved is None:
                    yield from self._ended(sent, "context")
                    return
                yield WindowMoved(
                    request_id=self.request_id,
                    first_turn=moved.first_turn,
                    first_char=moved.first_char,
                    dropped_tokens=moved.dropped_tokens,
                )
                logits = yield from self._prefill(moved.ids)
            elif lane.writer is not self:  # somebody else has used the lane meanwhile
                logits = yield from self._prefill([*self._context, choice.id])
            else:
                if given is None and len(self._context) == lane.cache.capacity:
                    lane.check_room(len(self._context) + 1)
                began = time.perf_counter()
                use_threads(checkpoint.threads)
                self._context.append(choice.id)
                logits = given
                if self._overlap is not None:
                    logits = self._overlap.after(lane.cache, self._params)
                if logits is None:
                    logits = self._ahead.after(self._context, self._sampler, self._room())
                self._decode_seconds += time.perf_counter() - began
                if slides:
                    yield from self._slid(sent, checkpoint.context_length // 8)
        yield from self._ended(sent, "cancelled")

    def _choose(self, sampler: Sampler, logits: Tensor | Queued) -> Choice:
        if self._overlap is not None:
            choice = self._overlap.choose(logits, self.lane.cache, self._params)
            if choice is not None:
                sampler.skip(choice.id)
                return choice
            self._overlap = None  # something failed: from here on the plain way
        assert not isinstance(logits, Queued)
        return sampler(self.lane.offered(logits))

    def _goes_on(self, token: int) -> bool:
        """Whether the next thing is to run the last token through the model, and no more."""
        return (
            self._overlap is None
            and self.lane.writer is self
            and len(self.ids) < self._params.max_new_tokens
            and len(self._context) < self.lane.cache.capacity  # which is then not asked to grow
            and self._ahead.settled(self._context, token)
        )

    def _room(self) -> int:
        """How many ids may be run beyond the context: none too many, and none for which the cache
        would have to grow.
        """
        left = self._params.max_new_tokens - len(self.ids) - 1
        most = min(self.lane.cache.capacity, self.lane.checkpoint.context_length)
        return min(left, most - len(self._context))

    def _begin(self, ids: list[int]) -> int:
        """Take the lane, with as much of `ids` as is held anywhere; how many tokens that is."""
        began = time.perf_counter()
        self.lane.writer = self
        held = self.lane.start_from(ids)
        self._spent(began)
        return held

    def _take_more(self, ids: list[int]) -> None:
        gained = self.lane.take_more(ids)
        if not self.ids:
            self._reused += gained

    def _spent(self, began: float) -> None:
        # Reading a moved window anew is part of writing on, not of the first token.
        if self.ids:
            self._decode_seconds += time.perf_counter() - began
        else:
            self._prefill_seconds += time.perf_counter() - began

    def _prefill(
        self, ids: list[int], *, begun: bool = False
    ) -> Generator[Event, None, Tensor | None]:
        """Bring the cache to `ids`; returns the last logits, None when the reply was cancelled
        meanwhile.
        """
        lane, checkpoint = self.lane, self.lane.checkpoint
        self._context = list(ids)
        robbed = False
        while not self._cancelled:
            if not begun or lane.writer is not self:
                self._begin(ids)
            begun = False
            running = prefill(
                checkpoint.model, lane.cache, ids, checkpoint.pieces, lambda: self._take_more(ids)
            )
            self.reading = None if at_once(checkpoint.model) else ids
            while not self._cancelled and lane.writer is self:
                if self.reading and not robbed and len(ids) - len(lane.cache) == 1:
                    # The last one is like a token of the reply: several replies may run it at once.
                    self.reading, self.wants = None, ids[-1]
                    yield PrefillProgress(
                        request_id=self.request_id, done=len(ids) - 1, total=len(ids)
                    )
                    given, self._given, self.wants = self._given, None, None
                    if given is not None and lane.writer is self:
                        return given
                    continue
                use_threads(checkpoint.threads)
                began = time.perf_counter()
                done, logits = next(running)
                self._spent(began)
                if logits is not None:
                    self.reading = None
                if logits is not None or not robbed:
                    yield PrefillProgress(request_id=self.request_id, done=done, total=len(ids))
                if logits is not None:
                    return logits
            # Another reply has taken the lane. Begin again, and this time without a pause: two that
            # rob each other in turn would never get to the end.
            robbed = True
        self.reading = None
        return None

    def _stop_strings(self) -> tuple[str, ...]:
        if self.prompt.ids is None and self.prompt.mode == "chat":
            return self._params.stop + self.lane.checkpoint.chat_template.stop_strings
        return self._params.stop

    def _flushed(self) -> Iterator[Event]:
        """What was held back for a character or a stop string that never came."""
        shown, hit = self._stops.push(self._stream.flush())
        if not hit:
            shown += self._stops.flush()
        if shown:
            self.text += shown
            yield Stepped(
                request_id=self.request_id,
                text=shown,
                steps=(),
                drafted_tokens=self._ahead.drafted,
                accepted_tokens=self._ahead.accepted,
            )

    def _slid(self, sent: Fitted, at_least: int) -> Iterator[Event]:
        """Tell where a window that moves by itself begins by now, if that is `at_least` tokens
        further on.
        """
        lane = self.lane
        left_out = len(self._context) - lane.checkpoint.context_length
        if left_out - self._told >= max(at_least, 1) and lane.window.slides(self.prompt):
            self._told = left_out
            moved = lane.window.move(self.prompt, sent, self._context[len(sent.ids) :])
            if moved is not None:
                yield WindowMoved(
                    request_id=self.request_id,
                    first_turn=moved.first_turn,
                    first_char=moved.first_char,
                    dropped_tokens=moved.dropped_tokens,
                )

    def _ended(self, sent: Fitted, reason: StopReason, detail: str = "") -> Iterator[Event]:
        if reason != "stop":  # what is held back after a stop is no longer of the reply
            yield from self._flushed()
        yield from self._slid(sent, 1)
        yield self._finished(reason, detail)

    def _finished(self, reason: StopReason, detail: str = "") -> Finished:
        if self.lane.writer is self:
            self._ahead.close(self._context)
        if (by := self.lane.drafting) is not None:
            by.pace.replied(self._overlap is None, len(self.ids), self._decode_seconds)
        return Finished(
            request_id=self.request_id,
            lane=self.lane.name,
            reason=reason,
            text=self.text,
            ids=tuple(self.ids),
            stats=Stats(
                prompt_tokens=self._sent,
                reused_tokens=self._reused,
                prefill_seconds=self._prefill_seconds,
                new_tokens=len(self.ids),
                decode_seconds=self._decode_seconds,
                drafted_tokens=self._ahead.drafted,
                accepted_tokens=self._ahead.accepted,
            ),
            detail=detail,
        )

    def _failed(self, error: TuiChatError) -> Iterator[Event]:
        yield from self._flushed()
        yield Failed(lane=self.lane.name, request_id=self.request_id, error=error)
