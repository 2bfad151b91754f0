"""litgpt's checkpoints against the logits of its own code, in the layouts of its training and of
older releases, complete and with parts missing."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.checkpoint.yaml_file import read_yaml
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

MODELS = Path(__file__).parents[1] / "fixtures" / "litgpt-models"
GIVEN = Path(__file__).parents[1] / "fixtures" / "litgpt"
PLAIN = sorted(path.name for path in MODELS.iterdir() if (path / "lit_model.pth").exists())
LORA = sorted(path.name for path in MODELS.iterdir() if (path / "final").exists())


def gives(info: CheckpointInfo, logits: Path) -> bool:
    """Whether the logits are those that litgpt gave, from the whole text at once and continued one
    token at a time."""
    wanted = json.loads((logits / "logits.json").read_text("utf-8"))
    model = build(info.spec, weights.load(info, dtype="float32"))
    whole = model.forward_all(wanted["ids"], model.new_cache())
    cache = model.new_cache()
    model.forward(wanted["ids"][:-6], cache)
    for token in wanted["ids"][-6:]:
        last = model.forward([token], cache)
    found = {n: whole[int(n)] for n in wanted["after"]} | {str(len(wanted["ids"]) - 1): last}
    return all(
        float((found[n] - torch.tensor(row)).abs().max()) < 2e-4
        for n, row in wanted["after"].items()
    ) and bool(torch.allclose(whole[-1], last, atol=1e-4))


def saved(folder: Path, tensors: Mapping[str, Any], name: str = "lit_model.pth") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(tensors, folder / name)
    return folder


def tensors_of(name: str) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(MODELS / name / "lit_model.pth")["model"]
    return found


def grouped(tensors: Mapping[str, torch.Tensor], heads: int, groups: int) -> dict[str, Any]:
    """The tensors as releases before 0.5.6 had them: rows of qkv group by group."""
    found: dict[str, Any] = {}
    for name, value in tensors.items():
        if ".attn.qkv." in name:
            rows = value.shape[0] // (heads + 2 * groups)
            q, k, v = value.split([heads * rows, groups * rows, groups * rows])
            each = [part.chunk(groups) for part in (q, k, v)]
            value = torch.cat([part for group in zip(*each, strict=True) for part in group])
            name = name.replace(".attn.qkv.", ".attn.attn.")
        found[name] = value
    return found


@pytest.mark.parametrize("name", PLAIN)
def test_every_switch_of_the_config_gives_litgpts_logits(name: str) -> None:
    info = catalog.describe(str(MODELS / name))
    assert info.format == "litgpt" and not info.defaults and not info.unused
    assert gives(info, MODELS / name)


@pytest.mark.parametrize("name", LORA)
def test_lora_weights_are_merged_into_the_model_they_name(name: str) -> None:
    info = catalog.describe(str(MODELS / name / "final"))
    assert any("LoRA" in text for text in info.warnings)
    assert gives(info, MODELS / name / "final")
    assert catalog.describe(str(MODELS / name / "final/lit_model.pth.lora")).spec == info.spec


def test_lora_weights_without_their_model_say_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "lora" / "final", tmp_path / "alone")
    with pytest.raises(CheckpointError, match="merge_lora") as failed:
        catalog.describe(str(tmp_path / "alone"))
    assert "lora/base" in str(failed.value)
    (tmp_path / "alone" / "hyperparameters.yaml").unlink()
    with pytest.raises(CheckpointError, match="no hyperparameters"):
        catalog.describe(str(tmp_path / "alone"))


def test_lora_weights_find_a_base_that_moved_along(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "lora", tmp_path / "elsewhere")
    assert gives(catalog.describe(str(tmp_path / "elsewhere/final")), MODELS / "lora/final")


def test_an_adapter_is_refused_by_name(tmp_path: Path) -> None:
    folder = saved(tmp_path, {"model": {"transformer.h.0.attn.gating_factor": torch.ones(1)}})
    with pytest.raises(CheckpointError, match="adapter"):
        catalog.describe(str(folder / "lit_model.pth"))


def test_lora_weights_of_two_ranks_are_refused(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "lora", tmp_path / "lora")
    path = tmp_path / "lora/final/lit_model.pth.lora"
    found = torch.load(path)["model"]
    name = "transformer.h.1.mlp.proj.lora_B"
    torch.save({"model": {**found, name: found[name][:, :1].clone()}}, path)
    with pytest.raises(CheckpointError, match=r"mlp\.proj"):
        catalog.describe(str(path))


@pytest.mark.parametrize("name", ["llama", "neox", "qwen3", "llama-heads"])
def test_older_releases_grouped_their_queries(name: str, tmp_path: Path) -> None:
    config = read_yaml(str(MODELS / name / "model_config.yaml"))
    assert isinstance(config, dict)
    old = grouped(tensors_of(name), config["n_head"], config["n_query_groups"])
    saved(tmp_path, {"model": old})
    shutil.copy(MODELS / name / "model_config.yaml", tmp_path)
    assert gives(catalog.describe(str(tmp_path)), MODELS / name)


def test_lit_gpts_json_and_its_names_are_understood(tmp_path: Path) -> None:
    config = read_yaml(str(MODELS / "llama/model_config.yaml"))
    assert isinstance(config, dict)
    kept = "block_size n_layer n_head n_embd rotary_percentage parallel_residual bias norm_eps"
    said = {key: config[key] for key in [*kept.split(), "n_query_groups", "padded_vocab_size"]}
    said |= {"org": "mine", "_norm_class": "RMSNorm", "_mlp_class": "LLaMAMLP", "condense_ratio": 1}
    saved(tmp_path, grouped(tensors_of("llama"), 4, 2))
    (tmp_path / "lit_config.json").write_text(json.dumps(said))
    assert gives(catalog.describe(str(tmp_path)), MODELS / "llama")


def test_missing_keys_take_the_values_of_litgpts_own_code(tmp_path: Path) -> None:
    config = read_yaml(str(MODELS / "neox/model_config.yaml"))
    assert isinstance(config, dict)
    said = "\n".join(f"{key}: {config[key]}" for key in ("n_layer", "n_head", "n_embd"))
    saved(tmp_path, tensors_of("neox"))
    (tmp_path / "model_config.yaml").write_text(said + "\nblock_size: 40\nown_key: 3\n")
    info = catalog.describe(str(tmp_path))
    assert gives(info, MODELS / "neox")
    assert any(text.startswith("rotary_percentage 0.25") for text in info.defaults)
    assert info.unused == ("own_key in the config",)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path: Path) -> None:
    saved(tmp_path, tensors_of("llama"))
    text = (MODELS / "llama/model_config.yaml").read_text()
    eps = re.search(r"^norm_eps: (.*)$", text, re.MULTILINE)
    assert eps is not None
    for written, read in (("1e-05", 1e-5), ("2.5E-6", 2.5e-6), ("1.0e-06", 1e-6)):
        (tmp_path / "model_config.yaml").write_text(text.replace(eps[0], f"norm_eps: {written}"))
        assert catalog.describe(str(tmp_path)).spec.norm_eps == pytest.approx(read)


def test_a_training_run_is_a_run_with_its_steps(tmp_path: Path) -> None:
    run = tmp_path / "out" / "mine"
    for step, name in ((100, "step-00000100"), (200, "step-00000200"), (250, "final")):
        state = {"model": tensors_of("llama"), "optimizer": {"state": {}}, "train_dataloader": None}
        folder = saved(run / name, {**state, "iter_num": 4 * step, "step_count": step})
        shutil.copy(MODELS / "llama/model_config.yaml", folder)
    runs = list(catalog.scan([str(tmp_path)]))
    assert [(found.name, [c.step for c in found.checkpoints]) for found in runs] == [
        ("mine", [100, 200, 250])
    ]
    assert catalog.describe(str(run)).step == 250
    assert catalog.describe(str(run), step=100).path == str(run / "step-00000100")
    final = catalog.describe(str(run / "final/lit_model.pth"))
    assert final.run == "mine"
    assert "optimizer and train_dataloader of the file" in final.unused


@pytest.mark.parametrize("name", ["llama", "neox", "qwen3"])
def test_a_file_without_its_config_is_opened_by_its_tensors(name: str, tmp_path: Path) -> None:
    tensors = {f"_forward_module._orig_mod.{k}": v for k, v in tensors_of(name).items()}
    path = saved(tmp_path, {"model": tensors}, "iter-000300-ckpt.pth") / "iter-000300-ckpt.pth"
    given = {} if name == "qwen3" else {"n_head": 4}  # norm_q shows the width of its heads
    info = catalog.describe(str(path), config=given)
    assert info.step == 300 and info.inferred
    assert any("model_config.yaml is missing" in text for text in info.warnings)
    if name != "qwen3":  # whose base of the rotary positions no tensor shows
        assert gives(info, MODELS / name)
    config = str(MODELS / name / "model_config.yaml")
    info = catalog.describe(str(path), config_file=config)
    assert gives(info, MODELS / name)
    assert not any("missing" in text for text in info.warnings)


def test_without_config_and_heads_the_user_is_asked(tmp_path: Path) -> None:
    path = saved(tmp_path, tensors_of("llama"), "x.pth") / "x.pth"
    with pytest.raises(CheckpointError, match="--config n_head=N"):
        catalog.describe(str(path))


def test_tinyllamas_fork_numbers_its_mlp(tmp_path: Path) -> None:
    words = {".mlp.fc_1.": "w1", ".mlp.fc_2.": "w2", ".mlp.proj.": "w3"}
    tensors = grouped(tensors_of("llama"), 4, 2)
    for old, new in words.items():
        tensors = {k.replace(old, f".mlp.swiglu.{new}."): v for k, v in tensors.items()}
    path = saved(tmp_path, {"model": tensors, "hparams": {}}, "iter-000100-ckpt.pth")
    info = catalog.describe(str(path), config={"n_head": 4})
    assert gives(info, MODELS / "llama")


def test_a_renamed_file_stands_beside_its_config(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine", tensors_of("llama"), "best.pth")
    shutil.copy(MODELS / "llama/model_config.yaml", folder)
    assert gives(catalog.describe(str(folder)), MODELS / "llama")
    saved(folder, tensors_of("llama"), "worse.pth")
    assert gives(catalog.describe(str(folder / "worse.pth")), MODELS / "llama")


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("latent_attention", "{q_lora_rank: 4}", "latent attention"),
        ("mlp_class_name", "MyMLP", "MyMLP"),
        ("norm_class_name", "MyNorm", "MyNorm"),
        ("n_layer", "3", "n_layer"),
        ("n_head", "5", "need"),
        ("n_head", "'4'", "n_head"),
        ("norm_eps", "-1", "norm_eps"),
        ("rotary_percentage", "yes", "rotary_percentage"),
        ("sliding_window_size", "4\nsliding_window_indices: [1]", "sliding_window_indices"),
        ("bias", "true", "missing"),
    ],
)
def test_a_config_that_cannot_be_is_refused_by_its_key(
    key: str, value: str, what: str, tmp_path: Path
) -> None:
    saved(tmp_path, tensors_of("llama"))
    text = (MODELS / "llama/model_config.yaml").read_text()
    kept = [line for line in text.splitlines() if line.split(":")[0] not in (key, "head_size")]
    kept = [line for line in kept if not (key.startswith("sliding") and "sliding" in line)]
    (tmp_path / "model_config.yaml").write_text("\n".join([*kept, f"{key}: {value}"]))
    with pytest.raises(CheckpointError) as failed:
        catalog.describe(str(tmp_path))
    assert what in f"{failed.value} {failed.value.found}"


def test_sharded_weights_name_litgpts_own_converter(tmp_path: Path) -> None:
    shutil.copy(MODELS / "llama/model_config.yaml", tmp_path)
    (tmp_path / "lit_model.pth").mkdir()
    with pytest.raises(CheckpointError, match="convert_pretrained_checkpoint"):
        catalog.describe(str(tmp_path))


# ---- what stands around the text


def text_folder(tmp_path: Path, name: str, **tokenizer: object) -> Path:
    folder = tmp_path / name
    shutil.copytree(GIVEN / "finetune-qknorm-chatml", folder)
    said = json.loads((folder / "tokenizer_config.json").read_text())
    said = {k: v for k, v in {**said, **tokenizer}.items() if v is not None}
    (folder / "tokenizer_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(
    ("name", "said", "begins"),
    [
        ("final", {"add_bos_token": True}, True),
        ("final", {"add_bos_token": False}, False),
        ("final", {"add_bos_token": None}, False),
        ("final", {"add_bos_token": None, "tokenizer_class": "LlamaTokenizer"}, True),
        ("final", {"add_bos_token": False, "tokenizer_class": "LlamaTokenizer"}, False),
        ("Llama-3.2-1B-Instruct", {"add_bos_token": None}, True),
        ("SmolLM2-135M-Instruct", {"add_bos_token": None}, True),
        ("SmolLM2-135M", {"add_bos_token": None}, False),
    ],
)
def test_texts_begin_by_litgpts_own_rule(
    name: str, said: dict[str, object], begins: bool, tmp_path: Path
) -> None:
    info = catalog.describe(str(text_folder(tmp_path, name, **said)))
    assert info.text_start == ((497,) if begins else ())


def test_the_prompt_style_is_the_template(tmp_path: Path) -> None:
    info = catalog.describe(str(GIVEN / "finetune-qknorm-chatml"))
    assert (info.template.name, info.mode) == ("litgpt Qwen2_5", "chat")
    assert info.stop_ids == (499,)
    plain = catalog.describe(str(GIVEN / "pretrain-llama"))
    assert (plain.template.name, plain.mode, plain.step) == ("", "raw", plain.step)


@pytest.mark.parametrize("path", ["mine.prompts.Own", "litgpt.prompts.Newest", "litgpt", "os.Path"])
def test_a_prompt_style_of_others_is_not_imported(path: str, tmp_path: Path) -> None:
    folder = text_folder(tmp_path, "final")
    (folder / "prompt_style.yaml").write_text(f"class_path: {path}\n")
    info = catalog.describe(str(folder))
    assert (info.mode, info.template.jinja) == ("raw", "")
    assert any("prompt style" in text for text in info.warnings)


def test_the_style_follows_from_the_models_name(tmp_path: Path) -> None:
    folder = text_folder(tmp_path, "final")
    os.remove(folder / "prompt_style.yaml")
    config = (folder / "model_config.yaml").read_text()
    (folder / "model_config.yaml").write_text(config.replace("tiny-qwen", "Qwen3-0.6B"))
    info = catalog.describe(str(folder))
    assert (info.template.name, info.mode) == ("litgpt Qwen3", "chat")
    assert "Qwen3-0.6B" in info.template.source


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("lora_r: 2", ""),
        ("lora_r: 3", "attn."),
        ("lora_r: 1000000", "cannot be cut"),
        ("lora_r: null", "lora_r"),
        ("lora_alpha: .inf", "lora_alpha"),
        ("lora_key: true", "attn."),
        ("lora_query: false", "attn."),
    ],
)
def test_hyperparameters_that_do_not_fit_the_lora_weights_are_refused(
    line: str, what: str, tmp_path: Path
) -> None:
    shutil.copytree(MODELS / "lora", tmp_path / "lora")
    path = tmp_path / "lora/final/hyperparameters.yaml"
    kept = [r for r in path.read_text().splitlines() if r.split(":")[0] != line.split(":")[0]]
    path.write_text("\n".join([*kept, line]))
    if not what:
        assert gives(catalog.describe(str(path.parent)), path.parent)
        return
    with pytest.raises(CheckpointError) as failed:
        catalog.describe(str(path.parent))
    assert what in failed.value.found
