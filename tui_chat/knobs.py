"""The sampling knobs as data: panel, command line, settings and receipts follow the table `KNOBS`.

What the knobs do to logits is in sampling.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from tui_chat.errors import UsageError

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

    def with_(self, /, **knobs: object) -> SamplingParams:
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
            or (isinstance(value, float) and not math.isfinite(value))
        ):
            raise UsageError(f"{self.name} takes a number, not {value!r}")
        if not self.low <= value <= self.high:
            raise UsageError(
                f"{self.name} lies between {_in_full(self.low)} and {_in_full(self.high)}",
                f"{_in_full(value)} does not",
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


def _in_full(number: float) -> str:
    """A number as it would be typed: 2147483647, 0.1, 99 for 99.0."""
    if number != int(number):
        return f"{number:g}"
    if abs(number) >= 10**18:
        return "such a number"  # it may have a thousand digits
    return str(int(number))


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
