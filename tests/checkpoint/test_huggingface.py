"""Hugging Face directories as people have them: in the older dialect, in shards, renamed, wrapped,
with and without a head."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.hf_folder import MODELS, Folder, first_case, gives_the_logits_of, older
from tests.checkpoint.safetensors_file import read_safetensors, write_safetensors
from tui_chat.checkpoint import weights
from tui_chat.checkpoint.catalog import describe
from tui_chat.model.build import build

# ---- the older dialect


ROTARY = [path.name for path in sorted(MODELS.iterdir()) if "rope_parameters" in
          json.loads((path / "config.json").read_text("utf-8"))]  # fmt: skip


@pytest.mark.parametrize("name", ROTARY)
def test_the_older_dialect_says_the_same(name: str, copy: Callable[..., Folder]) -> None:
    new = describe(str(MODELS / name))
    folder = copy(name)
    old = describe(str(folder.say(older(folder.config)).path))
    assert old.spec == new.spec
    assert not [text for text in old.defaults if "rope" in text]


def test_an_absent_rope_base_is_its_classs_own_and_said(copy: Callable[..., Folder]) -> None:
    config = older(copy("smollm3").config)
    del config["rope_theta"]
    info = describe(str(copy("smollm3", "again").say(config).path))
    assert info.spec.rope_theta == 2_000_000
    assert any("rope_theta 2000000.0" in text for text in info.defaults)


def test_absent_settings_are_their_classs_defaults(copy: Callable[..., Folder]) -> None:
    folder = copy("gemma2")
    left_out = {
        key: ...
        for key in ("attn_logit_softcapping", "final_logit_softcapping", "rms_norm_eps",
                    "layer_types", "hidden_activation", "sliding_window")
    }  # fmt: skip
    info = describe(str(folder.change(**left_out).path))
    spec = info.spec
    assert (spec.attention_softcap, spec.logit_softcap, spec.norm_eps) == (50.0, 30.0, 1e-6)
    assert (spec.activation, spec.window) == ("gelu_tanh", (4096, 0))
    assert "attn_logit_softcapping 50.0" in info.defaults[0]


def test_null_turns_a_softcap_off(copy: Callable[..., Folder]) -> None:
    spec = describe(str(copy("gemma2").change(attn_logit_softcapping=None).path)).spec
    assert spec.attention_softcap is None


def test_null_heads_for_keys_are_all_heads(copy: Callable[..., Folder]) -> None:
    path = copy("nanochat").change(num_key_value_heads=None).path
    assert gives_the_logits_of("nanochat", path)


def test_a_mistral_without_a_word_on_its_window_has_its_classs(
    copy: Callable[..., Folder],
) -> None:
    spec = describe(str(copy("mistral").change(sliding_window=...).path)).spec
    assert spec.window == (4096, 4096)
    assert not any(describe(str(copy("mistral", "b").change(sliding_window=None).path)).spec.window)


def test_sizes_that_a_nested_config_leaves_out_come_from_the_tensors(
    copy: Callable[..., Folder],
) -> None:
    folder = copy("gemma3_text")
    text = {k: v for k, v in folder.config.items() if k not in ("hidden_size", "vocab_size")}
    folder.say(
        {
            "model_type": "gemma3",
            "architectures": ["Gemma3ForConditionalGeneration"],
            "text_config": text,
            "vision_config": {"hidden_size": 8, "model_type": "siglip_vision_model"},
            "image_token_index": 9,
        }
    )
    named = {
        f"language_model.{name}": tensor for name, tensor in folder.tensors.items()
    } | {"vision_tower.encoder.weight": torch.ones(4, 4)}  # fmt: skip
    folder.keep(named)
    assert gives_the_logits_of("gemma3_text", folder.path)
    info = describe(str(folder.path))
    assert any("a vision tower: 1 tensors" in text for text in info.unused)
    assert any("vision_config" in text for text in info.unused)
    assert "n_embd 32: from the tensors" in info.inferred


# ---- names, files, storage


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.model.", "_orig_mod.module."]
)
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "opt"])
def test_prefixes_are_taken_away_in_any_order(
    name: str, prefix: str, copy: Callable[..., Folder]
) -> None:
    folder = copy(name)
    folder.keep({prefix + key: tensor for key, tensor in folder.tensors.items()})
    assert gives_the_logits_of(name, folder.path)


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon-two_norms", "gpt_neox"])
def test_a_model_saved_without_its_usual_prefix_opens(
    name: str, copy: Callable[..., Folder]
) -> None:
    folder = copy(name)
    bare = {key.split(".", 1)[1] if not key.startswith(("lm_head", "embed_out")) else key: tensor
            for key, tensor in folder.tensors.items()}  # fmt: skip
    assert gives_the_logits_of(name, folder.keep(bare).path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_any_storage_type_opens(dtype: torch.dtype, copy: Callable[..., Folder]) -> None:
    folder = copy("qwen3")
    folder.keep({name: tensor.to(dtype) for name, tensor in folder.tensors.items()})
    want = torch.tensor(first_case("qwen3")["logits"])
    info = describe(str(folder.path))
    model = build(info.spec, weights.load(info, dtype="float32"))
    got = model.forward(first_case("qwen3")["prompt_ids"], model.new_cache())
    assert (got - want).abs().max() <= 1e-2 * want.abs().max()  # float16 rounds bfloat16's range
    assert info.dtype == str(dtype).removeprefix("torch.")


def in_shards(folder: Folder, count: int, suffix: str = "safetensors") -> list[str]:
    """Spread the tensors over shards; returns the shards' names."""
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-{i + 1:05d}-of-{count:05d}.{suffix}" for i in range(count)]
    tensors = folder.tensors
    where = {name: names[i % count] for i, name in enumerate(tensors)}
    for shard in names:
        part = {name: tensor for name, tensor in tensors.items() if where[name] == shard}
        if suffix == "safetensors":
            write_safetensors(folder.path / shard, part)
        else:
            torch.save(part, folder.path / shard)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder.path / f"{stem}.{suffix}.index.json").write_text(json.dumps(index), "utf-8")
    os.unlink(folder.path / "model.safetensors")
    return names


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together(suffix: str, copy: Callable[..., Folder]) -> None:
    folder = copy("qwen3")
    in_shards(folder, 3, suffix)
    assert gives_the_logits_of("qwen3", folder.path)


