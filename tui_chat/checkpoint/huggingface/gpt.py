"""GPT-2 and those that came after it and before Llama: LayerNorm, biases, no gate."""

from __future__ import annotations

import math

from tui_chat.checkpoint.huggingface.family import Family, Never, Spec, whole
from tui_chat.checkpoint.huggingface.kin import parallel
from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.names import Table, cat, optional, transpose
from tui_chat.errors import CheckpointError

LAYER: Spec = {"norm": "layernorm"}
LEARNED: Spec = {**LAYER, "position": "learned"}

GPT2_NAMES: Table = {
    "embed": "wte",
    "position": "wpe",
    "blocks.{i}.attn_norm": "h.{i}.ln_1",
    "blocks.{i}.attn.qkv": transpose("h.{i}.attn.c_attn"),
    "blocks.{i}.attn.out": transpose("h.{i}.attn.c_proj"),
    "blocks.{i}.mlp_norm": "h.{i}.ln_2",
    "blocks.{i}.mlp.up": transpose("h.{i}.mlp.c_fc"),
    "blocks.{i}.mlp.down": transpose("h.{i}.mlp.c_proj"),
    "final_norm": "ln_f",
    "head": optional("lm_head"),
}
_BIGCODE: Table = {
    **GPT2_NAMES,
    "blocks.{i}.attn.qkv": cat(*(f"h.{{i}}.attn.c_attn.{x}" for x in "qkv")),
    "blocks.{i}.attn.out": "h.{i}.attn.c_proj",
    "blocks.{i}.mlp.up": "h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.down": "h.{i}.mlp.c_proj",
}
_NEO: Table = {
    **_BIGCODE,
    "blocks.{i}.attn.qkv": cat(*(f"h.{{i}}.attn.attention.{x}_proj" for x in "qkv")),
    "blocks.{i}.attn.out": "h.{i}.attn.attention.out_proj",
}
_GPTJ: Table = {
    "embed": "wte",
    "blocks.{i}.attn_norm": "h.{i}.ln_1",
    "blocks.{i}.attn.qkv": cat(*(f"h.{{i}}.attn.{x}_proj" for x in "qkv")),
    "blocks.{i}.attn.out": "h.{i}.attn.out_proj",
    "blocks.{i}.mlp.up": "h.{i}.mlp.fc_in",
    "blocks.{i}.mlp.down": "h.{i}.mlp.fc_out",
    "final_norm": "ln_f",
    "head": optional("lm_head"),
}
_CODEGEN: Table = {
    **_GPTJ,
    "blocks.{i}.attn.qkv": cat(*(f"h.{{i}}.attn.qkv_proj.{x}" for x in "qkv")),
}
_NEOX: Table = {
    "embed": "embed_in",
    "blocks.{i}.attn_norm": "layers.{i}.input_layernorm",
    "blocks.{i}.attn.qkv": cat(*(f"layers.{{i}}.attention.query_key_value.{x}" for x in "qkv")),
    "blocks.{i}.attn.out": "layers.{i}.attention.dense",
    "blocks.{i}.mlp_norm": "layers.{i}.post_attention_layernorm",
    "blocks.{i}.mlp.up": "layers.{i}.mlp.dense_h_to_4h",
    "blocks.{i}.mlp.down": "layers.{i}.mlp.dense_4h_to_h",
    "final_norm": "final_layer_norm",
    "head": optional("embed_out"),
}
_OPT: Table = {
    "embed": "embed_tokens",
    "position": "embed_positions",
    "blocks.{i}.attn_norm": optional("layers.{i}.self_attn_layer_norm"),
    "blocks.{i}.attn.qkv": cat(*(f"layers.{{i}}.self_attn.{x}_proj" for x in "qkv")),
    "blocks.{i}.attn.out": "layers.{i}.self_attn.out_proj",
    "blocks.{i}.mlp_norm": optional("layers.{i}.final_layer_norm"),
    "blocks.{i}.mlp.up": "layers.{i}.fc1",
    "blocks.{i}.mlp.down": "layers.{i}.fc2",
    "final_norm": optional("final_layer_norm"),
    "head": optional("lm_head"),
}
_PHI: Table = {
    "embed": "embed_tokens",
    "blocks.{i}.attn_norm": "layers.{i}.input_layernorm",
    "blocks.{i}.attn.qkv": cat(*(f"layers.{{i}}.self_attn.{x}_proj" for x in "qkv")),
    "blocks.{i}.attn.out": "layers.{i}.self_attn.dense",
    "blocks.{i}.mlp.up": "layers.{i}.mlp.fc1",
    "blocks.{i}.mlp.down": "layers.{i}.mlp.fc2",
    "final_norm": "final_layernorm",
    "head": optional("lm_head"),
}
_PERSIMMON: Table = {
    **_NEOX,
    "embed": "embed_tokens",
    "blocks.{i}.attn.qkv": cat(*(f"layers.{{i}}.self_attn.query_key_value.{x}" for x in "qkv")),
    "blocks.{i}.attn.out": "layers.{i}.self_attn.dense",
    "final_norm": "final_layernorm",
    "head": optional("lm_head"),
}
_FALCON: Table = {
    "embed": "word_embeddings",
    "blocks.{i}.attn_norm": "h.{i}.input_layernorm",
    "blocks.{i}.attn.qkv": cat(*(f"h.{{i}}.self_attention.query_key_value.{x}" for x in "qkv")),
    "blocks.{i}.attn.out": "h.{i}.self_attention.dense",
    "blocks.{i}.mlp_norm": optional("h.{i}.post_attention_layernorm"),
    "blocks.{i}.mlp.up": "h.{i}.mlp.dense_h_to_4h",
    "blocks.{i}.mlp.down": "h.{i}.mlp.dense_4h_to_h",
    "final_norm": "ln_f",
    "head": optional("lm_head"),
}


