"""Gemma, one to three: norms that multiply by 1 + w, scaled embeddings, softcaps, windows."""

from __future__ import annotations

import math

from tui_chat.checkpoint.huggingface.family import Family, Spec, whole
from tui_chat.checkpoint.huggingface.llama import (
    BASE,
    LLAMA_NAMES,
    NORMED_HEADS,
    RMS,
)
from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.names import Table

_FOUR_NORMS: Table = {
    **LLAMA_NAMES,
    "blocks.{i}.attn_post_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp_norm": "layers.{i}.pre_feedforward_layernorm",
    "blocks.{i}.mlp_post_norm": "layers.{i}.post_feedforward_layernorm",
}
_VAULT: Table = {**LLAMA_NAMES, "blocks.{i}.mlp_norm": "layers.{i}.pre_feedforward_layernorm"}

_DEFAULTS: Spec = {
    **BASE,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "head_dim": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 8192,
}
_SECOND: Spec = {
    **_DEFAULTS,
    "sliding_window": 4096,
    "query_pre_attn_scalar": 256,
    "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0,
}
_ONES = ("*norm.weight",)


def _scaled(settings: Settings, spec: Spec) -> None:
    """Its own code rounds the factor to the weights' type when it computes in that type; here the
    unrounded one is taken, as in float32."""
    spec["embed_scale"] = math.sqrt(whole(spec, "n_embd"))


def _capped(settings: Settings, spec: Spec) -> None:
    _scaled(settings, spec)
    scalar = settings.number("query_pre_attn_scalar")
    if scalar is not None and scalar > 0:
        spec["attention_scale"] = scalar**-0.5
    spec["attention_softcap"] = settings.number("attn_logit_softcapping") or None
    spec["logit_softcap"] = settings.number("final_logit_softcapping") or None


FAMILIES: dict[str, Family] = {
    "gemma": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={**_DEFAULTS, "num_attention_heads": 16, "num_key_value_heads": 16},
        ones=_ONES,
        more=_scaled,
    ),
    "gemma2": Family(
        names=_FOUR_NORMS,
        spec=RMS,
        defaults=_SECOND,
        window="types",
        pattern=2,
        ones=_ONES,
        more=_capped,
    ),
    "vaultgemma": Family(
        names=_VAULT,
        spec=RMS,
        defaults=_SECOND,
        window="types",
        pattern=2,
        ones=_ONES,
        more=_capped,
    ),
    "gemma3_text": Family(
        names={**_FOUR_NORMS, **NORMED_HEADS},
        spec={**RMS, "qk_norm": "before_rope", "layer_rope": "types"},
        defaults={
            **_SECOND,
            "final_logit_softcapping": None,
            "attn_logit_softcapping": None,
            "rope_theta": 1000000.0,
            "rope_local_base_freq": 10000.0,
            "max_position_embeddings": 131072,
        },
        window="types",
        pattern=6,
        ones=_ONES,
        more=_capped,
    ),
}
