"""Writes tests/fixtures/hf-lora: LoRA adapters on models of hf-families, and the logits of both.

    python tests/checkpoint/make_lora_fixtures.py [NAME...]

Needs peft (0.21), transformers (5.24) and torch, not tui_chat. The logits are those of the adapter
as it was saved, opened again on its base and not merged, in float32. Not run by the tests.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import torch

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
FOLDER = FIXTURES / "hf-lora"
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]

# name -> (base, settings of the adapter, whether as safetensors)
VARIANTS: dict[str, tuple[str, dict[str, object], bool]] = {
    "llama": ("llama", {"target_modules": ["q_proj", "v_proj"]}, True),
    "llama-bin": ("llama", {"target_modules": ["down_proj"], "bias": "all"}, False),
    "llama-patterns": ("llama-llama3", {
        "target_modules": [*ATTENTION, "up_proj"], "use_rslora": True,
        "rank_pattern": {"layers.1.self_attn.k_proj": 2}, "alpha_pattern": {"up_proj": 3},
    }, True),
    "llama-layers": ("llama", {
        "target_modules": ATTENTION, "layers_to_transform": [1], "modules_to_save": ["lm_head"],
    }, True),
    "tied-head": ("llama-llama3", {"target_modules": ["lm_head", "q_proj"]}, True),
    "tied-embedding": ("llama-llama3", {"target_modules": ["embed_tokens", "q_proj"]}, True),
    "tied-saved": ("llama-llama3", {
        "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"],
    }, True),
    "untied-embedding": ("qwen2", {"target_modules": ["embed_tokens", "k_proj"]}, True),
    "gpt2": ("gpt2", {
        "target_modules": ["c_attn", "c_proj", "c_fc", "wte"], "fan_in_fan_out": True,
    }, True),
    "phi3": ("phi3-partial", {"target_modules": ["qkv_proj", "gate_up_proj"]}, True),
    "gpt_neox": ("gpt_neox", {"target_modules": ["query_key_value", "dense"]}, True),
    "falcon": ("falcon-two_norms", {"target_modules": ["query_key_value"]}, True),
    "gemma2": ("gemma2", {"target_modules": ATTENTION}, True),
}  # fmt: skip


@torch.no_grad()
def main() -> None:
    import peft
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    for name in sys.argv[1:] or list(VARIANTS):
        base_name, settings, safe = VARIANTS[name]
        torch.manual_seed(sum(map(ord, name)))

        def base(name: str = base_name) -> torch.nn.Module:
            return AutoModelForCausalLM.from_pretrained(
                FIXTURES / "hf-families" / name, dtype=torch.float32, attn_implementation="eager"
            )

        config = LoraConfig(r=4, lora_alpha=10, task_type="CAUSAL_LM", **settings)
        model = get_peft_model(base(), config)
        for key, parameter in model.named_parameters():
            if "lora_" in key:
                noise = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
                parameter.copy_(0.5 * noise + 0.1)
            elif parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
        folder = FOLDER / name
        shutil.rmtree(folder, ignore_errors=True)
        model.eval().save_pretrained(folder, safe_serialization=safe)
        (folder / "README.md").unlink(missing_ok=True)
        path = folder / "adapter_config.json"
        said = json.loads(path.read_text("utf-8"))
        said["base_model_name_or_path"] = f"../../hf-families/{base_name}"
        path.write_text(json.dumps(said, indent=2, sort_keys=True) + "\n", "utf-8")
        prompt = [5, 17, 33, 8, 60, 21, 4, 40, 13]
        model = PeftModel.from_pretrained(base(), folder).eval()
        rows = model(torch.tensor([prompt]), use_cache=False).logits[0, -1]
        found = {
            "peft": peft.__version__,
            "prompt_ids": prompt,
            "logits": [float(f"{x:.7g}") for x in rows.tolist()],
        }
        (folder / "logits.json").write_text(json.dumps(found) + "\n", "utf-8")
        print(name, sum(file.stat().st_size for file in folder.iterdir()))


if __name__ == "__main__":
    main()