def _unscaled(settings: Settings, spec: Spec) -> None:
    if settings.get("scale_attn_weights") is False:
        spec["attention_scale"] = 1.0


def _bigcode(settings: Settings, spec: Spec) -> None:
    _unscaled(settings, spec)
    one = settings.get("multi_query")
    spec["n_kv_head"] = 1 if one is None or one is True else spec["n_head"]


def _neo(settings: Settings, spec: Spec) -> None:
    """Scores are not scaled at all; every other layer sees only a window."""
    spec["attention_scale"] = 1.0
    layers, size = whole(spec, "n_layer"), settings.whole("window_size") or 256
    kinds: list[object] = []
    listed, expanded = settings.get("attention_layers"), settings.get("attention_types")
    if isinstance(listed, list):
        kinds = listed
    elif isinstance(expanded, list):
        for item in expanded:
            if isinstance(item, list) and len(item) == 2 and isinstance(item[0], list):
                times = item[1] if isinstance(item[1], int) else 0
                kinds += item[0] * max(0, min(times, layers))
    if len(kinds) < layers or not {str(kind) for kind in kinds} <= {"global", "local"}:
        raise CheckpointError("config.json does not say which layers are global and which local")
    spec["window"] = tuple(size if kind == "local" else 0 for kind in kinds[:layers])


def _rotary_dim(settings: Settings, spec: Spec) -> None:
    spec["rotary_dim"] = settings.whole("rotary_dim") or spec["head_dim"]


def _opt(settings: Settings, spec: Spec) -> None:
    if settings.get("do_layer_norm_before") is False:
        raise CheckpointError(
            "the model norms what a branch was added to, which tui-chat cannot do",
            "config.json says do_layer_norm_before is false",
        )
    narrow = settings.whole("word_embed_proj_dim")
    if narrow and narrow != spec["n_embd"]:
        raise CheckpointError(
            "the model projects its embeddings to another width, which tui-chat cannot do",
            f"config.json says word_embed_proj_dim is {narrow}, hidden_size {spec['n_embd']}",
        )


def _biogpt(settings: Settings, spec: Spec) -> None:
    if settings.get("scale_embedding") is not False:
        spec["embed_scale"] = math.sqrt(whole(spec, "n_embd"))


def _falcon(settings: Settings, spec: Spec) -> None:
    new, one = settings.flag("new_decoder_architecture"), settings.get("multi_query") is not False
    if not new:
        spec["n_kv_head"] = 1 if one else spec["n_head"]
    if new or settings.get("parallel_attn") is not False:
        spec["residual"] = "parallel"
        norms = settings.whole("num_ln_in_parallel_attn")
        spec["shared_norm"] = not new or norms == 1


