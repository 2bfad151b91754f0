"""Sampling knobs, and the filters that turn logits into the next token.

The knobs are data (`KNOBS`): panel, command line, settings and receipts follow the table. Two
routes lead from logits to a distribution: `explain` applies one filter after the other to the
whole vocabulary and says which one cut each token; `Sampler` reaches the same set by touching
only what can survive. Tests hold the second against the first. Order and tie rules are those of
Hugging Face transformers: repetition penalty, temperature, top-k (ties at the k-th place stay),
top-p (smallest set whose mass reaches p), min-p. Knows tensors by their methods alone, so that
importing this module does not import torch.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from tui_chat.errors import EngineError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

MAX_SEED = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """One setting of all knobs. Frozen: to turn a knob is to put a new object in its place."""

    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 0
    max_new_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for knob in KNOBS:
            object.__setattr__(self, knob.name, knob.checked(getattr(self, knob.name)))

    def with_(self, **knobs: object) -> SamplingParams:
        """A copy with some knobs turned. Raises UsageError for an unknown knob or a value out of
        range.
        """
        for name in knobs:
            if name not in _BY_NAME:
                raise UsageError(
                    f"there is no sampling knob {name!r}", "", f"There are {', '.join(_BY_NAME)}"
                )
        return replace(self, **knobs)  # type: ignore[arg-type]

    def as_dict(self) -> dict[str, object]:
        """Knob names and values as JSON knows them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One row of the sampling panel and one command-line option.

    `neutral` switches the filter off (None: the knob has no such value). `step` and `big_step`
    are what one press and one shifted press move; `ladder` lists the stops of a knob that moves
    on a 1-2-5 scale instead.
    """

    name: str
    label: str
    kind: Literal["float", "int", "seed", "texts"]
    default: object
    neutral: object = None
    low: float = 0.0
    high: float = 1.0
    step: float = 0.0
    big_step: float = 0.0
    ladder: tuple[int, ...] = ()
    off: str = ""  # how the neutral value is written
    help: str = ""

    def checked(self, value: object) -> object:
        """`value` in the knob's type and range, or UsageError."""
        if self.kind == "texts":
            if isinstance(value, (list, tuple)) and all(isinstance(text, str) for text in value):
                return tuple(text for text in value if text)
            raise UsageError(f"{self.name} takes texts, not {value!r}")
        if self.kind == "seed" and value is None:
            return None
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise UsageError(f"{self.name} takes a number, not {value!r}")
        if not self.low <= value <= self.high:
            raise UsageError(
                f"{self.name} lies between {self.low:g} and {self.high:g}", f"{value!r} does not"
            )
        if self.kind == "float":
            return float(value)
        if value != int(value):
            raise UsageError(f"{self.name} takes a whole number, not {value!r}")
        return int(value)

    def is_neutral(self, value: object) -> bool:
        return self.neutral is not None and value == self.neutral

    def shown(self, value: object) -> str:
        """The value as the panel and the status line write it."""
        if isinstance(value, tuple):
            return " ".join(repr(text)[1:-1] for text in value) if value else "none"
        if self.kind == "seed":
            return "random" if value is None else str(value)
        if self.off and self.is_neutral(value):
            return self.off
        return f"{value:.2f}" if self.kind == "float" else str(value)

    def moved(self, value: object, steps: int, *, big: bool = False) -> object:
        """The value after pressing left (-1) or right (+1) `steps` times."""
        if self.kind == "texts":
            return value
        if self.kind == "seed":
            return max(0, min(MAX_SEED, int(value or 0) + steps * (100 if big else 1)))  # type: ignore[call-overload]
        number = float(value)  # type: ignore[arg-type]
        if self.ladder:
            for _ in range(abs(steps) * (2 if big else 1)):
                beyond = [x for x in self.ladder if (x > number if steps > 0 else x < number)]
                if not beyond:
                    break
                number = min(beyond) if steps > 0 else max(beyond)
        else:
            size = self.big_step if big else self.step
            number = round(round(number / size) * size + steps * size, 6)
        return self.checked(
            max(self.low, min(self.high, number))
            if self.kind == "float"
            else int(max(self.low, min(self.high, number)))
        )


