"""How well a model predicts tokens, and whether another predicts them clearly better."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

CLEARLY = 0.05  # nats a token that a difference has to have, beside three standard errors
DOUBT = 0.1  # of chance mixed into what is compared, so that no single token decides


class Measure(NamedTuple):
    """The log-probabilities of the tokens of a text, in nats, and how many bytes these are."""

    logprobs: list[float]
    size: int

    @property
    def nats(self) -> float:
        """For each token."""
        return -math.fsum(self.logprobs) / max(len(self.logprobs), 1)

    @property
    def bits_per_byte(self) -> float:
        return -math.fsum(self.logprobs) / math.log(2) / max(self.size, 1)

    def doubted(self, ids: int) -> Measure:
        """As if the model were a little less sure of itself: a tenth of chance among `ids` ids.
        What was trained until it was never wrong is boundlessly wrong about anything else, and a
        few such tokens would hide what all the others say."""
        logprobs = [
            math.log((1 - DOUBT) * math.exp(one) + DOUBT / ids) if math.isfinite(one) else one
            for one in self.logprobs
        ]
        return Measure(logprobs, self.size)


def clearly(better: Measure, worse: Measure, *, paired: bool = False) -> bool:
    """Whether `better` predicts better by more than chance and by enough to matter."""
    if not (math.isfinite(better.nats) and math.isfinite(worse.nats)):
        return math.isfinite(better.nats)
    if paired:
        pairs = zip(better.logprobs, worse.logprobs, strict=True)
        error = _standard_error([b - w for b, w in pairs])
    else:
        error = math.hypot(_standard_error(better.logprobs), _standard_error(worse.logprobs))
    return worse.nats - better.nats > max(CLEARLY, 3 * error)


def _standard_error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.inf
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
