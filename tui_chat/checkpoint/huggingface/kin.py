"""Those that keep Llama's names and most of its shape, and differ in norms, rotary layout, residual
paths or factors."""

from __future__ import annotations

from tui_chat.checkpoint.huggingface.family import (
    Family,
    Never,
    Spec,
    turned_where_sliding,
)
from tui_chat.checkpoint.huggingface.llama import (
    ATTENTION,
    BASE,
    GLM4_NAMES,
    GLM_NAMES,
    LLAMA_NAMES,
    POST_NAMES,
    PRE_NORMS,
    RMS,
    UNGATED_NAMES,
)
from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.names import optional

INTERLEAVED: Spec = {**RMS, "rope_layout": "interleaved"}


def parallel(settings: Settings, spec: Spec, *, shared: bool) -> None:
    """Attention and MLP side by side, if config.json says so."""
    if settings.flag("use_parallel_residual"):
        spec["residual"] = "parallel"
        spec["shared_norm"] = shared


def _logit_scale(settings: Settings, spec: Spec) -> None:
    spec["logit_scale"] = settings.number("logit_scale") or 1.0


def _cohere2(settings: Settings, spec: Spec) -> None:
    _logit_scale(settings, spec)
    turned_where_sliding(4)(settings, spec)


def granite(settings: Settings, spec: Spec) -> None:
    """Factors on embedding, scores, branches and logits; the last one divides."""
    spec["embed_scale"] = settings.number("embedding_multiplier") or 1.0
    spec["residual_scale"] = settings.number("residual_multiplier") or 1.0
    spec["attention_scale"] = settings.number("attention_multiplier") or 1.0
    spec["logit_scale"] = 1.0 / (settings.number("logits_scaling") or 1.0)


def _hyperclovax(settings: Settings, spec: Spec) -> None:
    granite(settings, spec)
    spec["attention_scale"] = settings.number("attention_multiplier")
    spec["logit_scale"] = settings.number("logits_scaling") or 1.0


def _nanochat(settings: Settings, spec: Spec) -> None:
    spec["logit_softcap"] = settings.number("final_logit_softcapping")


