"""Which family a config or a set of tensors belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tui_chat.checkpoint.huggingface import elsewhere, experts, gemma, gpt, kin, llama
from tui_chat.checkpoint.huggingface.family import Family
from tui_chat.checkpoint.huggingface.refused import check_known
from tui_chat.checkpoint.names import optional
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

FAMILIES: dict[str, Family] = {
    **gpt.FAMILIES,
    **llama.FAMILIES,
    **kin.FAMILIES,
    **gemma.FAMILIES,
    **experts.FAMILIES,
    **elsewhere.FAMILIES,
}
# The language part of models that also see pictures, and families under a second name.
_ALSO = {
    "gemma3": "gemma3_text",
    "qwen2_vl": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen2_5_vl": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen3_vl_text": "qwen3",
    "llava": "llama",
    "stablelm_epoch": "stablelm",
    "yi": "llama",
    "Yi": "llama",
    "aquila": "llama",
    "xverse": "llama",
    "LLaMA": "llama",
}
# Where such models keep the settings of their language part.
_NESTED = ("text_config", "llm_config", "language_config")
# Llama's tensors with whatever Qwen 3 adds, for types that nobody here knows.
_GUESS = replace(
    FAMILIES["llama"],
    names={
        **FAMILIES["llama"].names,
        **{ours: optional(row) for ours, row in llama.NORMED_HEADS.items()},
    },
    window="types",
)


def text_part(config: Mapping[str, object]) -> tuple[Mapping[str, object], list[str]]:
    """The settings of the language model in a config, and what was left out of it."""
    for key in _NESTED:
        inside = mapping(config.get(key))
        if inside and config.get("hidden_size") is None:
            outer = {
                name: value
                for name, value in config.items()
                if name in ("tie_word_embeddings", "quantization_config", "model_type", "dtype")
            }
            parts = sorted(name for name in config if name.endswith("_config") and name != key)
            left = [name for name in parts if name not in ("quantization_config",)]
            said = [f"of config.json {', '.join(left)}: only text is read"] if left else []
            return {**outer, **inside}, said
    return config, []


def family_of(
    config: Mapping[str, object], tensors: Mapping[str, object]
) -> tuple[str, Family, list[str]]:
    """The type, its family, and warnings. `tensors` have no prefixes. Raises CheckpointError for a
    type that is not known and does not look like one that is."""
    said = config.get("model_type")
    model_type = said if isinstance(said, str) else ""
    known = _ALSO.get(model_type, model_type)
    if known in FAMILIES:
        return known, FAMILIES[known], []
    check_known(model_type)
    names = ", ".join(str(name)[:40] for name in _texts(config.get("architectures")))
    told = f"{model_type[:40]!r}" + (f" ({names})" if names else "")
    if not model_type:
        guess = by_tensors(tensors)
        if guess:
            return guess, FAMILIES[guess], []
        raise CheckpointError(
            "config.json does not say its model_type"
            if config
            else "there is no config.json, or nothing is in it",
            f"the tensors are called {_called(tensors)}",
            "Say the type in config.json, for example llama",
        )
    if by_tensors(tensors) in ("llama", "qwen2", "qwen3"):
        warning = (
            f"the model_type {told} is not known here; its tensors are named as Llama's, so it is "
            "read as a Llama, which is a guess"
        )
        if "layers.0.self_attn.q_norm.weight" in tensors:
            return (
                "llama",
                replace(_GUESS, spec={**_GUESS.spec, "qk_norm": "before_rope"}),
                [warning],
            )
        return "llama", _GUESS, [warning]
    raise CheckpointError(
        f"the model_type {told} is not known",
        f"its tensors are called {_called(tensors)}",
        f"Known are {', '.join(sorted(FAMILIES))}",
    )


def by_tensors(tensors: Mapping[str, object]) -> str:
    """The type whose tensors have such names and shapes, "" for none."""
    names = frozenset(tensors)
    first = "layers.0.self_attn."
    if {f"{first}q_proj.weight", "layers.0.mlp.gate_proj.weight"} <= names:
        if "layers.0.input_layernorm.weight" not in names:
            return "olmo2" if f"{first}q_norm.weight" in names else ""
        if "layers.0.pre_feedforward_layernorm.weight" in names:
            return "gemma3_text" if f"{first}q_norm.weight" in names else "gemma2"
        if "layers.0.input_layernorm.bias" in names:
            return "stablelm"
        if f"{first}q_norm.weight" in names:
            return "qwen3"
        return "qwen2" if f"{first}q_proj.bias" in names else "llama"
    if f"{first}qkv_proj.weight" in names and "layers.0.mlp.gate_up_proj.weight" in names:
        return "phi3"
    fused = tensors.get("h.0.attn.c_attn.weight")
    if isinstance(fused, TensorRef) and len(fused.shape) == 2 and "wpe.weight" in names:
        rows, columns = fused.shape
        return "gpt2" if columns == 3 * rows else ""
    if "layers.0.attention.query_key_value.weight" in names and "embed_in.weight" in names:
        return "gpt_neox"
    return ""


def _texts(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _called(tensors: Mapping[str, object]) -> str:
    shown = ", ".join(name[:60] for name in list(tensors)[:3])
    return shown + (f" and {len(tensors) - 3:,} more" if len(tensors) > 3 else "")
