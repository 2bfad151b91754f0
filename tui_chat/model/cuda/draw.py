"""From logits to the next token without asking the host: the knobs are numbers in a tensor, the
token stays where the next step reads it.

The same as sampling.Sampler, which tests hold it against: the same order, the same ties, the same
dice. Every filter is a mask over all ids instead of a cut, for shapes are fixed here. Works on any
device; knows no model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tui_chat.knobs import SamplingParams
from tui_chat.sampler import END
from tui_chat.sampling import EXACT

NUMBERS = 5  # dice, temperature, top_p, min_p, repetition_penalty
FOUND = 4  # id, logprob, how many could have been drawn, the largest logit


class Kind(NamedTuple):
    """What a draw does at all. Whatever is off costs nothing; between kinds work is recorded
    anew."""

    random: bool  # False: the likeliest
    filtered: bool  # by top_k, top_p or min_p: ids are sorted for it
    penalised: bool


def kind_of(params: SamplingParams, size: int) -> Kind:
    """For a vocabulary of `size`."""
    random = params.temperature > 0
    filtered = random and (0 < params.top_k < size or params.top_p < 1.0 or params.min_p > 0.0)
    return Kind(random, filtered, params.repetition_penalty != 1.0)


def numbers_of(params: SamplingParams, dice: float) -> tuple[float, float, float, float, float]:
    """What a draw reads as `numbers`; a top_p of 1 becomes one that nothing reaches."""
    top_p = params.top_p if params.top_p < 1.0 else 2.0
    return min(dice, END), params.temperature, top_p, params.min_p, params.repetition_penalty


class Drawing(NamedTuple):
    """The tensors of a draw. `logits` (V,) float32 are those that can be drawn; `seen` (rows of
    the embedding,) int64 says where each id stood last, -1: nowhere.

    `place` (1,) is where the new token will stand, `since` (1,) from where on ids count as
    repeated, `top_k` (1,) from 1 to V; `numbers` (NUMBERS,) float64; `token` (1,) is the last
    token when the draw begins and the new one when it ends; `found` (FOUND,) float64.
    """

    logits: Tensor
    seen: Tensor
    place: Tensor
    since: Tensor
    top_k: Tensor
    numbers: Tensor
    token: Tensor
    found: Tensor

    def run(self, kind: Kind) -> None:
        """Draw."""
        logits = self.logits
        shaped = self._penalised() if kind.penalised else logits
        if not kind.random:
            chosen, kept = shaped.argmax(0, keepdim=True), torch.ones_like(self.found[2])
        else:
            chosen, kept = (self._filtered if kind.filtered else self._unfiltered)(shaped)
        logprob = logits.index_select(0, chosen) - logits.logsumexp(0, keepdim=True)
        parts = (chosen, logprob, kept, logits.amax(0, keepdim=True))
        self.found.copy_(torch.cat([part.view(1).double() for part in parts]))
        self.token.copy_(chosen)

    def _penalised(self) -> Tensor:
        logits, by = self.logits, self.numbers[4].float()
        self.seen.index_copy_(0, self.token, self.place - 1)
        repeated = self.seen[: logits.shape[0]] >= self.since
        return torch.where(repeated, torch.where(logits < 0, logits * by, logits / by), logits)

    def _weights(self, values: Tensor, peak: Tensor) -> Tensor:
        # A division by a tensor: by a number, some devices multiply by its inverse instead.
        return values.double().sub_(peak).div_(self.numbers[1]).exp_()

    def _unfiltered(self, shaped: Tensor) -> tuple[Tensor, Tensor]:
        cumulative = self._weights(shaped, shaped.amax(0)).cumsum(0)
        last = shaped.shape[0] - 1
        return self._at_dice(cumulative).clamp_(max=last), torch.full_like(self.found[2], last + 1)

    def _filtered(self, shaped: Tensor) -> tuple[Tensor, Tensor]:
        values, ids = shaped.sort(descending=True, stable=True)
        _, _, top_p, min_p, _ = self.numbers.unbind()
        # Each filter keeps a head of the sorted values.
        within = values >= values.index_select(0, self.top_k - 1)
        weights = self._weights(values, values[0]).masked_fill_(~within, 0.0)
        cumulative = weights.cumsum(0)
        within &= cumulative - weights < (top_p - EXACT) * cumulative[-1]
        within &= weights >= (min_p - EXACT) * weights[0]
        within[:1].fill_(True)
        kept = within.sum()
        cumulative = weights.masked_fill_(~within, 0.0).cumsum(0)
        at = torch.minimum(self._at_dice(cumulative), kept - 1)
        return ids.index_select(0, at), kept

    def _at_dice(self, cumulative: Tensor) -> Tensor:
        """(1,)."""
        return torch.searchsorted(cumulative, self.numbers[:1] * cumulative[-1:], right=True)
