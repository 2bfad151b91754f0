"""nanochat written out in float64, from the trainer's own tensors: no cache, no batching, nothing
shared with the program.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Month:
    """The numbers of one month's code. `short` is how far back a short window reaches."""

    n_head: int
    n_kv_head: int
    pattern: str = "L"
    short: int = 10**6
    theta: float = 100_000.0
    qk_scale: float = 1.2
    gate: float = 3.0
    softcap: float = 15.0
    bfloat16_angles: bool = False


EPS = torch.finfo(torch.float32).eps


def rms(x: Tensor) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + EPS).sqrt()


def turned(x: Tensor, position: int, month: Month) -> Tensor:
    """A head's numbers, turned back by the angles of a position."""
    half = x.shape[-1] // 2
    found = x.clone()
    for j in range(half):
        angle = torch.tensor(float(position)) / month.theta ** (2 * j / x.shape[-1])
        cos, sin = angle.cos(), angle.sin()
        if month.bfloat16_angles:
            cos, sin = cos.bfloat16(), sin.bfloat16()
        c, s = float(cos), float(sin)
        found[..., j] = x[..., j] * c + x[..., half + j] * s
        found[..., half + j] = -x[..., j] * s + x[..., half + j] * c
    return found


def logits(weights: Weights, ids: list[int], month: Month) -> Tensor:
    """(T, rows of the head): the logits after each id."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    layers = 1 + max(int(n.split(".")[2]) for n in w if n.startswith("transformer.h."))
    e = rms(w["transformer.wte.weight"][ids])
    x = e.clone()
    if "smear_gate.weight" in w:
        gate = w["smear_gate.weight"][0]
        for t in range(1, len(ids)):
            x[t] += w["smear_lambda"] * torch.sigmoid(gate @ e[t, : len(gate)]) * e[t - 1]
    first, middle = x, None
    pairs = None
    if "bigram_lambdas" in w:
        table = w["bigram_embed.embed.weight"]
        last = len(table) - 1
        places = [last]
        places += [(36313 * b ^ 27191 * a) % last for a, b in itertools.pairwise(ids)]
        pairs = table[places]
    for i in range(layers):
        if "resid_lambdas" in w:
            x = w["resid_lambdas"][i] * x
        if "x0_lambdas" in w:
            x = x + w["x0_lambdas"][i] * first
        if pairs is not None:
            x = x + w["bigram_lambdas"][i] * pairs
        at = f"transformer.h.{i}"
        x = x + attended(w, rms(x), ids, i, layers, month) @ w[f"{at}.attn.c_proj.weight"].T
        up = (rms(x) @ w[f"{at}.mlp.c_fc.weight"].T).clamp(min=0) ** 2
        x = x + up @ w[f"{at}.mlp.c_proj.weight"].T
        if i == layers // 2:
            middle = x
    if "backout_lambda" in w:
        x = x - w["backout_lambda"] * middle
    head = w.get("lm_head.weight", w["transformer.wte.weight"])
    found = rms(x) @ head.T
    return month.softcap * torch.tanh(found / month.softcap)


def attended(w: Weights, u: Tensor, ids: list[int], i: int, layers: int, month: Month) -> Tensor:
    """(T, n_embd) from the normed stream: every query by itself, head by head."""
    at = f"transformer.h.{i}.attn"
    dim = u.shape[1] // month.n_head
    count = len(ids)
    q = (u @ w[f"{at}.c_q.weight"].T).view(count, month.n_head, dim)
    k = (u @ w[f"{at}.c_k.weight"].T).view(count, month.n_kv_head, dim)
    v = (u @ w[f"{at}.c_v.weight"].T).view(count, month.n_kv_head, dim)
    if f"value_embeds.{i}.weight" in w:
        gate = w[f"{at}.ve_gate.weight"]
        opened = month.gate * torch.sigmoid(u[:, : gate.shape[1]] @ gate.T)
        v = v + opened[..., None] * w[f"value_embeds.{i}.weight"][ids].view(v.shape)
    q = torch.stack([rms(turned(q[t], t, month)) for t in range(count)]) * month.qk_scale
    k = torch.stack([rms(turned(k[t], t, month)) for t in range(count)]) * month.qk_scale
    letter = month.pattern[i % len(month.pattern)]
    back = month.short if letter == "S" and i < layers - 1 else count
    found = torch.zeros(count, month.n_head, dim, dtype=torch.float64)
    for t in range(count):
        for h in range(month.n_head):
            group = h // (month.n_head // month.n_kv_head)
            begin = max(0, t - back)
            scores = k[begin : t + 1, group] @ q[t, h] / dim**0.5
            found[t, h] = scores.softmax(0) @ v[begin : t + 1, group]
    return found.view(count, -1)


def random_weights(
    *,
    layers: int = 3,
    width: int = 32,
    n_head: int = 4,
    n_kv_head: int = 2,
    rows: int = 64,
    parts: str = "lambdas values smear backout",
    gate: int = 12,
    seed: int = 0,
) -> Weights:
    """The trainer's tensors, drawn so that logits differ clearly. `parts` names what its month
    had: lambdas, values, smear, backout, pairs."""
    draw = torch.Generator().manual_seed(seed)

    def make(*shape: int, scale: float = 0.25) -> Tensor:
        return torch.randn(shape, generator=draw) * scale

    keys = n_kv_head * (width // n_head)
    w = {"transformer.wte.weight": make(rows, width, scale=1.0)}
    w["lm_head.weight"] = make(rows, width, scale=0.5)
    for i in range(layers):
        at = f"transformer.h.{i}"
        w[f"{at}.attn.c_q.weight"] = make(width, width)
        w[f"{at}.attn.c_k.weight"] = make(keys, width)
        w[f"{at}.attn.c_v.weight"] = make(keys, width)
        w[f"{at}.attn.c_proj.weight"] = make(width, width)
        w[f"{at}.mlp.c_fc.weight"] = make(4 * width, width)
        w[f"{at}.mlp.c_proj.weight"] = make(width, 4 * width, scale=0.1)
        if "values" in parts and i % 2 == (layers - 1) % 2:
            w[f"{at}.attn.ve_gate.weight"] = make(n_kv_head, gate, scale=1.0)
            w[f"value_embeds.{i}.weight"] = make(rows, keys, scale=1.0)
    if "lambdas" in parts:
        w["resid_lambdas"] = 1 + make(layers)
        w["x0_lambdas"] = make(layers)
    if "smear" in parts:
        w["smear_gate.weight"] = make(1, 24, scale=1.0)
        w["smear_lambda"] = 0.5 + make(1)
    if "backout" in parts:
        w["backout_lambda"] = 0.3 + make(1, scale=0.1)
    if "pairs" in parts:
        w["bigram_embed.embed.weight"] = make(5 * rows, width, scale=1.0)
        w["bigram_lambdas"] = make(layers)
    return w
