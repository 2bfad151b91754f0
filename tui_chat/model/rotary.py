"""Rotary positions: by how much each pair of numbers of a head turns at each position, and turning
them.

A head is turned as complex numbers, in one multiplication; for that the two numbers of a pair are
made neighbours when the model is built. Knows no cache and no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.model.spec import ModelSpec, RopeScaling

FIRST_ROWS = 1024
KEPT_ROWS = 16384  # positions whose rows stand ready as tensors of their own


class Rotary:
    """cos + i sin of every position and pair, the sign of the angle being the spec's.

    Made as far as positions are used: a context of millions costs nothing until it is filled.
    """

    def __init__(self, made: Callable[[Tensor], Tensor], limit: int, device: torch.device) -> None:
        """`made` gives the rows of positions: (T,) float64 -> (T, rotary_dim / 2) complex; there
        are `limit` positions.
        """
        self._made = made
        self._limit = limit
        self._device = device
        self._table = self._between(0, min(FIRST_ROWS, limit))
        self._rows = list(self._table.unbind(0))

    def _between(self, begin: int, end: int) -> Tensor:
        rows = self._made(torch.arange(begin, end, dtype=torch.float64))
        return rows.to(torch.complex64)[:, None].to(self._device)

    def upto(self, end: int) -> Tensor:
        """Rows of the positions up to `end` and perhaps beyond: (>= end, 1, rotary_dim / 2),
        complex64."""
        have = len(self._table)
        if end > have:
            more = self._between(have, min(self._limit, max(end, 2 * have)))
            self._table = torch.cat([self._table, more])
            ready = self._table[:KEPT_ROWS]
            self._rows = list(ready.unbind(0))
        return self._table

    def at(self, position: int) -> Tensor:
        """The row of one position: (1, rotary_dim / 2)."""
        if position < len(self._rows):
            return self._rows[position]
        return self.upto(position + 1)[position]


def rotaries(spec: ModelSpec, device: torch.device) -> list[Rotary | None]:
    """For each layer what its heads are turned by, None for not at all; layers share them."""
    if spec.position != "rope":
        return [None] * spec.n_layer
    kinds = spec.layer_rope or ("main",) * spec.n_layer
    made: dict[str, Rotary | None] = {"none": None}
    if "main" in kinds:
        made["main"] = _rotary(spec, spec.rope_theta, spec.rope_scaling, device)
    if "local" in kinds:
        made["local"] = _rotary(spec, spec.rope_local_theta, None, device)
    return [made[kind] for kind in kinds]


def _rotary(
    spec: ModelSpec, theta: float, scaling: RopeScaling | None, device: torch.device
) -> Rotary:
    pairs = torch.arange(0, spec.rotary_dim, 2, dtype=torch.float64) / spec.rotary_dim
    frequency = theta ** (-pairs)
    if scaling is not None:
        frequency = _scaled(frequency, theta, scaling, spec)
    size = 1.0 if scaling is None else scaling.attention_factor

    def made(positions: Tensor) -> Tensor:
        # float32 angles, as training code computes them, differ from these by less than its own
        # rounding.
        angle = torch.outer(positions, frequency) * spec.rope_sign
        if spec.rope_layout == "mismatched":
            return _mismatched(angle) * size
        return torch.polar(torch.full_like(angle, size), angle)

    return Rotary(made, spec.context_length, device)


def _mismatched(angle: Tensor) -> Tensor:
    """For angles (T, n) of neighbours, when number j is turned with number j + n all the same.

    The two of a pair then turn by different angles: z becomes z a + conj(z) b. (T, 2 n): a, then b.
    """
    n = angle.shape[1]
    first, second = (angle[:, (torch.arange(n) + start) // 2] for start in (0, n))
    a = torch.complex(first.cos() + second.cos(), first.sin() + second.sin())
    b = torch.complex(first.cos() - second.cos(), second.sin() - first.sin())
    return torch.cat([a, b], dim=1) / 2


def _scaled(frequency: Tensor, theta: float, scaling: RopeScaling, spec: ModelSpec) -> Tensor:
    """The frequencies (rotary_dim / 2,) as `scaling` has them."""
    if scaling.kind == "linear":
        return frequency / scaling.factor
    if scaling.kind == "longrope":
        long = spec.context_length > scaling.original_context_length
        factors = scaling.long_factors if long else scaling.short_factors
        return frequency / torch.tensor(factors, dtype=torch.float64)
    if scaling.kind == "llama3":
        # Long waves are stretched, short ones kept, those between blended.
        turns = scaling.original_context_length * frequency / (2 * math.pi)
        span = scaling.high_freq_factor - scaling.low_freq_factor
        kept = (turns - scaling.low_freq_factor) / span
    else:
        # YaRN: the same blend, but linear in the number of the pair.
        low, high = (
            _pair_of(turns, theta, scaling, spec)
            for turns in (scaling.beta_fast, scaling.beta_slow)
        )
        if scaling.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, spec.rotary_dim - 1)
        ramp = torch.arange(spec.rotary_dim // 2, dtype=torch.float64) - low
        kept = 1 - ramp / max(high - low, 0.001)
    kept = kept.clamp(0.0, 1.0)
    return frequency * (kept + (1 - kept) / scaling.factor)


def _pair_of(turns: float, theta: float, scaling: RopeScaling, spec: ModelSpec) -> float:
    """The pair, as a fraction, that turns so often within the original context."""
    wave = scaling.original_context_length / (turns * 2 * math.pi)
    return spec.rotary_dim * math.log(wave) / (2 * math.log(theta))


def paired(spec: ModelSpec, rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k (or of their norm) in the order in which the two numbers of a rotary pair are
    neighbours.

    The "half" layout pairs j with j + rotary_dim / 2. Scores do not change when q and k are
    reordered alike, so the question is settled here and never asked again. (heads * head_dim,
    ...) -> same.
    """
    if spec.position != "rope" or spec.rope_layout == "interleaved":
        return rows
    half = spec.rotary_dim // 2
    order = torch.cat(
        [
            torch.arange(spec.rotary_dim).view(2, half).t().reshape(-1),
            torch.arange(spec.rotary_dim, spec.head_dim),
        ]
    )
    picks = (torch.arange(heads)[:, None] * spec.head_dim + order).reshape(-1)
    return rows[picks.to(rows.device)]