FAMILIES: dict[str, Family] = {
    "gpt2": Family(
        shares_keys=False,
        names=GPT2_NAMES,
        spec=LEARNED,
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "n_positions": 1024,
            "scale_attn_weights": True,
        },
        ignored=("*.attn.bias", "*.attn.masked_bias"),
        never=(Never("scale_attn_by_inverse_layer_idx", "scales scores by the layer's number"),),
        more=_unscaled,
    ),
    "gpt_bigcode": Family(
        names=_BIGCODE,
        spec=LEARNED,
        defaults={
            "activation_function": "gelu_pytorch_tanh",
            "layer_norm_epsilon": 1e-5,
            "n_positions": 1024,
            "multi_query": True,
            "scale_attn_weights": True,
        },
        fused="attn.c_attn",
        grouped="heads",
        ignored=("*.attn.bias", "*.attn.masked_bias"),
        more=_bigcode,
    ),
    "gpt_neo": Family(
        shares_keys=False,
        names=_NEO,
        spec=LEARNED,
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "window_size": 256,
            "max_position_embeddings": 2048,
            "attention_types": [[["global", "local"], 12]],
        },
        ignored=("*.attn.attention.bias", "*.attn.attention.masked_bias"),
        more=_neo,
    ),
    "gptj": Family(
        shares_keys=False,
        names=_GPTJ,
        spec={**LAYER, "rope_layout": "interleaved", "residual": "parallel", "shared_norm": True},
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "n_positions": 2048,
            "rotary_dim": 64,
            "rope_theta": 10000.0,
        },
        ignored=("*.attn.bias", "*.attn.masked_bias", "*.attn.embed_positions"),
        more=_rotary_dim,
    ),
    "codegen": Family(
        shares_keys=False,
        names=_CODEGEN,
        spec={**LAYER, "rope_layout": "interleaved", "residual": "parallel", "shared_norm": True},
        defaults={
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            "n_positions": 2048,
            "rotary_dim": 64,
            "rope_theta": 10000.0,
        },
        fused="attn.qkv_proj",
        grouped="pieces",
        ignored=(
            "*.attn.causal_mask",
            "*.attn.bias",
            "*.attn.masked_bias",
            "*.attn.embed_positions",
        ),
        more=_rotary_dim,
    ),
    "gpt_neox": Family(
        shares_keys=False,
        names=_NEOX,
        spec=LAYER,
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
            "use_parallel_residual": True,
        },
        part=0.25,
        fused="attention.query_key_value",
        grouped="heads",
        ignored=("*.attention.bias", "*.attention.masked_bias", "*.rotary_emb.inv_freq"),
        more=lambda settings, spec: parallel(settings, spec, shared=False),
    ),
    "persimmon": Family(
        shares_keys=False,
        names=_PERSIMMON,
        spec=LAYER,
        defaults={
            "hidden_act": "relu2",
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 16384,
            "qk_layernorm": True,
        },
        part=0.5,
        fused="self_attn.query_key_value",
        grouped="heads",
    ),
    "opt": Family(
        shares_keys=False,
        names=_OPT,
        spec={**LEARNED, "norm_eps": 1e-5},
        defaults={"activation_function": "relu", "max_position_embeddings": 2048},
        position_offset=2,
        more=_opt,
    ),
    "biogpt": Family(
        shares_keys=False,
        names={**_OPT, "final_norm": "layer_norm", "head": optional("output_projection")},
        spec=LEARNED,
        defaults={
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-12,
            "max_position_embeddings": 1024,
            "scale_embedding": True,
        },
        position_offset=2,
        more=_biogpt,
    ),
    "phi": Family(
        names=_PHI,
        spec={**LAYER, "residual": "parallel", "shared_norm": True},
        defaults={
            "hidden_act": "gelu_new",
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
        },
        part=0.5,
        ignored=("*.rotary_emb.inv_freq",),
    ),
    "falcon": Family(
        names=_FALCON,
        spec=LAYER,
        defaults={
            "activation": "gelu",
            "layer_norm_epsilon": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 2048,
        },
        fused="self_attention.query_key_value",
        grouped="heads",
        # Falcon 40B and 180B, whose two norms see the same x.
        renamed={"ln_attn": "input_layernorm", "ln_mlp": "post_attention_layernorm"},
        ignored=("*.rotary_emb.inv_freq", "*.maybe_rotary.inv_freq"),
        more=_falcon,
    ),
}
FAMILIES["RefinedWeb"] = FAMILIES["RefinedWebModel"] = FAMILIES["falcon"]
