"""Writes tests/fixtures/litgpt-models: tiny random models of litgpt's own code, and their logits;
and tests/fixtures/litgpt-styles.json: prompts in its styles, as its tokenizer encodes them.

    python tests/checkpoint/make_litgpt_fixtures.py [NAME...]

Needs litgpt (0.5.13) and torch, not tui_chat. The weights are stored in bfloat16 and computed with
in float32; the logits come from whole passes without a cache. Not run by the tests.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import litgpt.lora
import litgpt.prompts
import torch
import yaml
from litgpt.config import Config
from litgpt.model import GPT
from litgpt.tokenizer import Tokenizer
from litgpt.utils import save_config

FOLDER = Path(__file__).resolve().parents[1] / "fixtures" / "litgpt-models"
IDS = [int(i) for i in torch.randint(0, 60, (22,), generator=torch.Generator().manual_seed(3))]

BASE = {
    "name": "tiny", "n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 61,
    "padding_multiple": 8, "block_size": 40,
}  # fmt: skip
LLAMA = {
    "norm_class_name": "RMSNorm", "mlp_class_name": "LLaMAMLP", "intermediate_size": 24,
    "bias": False, "parallel_residual": False, "rotary_percentage": 1.0, "n_query_groups": 2,
}  # fmt: skip
GEMMA = {
    **LLAMA, "mlp_class_name": "GemmaMLP", "gelu_approximate": "tanh", "scale_embeddings": True,
    "attention_scores_scalar": 12, "post_attention_norm": True, "post_mlp_norm": True,
    "sliding_window_size": 6,
}  # fmt: skip
MOE = {
    **LLAMA, "mlp_class_name": "LLaMAMoE", "n_expert": 4, "n_expert_per_token": 2,
    "moe_intermediate_size": 12,
}  # fmt: skip
LORA = {"lora_r": 2, "lora_alpha": 6, "lora_dropout": 0.0}

VARIANTS: dict[str, dict[str, object]] = {
    "neox": {},
    "neox-shared-norm": {"shared_attention_norm": True, "lm_head_bias": True},
    "neox-serial": {
        "parallel_residual": False, "rotary_percentage": 0.5, "gelu_approximate": "tanh",
    },
    "llama": LLAMA,
    "llama-heads": {**LLAMA, "n_query_groups": 1, "head_size": 12},
    "qwen3": {**LLAMA, "norm_qk": True, "attn_bias": True, "rope_base": 50000},
    "olmo": {
        **LLAMA, "name": "OLMo-tiny", "norm_class_name": "LayerNorm", "n_query_groups": None,
    },
    "olmo2": {
        **LLAMA, "name": "OLMo-2-tiny", "norm_qk": True, "norm_qk_type": "olmo2", "norm_1": False,
        "norm_2": False, "post_attention_norm": True, "post_mlp_norm": True,
    },
    "gemma2": {
        **GEMMA, "name": "Gemma-2-tiny", "attention_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0, "sliding_window_indices": [1, 0],
    },
    "gemma3": {
        **GEMMA, "name": "Gemma-3-tiny", "n_layer": 3, "norm_qk": True, "rope_base": 5000,
        "sliding_window_indices": [1, 1, 0], "rope_indices": [1, 1, 0],
        "rope_local_base_freq": 100.0, "rope_adjustments": {"factor": 8.0},
    },
    "condensed": {**LLAMA, "rope_condense_ratio": 4},
    "llama3-rope": {
        **LLAMA,
        "rope_adjustments": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_seq_len": 16,
        },
    },
    "yarn": {
        **LLAMA, "head_size": 24,
        "rope_adjustments": {
            "factor": 4.0, "beta_fast": 8, "beta_slow": 1, "original_max_seq_len": 24,
            "mscale": 1.0, "mscale_all_dim": 0.8,
        },
    },
    "interleaved": {**LLAMA, "rope_interleave": True, "rotary_percentage": 0.5},
    "experts": MOE,
    "experts-shared": {**MOE, "n_shared_expert": 2, "first_k_dense_replace": 1},
    "lora": {**LLAMA, "lora_query": True, "lora_value": True, "lora_mlp": True, **LORA},
    "lora-all": {
        "lora_query": True, "lora_key": True, "lora_value": True, "lora_projection": True,
        "lora_mlp": True, "lora_head": True, **LORA,
    },
}  # fmt: skip


def randomised(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Random weights in the model, exact in bfloat16, and the same to be saved."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((torch.randn_like(parameter) * 0.3).bfloat16())
    return {name: value.bfloat16() for name, value in model.state_dict().items()}


def write(name: str) -> None:
    torch.manual_seed(sorted(VARIANTS).index(name))
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    said = {**BASE, **VARIANTS[name]}
    plain = {key: value for key, value in said.items() if not key.startswith("lora_")}
    config = Config(**plain)
    weights = folder / "final" if len(plain) < len(said) else folder
    weights.mkdir(parents=True)
    save_config(config, weights)
    if weights is folder:
        model: torch.nn.Module = GPT(config)
        torch.save({"model": randomised(model)}, folder / "lit_model.pth")
    else:
        base = folder / "base"
        base.mkdir()
        save_config(config, base)
        torch.save(randomised(GPT(config)), base / "lit_model.pth")
        model = litgpt.lora.GPT(litgpt.lora.Config(**said))
        every = {key for key in litgpt.lora.Config.__dataclass_fields__ if key.startswith("lora_")}
        hyper = {key: said.get(key, False) for key in sorted(every)}
        hyper["checkpoint_dir"] = f"{name}/base"  # from where it was trained
        (weights / "hyperparameters.yaml").write_text(yaml.dump(hyper), "utf-8")
        found = randomised(model)
        frozen = torch.load(base / "lit_model.pth")
        model.load_state_dict({k: v.float() for k, v in frozen.items()}, strict=False)
        torch.save(
            {"model": {k: v for k, v in found.items() if "lora_" in k}},
            weights / "lit_model.pth.lora",
        )
    with torch.no_grad():
        logits = model.eval()(torch.tensor([IDS]))[0]
    rows = {str(n): [round(x, 5) for x in logits[n].tolist()] for n in (3, len(IDS) - 1)}
    (weights / "logits.json").write_text(json.dumps({"ids": IDS, "after": rows}), "utf-8")


def styles() -> None:
    """Every style that has no arguments of its own, for a few prompts and with a system text."""
    tokenizer = Tokenizer(FOLDER.parent / "litgpt" / "finetune-qknorm-chatml")
    found: dict[str, list[dict[str, object]]] = {}
    for style in sorted(set(litgpt.prompts.prompt_styles.values()), key=lambda kind: kind.__name__):
        rows = found[style.__name__] = []
        for prompt in ("Good morrow, friend", "  two\n\nlines ", "x"):
            for system in (None, "Be brief."):
                text = style().apply(prompt, sys_prompt=system)
                ids = tokenizer.encode(text).tolist()
                rows.append({"prompt": prompt, "system": system, "text": text, "ids": ids})
    path = FOLDER.parent / "litgpt-styles.json"
    path.write_text(json.dumps(found, ensure_ascii=False), "utf-8")


if __name__ == "__main__":
    if not sys.argv[1:]:
        styles()
    for variant in sys.argv[1:] or VARIANTS:
        write(variant)
