"""Writes tests/fixtures/hf-families: one tiny random model of each family, and its logits.

    python tests/checkpoint/make_hf_fixtures.py [NAME...]

Needs transformers (5.24) and torch, not tui_chat. The weights are stored in bfloat16 and computed
with in float32; greedy ids come from whole passes without a cache. Not run by the tests.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "hf-families"
NEW = 14  # greedy ids, which lead past every window
VOCAB = 64

BASE = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 32, "max_position_embeddings": 48,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT = {
    "vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 48, "n_inner": 32,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
TWO = ["sliding_attention", "full_attention"]
LONG = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 40,
    "short_factor": [1.0, 1.1, 1.3], "long_factor": [1.5, 2.0, 4.0], "partial_rotary_factor": 0.75,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 5000.0, "factor": 4.0,
    "original_max_position_embeddings": 12, "beta_fast": 4.0, "beta_slow": 1.0,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
}  # fmt: skip


def _moe(**more: object) -> dict[str, object]:
    return {**BASE, "moe_intermediate_size": 12, "num_experts_per_tok": 2, **more}


# name -> (model_type, config)
VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    "gpt2": ("gpt2", GPT),
    "gpt2-unscaled": ("gpt2", {**GPT, "scale_attn_weights": False, "activation_function": "relu"}),
    "gpt_bigcode": ("gpt_bigcode", GPT),
    "gpt_bigcode-heads": ("gpt_bigcode", {**GPT, "multi_query": False}),
    "gptj": ("gptj", {**GPT, "rotary_dim": 4}),
    "codegen": ("codegen", {**GPT, "rotary_dim": 4}),
    "gpt_neo": ("gpt_neo", {
        "vocab_size": VOCAB, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
        "intermediate_size": 32, "max_position_embeddings": 48, "window_size": 6,
        "attention_types": [[["global", "local"], 1]],
    }),
    "gpt_neox": ("gpt_neox", BASE),
    "gpt_neox-serial": ("gpt_neox", {
        **BASE, "use_parallel_residual": False, "attention_bias": False,
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 999.0,
                            "partial_rotary_factor": 1.0},
    }),
    "opt": ("opt", {
        **BASE, "ffn_dim": 32, "word_embed_proj_dim": 32, "pad_token_id": 1,
    }),
    "biogpt": ("biogpt", BASE),
    "phi": ("phi", BASE),
    "falcon-multi_query": ("falcon", {**BASE, "ffn_hidden_size": 32}),
    "falcon-serial": ("falcon", {
        **BASE, "ffn_hidden_size": 32, "parallel_attn": False, "multi_query": False, "bias": True,
    }),
    "falcon-two_norms": ("falcon", {
        **BASE, "ffn_hidden_size": 32, "new_decoder_architecture": True, "num_kv_heads": 2,
    }),
    "falcon-one_norm": ("falcon", {
        **BASE, "ffn_hidden_size": 32, "new_decoder_architecture": True, "num_kv_heads": 2,
        "num_ln_in_parallel_attn": 1,
    }),
    "llama": ("llama", {**BASE, "attention_bias": True, "mlp_bias": True}),
    "llama-llama3": ("llama", {
        **BASE, "rope_parameters": LLAMA3, "head_dim": 10, "tie_word_embeddings": True,
    }),
    "llama-linear": ("llama", {
        **BASE, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 3.0},
    }),
    "llama-yarn": ("llama", {**BASE, "rope_parameters": YARN}),
    "llama-yarn_mscale": ("llama", {
        **BASE, "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
    }),
    "llama-dynamic": ("llama", {
        **BASE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 3.0},
    }),
    "mistral": ("mistral", {**BASE, "sliding_window": 6}),
    "ministral": ("ministral", {**BASE, "head_dim": 8, "sliding_window": 6, "layer_types": TWO}),
    "qwen2": ("qwen2", {
        **BASE, "use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1,
    }),
    "qwen3": ("qwen3", {**BASE, "head_dim": 12}),
    "qwen3-biased": ("qwen3", {**BASE, "head_dim": 8, "attention_bias": True}),
    "gemma": ("gemma", {**BASE, "head_dim": 12}),
    "gemma2": ("gemma2", {
        **BASE, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 11,
        "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0,
    }),
    "vaultgemma": ("vaultgemma", {
        **BASE, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 11,
    }),
    "gemma3_text": ("gemma3_text", {
        **BASE, "head_dim": 8, "sliding_window": 6, "query_pre_attn_scalar": 11,
        "layer_types": TWO,
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 9000.0, "factor": 2.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
        },
    }),
    "phi3-partial": ("phi3", {
        **BASE, "sliding_window": 6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0,
                            "partial_rotary_factor": 0.75},
    }),
    "phi3-longrope": ("phi3", {
        **BASE, "rope_parameters": LONG, "original_max_position_embeddings": 40,
        "max_position_embeddings": 160,
    }),
    "olmo": ("olmo", BASE),
    "olmo2": ("olmo2", BASE),
    "olmo3": ("olmo3", {**BASE, "sliding_window": 6, "layer_types": TWO, "rope_parameters": {
        "full_attention": YARN,
        "sliding_attention": {"rope_type": "default", "rope_theta": 5000.0},
    }}),
    "starcoder2": ("starcoder2", {**BASE, "sliding_window": 6}),
    "stablelm": ("stablelm", {**BASE, "use_qkv_bias": True}),
    "stablelm-parallel": ("stablelm", {**BASE, "use_parallel_residual": True}),
    "cohere": ("cohere", BASE),
    "cohere2": ("cohere2", {**BASE, "sliding_window": 6, "head_dim": 8, "layer_types": TWO}),
    "granite": ("granite", {
        **BASE, "embedding_multiplier": 3.0, "logits_scaling": 1.7, "residual_multiplier": 0.6,
        "attention_multiplier": 8**-0.5,
    }),
    "hyperclovax": ("hyperclovax", {
        **BASE, "logits_scaling": 0.7, "residual_multiplier": 0.6, "attention_multiplier": 0.2,
    }),
    "smollm3": ("smollm3", {**BASE, "no_rope_layers": [1, 0]}),
    "glm": ("glm", {**BASE, "head_dim": 8}),
    "glm4": ("glm4", {**BASE, "head_dim": 8}),
    "nemotron": ("nemotron", {**BASE, "head_dim": 8}),
    "helium": ("helium", {**BASE, "head_dim": 8}),
    "ernie4_5": ("ernie4_5", {**BASE, "head_dim": 8, "use_bias": True}),
    "seed_oss": ("seed_oss", {**BASE, "head_dim": 8, "attention_out_bias": True}),
    "arcee": ("arcee", BASE),
    "jais2": ("jais2", {**BASE, "head_dim": 8}),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", {**BASE, "head_dim": 8, "rope_parameters": {
        "rope_type": "dynamic", "rope_theta": 10000.0, "factor": 1.0, "alpha": 50.0,
    }}),
    "exaone4": ("exaone4", {**BASE, "sliding_window": 6, "layer_types": TWO}),
    "exaone4-full": ("exaone4", {
        **BASE, "sliding_window": None, "layer_types": ["full_attention"] * 2,
    }),
    "exaone": ("exaone", {**BASE, "num_layers": 2}),
    "cwm": ("cwm", {**BASE, "head_dim": 8, "sliding_window": 6}),
    "internlm3": ("internlm3", {**BASE, "head_dim": 8}),
    "nanochat": ("nanochat", {**BASE, "num_key_value_heads": 4}),
    "mixtral": ("mixtral", {
        **BASE, "intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2,
        "head_dim": 8,
    }),
    "qwen2_moe": ("qwen2_moe", _moe(
        num_experts=4, shared_expert_intermediate_size=16, mlp_only_layers=[0], num_hidden_layers=2,
    )),
    "qwen3_moe": ("qwen3_moe", _moe(num_experts=4, head_dim=8, norm_topk_prob=True)),
    "olmoe": ("olmoe", {
        **BASE, "intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2,
    }),
    "flex_olmo": ("flex_olmo", {
        **BASE, "intermediate_size": 12, "num_experts": 4, "num_experts_per_tok": 2,
    }),
    "granitemoe": ("granitemoe", {
        **BASE, "intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2,
        "attention_multiplier": 0.3, "logits_scaling": 1.5,
    }),
    "granitemoeshared": ("granitemoeshared", {
        **BASE, "intermediate_size": 12, "num_local_experts": 4, "num_experts_per_tok": 2,
        "shared_intermediate_size": 8, "attention_multiplier": 0.3,
    }),
}  # fmt: skip


def made(model_type: str, config: dict[str, object], seed: int) -> torch.nn.Module:
    """A model with weights that matter: no norm is one, no bias zero."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(model_type, **config), attn_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn_like(parameter)
            if "norm" in name or name.split(".")[-2].startswith("ln_"):
                at = 0.0 if parameter.abs().max() == 0 else 1.0
                values = at * ("bias" not in name) + 0.3 * values
            elif parameter.dim() == 1:
                values = 0.3 * values
            elif "embed" not in name and "wte" not in name and "wpe" not in name:
                values = 1.6 * values / parameter.shape[-1] ** 0.5
            parameter.copy_(values.to(torch.bfloat16))
    model.tie_weights()
    return model.eval().float()