def test_shards_without_their_index_are_put_together(copy: Callable[..., Folder]) -> None:
    folder = copy("qwen3")
    names = in_shards(folder, 3)
    os.unlink(folder.path / "model.safetensors.index.json")
    assert gives_the_logits_of("qwen3", folder.path)
    os.unlink(folder.path / names[1])
    assert f"{names[1]} is missing" in folder.fails()


def test_a_missing_shard_is_named_with_what_it_holds(copy: Callable[..., Folder]) -> None:
    folder = copy("qwen3")
    names = in_shards(folder, 3)
    os.unlink(folder.path / names[2])
    message = folder.fails()
    assert names[2] in message
    assert "model.layers" in message


def test_a_truncated_shard_is_named_with_a_tensor(copy: Callable[..., Folder]) -> None:
    folder = copy("qwen3")
    names = in_shards(folder, 3)
    data = (folder.path / names[0]).read_bytes()
    (folder.path / names[0]).write_bytes(data[:-64])
    message = folder.fails()
    assert names[0] in message
    assert "the tensor '" in message


def test_a_shard_without_a_tensor_that_the_index_promises_is_named(
    copy: Callable[..., Folder],
) -> None:
    folder = copy("qwen3")
    names = in_shards(folder, 2)
    part = read_safetensors(folder.path / names[0])
    lost = next(iter(part))
    write_safetensors(folder.path / names[0], {k: v for k, v in part.items() if k != lost})
    message = folder.fails()
    assert lost in message
    assert names[0] in message


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", ".."])
def test_an_index_cannot_lead_out_of_the_directory(
    name: str, copy: Callable[..., Folder], tmp_path: Path
) -> None:
    folder = copy("qwen3")
    shutil.copy(folder.path / "model.safetensors", folder.path.parent / "secret.safetensors")
    where = dict.fromkeys(folder.tensors, name)
    os.unlink(folder.path / "model.safetensors")
    index = folder.path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": where}), "utf-8")
    assert "which is not beside it" in folder.fails()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "weights.pt", "finetuned.safetensors"])
