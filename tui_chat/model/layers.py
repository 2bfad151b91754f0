"""The pieces of a decoder, each settled when it is built: what a spec chooses is a closure, not a
branch.

Activations are (T, n): one sequence, T positions. Knows no cache and no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.errors import CheckpointError
from tui_chat.model.linear import Map, Matrix, into, matrix, times
from tui_chat.model.spec import Activation, ModelSpec

__all__ = ["Map", "Matrix", "into", "matrix", "times"]  # of linear.py, as layers use them

Attention = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]


class Norm(NamedTuple):
    """A norm for any number of rows, and for a single one, with what it is made of."""

    many: Map
    one: Map
    weight: Tensor | None = None
    bias: Tensor | None = None
    eps: float = 0.0


UNNORMED = Norm(lambda x: x, lambda x: x)


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

        return Norm(layer_norm, layer_norm, weight, bias, tolerance)
    if bias is not None:
        raise CheckpointError(
            "the model's norms cannot be used", "an RMS norm has a bias", "No known family has one"
        )

    def rms_norm(x: Tensor) -> Tensor:
        return F.rms_norm(x, shape, weight, eps)

    small = torch.finfo(like.dtype).eps if eps is None else eps
    if like.device.type != "cpu" or like.dtype != torch.float32 or small <= 0:
        return Norm(rms_norm, rms_norm, weight, None, small)
    return Norm(rms_norm, _rms_norm_of_one(size, weight, small), weight, None, small)


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


def shaped_logits(spec: ModelSpec) -> Map | None:
    """What happens to float32 logits, in place, after the head: logit_scale, then softcap; None
    where nothing does."""
    scale, limit = spec.logit_scale, spec.logit_softcap
    if limit is None:
        return None if scale == 1.0 else lambda x: x.mul_(scale)
    return lambda x: x.mul_(scale / limit).tanh_().mul_(limit)


# ---- attention


def attention(spec: ModelSpec) -> Attention:
    """What mixes values by scores: torch's own kernel, or plain sums where scores are softcapped.

    q (1, n, T, head_dim), k and v (1, n_kv_head, S, head_dim) -> (1, n, T, head_dim), where the
    mask (T, S), if any, is added to the scores; n is n_head, or n_kv_head where T stands for the
    queries that share a key.
    """
    scale = attention_scale(spec)
    cap = spec.attention_softcap
    if cap is None:

        def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
            return F.scaled_dot_product_attention(
                q,
                k,
                v,
                attn_mask=mask,
                is_causal=causal,
                scale=scale,
                enable_gqa=q.shape[1] != k.shape[1],
            )

        return fused
    limit = cap

    def capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        groups = q[0].view(k.shape[1], -1, *q.shape[2:])  # queries that share a key
        scores = torch.matmul(groups * scale, k[0][:, None].transpose(-1, -2)).float()
        scores = (scores / limit).tanh_().mul_(limit)
        if mask is not None:
            scores = scores + mask
        weights = scores.softmax(-1).to(v.dtype)
        return torch.matmul(weights, v[0][:, None]).view(q.shape)

    return capped


def attention_scale(spec: ModelSpec) -> float:
    """The factor of q·k."""
    scale = spec.attention_scale
    return spec.qk_scale**2 * (1 / math.sqrt(spec.head_dim) if scale is None else scale)


def mask(
    start: int, end: int, window: int, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """What queries at [start, end) may see of the keys up to `end`, from the first that one of them
    sees: (end - start, keys) to add to the scores, or None.

    Aligned bottom-right: `is_causal` of torch aligns top-left and is wrong once the cache holds
    something.
    """
    if end - start == 1:
        return None
    query = torch.arange(start, end, device=device)[:, None]
    first = max(0, start - window + 1) if window else 0
    key = torch.arange(first, end, device=device)[None, :]
    hidden = key > query
    if window:
        hidden |= key <= query - window
    return torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -math.inf)
