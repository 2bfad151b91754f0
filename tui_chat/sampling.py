"""What the knobs do to logits.

`explain` applies one filter after the other to the whole vocabulary and says which one cut each
token. sampler.py draws from the same set without looking at all of it, and tests hold it against
this. Order and tie rules are those of Hugging Face transformers: repetition penalty, temperature,
top-k (ties at the k-th place stay), top-p (smallest set whose mass reaches p; of equal tokens the
lower ids stay), min-p. The knobs themselves are data, in knobs.py, and can be imported from here.
Importing this module does not import torch.
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
    "EXACT",
    "KNOBS",
    "MAX_SEED",
    "PRESETS",
    "Explained",
    "Knob",
    "SamplingParams",
    "chain",
    "explain",
    "greatest",
    "knob",
    "penalised",
    "random_seed",
    "unusable",
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
        raise unusable(value)
    return value, int(at)


def unusable(peak: float) -> EngineError:
    """What there is to say of logits whose largest is `peak`, NaN or infinite."""
    what = "NaN" if math.isnan(peak) else "an infinite value"
    return EngineError(
        "the model gave no usable probabilities",
        f"its output holds {what}",
        "The weights may be damaged, or diverged in training: try another step",
    )


# Shares that differ by less than this are equal: logits in float32 cannot tell them apart, and a
# probability that reaches top_p exactly must count as reaching it.
EXACT = 1e-6


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
        late = (probs.cumsum(0) - probs) >= params.top_p - EXACT
        late[0] = False
        mask = late.new_zeros(late.shape[0])
        mask[order] = late
        left = cut(mask, "top_p")
    if params.min_p > 0.0:
        probs = left.softmax(0)
        left = cut(probs < (params.min_p - EXACT) * probs.max(), "min_p")
    return Explained(left.softmax(0), cut_by)


def random_seed() -> int:
    """A seed for a reply whose knob says random."""
    return random.SystemRandom().randrange(MAX_SEED + 1)