FAMILIES: dict[str, Family] = {
    "olmo": Family(
        names={
            **LLAMA_NAMES,
            "final_norm": optional("norm"),
            "blocks.{i}.attn_norm": optional("layers.{i}.input_layernorm"),
            "blocks.{i}.mlp_norm": optional("layers.{i}.post_attention_layernorm"),
        },
        spec={"norm": "layernorm", "norm_eps": 1e-5, "gated": True},
        defaults=BASE,
    ),
    "olmo2": Family(
        names=POST_NAMES,
        spec={**RMS, "pre_norm": False, "qk_norm": "before_rope"},
        defaults={**BASE, "rms_norm_eps": 1e-5},
    ),
    "olmo3": Family(
        names=POST_NAMES,
        spec={**RMS, "pre_norm": False, "qk_norm": "before_rope", "layer_rope": "types"},
        defaults={**BASE, "rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 500000.0},
        window="types",
        pattern=4,
    ),
    "exaone4": Family(
        names=POST_NAMES,
        spec={**RMS, "pre_norm": False, "qk_norm": "before_rope"},
        defaults={**BASE, "rms_norm_eps": 1e-5, "sliding_window": 4096},
        window="types",
        pattern=4,
        more=turned_where_sliding(4),
    ),
    "granite": Family(names=LLAMA_NAMES, spec=RMS, defaults=BASE, more=granite),
    "hyperclovax": Family(
        names={
            **LLAMA_NAMES,
            "blocks.{i}.attn_post_norm": optional("layers.{i}.post_norm1"),
            "blocks.{i}.mlp_post_norm": optional("layers.{i}.post_norm2"),
        },
        spec=RMS,
        defaults=BASE,
        more=_hyperclovax,
    ),
    "glm": Family(
        names=GLM_NAMES,
        spec=INTERLEAVED,
        defaults={
            **BASE,
            "rms_norm_eps": 1.5625e-07,
            "head_dim": 128,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131072,
        },
        part=0.5,
    ),
    "glm4": Family(
        names=GLM4_NAMES,
        spec=INTERLEAVED,
        defaults={
            **BASE,
            "rms_norm_eps": 1.5625e-07,
            "head_dim": 128,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131072,
        },
        part=0.5,
    ),
    "helium": Family(
        names=LLAMA_NAMES,
        spec=INTERLEAVED,
        defaults={
            **BASE,
            "rms_norm_eps": 1e-8,
            "head_dim": 128,
            "rope_theta": 100000.0,
            "max_position_embeddings": 4096,
        },
    ),
    "ernie4_5": Family(
        names=LLAMA_NAMES,
        spec=INTERLEAVED,
        defaults={
            **BASE,
            "rms_norm_eps": 1e-5,
            "head_dim": 128,
            "rope_theta": 500000.0,
            "num_key_value_heads": 2,
            "max_position_embeddings": 131072,
        },
    ),
    "jais2": Family(
        names=UNGATED_NAMES,
        spec={"norm": "layernorm"},
        defaults={
            "hidden_act": "relu2",
            "layer_norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 8192,
        },
    ),
    "nemotron": Family(
        names=UNGATED_NAMES,
        spec={"norm": "layernorm"},
        defaults={
            "hidden_act": "relu2",
            "norm_eps": 1e-5,
            "rope_theta": 10000.0,
            "max_position_embeddings": 4096,
        },
        part=0.5,
        ones=("*norm.weight",),
    ),
    "hunyuan_v1_dense": Family(
        names={
            **LLAMA_NAMES,
            "blocks.{i}.attn.q_norm": "layers.{i}.self_attn.query_layernorm",
            "blocks.{i}.attn.k_norm": "layers.{i}.self_attn.key_layernorm",
        },
        spec={**RMS, "qk_norm": "after_rope"},
        defaults={**BASE, "rms_norm_eps": 1e-5},
    ),
    "nanochat": Family(
        names={
            "embed": "embed_tokens",
            **ATTENTION,
            "blocks.{i}.mlp.up": "layers.{i}.mlp.fc1",
            "blocks.{i}.mlp.down": "layers.{i}.mlp.fc2",
            "head": optional("lm_head"),
        },
        spec={
            "norm": "rmsnorm",
            "qk_norm": "after_rope",
            "rope_sign": -1,
            "embed_norm": True,
        },
        defaults={**BASE, "hidden_act": "relu2", "final_logit_softcapping": 15.0},
        more=_nanochat,
    ),
    "starcoder2": Family(
        names={
            **UNGATED_NAMES,
            "blocks.{i}.mlp.up": "layers.{i}.mlp.c_fc",
            "blocks.{i}.mlp.down": "layers.{i}.mlp.c_proj",
        },
        spec={"norm": "layernorm"},
        defaults={
            "hidden_act": "gelu_pytorch_tanh",
            "norm_epsilon": 1e-5,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
        },
        window="all",
    ),
    "stablelm": Family(
        names={**LLAMA_NAMES, "blocks.{i}.mlp_norm": optional(PRE_NORMS["blocks.{i}.mlp_norm"])},
        spec={"norm": "layernorm", "gated": True},
        defaults={**BASE, "layer_norm_eps": 1e-5, "max_position_embeddings": 4096},
        part=0.25,
        more=lambda settings, spec: parallel(settings, spec, shared=True),
    ),
}
FAMILIES["cohere"] = Family(
    names={**LLAMA_NAMES, "blocks.{i}.mlp_norm": optional("layers.{i}.none")},
    spec={
        "norm": "layernorm",
        "gated": True,
        "rope_layout": "interleaved",
        "residual": "parallel",
        "shared_norm": True,
    },
    defaults={
        **BASE,
        "layer_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "logit_scale": 0.0625,
        "max_position_embeddings": 8192,
    },
    never=(Never("use_qk_norm", "norms queries and keys by LayerNorm"),),
    more=lambda settings, spec: _logit_scale(settings, spec),
)
FAMILIES["cohere2"] = Family(
    names=FAMILIES["cohere"].names,
    spec=FAMILIES["cohere"].spec,
    defaults={**FAMILIES["cohere"].defaults, "rope_theta": 10000.0, "sliding_window": 4096},
    window="types",
    pattern=4,
    more=_cohere2,
)
