"""Small models with random weights: every kind of decoder a spec can say."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tui_chat.model.spec import Experts, ModelSpec, RopeScaling

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
    "partial-rotary-half": ModelSpec(**SMALL, **ROPE, rotary_dim=4, n_kv_head=2),
    "gpt-j-like": ModelSpec(
        **SMALL,
        position="rope",
        rope_layout="interleaved",
        rotary_dim=4,
        residual="parallel",
        shared_norm=True,
        activation="gelu_tanh",
    ),
    "neox-like": ModelSpec(**SMALL, position="rope", rotary_dim=2, residual="parallel"),
    "gemma2-like": ModelSpec(
        **SMALL,
        position="rope",
        norm="rmsnorm",
        norm_eps=1e-6,
        gated=True,
        activation="gelu_tanh",
        n_kv_head=2,
        attention_scale=0.2,
        attention_softcap=2.0,
        logit_softcap=3.0,
        embed_scale=5.0,
        window=(4, 0),
    ),
    "gemma3-like": ModelSpec(
        **SMALL,
        **ROPE,
        qk_norm="before_rope",
        qk_norm_eps=1e-3,
        n_kv_head=2,
        embed_scale=5.0,
        rope_theta=1e6,
        rope_scaling=RopeScaling(kind="linear", factor=8.0),
        rope_local_theta=100.0,
        layer_rope=("local", "main"),
        window=(5, 0),
    ),
    "olmo2-like": ModelSpec(**SMALL, **ROPE, pre_norm=False, qk_norm="before_rope"),
    "no-rotation-in-a-layer": ModelSpec(**SMALL, **ROPE, layer_rope=("main", "none")),
    "granite-like": ModelSpec(
        **SMALL,
        **ROPE,
        n_kv_head=2,
        embed_scale=3.0,
        attention_scale=0.1,
        residual_scale=0.3,
        logit_scale=0.25,
    ),
    "learned-positions-scaled-embedding": ModelSpec(**SMALL, embed_scale=2.0),
    "softcapped-with-learned-positions": ModelSpec(**SMALL, attention_softcap=1.5),
    "mismatched-rotary": ModelSpec(**SMALL, **ROPE, rope_layout="mismatched"),
    "yarn": ModelSpec(
        **SMALL,
        **ROPE,
        rope_scaling=RopeScaling(
            kind="yarn", factor=4.0, original_context_length=12, beta_fast=2.0, attention_factor=1.2
        ),
    ),
    "longrope": ModelSpec(
        **SMALL,
        **ROPE,
        rope_scaling=RopeScaling(
            kind="longrope",
            original_context_length=32,
            attention_factor=1.1,
            short_factors=(1.0, 1.0, 1.0, 1.0),
            long_factors=(1.0, 2.0, 4.0, 8.0),
        ),
    ),
    "experts-softmax": ModelSpec(**SMALL, **ROPE, experts=Experts(count=5, used=2)),
    "experts-in-parallel": ModelSpec(
        **SMALL,
        position="rope",
        residual="parallel",
        residual_scale=0.5,
        experts=Experts(count=4, used=2, router="sigmoid"),
    ),
}

# Norms on what a branch adds, in specs that have them.
POST_NORMS = {"gemma2-like", "gemma3-like", "olmo2-like"}


def weights_of(name: str) -> dict[str, Tensor]:
    """Random weights for one of SPECS, with the tensors that its name promises."""
    spec = SPECS[name]
    return random_weights(
        spec,
        bias=spec.norm == "layernorm",
        wide_qk_norm=name == "olmo2-like",
        post_norms=name in POST_NORMS,
    )


def random_weights(
    spec: ModelSpec,
    *,
    seed: int = 0,
    bias: bool = True,
    tied: bool = False,
    scale: float = 0.25,
    wide_qk_norm: bool = False,
    post_norms: bool = False,
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
        if spec.pre_norm:
            norm(f"{at}.attn_norm")
        if post_norms:
            norm(f"{at}.attn_post_norm")
            norm(f"{at}.mlp_post_norm")
        linear(f"{at}.attn.qkv", wide + 2 * kv, spec.n_embd, biased=bias)
        if spec.qk_norm != "none" and spec.norm_eps is not None:
            for name, size in (("q_norm", wide), ("k_norm", kv)):
                width = size if wide_qk_norm else spec.head_dim
                out[f"{at}.attn.{name}.weight"] = 1 + torch.randn(width, generator=draw) * 0.2
        if spec.attention_output:
            linear(f"{at}.attn.out", spec.n_embd, wide, biased=bias)
        if spec.pre_norm and not spec.shared_norm:
            norm(f"{at}.mlp_norm")
        up = "gate_up" if spec.gated else "up"
        if spec.experts is not None and i:  # the first layer has an MLP
            count, rows = spec.experts.count, inner * (2 if spec.gated else 1)
            linear(f"{at}.mlp.router", count, spec.n_embd, biased=spec.experts.router == "sigmoid")
            linear(f"{at}.mlp.experts.{up}", count * rows, spec.n_embd, biased=False)
            linear(f"{at}.mlp.experts.down", count * spec.n_embd, inner, biased=False)
            continue
        linear(f"{at}.mlp.{up}", inner * (2 if spec.gated else 1), spec.n_embd, biased=bias)
        linear(f"{at}.mlp.down", spec.n_embd, inner, biased=bias)
    if spec.final_norm:
        norm("final_norm")
    if not tied:
        linear("head", spec.vocab_size, spec.n_embd, biased=bias)
    return {name: tensor.to(dtype) for name, tensor in out.items()}
