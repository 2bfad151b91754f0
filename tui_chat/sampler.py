"""Draws the next token of a reply from its logits, and touches only what can be drawn.

`explain` in sampling.py says what each filter does, over the whole vocabulary; here the same set is
reached from the other end, and only what may be drawn is sorted. Tests hold one against the other.
numpy does the work, for its calls cost a third of torch's, and a token of a 1M model takes 100 to
200 microseconds in all. A draw is the inverse of the cumulative distribution at one random number;
with a filter the likeliest comes first, and of equal ones that of the lower id; without one the
order is the vocabulary's.
"""

from __future__ import annotations

import bisect
import copy
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from tui_chat.sampling import EXACT, SamplingParams, unusable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    Logits = NDArray[np.float32]
    Weights = NDArray[np.float64]
    Ids = NDArray[np.intp]
    Picked = tuple[int, int, float]

SMALL = 1024  # a vocabulary up to this size is sorted whole: to find the few would take as long
HANDFUL = 100  # tokens that plain Python draws from sooner than numpy
FEW = 256  # tokens that often hold top_p of the mass
BUCKETS = 1024  # by depth below the likeliest
DEEPEST = 30.0  # from so many e-folds on all lie in the last bucket
END = 1 - 1e-12  # of all dice: sums that differ by rounding must not reach what has no weight
RUN = 512  # weights that are summed before a cumulative sum looks into one of the runs


class Choice(NamedTuple):
    """The token drawn, and what could have been."""

    id: int
    logprob: float  # of the model, before any knob
    kept: int  # tokens that could have been drawn


class Sampler:
    """Draws the tokens of one reply. `params` may be replaced between two calls; the seed counts
    at the start only.
    """

    def __init__(self, params: SamplingParams, seed: int, history: Sequence[int] = ()) -> None:
        self.params = params
        (self._dice,) = itertools.tee(iter(random.Random(seed).random, None), 1)
        self._history = list(history)
        self._seen: _Seen | None = None
        self._scratch = Scratch(0)

    def __call__(self, logits: Tensor) -> Choice:
        """Draw from (V,) float32 logits on the CPU. Raises EngineError when they are NaN or
        infinite.
        """
        return self.draw(logits.numpy())

    def draw(self, logits: Logits) -> Choice:
        """The same from an array, which is left as it is."""
        best, peak = _best(logits)
        # One number a token whatever the knobs: turning one does not shift the dice of later ones.
        dice = next(self._dice)
        if peak < 1e30 and not 0.0 < self.params.temperature < 1e-100:
            return self._draw(logits, best, peak, dice)
        with np.errstate(over="ignore"):  # towards minus infinity, where no weight is left
            return self._draw(logits, best, peak, dice)

    def _draw(self, logits: Logits, best: int, peak: float, dice: float) -> Choice:
        params, size = self.params, logits.shape[0]
        if self._scratch.size != size:
            self._scratch = Scratch(size)
        scratch, shaped, top = self._scratch, logits, peak
        if params.repetition_penalty != 1.0:
            shaped = self._penalised(logits)
            best, top = _best(shaped)
        if params.temperature == 0.0:
            chosen, kept, total = best, 1, 0.0
        else:
            chosen, kept, total = pick(shaped, top, params, dice, scratch)
        if not total or params.temperature != 1.0 or shaped is not logits:
            total = scratch.total(logits, peak)
        self._history.append(chosen)
        if self._seen is not None:
            self._seen.add(chosen)
        return Choice(chosen, float(logits[chosen]) - peak - math.log(total), kept)

    def skip(self, token: int) -> None:
        """Count `token` as drawn: somebody else has drawn it by the same number."""
        next(self._dice)
        self._history.append(token)
        if self._seen is not None:
            self._seen.add(token)

    def ahead(self) -> Sampler:
        """One that draws, from the same logits, what this one would draw next and after that; this
        one's dice stay where they are.
        """
        twin = Sampler(self.params, 0, self._history)
        twin._dice, twin._scratch = copy.copy(self._dice), self._scratch
        twin._seen = self._seen and self._seen.fork()
        return twin

    def _penalised(self, logits: Logits) -> Logits:
        params, seen = self.params, self._seen
        window = params.repetition_window
        if seen is None or seen.window != window or seen.size != logits.shape[0]:
            seen = self._seen = _Seen(self._history, window, logits.shape[0])
        lowered = self._scratch.single
        np.copyto(lowered, logits)
        ids, penalty = seen.ids(), params.repetition_penalty
        picked = logits[ids]
        with np.errstate(over="ignore"):
            lowered[ids] = np.where(picked < 0, picked * penalty, picked / penalty)
        return lowered


