"""The pieces of a decoder, each settled when it is built: what a spec chooses is a closure, not a
branch.

Activations are (T, n): one sequence, T positions. A matrix is kept the way its device multiplies
a single row fastest (`matrix`), for a model that talks spends its time on exactly that. Knows no
cache and no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.errors import CheckpointError
from tui_chat.model.spec import Activation, ModelSpec

Map = Callable[[Tensor], Tensor]


class Matrix(NamedTuple):
    """y = x @ weight + bias. `weight` is (in, out)."""

    weight: Tensor
    bias: Tensor | None


def matrix(weight: Tensor, bias: Tensor | None) -> Matrix:
    """From the canonical (out, in). A float32 row times a matrix is half as fast again on a CPU
    when the matrix lies (in, out) in memory; 16-bit types and GPUs want it as it comes.
    """
    if weight.device.type == "cpu" and weight.dtype == torch.float32:
        return Matrix(weight.t().contiguous(), bias)
    return Matrix(weight.t(), bias)


def times(x: Tensor, by: Matrix) -> Tensor:
    """(T, in) -> (T, out)."""
    return torch.mm(x, by.weight) if by.bias is None else torch.addmm(by.bias, x, by.weight)


def into(by: Matrix, out: Tensor) -> Map:
    """The product written to `out`, whose views can then be made once and for all."""
    weight, bias = by
    if bias is None:
        return lambda x: torch.mm(x, weight, out=out)
    return lambda x: torch.addmm(bias, x, weight, out=out)


class Norm(NamedTuple):
    """A norm for any number of rows, and for a single one."""

    many: Map
    one: Map


def norm(spec: ModelSpec, like: Tensor, weight: Tensor | None, bias: Tensor | None) -> Norm:
    """LayerNorm or RMSNorm over `n_embd`; without weight and bias where the file has none.

    `like` is any tensor of the model: its dtype and device.
    """
    size, eps = spec.n_embd, spec.norm_eps
    shape = (size,)
    if spec.norm == "layernorm":
        tolerance = 1e-5 if eps is None else eps  # torch's own default

        def layer_norm(x: Tensor) -> Tensor:
            return torch.layer_norm(x, shape, weight, bias, tolerance)

        return Norm(layer_norm, layer_norm)
    if bias is not None:
        raise CheckpointError(
            "the model's norms cannot be used", "an RMS norm has a bias", "No known family has one"
        )

    def rms_norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, shape, weight, eps)

    small = torch.finfo(like.dtype).eps if eps is None else eps
    if like.device.type != "cpu" or like.dtype != torch.float32 or small <= 0:
        return Norm(rms_norm, rms_norm)
    return Norm(rms_norm, _rms_norm_of_one(size, weight, small))


def _rms_norm_of_one(size: int, weight: Tensor | None, eps: float) -> Map:
    """The RMS norm of a single float32 row on a CPU, in two calls where torch's own takes seven."""
    scaled = (torch.ones(size) if weight is None else weight) * math.sqrt(size)
    zero, out, small = torch.zeros(1, size), torch.empty(1, size), eps * size

    def one_row(x: Tensor) -> Tensor:
        row = x[0]
        by = (row.dot(row).item() + small) ** -0.5
        return torch.addcmul(zero, x, scaled, value=by, out=out)

    return one_row


def _relu2(x: Tensor) -> Tensor:
    return x.relu_().square_()


ACTIVATIONS: dict[Activation, Map] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": torch.relu_,
    "relu2": _relu2,
    "silu": F.silu,
}


def gate(activation: Activation) -> Map:
    """act(gate) * up for the halves of one product: (T, 2n) -> (T, n). May overwrite its input."""
    act = ACTIVATIONS[activation]

    def gated(x: Tensor) -> Tensor:
        opened, up = x.chunk(2, dim=-1)
        return act(opened).mul_(up)

    return gated


def gate_of(activation: Activation, product: Tensor) -> Map:
    """The same for a product that always stands in the same place."""
    act = ACTIVATIONS[activation]
    opened, up = product.chunk(2, dim=-1)
    return lambda _: act(opened).mul_(up)


def softcap(limit: float | None) -> Map | None:
    """limit * tanh(logits / limit), or None."""
    return None if limit is None else lambda x: (x / limit).tanh_().mul_(limit)


# ---- rotary positions


