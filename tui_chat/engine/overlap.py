"""A reply's tokens made on a GPU one ahead of the one being looked at, so that the GPU never waits
for text, stop rules and screen.

The first token comes from the prompt's logits as ever. From then on step and draw run on the
device (model/cuda), and while the reply looks at a token, the next is under way. What turns out to
be one too many is thrown away: the cache only ever counts tokens that the reply went on from. So a
knob that is turned acts one token later than on a CPU. Whatever cannot be done so, or fails, is
done the plain way, from the very same token on.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from tui_chat.model.cuda.pipeline import Pipeline, Unsupported
from tui_chat.model.cuda.recorder import CudaGraphRecorder, Recorder
from tui_chat.model.decoder import Decoder
from tui_chat.sampler import Choice
from tui_chat.sampling import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from tui_chat.engine.load import LoadedCheckpoint
    from tui_chat.model.cache import KVCache

# By the kind of device.
RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphRecorder}


class Queued:
    """In place of logits: they stay on the device, and the token is drawn from them there."""


QUEUED = Queued()


def pipeline_for(checkpoint: LoadedCheckpoint) -> Pipeline | None:
    """What writes a lane's tokens ahead; None for a device or a model for which nothing does."""
    model, record = checkpoint.model, RECORDERS.get(checkpoint.model.device.type)
    if record is None or not isinstance(model, Decoder):
        return None
    return Pipeline(model.parts, checkpoint.offered, record(model.device), checkpoint.compilation)


class Overlap:
    """The tokens of one reply, drawn on the device by a lane's pipeline.

    Token i of the reply is drawn by number i of its seed, as Sampler does it, so that the sampler
    can go on where this has to stop.
    """

    def __init__(self, pipeline: Pipeline, seed: int, prompt: Sequence[int]) -> None:
        self._pipeline = pipeline
        self._history = list(prompt)  # and the tokens taken
        self._random = random.Random(seed)
        self._dice: list[float] = []
        self._taken = 0
        self._drawn = 0  # draws queued or done, those of the tokens taken included

    def choose(
        self, logits: Tensor | Queued, cache: KVCache, params: SamplingParams
    ) -> Choice | None:
        """The next token; None where it is to be drawn from these logits in the plain way, as all
        that follow. Raises EngineError where its logits were not usable.
        """
        at, history = self._taken, self._history
        if not isinstance(logits, Queued):
            # Nothing is queued behind it: what has to be recorded first would keep it from being
            # seen.
            if not self._first(logits, cache, params):
                return None
        elif self._may_go_on(cache, params):
            self._next(cache, history, params)
        choice = self._pipeline.wait(at)
        history.append(choice.id)
        self._taken += 1
        return choice

    def after(self, cache: KVCache, params: SamplingParams) -> Queued | None:
        """Go on behind the token taken last: the cache counts it. None where that has to be done in
        the plain way; nothing has happened then.
        """
        if self._drawn == self._taken and not self._next(cache, self._history[:-1], params):
            return None
        cache.append(self._history[-1:])
        return QUEUED

    def _may_go_on(self, cache: KVCache, params: SamplingParams) -> bool:
        """Whether a token will be wanted behind the one to be taken, for all that is known. For
        more room than there is the reply asks first.
        """
        wanted = self._taken + 1 < params.max_new_tokens and self._drawn == self._taken + 1
        return wanted and len(cache) < cache.capacity

    def _first(self, logits: Tensor, cache: KVCache, params: SamplingParams) -> bool:
        pipeline, at = self._pipeline, self._taken
        return self._queued(
            at,
            lambda dice: pipeline.first(logits, cache, self._history, params, dice, at),
        )

    def _next(self, cache: KVCache, history: Sequence[int], params: SamplingParams) -> bool:
        """`history`: all before the token drawn last."""
        pipeline, at = self._pipeline, self._drawn
        return self._queued(at, lambda dice: pipeline.next(cache, history, params, dice, at))

    def _queued(self, at: int, queue: Callable[[float], None]) -> bool:
        """Whether the draw of token `at` could be queued."""
        if not self._pipeline.works:
            return False
        while len(self._dice) <= at:
            self._dice.append(self._random.random())
        try:
            queue(self._dice[at])
        except (Unsupported, RuntimeError) as error:  # of CUDA, of its memory, of an operator
            self._pipeline.give_up(error)
            return False
        self._drawn = at + 1
        return True
