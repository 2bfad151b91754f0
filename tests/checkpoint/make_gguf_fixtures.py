"""Writes tests/fixtures/gguf-models: a tiny random model of each GGUF architecture, and the logits
of the Hugging Face model it was converted from.

    python tests/checkpoint/make_gguf_fixtures.py [NAME...]

Needs transformers (5.24), gguf (0.19) and torch, not tui_chat. Names of tensors come from gguf's
tables; what is rearranged is what llama.cpp's converter rearranges. Matrices are stored in float16
and computed with in float32. Not run by the tests.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers as hf

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "gguf-models"
VOCAB, WIDTH, HEADS, GROUPS, HIDDEN, CONTEXT = 48, 32, 4, 2, 32, 40
IDS = [int(i) for i in torch.randint(0, 48, (22,), generator=torch.Generator().manual_seed(5))]

BASE = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": HIDDEN,
    "num_attention_heads": HEADS, "max_position_embeddings": CONTEXT, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "attn_implementation": "eager",
}  # fmt: skip
KV = {**BASE, "num_key_value_heads": GROUPS}
GPT = {
    "vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_positions": CONTEXT,
    "n_inner": HIDDEN, "attn_implementation": "eager",
}  # fmt: skip
FALCON = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "num_hidden_layers": 2, "ffn_hidden_size": HIDDEN,
    "num_attention_heads": HEADS, "parallel_attn": True, "bias": False, "alibi": False,
    "attn_implementation": "eager",
}  # fmt: skip
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MOE_KEYS = {"expert_count": 4, "expert_used_count": 2}
GEMMA = {"query_pre_attn_scalar": 12, "sliding_window": 6, "head_dim": 12}
SHORT = [1.0, 1.1, 1.3, 1.6]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 24,
}  # fmt: skip


def head(dim: int) -> dict[str, object]:
    return {"attention.key_length": dim, "attention.value_length": dim, "rope.dimension_count": dim}


def frequencies() -> list[float]:
    """What llama.cpp's converter writes for Llama 3.1's scaling."""
    found = []
    for n in range(0, 8, 2):
        wave = 2 * math.pi * 10000.0 ** (n / 8)
        smooth = min(max((24 / wave - 1) / 3, 0.0), 1.0)
        found.append(1 / ((1 - smooth) / 8 + smooth))
    return found


# name -> (architecture, Hugging Face config, keys, more tensors)
VARIANTS: dict[str, tuple[str, object, dict[str, object], dict[str, list[float]]]] = {
    "llama": ("LLAMA", hf.LlamaConfig(**KV), {}, {}),
    "llama-3.1": (
        "LLAMA", hf.LlamaConfig(**KV, rope_parameters=LLAMA3), {},
        {"rope_freqs.weight": frequencies()},
    ),
    "llama-linear": (
        "LLAMA",
        hf.LlamaConfig(
            **KV, rope_parameters={"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}
        ),
        {"rope.freq_base": 5000.0, "rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {},
    ),
    "mixtral": (
        "LLAMA", hf.MixtralConfig(**KV, num_local_experts=4, num_experts_per_tok=2), MOE_KEYS, {},
    ),
    "qwen2": ("QWEN2", hf.Qwen2Config(**KV, tie_word_embeddings=True), {}, {}),
    "qwen2-yarn": (
        "QWEN2",
        hf.Qwen2Config(
            **KV,
            rope_parameters={
                "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0,
                "original_max_position_embeddings": 10,
            },
        ),
        {
            "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
            "rope.scaling.original_context_length": 10,
        },
        {},
    ),
    "qwen3": ("QWEN3", hf.Qwen3Config(**KV, head_dim=12), head(12), {}),
    "qwen2moe": (
        "QWEN2MOE",
        hf.Qwen2MoeConfig(
            **KV, **MOE, shared_expert_intermediate_size=16, decoder_sparse_step=1,
            norm_topk_prob=False,
        ),
        MOE_KEYS, {},
    ),
    "qwen3moe": (
        "QWEN3MOE", hf.Qwen3MoeConfig(**KV, **MOE, head_dim=8, norm_topk_prob=True), MOE_KEYS, {},
    ),
    "gemma": ("GEMMA", hf.GemmaConfig(**KV, head_dim=12), head(12), {}),
    "gemma2": (
        "GEMMA2",
        hf.Gemma2Config(
            **KV, **GEMMA, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
        ),
        {
            **head(12), "attention.sliding_window": 6, "final_logit_softcapping": 3.0,
            "attn_logit_softcapping": 2.0,
        },
        {},
    ),
    "gemma3": (
        "GEMMA3", hf.Gemma3TextConfig(**{**KV, "num_hidden_layers": 7}, **GEMMA),
        {**head(12), "attention.sliding_window": 6, "block_count": 7, "rope.freq_base": 1e6}, {},
    ),
    "phi2": (
        "PHI2", hf.PhiConfig(**BASE, partial_rotary_factor=0.5, hidden_act="gelu_new"),
        {"rope.dimension_count": 4}, {},
    ),
    "phi3": (
        "PHI3", hf.Phi3Config(**KV, sliding_window=6), {"attention.sliding_window": 6}, {},
    ),
    "phi3-longrope": (
        "PHI3",
        hf.Phi3Config(
            **KV,
            original_max_position_embeddings=30,
            rope_parameters={
                "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": SHORT,
                "long_factor": [2.0, 3.0, 4.0, 5.0], "original_max_position_embeddings": 30,
            },
        ),
        {
            "rope.scaling.original_context_length": 30,
            "rope.scaling.attn_factor": math.sqrt(1 + math.log(40 / 30) / math.log(30)),
        },
        {
            "rope_factors_short.weight": SHORT,
            "rope_factors_long.weight": [2.0, 3.0, 4.0, 5.0],
        },
    ),
    "gpt2": ("GPT2", hf.GPT2Config(**GPT), {}, {}),
    "starcoder": ("STARCODER", hf.GPTBigCodeConfig(**GPT), {"attention.head_count_kv": 1}, {}),
    "starcoder2": ("STARCODER2", hf.Starcoder2Config(**KV, sliding_window=None), {}, {}),
    "gptneox": (
        "GPTNEOX", hf.GPTNeoXConfig(**BASE, rotary_pct=0.5),
        {"rope.dimension_count": 4, "use_parallel_residual": True}, {},
    ),
    "gptneox-serial": (
        "GPTNEOX", hf.GPTNeoXConfig(**BASE, rotary_pct=0.25, use_parallel_residual=False),
        {"rope.dimension_count": 2, "use_parallel_residual": False}, {},
    ),
    "falcon": (
        "FALCON", hf.FalconConfig(**FALCON, multi_query=True, new_decoder_architecture=False),
        {"attention.head_count_kv": 1}, {},
    ),
    "falcon-two-norms": (
        "FALCON", hf.FalconConfig(**FALCON, num_kv_heads=2, new_decoder_architecture=True),
        {"attention.head_count_kv": 2}, {},
    ),
    "stablelm": (
        "STABLELM", hf.StableLmConfig(**KV, partial_rotary_factor=0.25, use_qkv_bias=True),
        {"rope.dimension_count": 2}, {},
    ),
    "stablelm-parallel": (
        "STABLELM", hf.StableLmConfig(**KV, partial_rotary_factor=0.5, use_parallel_residual=True),
        {"rope.dimension_count": 4}, {},
    ),
    "olmo": ("OLMO", hf.OlmoConfig(**KV), {}, {}),
    "olmo2": ("OLMO2", hf.Olmo2Config(**KV), {}, {}),
    "olmoe": ("OLMOE", hf.OlmoeConfig(**KV, num_experts=4, num_experts_per_tok=2), MOE_KEYS, {}),
    "granite": (
        "GRANITE",
        hf.GraniteConfig(
            **KV, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3,
            logits_scaling=4.0,
        ),
        {
            "embedding_scale": 3.0, "residual_scale": 0.5, "attention.scale": 0.3,
            "logit_scale": 4.0,
        },
        {},
    ),
    "command-r": ("COMMAND_R", hf.CohereConfig(**KV, logit_scale=0.25), {"logit_scale": 0.25}, {}),
    "cohere2": (
        "COHERE2",
        hf.Cohere2Config(**{**KV, "num_hidden_layers": 5}, logit_scale=0.25, sliding_window=6),
        {"logit_scale": 0.25, "attention.sliding_window": 6, "block_count": 5}, {},
    ),
    "smollm3": (
        "SMOLLM3", hf.SmolLM3Config(**{**KV, "num_hidden_layers": 5}), {"block_count": 5}, {},
    ),
    "nemotron": (
        "NEMOTRON", hf.NemotronConfig(**KV, partial_rotary_factor=0.5),
        {"rope.dimension_count": 4}, {},
    ),
    "arcee": ("ARCEE", hf.ArceeConfig(**KV), {}, {}),
    "ernie4_5": ("ERNIE4_5", hf.Ernie4_5Config(**KV, head_dim=8), {}, {}),
}  # fmt: skip

# Hugging Face turns halves of a head; these architectures turn neighbours.
NEIGHBOURS = frozenset(("LLAMA", "GRANITE", "SMOLLM3", "ARCEE", "OLMO"))
LAYER_NORM = frozenset(
    ("PHI2", "GPT2", "STARCODER", "STARCODER2", "GPTNEOX", "FALCON", "STABLELM", "OLMO",
     "COMMAND_R", "COHERE2", "NEMOTRON")
)  # fmt: skip


def randomised(config: object, offset: bool) -> torch.nn.Module:
    model = hf.AutoModelForCausalLM.from_config(config).eval().float()
    with torch.no_grad():
        for name, value in model.named_parameters():
            around = 1.0 if "norm" in name and value.dim() == 1 and not offset else 0.0
            value.copy_((torch.randn_like(value) * 0.3 + around).half())
    return model


def converted(arch: str, name: str, value: np.ndarray, groups: int) -> dict[str, np.ndarray]:
    """One tensor as the converter writes it, by its Hugging Face name, or by GGUF's where it is
    split."""
    layer = name.split(".")[2] if name.count(".") > 2 else ""
    if arch == "GPT2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        value = value.T
    if arch in NEIGHBOURS and ".q_proj." in name:
        value = neighbours(value, HEADS)
    if arch in NEIGHBOURS and ".k_proj." in name:
        value = neighbours(value, GROUPS)
    if arch == "GPTNEOX" and "query_key_value" in name:
        each = value.reshape(HEADS, 3, WIDTH // HEADS, *value.shape[1:])
        value = np.concatenate([each[:, n].reshape(WIDTH, *value.shape[1:]) for n in range(3)])
    if arch == "FALCON" and "query_key_value" in name:
        each = value.reshape(groups, HEADS // groups + 2, WIDTH // HEADS, WIDTH)
        parts = (each[:, :-2], each[:, [-2]], each[:, [-1]])
        value = np.concatenate([part.reshape(-1, WIDTH) for part in parts])
    if (arch.startswith("GEMMA") or arch == "NEMOTRON") and name.endswith("norm.weight"):
        value = value + 1
    if name.endswith("experts.gate_up_proj"):
        gate, up = np.split(value, 2, axis=1)
        ends = {"gate": gate, "up": up}
        return {f"blk.{layer}.ffn_{end}_exps.weight": part for end, part in ends.items()}
    if name.endswith("experts.down_proj"):
        return {f"blk.{layer}.ffn_down_exps.weight": value}
    return {name: value.reshape(-1) if name.endswith("shared_expert_gate.weight") else value}


def neighbours(value: np.ndarray, heads: int) -> np.ndarray:
    halves = value.reshape(heads, 2, value.shape[0] // heads // 2, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def write(name: str) -> None:
    torch.manual_seed(sorted(VARIANTS).index(name))
    arch, config, keys, more = VARIANTS[name]
    kind = gguf.MODEL_ARCH[arch]
    model = randomised(config, arch.startswith("GEMMA") or arch == "NEMOTRON")
    layers = int(keys.get("block_count", 2))
    words = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
    eps = next((float(getattr(config, word)) for word in words if hasattr(config, word)), 1e-5)
    norm = "layer_norm_epsilon" if arch in LAYER_NORM else "layer_norm_rms_epsilon"
    said = {
        "context_length": CONTEXT, "embedding_length": WIDTH, "block_count": layers,
        "feed_forward_length": HIDDEN, "attention.head_count": HEADS,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", HEADS),
        f"attention.{norm}": eps,
    }  # fmt: skip
    if arch not in ("GPT2", "STARCODER"):
        said |= {"rope.freq_base": 10000.0, "rope.dimension_count": WIDTH // HEADS}
        rope = getattr(config, "rope_parameters", None) or {}
        said["rope.freq_base"] = float(rope.get("rope_theta", 10000.0))
    FOLDER.mkdir(exist_ok=True)
    writer = gguf.GGUFWriter(str(FOLDER / f"{name}.gguf"), gguf.MODEL_ARCH_NAMES[kind])
    for key, value in {**said, **keys}.items():
        full = f"{gguf.MODEL_ARCH_NAMES[kind]}.{key}"
        if isinstance(value, bool):
            writer.add_bool(full, value)
        elif isinstance(value, str):
            writer.add_string(full, value)
        elif isinstance(value, float):
            writer.add_float32(full, value)
        else:
            writer.add_uint32(full, value)
    names = gguf.get_tensor_name_map(kind, layers)
    tied = getattr(config, "tie_word_embeddings", False)
    groups = int(keys.get("attention.head_count_kv", GROUPS))
    for own, tensor in model.state_dict().items():
        if own.endswith((".attn.bias", ".masked_bias")) or (tied and own == "lm_head.weight"):
            continue
        for part, value in converted(arch, own, tensor.numpy(), groups).items():
            found = part if part.startswith("blk.") else names.get_name(part, (".weight", ".bias"))
            assert found is not None, own
            wide = value.ndim > 1 and "ffn_gate_inp" not in found and "position" not in found
            writer.add_tensor(
                found, np.ascontiguousarray(value, np.float16 if wide else np.float32)
            )
    for own, values in more.items():
        writer.add_tensor(own, np.array(values, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with torch.no_grad():
        logits = model(torch.tensor([IDS])).logits[0]
    rows = {str(n): [round(x, 5) for x in logits[n].tolist()] for n in (3, len(IDS) - 1)}
    (FOLDER / f"{name}.json").write_text(json.dumps({"ids": IDS, "after": rows}), "utf-8")


if __name__ == "__main__":
    for variant in sys.argv[1:] or VARIANTS:
        write(variant)