def _best(logits: Logits) -> tuple[int, float]:
    """Id and value of the largest. Raises EngineError when there is none to choose."""
    best = int(logits.argmax())  # where the first NaN is, if there is one
    peak = float(logits[best])
    if not math.isfinite(peak):
        raise unusable(peak)
    return best, peak


class _Seen:
    """The distinct ids below `size` among the last `window` tokens (0: all), kept up to date."""

    def __init__(self, history: Sequence[int], window: int, size: int) -> None:
        self.window, self.size = window, size
        self._recent: deque[int] = deque()
        self._counts: dict[int, int] = {}
        self._places: dict[int, int] = {}  # in `_ids`, of which the first so many count
        self._ids = np.empty(1024, dtype=np.intp)
        for token in history[-window:] if window else history:
            self.add(token)

    def ids(self) -> Ids:
        return self._ids[: len(self._places)]

    def add(self, token: int) -> None:
        if self.window:
            self._recent.append(token)
            if len(self._recent) > self.window:
                self._drop(self._recent.popleft())
        if not 0 <= token < self.size:
            return
        count = self._counts.get(token, 0)
        self._counts[token] = count + 1
        if not count:
            place = len(self._places)
            if place == len(self._ids):
                self._ids = np.concatenate([self._ids, self._ids])
            self._ids[place] = token
            self._places[token] = place

    def fork(self) -> _Seen:
        twin = copy.copy(self)
        twin._recent, twin._ids = self._recent.copy(), self._ids.copy()
        twin._counts, twin._places = self._counts.copy(), self._places.copy()
        return twin

    def _drop(self, token: int) -> None:
        if token not in self._counts:
            return
        self._counts[token] -= 1
        if self._counts[token]:
            return
        del self._counts[token]
        place = self._places.pop(token)
        last = len(self._places)
        if place != last:  # the last one fills the gap
            moved = int(self._ids[last])
            self._ids[place] = moved
            self._places[moved] = place