@torch.no_grad()
def logits(model: torch.nn.Module, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0, -1].float()


def reference(model: torch.nn.Module) -> dict[str, object] | None:
    """Logits and greedy ids for three prompts; None where two ids are too close to tell apart."""
    cases = []
    generator = torch.Generator().manual_seed(7)
    for size in (1, 9, 24):
        prompt = torch.randint(3, VOCAB, (size,), generator=generator).tolist()
        ids, first, found = list(prompt), logits(model, prompt), []
        for _ in range(NEW):
            now = logits(model, ids)
            best = now.topk(2).values
            if best[0] - best[1] < 0.01:
                return None
            found.append(int(now.argmax()))
            ids.append(found[-1])
        after = logits(model, ids)
        cases.append({
            "prompt_ids": prompt,
            "logits": [float(f"{x:.7g}") for x in first.tolist()],
            "greedy_ids": found,
            "after_logits": [float(f"{x:.7g}") for x in after.tolist()],
        })  # fmt: skip
    return {"cases": cases}


def main() -> None:
    import transformers

    wanted = sys.argv[1:] or list(VARIANTS)
    for name in wanted:
        model_type, config = VARIANTS[name]
        for seed in range(100):
            model = made(model_type, config, seed)
            found = reference(model)
            if found is not None:
                break
        else:
            raise SystemExit(f"{name}: no seed tells its ids apart")
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model.to(torch.bfloat16).save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        found["transformers"] = transformers.__version__
        (folder / "logits.json").write_text(json.dumps(found) + "\n", "utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(f"{name}: seed {seed}, {size:,} bytes")


if __name__ == "__main__":
    main()
