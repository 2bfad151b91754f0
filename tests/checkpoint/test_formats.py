"""The formats on the trainers' own files, on files people changed, and on files that contradict
themselves."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tui_chat.checkpoint import catalog, weights
from tui_chat.errors import CheckpointError

FIXTURES = Path(__file__).parent.parent / "fixtures"
VARIANTS = sorted(path.parent for path in FIXTURES.glob("*/*/reference.json"))
Save = Callable[..., str]
Make = Callable[..., dict[str, torch.Tensor]]


def reference(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "reference.json").read_text())
    return found


def said_by_the_user(wanted: dict[str, Any]) -> dict[str, object]:
    """What is in no file of a fixture, so that its user has to say it."""
    hints = wanted.get("hints", {})
    return {"n_head": hints["n_heads"]} if "n_heads" in hints else {}


@pytest.mark.parametrize("folder", VARIANTS, ids=[f"{p.parent.name}-{p.name}" for p in VARIANTS])
def test_gives_the_logits_of_the_system_that_trained_it(folder: Path) -> None:
    from tui_chat.model.build import Model, build

    wanted = reference(folder)
    path = str(folder / wanted["checkpoint"])
    tolerance = wanted["tolerance"]
    models: dict[bool, Model] = {}
    for case in wanted["cases"]:
        plain = case.get("mode") == "no_dropout"  # HipGPT's has it on unless told otherwise
        if plain not in models:
            said = said_by_the_user(wanted) | ({"dropout": False} if plain else {})
            info = catalog.describe(path, config=said)
            models[plain] = build(info.spec, weights.load(info, dtype="float32"))
        model = models[plain]
        ids = case["prompt_ids"][-info.spec.context_length :]  # as the trainers' own samplers do
        logits = model.forward(ids, model.new_cache())
        pairs = list(enumerate(case.get("last_logits") or ()))
        pairs += case.get("top_logits") or []
        pairs += case.get("probe_logits") or []
        assert pairs
        for token, value in pairs:
            limit = tolerance["logits_abs"] + tolerance["logits_rel"] * abs(value)
            assert abs(float(logits[token]) - value) <= limit, (case["name"], token)


@pytest.mark.parametrize("folder", VARIANTS, ids=[f"{p.parent.name}-{p.name}" for p in VARIANTS])
def test_says_the_sizes_that_the_trainer_meant(folder: Path) -> None:
    wanted = reference(folder)
    path = str(folder / wanted["checkpoint"])
    info = catalog.describe(path, config=said_by_the_user(wanted))
    assert info.spec.context_length == wanted["context_length"]
    assert info.spec.vocab_size == wanted["vocab_size"]
    if "n_head" in wanted.get("model", {}):
        assert info.spec.n_head == wanted["model"]["n_head"]
        assert info.spec.n_layer == wanted["model"]["n_blocks"]
    assert info.run and info.fingerprint and info.parameters > 1000


def test_nanogpt_says_step_loss_and_tokenizer() -> None:
    path = FIXTURES / "nanogpt/char-bias/out-shakespeare-char/ckpt.pt"
    info = catalog.describe(str(path))
    assert (info.format, info.run, info.step) == ("nanoGPT", "out-shakespeare-char", 900)
    assert info.losses["val"] == pytest.approx(2.1197, abs=1e-4)
    assert info.tokenizer.kind == "chars"
    assert os.path.samefile(
        info.tokenizer.path, FIXTURES / "nanogpt/char-bias/data/shakespeare_char/meta.pkl"
    )
    assert info.spec.activation == "gelu" and info.mode == "raw"


def test_build_nanogpt_reads_the_scripts_own_config_object() -> None:
    info = catalog.describe(str(FIXTURES / "build-nanogpt/pickled-config/log/model_05000.pt"))
    assert (info.format, info.step, info.spec.activation) == ("build-nanogpt", 5000, "gelu_tanh")
    assert info.tokenizer.name == "gpt2" and info.stop_ids == (50256,)


def test_a_trimmed_nanogpt_file_opens_with_what_the_shapes_tell(nanogpt: Save) -> None:
    path = nanogpt(
        optimizer=None, iter_num=None, best_val_loss=None, config=None, model_args={"n_head": 2}
    )
    info = catalog.describe(path)
    assert (info.spec.n_layer, info.spec.n_embd, info.spec.context_length) == (2, 8, 16)
    assert info.step is None and info.losses == {}


def test_without_the_number_of_heads_it_asks_for_it(nanogpt: Save) -> None:
    path = nanogpt(model_args=None, config=None)
    with pytest.raises(CheckpointError, match=r"n_head.*--config n_head=N"):
        catalog.describe(path)
    assert catalog.describe(path, config={"n_head": 4}).spec.head_dim == 2


def test_a_bare_state_dict_of_nanogpt_opens(gpt: Make, tmp_path: Path) -> None:
    torch.save(gpt(), tmp_path / "weights.pth")
    info = catalog.describe(str(tmp_path / "weights.pth"), config={"n_head": 2})
    assert info.format == "nanoGPT" and info.step is None


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."]
)
def test_prefixes_of_wrappers_are_removed_and_said(prefix: str, nanogpt: Save, gpt: Make) -> None:
    info = catalog.describe(nanogpt({prefix + name: w for name, w in gpt().items()}))
    assert any("removed" in note for note in info.inferred)
    assert (
        catalog.describe(nanogpt(gpt(bias=False), "b/ckpt.pt"))
        .warnings[0]
        .startswith("no tokenizer")
    )


def test_a_head_of_its_own_is_used_and_a_tied_one_is_not_read_twice(
    nanogpt: Save, gpt: Make
) -> None:
    tied = gpt()
    copied = tied | {"lm_head.weight": tied["transformer.wte.weight"].clone()}
    untied = tied | {"lm_head.weight": torch.randn(65, 8)}
    for weights_, has_head in ((tied, False), (copied, False), (untied, True)):
        info = catalog.describe(nanogpt(weights_))
        assert info.plan is not None and ("head.weight" in info.plan) is has_head
    dropped = {name: w for name, w in tied.items() if name != "lm_head.weight"}
    assert (
        catalog.describe(nanogpt(dropped)).parameters == catalog.describe(nanogpt(tied)).parameters
    )


def test_mask_buffers_are_no_weights(nanogpt: Save, gpt: Make) -> None:
    masks = {f"transformer.h.{i}.attn.bias": torch.ones(1, 1, 16, 16).tril() for i in range(2)}
    info = catalog.describe(nanogpt(gpt() | masks))
    assert info.parameters == catalog.describe(nanogpt(gpt())).parameters


def test_a_lost_tensor_is_named_rather_than_made_up(nanogpt: Save, gpt: Make) -> None:
    found = gpt()
    del found["transformer.h.1.mlp.c_fc.weight"]
    with pytest.raises(CheckpointError, match=r"missing: transformer\.h\.1\.mlp\.c_fc\.weight"):
        catalog.describe(nanogpt(found))


def test_settings_that_contradict_the_tensors_are_refused_with_both_numbers(nanogpt: Save) -> None:
    with pytest.raises(CheckpointError, match="n_layer = 3, its tensors 2"):
        catalog.describe(nanogpt(model_args={"n_layer": 3, "n_head": 2}))


@pytest.mark.parametrize(
    ("rows", "kind", "offered"),
    [(50257, "tiktoken", 50257), (50304, "tiktoken", 50257), (300, "none", 300)],
)
def test_the_size_of_the_vocabulary_hints_at_gpt2(
    rows: int, kind: str, offered: int, nanogpt: Save, gpt: Make
) -> None:
    info = catalog.describe(nanogpt(gpt(rows=rows), model_args={"n_head": 2}))
    assert (info.tokenizer.kind, info.tokenizer.vocab_size) == (kind, offered)
    assert bool(info.warnings) == (kind == "none")


def test_a_dataset_name_that_climbs_out_is_not_followed(nanogpt: Save, tmp_path: Path) -> None:
    secret = tmp_path / "meta.pkl"
    secret.write_bytes((FIXTURES / "nanogpt/char-bias/data/shakespeare_char/meta.pkl").read_bytes())
    path = nanogpt(config={"dataset": "../.."}, name="a/b/out/ckpt.pt")
    assert catalog.describe(path).tokenizer.kind == "none"


# ---- train-llm-from-scratch

S0 = FIXTURES / "S0"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("base_pretrained/base_pretrained.pt", "raw"),
        ("sft_vocab50304/sft.pt", "chat"),
    ],
)
def test_the_stage_says_whether_it_can_chat(name: str, said: str) -> None:
    info = catalog.describe(str(S0 / name))
    assert (info.format, info.mode, info.template.name) == (
        "train-llm-from-scratch",
        said,
        "train-llm",
    )


def test_a_reward_model_says_that_its_text_is_a_curiosity() -> None:
    assert any("reward" in w for w in catalog.describe(str(S0 / "reward/reward.pt")).warnings)


def train_llm_weights() -> dict[str, Any]:
    root = torch.load(S0 / "grpo/grpo.pt", weights_only=False)
    found: dict[str, Any] = root["model_state_dict"]
    return found


@pytest.mark.parametrize(
    "prefix",
    ["module.transformer.", "transformer.module.", "_orig_mod.", "module._orig_mod.transformer."],
)
def test_any_order_of_prefixes_opens(prefix: str, tmp_path: Path) -> None:
    plain = catalog.describe(str(S0 / "grpo/grpo.pt"))
    torch.save({prefix + name: w for name, w in train_llm_weights().items()}, tmp_path / "a.pt")
    info = catalog.describe(str(tmp_path / "a.pt"))
    assert info.spec == plain.spec and info.fingerprint == plain.fingerprint


def test_files_from_before_the_output_matrix_add_the_heads_directly(tmp_path: Path) -> None:
    found = {name: w for name, w in train_llm_weights().items() if "attn.proj" not in name}
    torch.save({"model_state_dict": found, "cfg": {"n_head": 2}}, tmp_path / "a.pt")
    info = catalog.describe(str(tmp_path / "a.pt"))
    assert info.spec.attention_output is False
    assert any("attn.proj" in note for note in info.inferred)


def test_a_lost_head_is_noticed(tmp_path: Path) -> None:
    found = {name: w for name, w in train_llm_weights().items() if "1.attn.heads.1" not in name}
    torch.save(found, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="missing"):
        catalog.describe(str(tmp_path / "a.pt"))


# ---- the native format


def native(path: Path, **changes: str | None) -> str:
    spec = {
        "vocab_size": 6, "n_layer": 1, "n_head": 2, "n_kv_head": 1, "head_dim": 4, "n_embd": 8,
        "context_length": 16, "norm": "rmsnorm", "norm_eps": 1e-6, "position": "rope",
        "rope_theta": 1e4, "rope_layout": "half", "activation": "silu",
        "gated": True, "qk_norm": "before_rope",
    }  # fmt: skip
    shapes = {
        "embed.weight": [6, 8], "blocks.0.attn_norm.weight": [8],
        "blocks.0.attn.qkv.weight": [16, 8], "blocks.0.attn.q_norm.weight": [4],
        "blocks.0.attn.k_norm.weight": [4], "blocks.0.attn.out.weight": [8, 8],
        "blocks.0.mlp_norm.weight": [8], "blocks.0.mlp.gate_up.weight": [24, 8],
        "blocks.0.mlp.down.weight": [8, 12], "final_norm.weight": [8],
    }  # fmt: skip
    metadata: dict[str, str | None] = {
        "format": "tui-chat", "format_version": "1", "spec": json.dumps(spec), "run": "tiny",
        "step": "40", "losses": json.dumps({"train": 2.0, "val": 2.5}), "mode": "chat",
        "tokenizer": "tokenizer.json", "description": "a toy",
        "template": json.dumps({"name": "demo", "user": ["<|user|>", "<|end|>"],
                                "assistant": ["<|assistant|>", "<|end|>"], "stop": ["<|end|>"]}),
    }  # fmt: skip
    header: dict[str, Any] = {
        "__metadata__": {k: v for k, v in (metadata | changes).items() if v is not None}
    }
    at = 0
    for name, shape in shapes.items():
        size = 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    raw = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + os.urandom(at))
    added = [{"content": "<|end|>", "id": 5}, {"content": "<|endoftext|>", "id": 4}]
    said = {"added_tokens": added, "model": {"vocab": {"a": 0, "b": 1, "<|end|>": 5}}}
    (path.parent / "tokenizer.json").write_text(json.dumps(said))
    return str(path)


def test_the_native_format_says_everything_itself(tmp_path: Path) -> None:
    info = catalog.describe(native(tmp_path / "a.safetensors"))
    assert (info.format, info.run, info.step, info.mode) == ("tui-chat", "tiny", 40, "chat")
    assert info.losses == {"train": 2.0, "val": 2.5} and info.dtype == "bfloat16"
    assert info.spec.n_kv_head == 1 and info.spec.gated and info.spec.position == "rope"
    assert info.template.turns["user"] == ("<|user|>", "<|end|>") and info.stop_ids == (5,)
    assert info.tokenizer.path == str(tmp_path / "tokenizer.json")
    assert info.tokenizer.vocab_size == 4
    assert set(weights.load(info)) == {name for name in info.plan.recipes}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"format_version": "2"}, "newer"),
        ({"tokenizer": "../tokenizer.json"}, "tokenizer"),
        ({"tokenizer": None}, "tokenizer"),
        ({"spec": "{"}, "spec"),
        ({"spec": "{}"}, "vocab_size"),
        ({"template": '{"user": ["a", "b"]}'}, "template"),
    ],
)
def test_a_native_file_that_lies_is_refused(
    changes: dict[str, str | None], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        catalog.describe(native(tmp_path / "a.safetensors", **changes))


def test_an_unknown_file_is_told_what_it_holds_and_what_would_open(tmp_path: Path) -> None:
    torch.save({"state_dict": {"encoder.w": torch.zeros(2)}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"encoder\.w.*nanoGPT"):
        catalog.describe(str(tmp_path / "a.pt"))