class Scratch:
    """Memory for work on `size` logits, taken once: to ask for it each token costs more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.single = np.empty(size, dtype=np.float32)
        self._spare = np.empty(size, dtype=np.float32)
        self.double = np.empty(size, dtype=np.float64)
        self._place = np.empty(size, dtype=np.int32)

    def total(self, logits: Logits, peak: float) -> float:
        """The sum of exp(logits - peak)."""
        np.subtract(logits, peak, out=self._spare)
        np.exp(self._spare, out=self._spare)
        return float(np.add.reduce(self._spare))

    def weights(self, logits: Logits, top: float, temperature: float) -> Weights:
        """exp((logits - top) / temperature)."""
        np.copyto(self.double, logits)
        return _weigh(self.double, top, temperature)

    def buckets(self, logits: Logits, top: float, temperature: float) -> NDArray[np.int32]:
        """(V,) the number of each logit's bucket, 0 at the top; what is deeper than DEEPEST lies in
        the last.
        """
        deep, deepest = self._spare, max(DEEPEST * temperature, 1e-30)
        np.subtract(top, logits, out=deep)
        np.clip(deep, 0.0, deepest, out=deep)
        np.multiply(deep, (BUCKETS - 1) / deepest, out=deep)
        np.copyto(self._place, deep, casting="unsafe")
        return self._place


def _weigh(values: Weights, top: float, temperature: float) -> Weights:
    """exp((values - top) / temperature), in place."""
    np.subtract(values, top, out=values)
    if temperature < 1e-100:  # its inverse may be infinite
        np.divide(values, temperature, out=values)
    elif temperature != 1.0:
        np.multiply(values, 1.0 / temperature, out=values)
    return np.exp(values, out=values)


# ---- drawing


def pick(
    logits: Logits, top: float, params: SamplingParams, dice: float, scratch: Scratch
) -> Picked:
    """The id at `dice` in [0, 1), of how many, and the sum of all weights before any filter, or 0
    if nobody needed it. The temperature is above 0, and `top` the largest of the logits.
    """
    size = logits.shape[0]
    dice = min(dice, END)
    top_k = params.top_k if params.top_k < size else 0
    if 0 < top_k * 8 <= size:
        return _of_few(logits, _largest(logits, top_k), top, params, dice)
    if not (top_k or params.top_p < 1.0 or params.min_p > 0.0):
        return _of_all(scratch.weights(logits, top, params.temperature), dice)
    if size <= SMALL:
        return _of_few(logits, None, top, params, dice)
    if not top_k and params.top_p == 1.0 and params.min_p > EXACT:
        # A little too many: the exact weights decide.
        floor = top + params.temperature * math.log(params.min_p - EXACT)
        enough = logits >= floor - 1e-6 * abs(floor)
        if int(np.count_nonzero(enough)) * 8 <= size:
            return _of_few(logits, enough.nonzero()[0], top, params, dice)
    weights = scratch.weights(logits, top, params.temperature)
    if not top_k and params.top_p < 1.0 and size >= FEW * 8:
        ids, total = _largest(logits, FEW), float(np.add.reduce(weights))
        if float(np.add.reduce(weights[ids])) >= params.top_p * total:
            return _of_few(logits, ids, top, params, dice, total)
    return _of_many(logits, weights, top_k, top, params, dice, scratch)


def _largest(logits: Logits, count: int) -> Ids:
    """Ids, in their order, of the `count` largest, of all that equal the last of them, and of few
    others. `count` is at most an eighth of the vocabulary.
    """
    # Of the largest of each column the `count` largest: as many tokens are at least as large as the
    # last of these, so what is smaller is not among the `count` largest.
    rows = min(64, logits.shape[0] // (4 * count))
    columns = logits.shape[0] // rows
    best = np.maximum.reduce(logits[: rows * columns].reshape(rows, columns))
    best.partition(columns - count)
    ids: Ids = (logits >= best[columns - count]).nonzero()[0]
    return ids


def _of_all(weights: Weights, dice: float) -> Picked:
    """Without a filter, in the order of the vocabulary."""
    ends = np.add.reduceat(weights, np.arange(0, weights.shape[0], RUN)).cumsum()
    total = float(ends[-1])
    target = dice * total
    run = min(int(ends.searchsorted(target, "right")), ends.shape[0] - 1)
    if run:
        target -= float(ends[run - 1])
    cumulative = weights[run * RUN : (run + 1) * RUN].cumsum()
    at = min(int(cumulative.searchsorted(target, "right")), cumulative.shape[0] - 1)
    return run * RUN + at, weights.shape[0], total


def _of_few(
    logits: Logits,
    ids: Ids | None,
    top: float,
    params: SamplingParams,
    dice: float,
    total: float = 0.0,
) -> Picked:
    """Of these ids (None: all), in whose order equal ones stay. `total`: the sum of all weights,
    where there are others that top-p counts.
    """
    values = logits if ids is None else logits[ids]
    if values.shape[0] <= HANDFUL:
        at, kept = _of_a_handful(values.tolist(), top, params, dice, total)
        return at if ids is None else int(ids[at]), kept, total
    order = np.negative(values).argsort(kind="stable")
    values = values[order]
    if 0 < params.top_k < values.shape[0]:
        values = values[: np.count_nonzero(values >= values[params.top_k - 1])]
    weights = _weigh(values.astype(np.float64), top, params.temperature)
    cumulative = weights.cumsum()
    kept = weights.shape[0]
    if params.top_p < 1.0:
        limit = (params.top_p - EXACT) * (total or float(cumulative[-1]))
        kept = max(1, int(np.count_nonzero(cumulative - weights < limit)))
    if params.min_p > 0.0:
        floor = (params.min_p - EXACT) * float(weights[0])
        kept = max(1, min(kept, int(np.count_nonzero(weights >= floor))))
    target = dice * float(cumulative[kept - 1])
    at = order[min(int(cumulative.searchsorted(target, "right")), kept - 1)]
    return int(at if ids is None else ids[at]), kept, total


def _of_a_handful(
    values: list[float], top: float, params: SamplingParams, dice: float, total: float
) -> tuple[int, int]:
    """The same in plain Python, which for so few is done before numpy has begun: the place among
    them, and how many were let through.
    """
    ordered = sorted(values, reverse=True)
    if 0 < params.top_k < len(ordered):
        least = ordered[params.top_k - 1]
        while ordered[-1] < least:
            ordered.pop()
    temperature, exp = params.temperature, math.exp
    weights = [exp((value - top) / temperature) for value in ordered]
    cumulative = list(itertools.accumulate(weights))
    kept = len(weights)
    if params.top_p < 1.0:
        limit = (params.top_p - EXACT) * (total or cumulative[-1])
        kept = min(kept, bisect.bisect_left(cumulative, limit) + 1)
    if params.min_p > 0.0:
        floor = (params.min_p - EXACT) * weights[0]
        while kept > 1 and weights[kept - 1] < floor:
            kept -= 1
    at = min(bisect.bisect_right(cumulative, dice * cumulative[kept - 1]), kept - 1)
    value = ordered[at]
    place = values.index(value)
    for _ in range(at - ordered.index(value)):  # of equal ones the lower id comes first
        place = values.index(value, place + 1)
    return place, kept


def _of_many(
    logits: Logits,
    weights: Weights,
    top_k: int,
    top: float,
    params: SamplingParams,
    dice: float,
    scratch: Scratch,
) -> Picked:
    """Of the whole vocabulary with its weights, in buckets by depth below the top: only the two are
    sorted in which top-p ends and the dice falls. top_k 0: off.
    """
    kept = logits.shape[0]
    if top_k:
        cut = logits < np.partition(logits, kept - top_k)[kept - top_k]
        weights[cut] = 0.0
        kept -= int(np.count_nonzero(cut))
    buckets = scratch.buckets(logits, top, params.temperature)
    ends = np.bincount(buckets, weights).cumsum()
    total = mass = float(ends[-1])

    def find(target: float, side: Literal["left", "right"]) -> tuple[Ids, int, int, float]:
        """The bucket's ids, likeliest first, the place among them where the cumulative weight
        reaches (left) or passes (right) `target`, the bucket, and the cumulative weight there.
        """
        bucket = min(int(ends.searchsorted(target, side)), ends.shape[0] - 1)
        ids = (buckets == bucket).nonzero()[0]
        ids = ids[np.argsort(-logits[ids], kind="stable")]
        cumulative = weights[ids].cumsum()
        if bucket:
            cumulative += ends[bucket - 1]
        at = min(int(cumulative.searchsorted(target, side)), ids.shape[0] - 1)
        return ids, at, bucket, float(cumulative[at])

    if params.top_p < 1.0:
        _, at, bucket, mass = find((params.top_p - EXACT) * total, "left")
        kept = int(np.count_nonzero(buckets < bucket)) + at + 1
    if params.min_p > 0.0:
        above = weights >= params.min_p - EXACT  # the likeliest weighs 1
        count = int(np.count_nonzero(above))
        if count < kept:
            np.multiply(weights, above, out=weights)
            kept, mass = count, float(np.add.reduce(weights))
    ids, at, _, _ = find(dice * mass, "right")
    return int(ids[at]), kept, 0.0 if top_k else total