def rotate_mismatched(heads: Tensor, rows: Tensor) -> Tensor:
    """Turn (T, heads, head_dim) by rows of `_mismatched` (T, 1, rotary_dim)."""
    turned = heads[..., : rows.shape[-1]]
    wide = turned.to(torch.float32, copy=True).contiguous()
    pairs, (a, b) = wide.view(torch.complex64), rows.chunk(2, dim=-1)
    pairs.copy_(pairs * a + pairs.conj() * b)
    turned.copy_(wide)
    return heads


def rotate(heads: Tensor, rows: Tensor) -> Tensor:
    """Turn (T, heads, head_dim) by rows (T, 1, rotary_dim / 2), in place where the dtype allows
    it.
    """
    turned = heads[..., : 2 * rows.shape[-1]]
    if heads.dtype == torch.float32 and heads.shape[-1] % 2 == 0:
        turned.view(torch.complex64).mul_(rows)
        return heads
    wide = turned.to(torch.float32, copy=True).contiguous()
    wide.view(torch.complex64).mul_(rows)
    turned.copy_(wide)
    return heads


# ---- norms of queries and keys


class QKNorm:
    """RMS norm of (T, n_head + n_kv_head, head_dim), in place: over each head, or over all heads of
    q and of k (OLMo 2). Which of the two is read off the size of the weights.
    """

    def __init__(self, spec: ModelSpec, q_weight: Tensor | None, k_weight: Tensor | None) -> None:
        n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
        self.eps = spec.norm_eps if spec.qk_norm_eps is None else spec.qk_norm_eps
        self.whole = q_weight is not None and q_weight.shape[0] == n_head * dim != dim
        self.weight: Tensor | None = None  # (n_head + n_kv_head, head_dim), pairs side by side
        if q_weight is not None and k_weight is not None:
            q = q_weight if self.whole else q_weight.repeat(n_head)
            k = k_weight if self.whole else k_weight.repeat(n_kv)
            rows = torch.cat([paired(spec, q, n_head), paired(spec, k, n_kv)])
            self.weight = rows.view(-1, dim)
        self._n_head, self._dim = n_head, dim

    def __call__(self, heads: Tensor) -> Tensor:
        weight = self.weight
        if not self.whole:
            normed = F.rms_norm(heads, (self._dim,), None, self.eps)
            return heads.copy_(normed if weight is None else normed.mul_(weight))
        for part in (heads[:, : self._n_head], heads[:, self._n_head :]):
            part.copy_(F.rms_norm(part, tuple(part.shape[1:]), None, self.eps))
        return heads if weight is None else heads.mul_(weight)
