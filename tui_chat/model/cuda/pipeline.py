"""A sequence being written on a device: step and draw queued one behind the other, what they need
to know sent along, what they found fetched.

The host may look at one token while the device makes the next. Knows no text and no stop rule; who
asks decides what is kept of what was made.
"""

from __future__ import annotations

import ctypes
import logging
import struct
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tui_chat.knobs import SamplingParams
from tui_chat.model.cache import KVCache
from tui_chat.model.cuda.compiled import Compilation, without_compiling
from tui_chat.model.cuda.draw import FOUND, NUMBERS, Drawing, Kind, kind_of, numbers_of
from tui_chat.model.cuda.recorder import Recorder, Work
from tui_chat.model.cuda.step import PLAIN, Inputs, Stages, bucket, fixed_step, windows
from tui_chat.model.parts import Parts
from tui_chat.sampler import Choice
from tui_chat.sampling import unusable

log = logging.getLogger(__name__)

_SLOTS = 2  # tokens under way: the one that is looked at, and the next


class Unsupported(Exception):
    """This cannot be done with fixed shapes. The message says why."""


class _Bound(NamedTuple):
    """What was recorded for a cache as it lies."""

    cache: KVCache
    version: int
    steps: dict[int, Work]  # by bucket


class Pipeline:
    """For one lane: buffers of its own, and what is recorded over them and its cache.

    Tokens are numbered as they are drawn in a reply. Not for two threads at once.
    """

    def __init__(
        self,
        parts: Parts,
        offered: int,
        recorder: Recorder,
        compilation: Compilation | None = None,
    ) -> None:
        """Of the logits the first `offered` are drawn from. What is compiled meanwhile is taken up
        with the first token of a reply.
        """
        self._parts, self._recorder = parts, recorder
        self._windows = windows(parts)
        self._stages: Stages = PLAIN
        self._compilation = compilation
        self.works = True
        self._remark = ""
        spec, device = parts.spec, parts.device
        whole = 4 + len(self._windows)  # place, index, since, top_k, and a row for each window
        self._packing = struct.Struct(f"={whole}q{NUMBERS}d")
        with torch.inference_mode():
            self._told = torch.zeros(whole + NUMBERS, dtype=torch.int64, device=device)
            place, index, since, top_k, *rows = self._told[:whole].chunk(whole)
            token = torch.zeros(1, dtype=torch.int64, device=device)
            logits = torch.zeros(spec.vocab_size, dtype=torch.float32, device=device)
            self._inputs = Inputs(token, place, dict(zip(self._windows, rows, strict=True)), logits)
            self._drawing = Drawing(
                logits=logits[:offered],
                seen=torch.full((spec.vocab_size,), -1, dtype=torch.int64, device=device),
                place=index,
                since=since,
                top_k=top_k,
                numbers=self._told[whole:].view(torch.float64),
                token=token,
                found=torch.zeros(FOUND, dtype=torch.float64, device=device),
            )
            self._slots = [recorder.slot(whole + NUMBERS, FOUND) for _ in range(_SLOTS)]
        self._draws: dict[Kind, Work] = {}
        self._bound: _Bound | None = None
        self._recorded_upto = 0  # how much of the history `seen` knows

    @torch.inference_mode()
    def first(
        self,
        logits: Tensor,
        cache: KVCache,
        history: Sequence[int],
        params: SamplingParams,
        dice: float,
        at: int,
    ) -> None:
        """Queue the draw of token `at` from logits (vocab_size,) that lie on the device and follow
        `cache.tokens`. `history` is all that stands before it.
        """
        if not at:
            self._take_up()
        self._bind(cache)
        self._clear(cache)
        self._inputs.logits.copy_(logits)
        self._inputs.token.fill_(history[-1])
        self._recorded_upto = -1
        self._queue(None, history, len(history), params, dice, at)

    @torch.inference_mode()
    def next(
        self,
        cache: KVCache,
        history: Sequence[int],
        params: SamplingParams,
        dice: float,
        at: int,
    ) -> None:
        """Queue the step of the token drawn last, which will follow `cache.tokens`, and the draw of
        token `at` from its logits. `history` is all before the token drawn last. The cache appends
        that token when it is known.

        Raises Unsupported.
        """
        length = len(cache) + 1
        cache.reserve(length)
        bound = self._bind(cache)
        size = bucket(length)
        step = bound.steps.get(size)
        if step is None:
            step = bound.steps[size] = self._recorder.record(self._made(cache, size))
        self._queue(step, history, len(history) + 1, params, dice, at)

    def _queue(
        self,
        step: Work | None,
        history: Sequence[int],
        index: int,
        params: SamplingParams,
        dice: float,
        at: int,
    ) -> None:
        size = self._drawing.logits.shape[0]
        kind = kind_of(params, size)
        if kind.penalised:
            self._remember(history, index)
        window = params.repetition_window
        since = max(0, index - window) if window else 0
        top_k = params.top_k if 0 < params.top_k < size else size
        place, rows = 0, [0] * len(self._windows)
        if step is not None and self._bound is not None:
            cache = self._bound.cache
            place = len(cache)
            rows = [place - cache.layers[i].origin for i in self._windows.values()]
        slot = self._slots[at % _SLOTS]
        slot.wait()  # before what it sent is written over
        held = (ctypes.c_char * self._packing.size).from_address(slot.sent.data_ptr())
        numbers = numbers_of(params, dice)
        self._packing.pack_into(held, 0, place, index, since, top_k, *rows, *numbers)
        slot.send(self._told)
        if step is not None:
            step()
        self._draw(kind)()
        slot.fetch(self._drawing.found)

    def wait(self, at: int) -> Choice:
        """Token `at`, once it is there. Raises EngineError where its logits were not usable."""
        slot = self._slots[at % _SLOTS]
        slot.wait()
        token, logprob, kept, peak = slot.found.tolist()
        if not -torch.inf < peak < torch.inf:
            raise unusable(peak)
        return Choice(int(token), logprob, int(kept))

    def _made(self, cache: KVCache, size: int) -> Work:
        step = fixed_step(self._parts, self._stages, cache, self._inputs, size)
        if self._stages is PLAIN:
            return step

        def compiled() -> None:
            with without_compiling():
                step()

        return compiled

    def _take_up(self) -> None:
        """Use what has been compiled, if it is there."""
        compilation = self._compilation
        if compilation is None or not compilation.wait(0):
            return
        self._compilation = None
        self._remark = compilation.remark
        if compilation.ready is not None:
            self._stages = compilation.ready
            self.forget()

    def forget(self) -> None:
        """Let go of the cache, and of what was recorded over it."""
        self._bound = None

    def give_up(self, error: Exception) -> None:
        """Not to be used any more, because of `error`."""
        self.works = False
        self.forget()
        what = str(error).strip().splitlines() or [type(error).__name__]
        self._remark = f"tokens are made one by one: {what[0][:200]}"
        log.warning(self._remark, exc_info=error)

    def remark(self) -> str:
        """What there is to say about how tokens are made, said once."""
        said = self._remark or self._recorder.remark
        self._remark = self._recorder.remark = ""
        return said

    def _draw(self, kind: Kind) -> Work:
        draw = self._draws.get(kind)
        if draw is None:
            made = self._drawing
            draw = self._draws[kind] = self._recorder.record(lambda: made.run(kind))
        return draw

    def _remember(self, history: Sequence[int], index: int) -> None:
        """Let `seen` know what stands before the token drawn last: that one it learns by itself."""
        if self._recorded_upto != index - 1:
            last = {token: at for at, token in enumerate(history)}
            seen = torch.full(self._drawing.seen.shape, -1, dtype=torch.int64)
            seen[torch.tensor(list(last))] = torch.tensor(list(last.values()))
            self._drawing.seen.copy_(seen)
        self._recorded_upto = index

    def _bind(self, cache: KVCache) -> _Bound:
        """What is recorded over this cache, as it lies."""
        bound = self._bound
        if bound is not None and bound.cache is cache and bound.version == cache.version:
            return bound
        if cache.quantised:
            raise Unsupported("the cache is kept in 8 bits")
        self._bound = bound = _Bound(cache, cache.version, {})
        self._clear(cache)
        return bound

    @staticmethod
    def _clear(cache: KVCache) -> None:
        """Put zeros where the cache holds nothing of use: the step reads it and masks it, and what
        is masked of NaN is NaN.
        """
        here = len(cache)
        for layer in cache.layers:
            layer.data[..., here - layer.origin :, :].zero_()