def rotary_rows(spec: ModelSpec, device: torch.device) -> Tensor:
    """cos + i sin of every position and pair: (context_length, 1, head_dim / 2), complex64.

    A head is turned as head_dim / 2 complex numbers, in one multiplication. The sign of the
    angle is the spec's.
    """
    pairs = torch.arange(0, spec.head_dim, 2, dtype=torch.float64) / spec.head_dim
    frequency = spec.rope_theta ** (-pairs)
    if (scaling := spec.rope_scaling) is not None:
        frequency = _scaled(frequency, scaling.kind, scaling.factor, spec)
    angle = torch.outer(torch.arange(spec.context_length, dtype=torch.float64), frequency)
    # float32 angles, as training code computes them, differ from these by less than its own
    # rounding.
    rows = torch.polar(torch.ones_like(angle), angle * spec.rope_sign)
    return rows.to(torch.complex64)[:, None].to(device)


def _scaled(frequency: Tensor, kind: str, factor: float, spec: ModelSpec) -> Tensor:
    if kind == "linear":
        return frequency / factor
    # Llama 3.1: long waves are stretched, short ones kept, those between blended.
    scaling = spec.rope_scaling
    assert scaling is not None
    turns = scaling.original_context_length * frequency / (2 * math.pi)
    smooth = (turns - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = smooth.clamp(0.0, 1.0)
    return frequency * (smooth + (1 - smooth) / factor)


def paired(spec: ModelSpec, rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k (or of their norm) in the order in which the two numbers of a rotary pair are
    neighbours.

    The "half" layout pairs j with j + head_dim / 2. Scores do not change when q and k are
    reordered alike, so the question is settled here and never asked again. (heads * head_dim,
    ...) -> same.
    """
    if spec.position != "rope" or spec.rope_layout == "interleaved":
        return rows
    half = spec.head_dim // 2
    order = torch.arange(spec.head_dim).view(2, half).t().reshape(-1)
    picks = (torch.arange(heads)[:, None] * spec.head_dim + order).reshape(-1)
    return rows[picks.to(rows.device)]


def rotate(heads: Tensor, rows: Tensor) -> Tensor:
    """Turn (T, heads, head_dim) by rows (T, 1, head_dim / 2), in place where the dtype allows
    it.
    """
    if heads.dtype == torch.float32:
        heads.view(torch.complex64).mul_(rows)
        return heads
    wide = heads.float()
    wide.view(torch.complex64).mul_(rows)
    return heads.copy_(wide)


# ---- norms of queries and keys


def qk_norm(spec: ModelSpec, q_weight: Tensor | None, k_weight: Tensor | None) -> Map:
    """RMS norm of (T, n_head + n_kv_head, head_dim), over each head or over all heads of q and of k
    (OLMo 2).

    Which of the two is read off the size of the weights. Works in place.
    """
    n_head, n_kv, dim, eps = spec.n_head, spec.n_kv_head, spec.head_dim, spec.norm_eps
    whole = q_weight is not None and q_weight.shape[0] == n_head * dim != dim
    weight: Tensor | None = None
    if q_weight is not None and k_weight is not None:
        q = q_weight if whole else q_weight.repeat(n_head)
        k = k_weight if whole else k_weight.repeat(n_kv)
        weight = torch.cat([paired(spec, q, n_head), paired(spec, k, n_kv)]).view(-1, dim)

    def each_head(heads: Tensor) -> Tensor:
        normed = F.rms_norm(heads, (dim,), None, eps)
        return heads.copy_(normed if weight is None else normed.mul_(weight))

    def all_heads(heads: Tensor) -> Tensor:
        for part in (heads[:, :n_head], heads[:, n_head:]):
            part.copy_(F.rms_norm(part, tuple(part.shape[1:]), None, eps))
        return heads if weight is None else heads.mul_(weight)

    return all_heads if whole else each_head


def mask(
    start: int, end: int, window: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """What queries at [start, end) may see of keys at [0, end): (end - start, end) to add to the
    scores, or None.

    Aligned bottom-right: `is_causal` of torch aligns top-left and is wrong once the cache holds
    something.
    """
    if end - start == 1 and not 0 < window < end:
        return None
    query = torch.arange(start, end, device=device)[:, None]
    key = torch.arange(end, device=device)[None, :]
    hidden = key > query
    if window:
        hidden |= key <= query - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
