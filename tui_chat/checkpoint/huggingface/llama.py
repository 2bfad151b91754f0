"""Llama and those that differ from it in a norm, a bias, a window or a factor."""

from __future__ import annotations

from tui_chat.checkpoint.huggingface.family import Family, Spec, whole
from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.names import Table, cat, optional

_ATTN = "layers.{i}.self_attn"
_MLP = "layers.{i}.mlp"

ENDS: Table = {
    "embed": "embed_tokens",
    "final_norm": "norm",
    "head": optional("lm_head"),
}
ATTENTION: Table = {
    "blocks.{i}.attn.qkv": cat(f"{_ATTN}.q_proj", f"{_ATTN}.k_proj", f"{_ATTN}.v_proj"),
    "blocks.{i}.attn.out": f"{_ATTN}.o_proj",
}
NORMED_HEADS: Table = {
    "blocks.{i}.attn.q_norm": f"{_ATTN}.q_norm",
    "blocks.{i}.attn.k_norm": f"{_ATTN}.k_norm",
}
GATED: Table = {
    "blocks.{i}.mlp.gate_up": cat(f"{_MLP}.gate_proj", f"{_MLP}.up_proj"),
    "blocks.{i}.mlp.down": f"{_MLP}.down_proj",
}
UNGATED: Table = {
    "blocks.{i}.mlp.up": f"{_MLP}.up_proj",
    "blocks.{i}.mlp.down": f"{_MLP}.down_proj",
}
PRE_NORMS: Table = {
    "blocks.{i}.attn_norm": "layers.{i}.input_layernorm",
    "blocks.{i}.mlp_norm": "layers.{i}.post_attention_layernorm",
}
POST_NORMS: Table = {
    "blocks.{i}.attn_post_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp_post_norm": "layers.{i}.post_feedforward_layernorm",
}
LLAMA_NAMES: Table = {**ENDS, **PRE_NORMS, **ATTENTION, **GATED}
QWEN3_NAMES: Table = {**LLAMA_NAMES, **NORMED_HEADS}
UNGATED_NAMES: Table = {**ENDS, **PRE_NORMS, **ATTENTION, **UNGATED}
POST_NAMES: Table = {**ENDS, **POST_NORMS, **ATTENTION, **NORMED_HEADS, **GATED}
FUSED_NAMES: Table = {
    **ENDS,
    **PRE_NORMS,
    "blocks.{i}.attn.qkv": f"{_ATTN}.qkv_proj",
    "blocks.{i}.attn.out": f"{_ATTN}.o_proj",
    "blocks.{i}.mlp.gate_up": f"{_MLP}.gate_up_proj",
    "blocks.{i}.mlp.down": f"{_MLP}.down_proj",
}
GLM_NAMES: Table = {**FUSED_NAMES, **ATTENTION}
GLM4_NAMES: Table = {
    **GLM_NAMES,
    "blocks.{i}.attn_post_norm": "layers.{i}.post_self_attn_layernorm",
    "blocks.{i}.mlp_post_norm": "layers.{i}.post_mlp_layernorm",
}

RMS: Spec = {"norm": "rmsnorm", "gated": True}
INTERLEAVED: Spec = {**RMS, "rope_layout": "interleaved"}
BASE: Spec = {
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
    "rope_theta": 10000.0,
}


def _smollm3(settings: Settings, spec: Spec) -> None:
    layers = whole(spec, "n_layer")
    turned = settings.numbers("no_rope_layers", layers)
    every = settings.whole("no_rope_layer_interval") or 0
    if not turned and every:
        turned = tuple(int((i + 1) % every != 0) for i in range(layers))
    if 0 in turned:
        spec["layer_rope"] = tuple("main" if on else "none" for on in turned)


def _cwm(settings: Settings, spec: Spec) -> None:
    if settings.get("layer_types") is None:
        size, layers = settings.whole("sliding_window") or 0, whole(spec, "n_layer")
        spec["window"] = tuple(size if i % 4 else 0 for i in range(layers))


FAMILIES: dict[str, Family] = {
    "llama": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={**BASE, "num_attention_heads": 32},
        ignored=("*.rotary_emb.inv_freq",),
    ),
    "mistral": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_position_embeddings": 131072,
        },
        window="all",
    ),
    "ministral": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "num_key_value_heads": 8,
            "sliding_window": 4096,
            "max_position_embeddings": 131072,
        },
        window="types",
    ),
    "qwen2": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "num_attention_heads": 32,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "max_position_embeddings": 32768,
        },
        window="qwen",
    ),
    "qwen3": Family(
        names=QWEN3_NAMES,
        spec={**RMS, "qk_norm": "before_rope"},
        defaults={
            **BASE,
            "num_attention_heads": 32,
            "sliding_window": 4096,
            "max_window_layers": 28,
            "head_dim": 128,
            "max_position_embeddings": 32768,
        },
        window="qwen",
    ),
    "phi3": Family(
        names=FUSED_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "num_attention_heads": 32,
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
        },
        window="all",
        part=1.0,
    ),
    "smollm3": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "rope_theta": 2000000.0,
            "no_rope_layer_interval": 4,
            "max_position_embeddings": 32768,
            "num_key_value_heads": 4,
        },
        window="qwen",
        more=_smollm3,
    ),
    "seed_oss": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "head_dim": 128,
            "num_key_value_heads": 8,
            "max_position_embeddings": 524288,
        },
    ),
    "arcee": Family(
        names=UNGATED_NAMES,
        spec={"norm": "rmsnorm"},
        defaults={
            **BASE,
            "hidden_act": "relu2",
            "rms_norm_eps": 1e-5,
            "max_position_embeddings": 4096,
        },
    ),
    "internlm3": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "rms_norm_eps": 1e-5,
            "head_dim": 128,
            "num_key_value_heads": 2,
            "max_position_embeddings": 32768,
        },
    ),
    "cwm": Family(
        names=LLAMA_NAMES,
        spec=RMS,
        defaults={
            **BASE,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "sliding_window": 8192,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "max_position_embeddings": 131072,
        },
        window="types",
        more=_cwm,
    ),
    "exaone": Family(
        names={
            "embed": "wte",
            "blocks.{i}.attn_norm": "h.{i}.ln_1",
            "blocks.{i}.attn.qkv": cat(*(f"h.{{i}}.attn.attention.{x}_proj" for x in "qkv")),
            "blocks.{i}.attn.out": "h.{i}.attn.attention.out_proj",
            "blocks.{i}.mlp_norm": "h.{i}.ln_2",
            "blocks.{i}.mlp.gate_up": cat("h.{i}.mlp.c_fc_0", "h.{i}.mlp.c_fc_1"),
            "blocks.{i}.mlp.down": "h.{i}.mlp.c_proj",
            "final_norm": "ln_f",
            "head": optional("lm_head"),
        },
        spec=RMS,
        defaults={**BASE, "layer_norm_epsilon": 1e-5},
    ),
}
FAMILIES["iquestcoder"] = FAMILIES["llama"]
