"""Hugging Face models under other names, of unknown families, without settings, with settings that
cannot be, and the runs they belong to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.hf_folder import (
    MODELS,
    Folder,
    Tensors,
    first_case,
    gives_the_logits_of,
    older,
)
from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.catalog import describe
from tui_chat.checkpoint.huggingface.table import FAMILIES
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

# ---- families the library has no code for, as rearrangements of those it has


def parts_of(tensor: torch.Tensor, heads: int, groups: int) -> Iterator[torch.Tensor]:
    """q rows by key head, each followed by its k and v: the layout of InternLM 2."""
    size = 8
    q, k, v = tensor.split((heads * size, groups * size, groups * size))
    for group in range(groups):
        each = heads // groups * size
        yield q[group * each : (group + 1) * each]
        yield k[group * size : (group + 1) * size]
        yield v[group * size : (group + 1) * size]


def test_internlm2_is_a_llama_with_its_heads_interleaved(copy: Callable[..., Folder]) -> None:
    folder = copy("llama-linear")
    tensors = folder.tensors
    words = {
        "self_attn.o_proj": "attention.wo", "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3", "mlp.down_proj": "feed_forward.w2",
        "model.embed_tokens": "model.tok_embeddings", "lm_head": "output",
    }  # fmt: skip
    made: Tensors = {}
    for name, tensor in tensors.items():
        if "self_attn.q_proj" in name:
            qkv = torch.cat([tensors[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            at = name.replace("self_attn.q_proj", "attention.wqkv")
            made[at] = torch.cat(list(parts_of(qkv, 4, 2)))
        elif not any(f"self_attn.{x}_proj" in name for x in "kv"):
            for theirs, ours in words.items():
                name = name.replace(theirs, ours)
            made[name] = tensor
    config = older(folder.config) | {"model_type": "internlm2", "bias": False}
    assert gives_the_logits_of("llama-linear", folder.keep(made).say(config).path)


def test_qwen_one_is_a_qwen_two_under_gpts_names(copy: Callable[..., Folder]) -> None:
    folder = copy("llama")
    tensors = {name: t for name, t in folder.tensors.items() if ".mlp." not in name or
               name.endswith("weight")}  # fmt: skip
    for i in range(2):  # a Llama without the biases that Qwen has not, and all heads of their own
        tensors.pop(f"model.layers.{i}.self_attn.o_proj.bias")
        for x in "kv":
            for kind in ("weight", "bias"):
                name = f"model.layers.{i}.self_attn.{x}_proj.{kind}"
                tensors[name] = tensors[name].repeat(2, *[1] * (tensors[name].dim() - 1))
    plain = (
        copy("llama", "plain")
        .keep(tensors)
        .change(num_key_value_heads=4, mlp_bias=False, attention_bias=False)
    )
    words = {
        "model.embed_tokens": "transformer.wte", "model.layers": "transformer.h",
        "model.norm": "transformer.ln_f", "self_attn.o_proj": "attn.c_proj",
        "input_layernorm": "ln_1", "post_attention_layernorm": "ln_2", "mlp.gate_proj": "mlp.w2",
        "mlp.up_proj": "mlp.w1", "mlp.down_proj": "mlp.c_proj", "self_attn.q_proj": "attn.c_attn",
    }  # fmt: skip
    made: Tensors = {}
    for name, tensor in tensors.items():
        if "q_proj" in name:
            tensor = torch.cat([tensors[name.replace("q_proj", f"{x}_proj")] for x in "qkv"])
        if any(f"self_attn.{x}_proj" in name for x in "kv"):
            continue
        for theirs, ours in words.items():
            name = name.replace(theirs, ours)
        made[name] = tensor
    folder.keep(made).say(
        {
            "model_type": "qwen", "architectures": ["QWenLMHeadModel"], "hidden_size": 32,
            "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64,
            "kv_channels": 8, "layer_norm_epsilon": 1e-6, "max_position_embeddings": 96,
            "seq_length": 48, "rotary_emb_base": 10000, "rotary_pct": 1.0, "use_logn_attn": True,
            "use_dynamic_ntk": True, "vocab_size": 64, "no_bias": True,
        }
    )  # fmt: skip
    found, want = (describe(str(each.path)) for each in (folder, plain))
    assert found.spec.context_length == 48
    prompt = first_case("llama")["prompt_ids"]
    models = [build(info.spec, weights.load(info, dtype="float32")) for info in (found, want)]
    got, target = (model.forward(prompt, model.new_cache()) for model in models)
    assert torch.allclose(got, target, atol=1e-5)


def test_minicpm_is_a_granite_with_its_factors_said_otherwise(
    copy: Callable[..., Folder],
) -> None:
    folder = copy("granite")
    config = {k: v for k, v in folder.config.items() if not k.endswith(("multiplier", "scaling"))}
    config |= {
        "model_type": "minicpm", "scale_emb": 3.0, "scale_depth": 0.6 * 2**0.5,
        "dim_model_base": 32 / 1.7,
    }  # fmt: skip
    assert gives_the_logits_of("granite", folder.say(config).path)


# ---- types nobody knows, and no config at all


def test_an_unknown_type_with_llamas_names_is_a_labelled_guess(
    copy: Callable[..., Folder],
) -> None:
    folder = copy("llama").change(model_type="mine", architectures=["MineForCausalLM"])
    assert gives_the_logits_of("llama", folder.path)
    warning = describe(str(folder.path)).warnings[0]
    assert "'mine' (MineForCausalLM)" in warning
    assert "which is a guess" in warning


def test_an_unknown_type_with_other_names_is_named_and_refused(
    copy: Callable[..., Folder],
) -> None:
    message = copy("gpt_neo").change(model_type="mine").fails()
    assert "'mine'" in message
    assert "transformer.h.0" in message or "h.0" in message


@pytest.mark.parametrize("name", ["gpt2", "qwen3", "llama-linear", "gpt_neox", "phi3-partial"])
def test_bare_weights_open_with_what_the_user_says(name: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(MODELS / name / "model.safetensors", path)
    info = describe(str(path), config={"n_head": 4, "n_kv_head": 2 if "gpt" not in name else 4})
    said = describe(str(MODELS / name)).spec
    assert info.format == "Hugging Face"
    for field in ("n_layer", "n_embd", "n_head", "n_kv_head", "head_dim", "vocab_size"):
        assert getattr(info.spec, field) == getattr(said, field)
    assert info.inferred[0].startswith("it is read as ")


def test_bare_weights_ask_for_the_number_of_heads(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(MODELS / "gpt2/model.safetensors", path)
    with pytest.raises(CheckpointError) as failed:
        describe(str(path))
    assert "--config n_head=N" in failed.value.remedy


def test_bare_weights_open_with_a_config_from_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    shutil.copy(MODELS / "llama-llama3/model.safetensors", path)
    config = str(MODELS / "llama-llama3/config.json")
    assert gives_the_logits_of("llama-llama3", path, config_file=config)


def test_the_users_word_goes_before_the_files(copy: Callable[..., Folder]) -> None:
    folder = copy("llama").change(rope_parameters={"rope_type": "default", "rope_theta": 77.0})
    assert gives_the_logits_of("llama", folder.path, config={"rope_theta": 10000.0})


# ---- what cannot be


REFUSALS: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"model_type": "bloom"}, "ALiBi positions"),
    ("llama", {"model_type": "mpt"}, "ALiBi positions"),
    ("llama", {"model_type": "mamba"}, "state space"),
    ("llama", {"model_type": "jamba"}, "state space"),
    ("llama", {"model_type": "deepseek_v3"}, "latent space"),
    ("llama", {"model_type": "gpt_oss"}, "attention sinks"),
    ("llama", {"model_type": "t5"}, "an encoder and a decoder"),
    ("llama", {"model_type": "bert"}, "fills gaps"),
    ("llama", {"model_type": "rwkv"}, "recurrent"),
    ("llama", {"model_type": "apertus"}, "xIELU"),
    ("llama", {"hidden_act": "quick_gelu"}, "quick_gelu"),
    ("llama", {"is_encoder_decoder": True}, "an encoder and a decoder"),
    ("falcon-multi_query", {"alibi": True}, "ALiBi positions"),
    ("stablelm", {"qk_layernorm": True}, "LayerNorm"),
    ("cohere", {"use_qk_norm": True}, "LayerNorm"),
    ("olmo", {"clip_qkv": 8.0}, "clips queries"),
    ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "layer's number"),
    ("opt", {"do_layer_norm_before": False}, "what a branch was added to"),
    ("opt", {"word_embed_proj_dim": 16}, "another width"),
    ("ministral", {"layer_types": ["chunked_attention", "full_attention"]}, "chunked_attention"),
    ("llama", {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1.0}}, "'spiral'"),
    ("gemma2", {"use_bidirectional_attention": True}, "sees what comes after"),
]


@pytest.mark.parametrize(("name", "said", "reason"), REFUSALS)
def test_what_the_decoder_lacks_is_named(
    name: str, said: dict[str, Any], reason: str, copy: Callable[..., Folder]
) -> None:
    message = copy(name).change(**said).fails()
    assert reason in message
    assert "Traceback" not in message


def test_quantised_weights_are_refused_by_their_method(copy: Callable[..., Folder]) -> None:
    folder = copy("llama").change(quantization_config={"quant_method": "gptq", "bits": 4})
    assert gives_the_logits_of("llama", folder.path)  # settings alone are no reason
    tensors = folder.tensors
    name = "model.layers.0.self_attn.q_proj"
    del tensors[f"{name}.weight"]
    tensors[f"{name}.qweight"] = torch.zeros(4, 32, dtype=torch.int32)
    assert "quantised by gptq" in folder.keep(tensors).fails()


@pytest.mark.parametrize(
    "said",
    [
        {"hidden_size": "wide"},
        {"num_hidden_layers": 0},
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": -4},
        {"num_attention_heads": 5},
        {"num_key_value_heads": 3},
        {"head_dim": 10**9},
        {"rms_norm_eps": "small"},
        {"rope_parameters": {"rope_type": "yarn", "factor": 0, "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
        {"rope_parameters": {"rope_type": "longrope", "short_factor": [1], "long_factor": []}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": float("nan")}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 0}},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8, "low_freq_factor": 4}},
        {"layer_types": ["sliding_attention"], "model_type": "ministral"},
        {"hidden_act": ["silu"]},
        {"max_position_embeddings": 1e30},
        {"vocab_size": True},
        {"mlp_only_layers": {}, "num_experts": "all", "model_type": "qwen3_moe"},
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_sentence(
    said: dict[str, Any], copy: Callable[..., Folder]
) -> None:
    message = copy("llama").change(**said).fails()
    assert "cannot open" in message


def test_missing_layers_and_tensors_are_named(copy: Callable[..., Folder]) -> None:
    folder = copy("qwen3")
    tensors = folder.tensors
    lost = "model.layers.1.mlp.down_proj.weight"
    folder.keep({name: tensor for name, tensor in tensors.items() if name != lost})
    assert "layers.1.mlp.down_proj.weight" in folder.fails()
    folder.keep({name: tensor for name, tensor in tensors.items() if ".layers.1." not in name})
    assert "layers.1." in folder.fails()


def test_more_layers_than_the_config_says_are_not_ignored(copy: Callable[..., Folder]) -> None:
    message = copy("qwen3").change(num_hidden_layers=1, layer_types=["full_attention"]).fails()
    assert "left over" in message


def test_keys_that_may_matter_and_are_not_read_are_said(copy: Callable[..., Folder]) -> None:
    info = describe(str(copy("llama").change(mystery_scale=3.0, attention_dropout=0.2).path))
    assert "of config.json mystery_scale" in info.unused


def test_every_family_reads_its_own_defaults_without_a_config_that_says_them() -> None:
    """A default of a wrong kind would only be found by who has such a file."""
    for name, family in FAMILIES.items():
        for key, value in family.defaults.items():
            assert value is None or isinstance(value, (str, int, float, bool, list)), (name, key)


# ---- runs of the Trainer


def test_the_steps_of_a_training_are_one_run(copy: Callable[..., Folder], tmp_path: Path) -> None:
    for step, loss in ((50, 3.5), (100, 3.25)):
        folder = copy("llama", f"checkpoint-{step}").path
        (folder / "trainer_state.json").write_text(
            json.dumps({
                "global_step": step, "best_metric": loss,
                "log_history": [{"loss": loss + 0.5, "step": step}, {"eval_loss": loss}],
            })
        )  # fmt: skip
        torch.save({"state": {}}, folder / "optimizer.pt")
        torch.save({"a": 1}, folder / "scheduler.pt")
        torch.save({"a": 1}, folder / "rng_state.pth")
        torch.save({"a": 1}, folder / "training_args.bin")
    runs = list(catalog.scan([str(tmp_path)]))
    assert [(run.name, [entry.step for entry in run.checkpoints]) for run in runs] == [
        ("runs", [50, 100])
    ]
    newest = describe(str(tmp_path / "runs"))
    assert (newest.run, newest.step, newest.losses) == ("runs", 100, {"train": 3.75, "val": 3.25})
    assert describe(str(tmp_path / "runs"), step=50).losses["val"] == 3.5


def test_a_finished_model_with_its_trainers_state_says_its_step(
    copy: Callable[..., Folder],
) -> None:
    folder = copy("llama", "final")
    (folder.path / "trainer_state.json").write_text(json.dumps({"global_step": 7}))
    info = describe(str(folder.path))
    assert (info.run, info.step) == ("final", 7)


def test_a_downloaded_model_is_called_by_its_name(tmp_path: Path) -> None:
    inside = tmp_path / "models--someone--tiny-llama/snapshots/0123456789abcdef"
    shutil.copytree(MODELS / "llama", inside)
    assert describe(str(inside)).run == "someone/tiny-llama"


def test_longrope_keeps_to_its_short_factors_unless_asked(copy: Callable[..., Folder]) -> None:
    info = describe(str(MODELS / "phi3-longrope"))
    assert info.spec.context_length == 40
    assert any("--config context_length=160" in text for text in info.inferred)
    asked = describe(str(MODELS / "phi3-longrope"), config={"context_length": 160})
    assert asked.spec == replace(info.spec, context_length=160)
