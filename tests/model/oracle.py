"""What a spec means, written out in float64 one position and one head at a time: the oracle that
the decoder's two straight lines are held against. Slow on purpose, and shares no code with them.
"""

from __future__ import annotations

import cmath
import math

import torch
from torch import Tensor

from tui_chat.model.spec import ModelSpec, RopeScaling

ACTIVATIONS = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_tanh": lambda x: (
        x * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: x.clamp(min=0),
    "relu2": lambda x: x.clamp(min=0) ** 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


class Oracle:
    """Logits after every id of a sequence: (T, vocab_size) float64."""

    def __init__(self, spec: ModelSpec, weights: dict[str, Tensor]) -> None:
        self.spec = spec
        self.w = {name: tensor.double() for name, tensor in weights.items()}

    def __call__(self, ids: list[int]) -> Tensor:
        spec, w = self.spec, self.w
        x = torch.stack([w["embed.weight"][token] * spec.embed_scale for token in ids])
        if spec.position == "learned":
            x = x + w["position.weight"][: len(ids)]
        if spec.embed_norm:
            x = self.norm(x, "embed_norm")
        for i in range(spec.n_layer):
            at, s = f"blocks.{i}", spec.residual_scale
            normed = self.norm(x, f"{at}.attn_norm") if spec.pre_norm else x
            mixed = self.post(self.attention(normed, i), f"{at}.attn_post_norm")
            seen = x + s * mixed if spec.residual == "serial" else x
            if not spec.shared_norm:
                normed = self.norm(seen, f"{at}.mlp_norm") if spec.pre_norm else seen
            made = self.post(self.mlp(normed, at), f"{at}.mlp_post_norm")
            x = x + s * mixed + s * made
        if spec.final_norm:
            x = self.norm(x, "final_norm")
        head = w.get("head.weight", w["embed.weight"])
        logits = (x @ head.T + w.get("head.bias", torch.zeros(1))) * spec.logit_scale
        cap = spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def linear(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"].T + self.w.get(f"{name}.bias", torch.zeros(1))

    def norm(self, x: Tensor, name: str) -> Tensor:
        eps = self.spec.norm_eps
        if self.spec.norm == "layernorm":
            x = x - x.mean(-1, keepdim=True)
            eps = 1e-5 if eps is None else eps
        return self.rms(x, self.w.get(f"{name}.weight"), eps) + self.w.get(
            f"{name}.bias", torch.zeros(1)
        )

    def rms(self, x: Tensor, weight: Tensor | None, eps: float | None) -> Tensor:
        small = torch.finfo(torch.float32).eps if eps is None else eps
        x = x / (x.square().mean(-1, keepdim=True) + small).sqrt()
        return x if weight is None else x * weight

    def post(self, x: Tensor, name: str) -> Tensor:
        return self.norm(x, name) if f"{name}.weight" in self.w else x

    def mlp(self, x: Tensor, at: str) -> Tensor:
        spec = self.spec
        up = "gate_up" if spec.gated else "up"
        if f"{at}.mlp.router.weight" not in self.w:
            opened = self.activated(self.linear(x, f"{at}.mlp.{up}"))
            return self.linear(opened, f"{at}.mlp.down")
        experts = spec.experts
        assert experts is not None
        ups = self.w[f"{at}.mlp.experts.{up}.weight"].chunk(experts.count)
        downs = self.w[f"{at}.mlp.experts.down.weight"].chunk(experts.count)
        rows = []
        for row in x:
            logits = self.linear(row, f"{at}.mlp.router")
            scores = logits.softmax(-1) if experts.router == "softmax" else logits.sigmoid()
            best = sorted(range(experts.count), key=lambda e: -scores[e].item())[: experts.used]
            total = sum(scores[e] for e in best) if experts.renormalised else 1.0
            rows.append(
                sum(scores[e] / total * (downs[e] @ self.activated(ups[e] @ row)) for e in best)
            )
        return torch.stack(rows)  # type: ignore[arg-type]

    def activated(self, x: Tensor) -> Tensor:
        act = ACTIVATIONS[self.spec.activation]
        if not self.spec.gated:
            return act(x)
        gate, up = x.chunk(2, dim=-1)
        return act(gate) * up

    def attention(self, x: Tensor, i: int) -> Tensor:
        spec, at = self.spec, f"blocks.{i}.attn"
        dim, wide, kv = spec.head_dim, spec.n_head * spec.head_dim, spec.n_kv_head * spec.head_dim
        q, k, v = self.linear(x, f"{at}.qkv").split([wide, kv, kv], dim=-1)
        q, k = self.shaped(q, f"{at}.q_norm", i), self.shaped(k, f"{at}.k_norm", i)
        scale = 1 / math.sqrt(dim) if spec.attention_scale is None else spec.attention_scale
        window = spec.window[i] if spec.window else 0
        rows = []
        for here in range(x.shape[0]):
            first = max(0, here - window + 1) if window else 0
            heads = []
            for head in range(spec.n_head):
                own = slice(head * dim, (head + 1) * dim)
                group = head // (spec.n_head // spec.n_kv_head)
                shared = slice(group * dim, (group + 1) * dim)
                scores = (k[first : here + 1, shared] @ q[here, own]) * scale * spec.qk_scale**2
                if spec.attention_softcap is not None:
                    scores = spec.attention_softcap * torch.tanh(scores / spec.attention_softcap)
                heads.append(scores.softmax(-1) @ v[first : here + 1, shared])
            rows.append(torch.cat(heads))
        mixed = torch.stack(rows)
        return self.linear(mixed, f"{at}.out") if spec.attention_output else mixed

    def shaped(self, x: Tensor, name: str, i: int) -> Tensor:
        """q or k (T, heads * head_dim) with its norm and its rotation, in the spec's order."""
        if self.spec.qk_norm == "before_rope":
            x = self.head_norm(x, name)
        x = self.turned(x, i)
        return self.head_norm(x, name) if self.spec.qk_norm == "after_rope" else x

    def head_norm(self, x: Tensor, name: str) -> Tensor:
        spec = self.spec
        eps = spec.norm_eps if spec.qk_norm_eps is None else spec.qk_norm_eps
        weight = self.w.get(f"{name}.weight")
        if weight is not None and weight.shape[0] == x.shape[-1]:
            return self.rms(x, weight, eps)
        heads = x.view(x.shape[0], -1, spec.head_dim)
        return self.rms(heads, weight, eps).view(x.shape)

    def turned(self, x: Tensor, i: int) -> Tensor:
        spec = self.spec
        kind = (spec.layer_rope or ("main",) * spec.n_layer)[i]
        if spec.position != "rope" or kind == "none":
            return x
        scaling = spec.rope_scaling if kind == "main" else None
        theta = spec.rope_theta if kind == "main" else spec.rope_local_theta
        size = 1.0 if scaling is None else scaling.attention_factor
        out = x.clone().view(x.shape[0], -1, spec.head_dim)
        half = spec.rotary_dim // 2
        for position in range(x.shape[0]):
            for j in range(half):
                if spec.rope_layout == "mismatched":
                    self.turn_each(out, position, j, half, theta)
                    continue
                f = frequency(theta ** (-2 * j / spec.rotary_dim), j, theta, scaling, spec)
                turn = size * cmath.exp(1j * spec.rope_sign * position * f)
                a, b = (j, j + half) if spec.rope_layout == "half" else (2 * j, 2 * j + 1)
                first, second = out[position, :, a].clone(), out[position, :, b].clone()
                out[position, :, a] = first * turn.real - second * turn.imag
                out[position, :, b] = first * turn.imag + second * turn.real
        return out.view(x.shape)

    def turn_each(self, out: Tensor, position: int, j: int, half: int, theta: float) -> None:
        """y[i] = x[i] cos(i // 2) + rotated_half(x)[i] sin(i // 2), for i = j and j + half."""
        first, second = out[position, :, j].clone(), out[position, :, j + half].clone()
        angles = [position * theta ** (-2 * (i // 2) / (2 * half)) for i in (j, j + half)]
        out[position, :, j] = first * math.cos(angles[0]) - second * math.sin(angles[0])
        out[position, :, j + half] = second * math.cos(angles[1]) + first * math.sin(angles[1])


def frequency(
    f: float, j: int, theta: float, scaling: RopeScaling | None, spec: ModelSpec
) -> float:
    """The frequency of pair j as the papers of each scaling have it."""
    if scaling is None:
        return f
    original, factor = scaling.original_context_length, scaling.factor
    if scaling.kind == "linear":
        return f / factor
    if scaling.kind == "longrope":
        long = spec.context_length > original
        return f / (scaling.long_factors if long else scaling.short_factors)[j]
    wave = 2 * math.pi / f
    if scaling.kind == "llama3":
        if wave < original / scaling.high_freq_factor:
            return f
        if wave > original / scaling.low_freq_factor:
            return f / factor
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        smooth = (original / wave - low) / (high - low)
        return (1 - smooth) * f / factor + smooth * f
    dim = spec.rotary_dim

    def pair(turns: float) -> float:
        return dim * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(scaling.beta_fast), pair(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = min(max((j - low) / (high - low if high > low else 0.001), 0.0), 1.0)
    return f / factor * ramp + f * (1 - ramp)
