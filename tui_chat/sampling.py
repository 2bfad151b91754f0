"""From logits to the next token.

Two routes lead to a distribution: `explain` applies one filter after the other to the whole
vocabulary and says which one cut each token; `Sampler` reaches the same set by touching only what
can survive. Tests hold the second against the first. Order and tie rules are those of Hugging Face
transformers: repetition penalty, temperature, top-k (ties at the k-th place stay), top-p (smallest
set whose mass reaches p), min-p. The knobs themselves are data, in knobs.py, and can be imported
from here. Importing this module does not import torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tui_chat.errors import EngineError
from tui_chat.knobs import (
    KNOBS,
    MAX_SEED,
    PRESETS,
    Knob,
    SamplingParams,
    chain,
    knob,
    void_reason,
)

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "KNOBS",
    "MAX_SEED",
    "PRESETS",
    "Choice",
    "Explained",
    "Knob",
    "Sampler",
    "SamplingParams",
    "candidates",
    "chain",
    "explain",
    "greatest",
    "knob",
    "penalised",
    "random_seed",
    "void_reason",
]


def penalised(logits: Tensor, params: SamplingParams, history: Sequence[int]) -> Tensor:
    """Repetition penalty (CTRL, arXiv 1909.05858): once per distinct id, prompt included. (V,)
    -> (V,).
    """
    if params.repetition_penalty == 1.0:
        return logits
    import torch  # here, so that the screen can import the knobs without it

    recent = history[-params.repetition_window :] if params.repetition_window else history
    seen = torch.tensor(recent, dtype=torch.long, device=logits.device)
    seen = seen[(seen >= 0) & (seen < logits.shape[0])]
    picked = logits[seen]
    lowered = torch.where(
        picked < 0, picked * params.repetition_penalty, picked / params.repetition_penalty
    )
    # An id that occurs twice is written twice, with the same value.
    return logits.index_put((seen,), lowered)


def greatest(logits: Tensor) -> tuple[float, int]:
    """The largest logit and its id. Raises EngineError when there is none to choose."""
    peak, at = logits.max(dim=0)
    value = float(peak)
    if not math.isfinite(value):
        what = "NaN" if math.isnan(value) else "an infinite value"
        raise EngineError(
            "the model gave no usable probabilities",
            f"its output holds {what}",
            "The weights may be damaged, or diverged in training: try another step",
        )
    return value, int(at)


def _top(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """torch.topk, several times faster on a large vocabulary: blocks first, then the best
    blocks.
    """
    size, block = logits.shape[0], 64
    if count * block * 4 > size:
        values, ids = logits.topk(min(count, size))
        return values, ids
    # Each of the `count` largest lies in a block whose maximum is among the `count` largest maxima,
    # or in the remainder behind the last whole block.
    whole = size // block * block
    tiles = logits[:whole].view(-1, block)
    best = tiles.amax(dim=1).topk(count).indices
    values, order = tiles[best].view(-1).topk(count)
    ids = best[order // block] * block + order % block
    if whole == size:
        return values, ids
    import torch

    rest = torch.arange(whole, size, device=logits.device)
    values, order = torch.cat([values, logits[whole:]]).topk(count)
    return values, torch.cat([ids, rest])[order]


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
        self._random = random.Random(seed)
        self._history = list(history)

    def __call__(self, logits: Tensor) -> Choice:
        """Draw from (V,) float32 logits. Raises EngineError when they are NaN or infinite."""
        _, best = greatest(logits)
        # One draw a token whatever the knobs, so that turning one does not shift the dice of later
        # tokens.
        dice = self._random.random()
        shaped = penalised(logits, self.params, self._history)
        if self.params.temperature == 0.0:
            chosen, kept = (best if shaped is logits else int(shaped.argmax())), 1
        else:
            ids, weights = candidates(shaped, self.params)
            chosen, kept = _draw(ids, weights, dice), weights.shape[0]
        self._history.append(chosen)
        logprob = float(logits[chosen] - logits.logsumexp(0))
        return Choice(chosen, logprob, kept)

    def ahead(self) -> Sampler:
        """One that draws, from the same logits, what this one would draw next and after that; this
        one's dice stay where they are.
        """
        twin = Sampler(self.params, 0, self._history)
        twin._random.setstate(self._random.getstate())
        return twin


def _draw(ids: Tensor | None, weights: Tensor, dice: float) -> int:
    """The id at `dice` in [0, 1) of the cumulative weights."""
    import torch

    cumulative = weights.cumsum(0)
    at = int(torch.searchsorted(cumulative, dice * float(cumulative[-1]), right=True))
    at = min(at, weights.shape[0] - 1)
    return at if ids is None else int(ids[at])


def candidates(logits: Tensor, params: SamplingParams) -> tuple[Tensor | None, Tensor]:
    """Ids that survive the filters and their weights (float64, not normalised), likeliest first.

    ids None: all of them, in the order of the vocabulary. `params.temperature` must be above 0.
    """
    size = logits.shape[0]
    peak, temperature = float(logits.max()), params.temperature

    def weigh(values: Tensor) -> Tensor:
        # Shifting by the peak before dividing keeps tiny temperatures from overflowing.
        return values.double().sub_(peak).div_(temperature).exp_()

    if params.top_k and params.top_k < size:
        values, ids = _top(logits, params.top_k)
        tied = int((logits >= values[-1]).sum())
        if tied > params.top_k:
            values, ids = logits.topk(tied)
        weights = weigh(values)
    elif params.top_p < 1.0:
        total = float(weigh(logits).sum())
        count = min(size, 256)
        while True:
            values, ids = _top(logits, count)
            weights = weigh(values)
            if count == size or float(weights.sum()) >= params.top_p * total:
                break
            count = size if count >= 4096 else min(size, count * 8)
        return _min_p(ids, _top_p(weights, total, params.top_p), params)
    elif params.min_p > 0.0:
        weights = weigh(logits)
        ids = (weights >= params.min_p - _EXACT).nonzero()[:, 0]
        weights, order = weights[ids].sort(descending=True)
        return ids[order], weights
    else:
        return None, weigh(logits)
    if params.top_p < 1.0:
        weights = _top_p(weights, float(weights.sum()), params.top_p)
    return _min_p(ids, weights, params)


# Shares that differ by less than this are equal: logits in float32 cannot tell them apart, and a
# probability that reaches top_p exactly must count as reaching it.
_EXACT = 1e-6


def _top_p(weights: Tensor, total: float, top_p: float) -> Tensor:
    """The shortest head of sorted weights whose mass reaches top_p of the total; at least one."""
    before = weights.cumsum(0) - weights
    return weights[: max(1, int((before < (top_p - _EXACT) * total).sum()))]


def _min_p(ids: Tensor, weights: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    if params.min_p > 0.0:
        kept = int((weights >= (params.min_p - _EXACT) * weights[0]).sum())
        weights = weights[: max(1, kept)]
    return ids[: weights.shape[0]], weights


class Explained(NamedTuple):
    """For each id of the vocabulary: probability after the knobs, and the filter that cut it
    (None: kept).
    """

    kept_probs: Tensor  # (V,)
    cut_by: list[str | None]


def explain(logits: Tensor, params: SamplingParams, history: Sequence[int] = ()) -> Explained:
    """The same filters one by one over the whole vocabulary, with the name of the one that cut
    each token.
    """
    greatest(logits)
    cut_by: list[str | None] = [None] * logits.shape[0]
    left = penalised(logits, params, history).double()
    if params.temperature == 0.0:
        best = int(left.argmax())
        probs = left.new_zeros(left.shape[0])
        probs[best] = 1.0
        return Explained(
            probs, [None if token == best else "temperature" for token in range(left.shape[0])]
        )
    left = (left - left.max()) / params.temperature

    def cut(mask: Tensor, name: str) -> Tensor:
        for token in mask.nonzero()[:, 0].tolist():
            if cut_by[token] is None:
                cut_by[token] = name
        return left.masked_fill(mask, -math.inf)

    if params.top_k and params.top_k < left.shape[0]:
        left = cut(left < left.topk(params.top_k).values[-1], "top_k")
    if params.top_p < 1.0:
        probs, order = left.softmax(0).sort(descending=True, stable=True)
        late = (probs.cumsum(0) - probs) >= params.top_p - _EXACT
        late[0] = False
        mask = late.new_zeros(late.shape[0])
        mask[order] = late
        left = cut(mask, "top_p")
    if params.min_p > 0.0:
        probs = left.softmax(0)
        left = cut(probs < (params.min_p - _EXACT) * probs.max(), "min_p")
    return Explained(left.softmax(0), cut_by)


def random_seed() -> int:
    """A seed for a reply whose knob says random."""
    return random.SystemRandom().randrange(MAX_SEED + 1)