def test_files_of_other_names_and_kinds_open(name: str, copy: Callable[..., Folder]) -> None:
    folder = copy("llama")
    tensors = folder.tensors
    os.unlink(folder.path / "model.safetensors")
    if name.endswith(".safetensors"):
        folder.keep(tensors, name)
    else:
        torch.save(tensors, folder.path / name)
    torch.save({"state": {}}, folder.path / "optimizer.pt")
    torch.save({"a": 1}, folder.path / "training_args.bin")
    assert gives_the_logits_of("llama", folder.path)


def test_a_state_dict_that_a_script_wrapped_opens(copy: Callable[..., Folder]) -> None:
    folder = copy("llama")
    torch.save({"model": folder.tensors, "epoch": 3}, folder.path / "pytorch_model.bin")
    os.unlink(folder.path / "model.safetensors")
    assert gives_the_logits_of("llama", folder.path)


def test_a_file_in_the_directory_opens_the_directory(copy: Callable[..., Folder]) -> None:
    folder = copy("llama")
    assert describe(str(folder.path / "model.safetensors")).path == str(folder.path)
    assert gives_the_logits_of("llama", folder.path / "model.safetensors")


def test_buffers_of_older_versions_are_left_out(copy: Callable[..., Folder]) -> None:
    gpt2 = copy("gpt2")
    mask = torch.ones(1, 1, 48, 48, dtype=torch.uint8)
    masks = {f"transformer.h.{i}.attn.bias": mask.clone() for i in range(2)}
    masks["transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    assert gives_the_logits_of("gpt2", gpt2.keep(gpt2.tensors | masks).path)
    llama = copy("llama", "llama")
    angles = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.ones(4) for i in range(2)}
    assert gives_the_logits_of("llama", llama.keep(llama.tensors | angles).path)
    neox = copy("gpt_neox", "neox")
    more = {f"gpt_neox.layers.{i}.attention.bias": mask.bool() for i in range(2)}
    assert gives_the_logits_of("gpt_neox", neox.keep(neox.tensors | more).path)


# ---- the head


def test_a_head_that_is_there_is_used_and_one_that_is_not_is_the_embedding(
    copy: Callable[..., Folder],
) -> None:
    folder = copy("llama")
    tensors = folder.tensors
    without = {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}
    info = describe(str(folder.keep(without).path))
    assert any("the embedding stands in for it" in text for text in info.warnings)
    quiet = describe(str(folder.change(tie_word_embeddings=True).path))
    assert not quiet.warnings
    # Stored again under both names, though it is one.
    both = without | {"lm_head.weight": without["model.embed_tokens.weight"].clone()}
    os.unlink(folder.path / "model.safetensors")
    torch.save({name: tensor for name, tensor in both.items()}, folder.path / "pytorch_model.bin")
    one = describe(str(folder.path))
    assert one.parameters == quiet.parameters
    # Told to be tied, though it is another: the library does not tie it either.
    os.unlink(folder.path / "pytorch_model.bin")
    folder.keep(tensors)
    assert gives_the_logits_of("llama", folder.path)


def test_a_tied_model_saved_with_its_head_alone_opens(copy: Callable[..., Folder]) -> None:
    folder = copy("smollm3")
    tensors = folder.tensors
    tensors["lm_head.weight"] = tensors.pop("model.embed_tokens.weight")
    assert gives_the_logits_of("smollm3", folder.keep(tensors).path)


def test_a_grown_vocabulary_is_the_tensors(copy: Callable[..., Folder]) -> None:
    folder = copy("llama").change(vocab_size=60)
    info = describe(str(folder.path))
    assert info.spec.vocab_size == 64
    assert any("vocab_size is 60, the tensors 64" in text for text in info.warnings)
