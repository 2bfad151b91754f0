"""Small models with random weights: every kind of decoder a spec can say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tui_chat.model.spec import ModelSpec, RopeScaling

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "n_layer": 2,
    "n_head": 4,
    "n_embd": 32,
    "context_length": 48,
}

ROPE: dict[str, Any] = {"position": "rope", "norm": "rmsnorm", "gated": True, "activation": "silu"}

SPECS: dict[str, ModelSpec] = {
    "gpt": ModelSpec(**SMALL),
    "gpt-tanh-no-final-norm": ModelSpec(**SMALL, activation="gelu_tanh", final_norm=False),
    "relu-without-output-matrix": ModelSpec(**SMALL, activation="relu", attention_output=False),
    "llama-half": ModelSpec(**SMALL, **ROPE, rope_layout="half"),
    "llama-interleaved": ModelSpec(**SMALL, **ROPE, rope_layout="interleaved"),
    "gqa-qk-norm": ModelSpec(**SMALL, **ROPE, n_kv_head=2, qk_norm="before_rope"),
    "mqa-wide-heads": ModelSpec(**SMALL, **ROPE, n_kv_head=1, head_dim=12),
    "gqa-llama3-scaling": ModelSpec(
        **SMALL,
        **ROPE,
        n_kv_head=2,
        rope_scaling=RopeScaling(kind="llama3", factor=8.0, original_context_length=16),
    ),
    "linear-scaling": ModelSpec(
        **SMALL, **ROPE, rope_scaling=RopeScaling(kind="linear", factor=4.0)
    ),
    "nanochat-like": ModelSpec(
        **SMALL,
        n_kv_head=2,
        position="rope",
        norm="rmsnorm",
        norm_eps=None,
        embed_norm=True,
        rope_sign=-1,
        qk_norm="after_rope",
        qk_scale=1.2,
        activation="relu2",
        window=(5, 0),
        logit_softcap=15.0,
    ),
    "no-positions-windows": ModelSpec(**SMALL, position="none", window=(3, 7)),
}


def random_weights(
    spec: ModelSpec,
    *,
    seed: int = 0,
    bias: bool = True,
    tied: bool = False,
    scale: float = 0.25,
    wide_qk_norm: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Canonical tensors for `spec`, drawn so that logits differ clearly."""
    draw = torch.Generator().manual_seed(seed)
    out: dict[str, Tensor] = {}
    wide, kv = spec.n_head * spec.head_dim, spec.n_kv_head * spec.head_dim
    inner = 3 * spec.n_embd

    def linear(name: str, rows: int, columns: int, *, biased: bool) -> None:
        out[f"{name}.weight"] = torch.randn(rows, columns, generator=draw) * scale
        if biased:
            out[f"{name}.bias"] = torch.randn(rows, generator=draw) * scale

    def norm(name: str, size: int = spec.n_embd) -> None:
        if spec.norm_eps is None:
            return  # weightless, like nanochat's
        out[f"{name}.weight"] = 1 + torch.randn(size, generator=draw) * 0.2
        if spec.norm == "layernorm" and bias:
            out[f"{name}.bias"] = torch.randn(size, generator=draw) * 0.2

    linear("embed", spec.vocab_size, spec.n_embd, biased=False)
    if spec.position == "learned":
        linear("position", spec.context_length, spec.n_embd, biased=False)
    if spec.embed_norm:
        norm("embed_norm")
    for i in range(spec.n_layer):
        at = f"blocks.{i}"
        norm(f"{at}.attn_norm")
        linear(f"{at}.attn.qkv", wide + 2 * kv, spec.n_embd, biased=bias)
        if spec.qk_norm != "none" and spec.norm_eps is not None:
            for name, size in (("q_norm", wide), ("k_norm", kv)):
                width = size if wide_qk_norm else spec.head_dim
                out[f"{at}.attn.{name}.weight"] = 1 + torch.randn(width, generator=draw) * 0.2
        if spec.attention_output:
            linear(f"{at}.attn.out", spec.n_embd, wide, biased=bias)
        norm(f"{at}.mlp_norm")
        up = "gate_up" if spec.gated else "up"
        linear(f"{at}.mlp.{up}", inner * (2 if spec.gated else 1), spec.n_embd, biased=bias)
        linear(f"{at}.mlp.down", spec.n_embd, inner, biased=bias)
    if spec.final_norm:
        norm("final_norm")
    if not tied:
        linear("head", spec.vocab_size, spec.n_embd, biased=bias)
    return {name: tensor.to(dtype) for name, tensor in out.items()}