KNOBS: tuple[Knob, ...] = (
    Knob(
        name="temperature",
        label="temperature",
        kind="float",
        default=0.8,
        neutral=1.0,
        low=0,
        high=5,
        step=0.05,
        big_step=0.25,
        help="How bold the choice is: 0 always takes the likeliest token, 1 the model's own odds.",
    ),
    Knob(
        name="top_k",
        label="top-k",
        kind="int",
        default=50,
        neutral=0,
        low=0,
        high=10_000_000,
        off="off",
        ladder=(0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
        help="Keep only the k likeliest tokens.",
    ),
    Knob(
        name="top_p",
        label="top-p",
        kind="float",
        default=1.0,
        neutral=1.0,
        low=0,
        high=1,
        step=0.01,
        big_step=0.05,
        off="off",
        help="Keep the likeliest tokens that together reach this probability.",
    ),
    Knob(
        name="min_p",
        label="min-p",
        kind="float",
        default=0.0,
        neutral=0.0,
        low=0,
        high=1,
        step=0.01,
        big_step=0.05,
        off="off",
        help="Drop tokens less likely than this share of the likeliest one.",
    ),
    Knob(
        name="repetition_penalty",
        label="repetition",
        kind="float",
        default=1.0,
        neutral=1.0,
        low=0.1,
        high=5,
        step=0.01,
        big_step=0.05,
        off="off",
        help="Make tokens that occurred already less likely; above 1.2 text suffers.",
    ),
    Knob(
        name="repetition_window",
        label="  window",
        kind="int",
        default=0,
        neutral=0,
        low=0,
        high=10_000_000,
        off="all",
        ladder=(0, 16, 32, 64, 128, 256, 512, 1024),
        help="How many of the last tokens the repetition penalty looks at.",
    ),
    Knob(
        name="max_new_tokens",
        label="max new",
        kind="int",
        default=256,
        low=1,
        high=10_000_000,
        step=16,
        big_step=128,
        help="A reply ends after this many tokens.",
    ),
    Knob(
        name="seed",
        label="seed",
        kind="seed",
        default=None,
        low=0,
        high=MAX_SEED,
        help="The same seed, prompt and knobs give the same reply; random draws a new one.",
    ),
    Knob(
        name="stop",
        label="stop",
        kind="texts",
        default=(),
        neutral=(),
        help="Texts that end the reply when they appear.",
    ),
)

_BY_NAME = {knob.name: knob for knob in KNOBS}

# What each system uses when nothing is said, from its own code.
PRESETS: Mapping[str, SamplingParams] = {
    "default": SamplingParams(),
    "greedy": SamplingParams(temperature=0.0, top_k=0),
    "pure": SamplingParams(temperature=1.0, top_k=0),
    "nanoGPT": SamplingParams(temperature=0.8, top_k=200, max_new_tokens=500),
    "nanochat": SamplingParams(temperature=0.6, top_k=50),
    "train-llm": SamplingParams(temperature=0.8, top_k=0, top_p=0.95),
    "Hugging Face": SamplingParams(temperature=1.0, top_k=50),
}


def knob(name: str) -> Knob:
    return _BY_NAME[name]


def chain(params: SamplingParams) -> str:
    """The filters in force, in order, as one line: "T 0.80 › top-k 50 › sample"."""
    parts: list[str] = []
    if params.repetition_penalty != 1.0:
        within = f" in {params.repetition_window}" if params.repetition_window else ""
        parts.append(f"repetition {params.repetition_penalty:.2f}{within}")
    if params.temperature == 0.0:
        return " › ".join([*parts, "greedy"])
    if params.temperature != 1.0:
        parts.append(f"T {params.temperature:.2f}")
    if params.top_k:
        parts.append(f"top-k {params.top_k}")
    if params.top_p < 1.0:
        parts.append(f"top-p {params.top_p:.2f}")
    if params.min_p > 0.0:
        parts.append(f"min-p {params.min_p:.2f}")
    return " › ".join([*parts, "sample"])


def void_reason(name: str, params: SamplingParams) -> str:
    """Why a knob has no effect at present, "" if it has."""
    if params.temperature == 0.0 and name in ("top_k", "top_p", "min_p", "seed"):
        return "temperature 0 is greedy"
    if name == "repetition_window" and params.repetition_penalty == 1.0:
        return "repetition is off"
    return ""


# ---- from logits to a distribution


def penalised(logits: Tensor, params: SamplingParams, history: Sequence[int]) -> Tensor:
    """Repetition penalty (CTRL, arXiv 1909.05858): once per distinct id, prompt included. (V,)
    -> (V,).
    """
    if params.repetition_penalty == 1.0:
        return logits
    recent = history[-params.repetition_window :] if params.repetition_window else history
    seen = sorted({token for token in recent if 0 <= token < logits.shape[0]})
    if not seen:
        return logits
    out = logits.clone()
    picked = out[seen]
    out[seen] = picked.where(picked < 0, picked / params.repetition_penalty).where(
        picked >= 0, picked * params.repetition_penalty
    )
    return out


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
    import torch  # here, so that the screen can import the knobs without it

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
