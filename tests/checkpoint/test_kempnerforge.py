"""KempnerForge's step directories in every layout and with every kind of layer: always the logits
of its forward pass, written out in float64; and what is said where something is missing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.kempner import Model, Weights, logits_of, save_sharded, save_step, weights_of
from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

FIXTURES = Path(__file__).parent.parent / "fixtures/S2"
IDS = [3, 39, 17, 0, 22, 8, 8, 31, 5]

MODELS: dict[str, Model] = {
    "plain": Model(),
    "multi-head": Model(n_kv_heads=4),
    "one key head": Model(n_kv_heads=1),
    "query and key norms": Model(qk_norm=True),
    "wide heads": Model(head_dim=10, qk_norm=True),
    "layer norms, gelu": Model(norm_type="layernorm", activation="gelu", norm_eps=1e-3),
    "relu": Model(activation="relu"),
    "tied": Model(tie_embeddings=True),
    "another base": Model(rope_theta=500000.0, norm_eps=1e-2),
    "experts": Model(num_experts=4),
    "experts in every second layer": Model(num_experts=4, moe_frequency=2, n_layers=4),
    "sigmoid router": Model(num_experts=5, moe_router="sigmoid_topk", moe_top_k=3),
    "shared expert": Model(num_experts=3, moe_shared_experts=2, moe_top_k=1),
    "stacked experts": Model(num_experts=4, moe_packed_experts=True, moe_shared_experts=1),
    "stacked experts without gates": Model(
        num_experts=3, moe_packed_experts=True, activation="gelu"
    ),
    "capacity": Model(num_experts=4, moe_capacity_factor=0.3),
}


def logits(info: CheckpointInfo, ids: Sequence[int] = IDS) -> torch.Tensor:
    model = build(info.spec, weights.load(info, dtype="float32"))
    return model.forward_all(ids, model.new_cache()).double()


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


def run(folder: Path, model: Model, held: Weights, step: int = 20) -> Path:
    """A run with its TOML beside it; returns its step directory."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "train.toml").write_text(model.toml())
    return save_step(folder / "ckpt" / f"step_{step}", held)


@pytest.mark.parametrize("name", MODELS)
def test_gives_the_logits_of_its_forward_pass(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    held = weights_of(model)
    info = catalog.describe(str(run(tmp_path, model, held)))
    assert (info.format, info.run, info.step) == ("KempnerForge", f"{tmp_path.name}/ckpt", 20)
    close(logits(info), logits_of(model, held, IDS))


@pytest.mark.parametrize("name", ["plain", "experts", "capacity"])
def test_reads_a_prompt_and_then_token_by_token(name: str, tmp_path: Path) -> None:
    model = MODELS[name]
    held = weights_of(model)
    info = catalog.describe(str(run(tmp_path, model, held)))
    ready = build(info.spec, weights.load(info))
    cache = ready.new_cache()
    ready.forward(IDS[:6], cache)
    last = [ready.forward([token], cache) for token in IDS[6:]]
    expected = logits_of(model, held, IDS, calls=(6, 1, 1, 1))
    close(torch.stack(last).double(), expected[6:])
    if name == "capacity":  # what a call holds matters there
        at_once = logits_of(model, held, IDS)
        assert (at_once - expected).abs().max() > 0.1
        assert "moe_capacity_factor" in " ".join(info.warnings)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_may_be_stored_in_any_precision(dtype: torch.dtype, tmp_path: Path) -> None:
    model = Model()
    held = {name: tensor.to(dtype) for name, tensor in weights_of(model).items()}
    info = catalog.describe(str(run(tmp_path, model, held)))
    assert info.dtype == str(dtype).removeprefix("torch.")
    close(logits(info), logits_of(model, held, IDS))


# ---- layouts on disk


@pytest.mark.parametrize("wrapped", ["_orig_mod.", "module._orig_mod."])
def test_wrappers_in_the_names_are_taken_away_and_said(wrapped: str, tmp_path: Path) -> None:
    model = Model()
    held = weights_of(model)
    names = {
        wrapped + n.replace(".attention.", "._checkpoint_wrapped_module.attention."): t
        for n, t in held.items()
    }
    info = catalog.describe(str(run(tmp_path, model, names)))
    assert "_checkpoint_wrapped_module." in " ".join(info.inferred)
    close(logits(info), logits_of(model, held, IDS))


CUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "rows over 3 ranks": {"": (3,)},
    "columns where rows would not do": {"o_proj": (1, 3), "down_proj": (1, 4), "": (2,)},
    "a grid of rows and columns": {"o_proj": (2, 3), "down_proj": (3, 2), "": (4,)},
    "fewer rows than ranks": {"norm": (24,), "": (5,)},
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("kind", ["plain", "tied", "stacked experts"])
def test_shards_are_put_together(name: str, kind: str, tmp_path: Path) -> None:
    model = MODELS[kind]
    held = weights_of(model)
    full = {f"model.{n}": t for n, t in held.items()}
    cuts = {
        n: next(cut for word, cut in CUTS[name].items() if word in n)[: t.dim()]
        for n, t in full.items()
    }
    (tmp_path / "train.toml").write_text(model.toml())
    step = save_sharded(tmp_path / "ckpt/step_7", full, cuts, ranks=3)
    info = catalog.describe(str(step))
    assert info.step == 7
    close(logits(info), logits_of(model, held, IDS))


def stages(folder: Path, model: Model, held: Weights) -> Path:
    """The layout of two pipeline stages."""
    half = model.n_layers // 2

    def stage_of(name: str) -> int:
        if name.startswith("layers."):
            return int(int(name.split(".")[1]) >= half)
        return int(not name.startswith("token_embedding"))

    for stage in (0, 1):
        mine = {name: tensor for name, tensor in held.items() if stage_of(name) == stage}
        save_step(folder / f"pp{stage}", mine)
    (folder / "metadata.json").write_text(json.dumps({"step": 40, "tokens_seen": 5}))
    (folder / "train_state.pt").write_bytes(b"never opened")
    return folder


def test_pipeline_stages_are_put_together(tmp_path: Path) -> None:
    model = Model(n_layers=4)
    held = weights_of(model)
    (tmp_path / "train.toml").write_text(model.toml())
    step = stages(tmp_path / "ckpt/step_40", model, held)
    expected = logits_of(model, held, IDS)
    for path in (step, step.parent, step / "pp1", step / "pp0" / "__0_0.distcp"):
        info = catalog.describe(str(path))
        assert (info.run, info.step) == (f"{tmp_path.name}/ckpt", 40)
        close(logits(info), expected)
    (found,) = catalog.scan([str(tmp_path)])
    assert [entry.step for entry in found.checkpoints] == [40]


def test_a_missing_stage_is_named(tmp_path: Path) -> None:
    model = Model(n_layers=4)
    step = stages(tmp_path / "step_40", model, weights_of(model))
    shutil.rmtree(step / "pp0")
    with pytest.raises(CheckpointError, match="stage pp0 is missing"):
        catalog.describe(str(step))


def test_a_missing_last_stage_is_noticed(tmp_path: Path) -> None:
    model = Model(n_layers=4)
    (tmp_path / "train.toml").write_text(model.toml())
    step = stages(tmp_path / "step_40", model, weights_of(model))
    shutil.rmtree(step / "pp1")
    with pytest.raises(CheckpointError, match=r"output_head\.proj\.weight"):
        catalog.describe(str(step), config={"model.n_layers": 2})


# ---- runs


def test_the_newest_complete_step_of_a_run_is_taken(tmp_path: Path) -> None:
    model = Model()
    first, second = weights_of(model), weights_of(model, seed=1)
    run(tmp_path, model, first, step=9)
    run(tmp_path, model, second, step=10)
    unfinished = run(tmp_path, model, first, step=11)
    (unfinished / ".metadata").unlink()
    folder = tmp_path / "ckpt"
    os.symlink("step_11", folder / "latest")  # a save in the background moves it too early
    assert catalog.describe(str(folder)).step == 10
    close(logits(catalog.describe(str(folder))), logits_of(model, second, IDS))
    assert catalog.describe(str(folder), step=9).step == 9
    with pytest.raises(CheckpointError, match="unfinished"):
        catalog.describe(str(unfinished))
    (found,) = catalog.scan([str(tmp_path)])
    assert [e.step for e in found.checkpoints if not e.error] == [9, 10]
    assert ["unfinished" in e.error for e in found.checkpoints if e.error] == [True]


def test_latest_goes_before_a_higher_number_from_an_earlier_training(tmp_path: Path) -> None:
    model = Model()
    run(tmp_path, model, weights_of(model), step=900)
    run(tmp_path, model, weights_of(model, seed=1), step=10)
    folder = tmp_path / "ckpt"
    os.symlink("step_10", folder / "latest")
    assert catalog.describe(str(folder)).step == 10
    assert catalog.describe(str(folder / "latest")).step == 10


def test_latest_may_have_become_a_file_in_a_copy(tmp_path: Path) -> None:
    model = Model()
    run(tmp_path, model, weights_of(model), step=10)
    link = tmp_path / "ckpt/latest"
    link.write_text("step_10\n")
    assert catalog.describe(str(link)).step == 10


def test_the_run_says_how_many_tokens_were_seen(tmp_path: Path) -> None:
    model = Model()
    assert catalog.describe(str(run(tmp_path, model, weights_of(model)))).description == (
        "1,024 tokens seen"
    )


def test_a_renamed_directory_is_noticed(tmp_path: Path) -> None:
    model = Model()
    step = run(tmp_path, model, weights_of(model))
    moved = step.rename(step.with_name("step_5"))
    info = catalog.describe(str(moved))
    assert info.step == 20
    assert "called step_5, but holds step 20" in " ".join(info.warnings)


@pytest.mark.parametrize("text", ["{", "[1]", '{"step": "many"}', '{"step": -3}', ""])
def test_a_broken_metadata_json_does_not_keep_it_closed(text: str, tmp_path: Path) -> None:
    model = Model()
    step = run(tmp_path, model, weights_of(model))
    (step / "metadata.json").write_text(text)
    assert catalog.describe(str(step)).step == 20


def test_optimizer_and_training_state_are_never_read(tmp_path: Path) -> None:
    model = Model()
    step = run(tmp_path, model, weights_of(model))
    (step / "train_state.pt").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00trueq\x00R.")
    info = catalog.describe(str(step))
    assert info.plan is not None
    own = sum(t.numel() * 4 for t in weights_of(model).values())
    assert info.plan.nbytes == own


# ---- settings


def test_a_toml_is_found_in_and_above_the_run(tmp_path: Path) -> None:
    model = Model(rope_theta=777.0)
    held = weights_of(model)
    step = save_step(tmp_path / "out/run/step_1", held)
    for place in ("out/run/step_1", "out/run", "out", "", "configs/train"):
        path = tmp_path / place / "mine.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(model.toml())
        info = catalog.describe(str(step))
        assert info.spec.rope_theta == 777.0
        assert "mine.toml" in " ".join(info.inferred)
        path.unlink()


def test_a_toml_of_another_size_is_passed_over_and_named(tmp_path: Path) -> None:
    model = Model(rope_theta=777.0)
    step = run(tmp_path, model, weights_of(model))
    nearer = step / "other.toml"
    nearer.write_text(Model(dim=48, rope_theta=5.0).toml())
    (step / "broken.toml").write_text("[model\n")
    (step / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    assert catalog.describe(str(step)).spec.rope_theta == 777.0
    (tmp_path / "train.toml").unlink()
    info = catalog.describe(str(step), config={"n_head": 4})
    assert "dim 48 instead of 24" in " ".join(info.warnings)


def test_of_two_tomls_that_fit_the_one_that_saves_here_is_taken(tmp_path: Path) -> None:
    model = Model(rope_theta=777.0)
    step = save_step(tmp_path / "checkpoints/mine/step_1", weights_of(model))
    (tmp_path / "a.toml").write_text(replace(model, rope_theta=5.0).toml())
    (tmp_path / "b.toml").write_text(model.toml(checkpoint='dir = "checkpoints/mine"'))
    info = catalog.describe(str(step))
    assert info.spec.rope_theta == 777.0 and not info.warnings[:-1]
    (tmp_path / "b.toml").write_text(model.toml())
    info = catalog.describe(str(step))
    assert info.spec.rope_theta == 5.0
    assert "b.toml would fit too" in " ".join(info.warnings)


def test_the_toml_may_be_given(tmp_path: Path) -> None:
    model = Model(rope_theta=777.0, activation="relu", num_experts=4, moe_top_k=3)
    held = weights_of(model)
    step = save_step(tmp_path / "run/step_1", held)
    elsewhere = tmp_path / "far/away/x.toml"
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_text(model.toml())
    for path in (step, step.parent):
        info = catalog.describe(str(path), config_file=str(elsewhere))
        close(logits(info), logits_of(model, held, IDS))


def test_a_given_toml_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    step = save_step(tmp_path / "step_1", weights_of(Model()))
    path = tmp_path / "x.toml"
    path.write_text(Model(n_layers=5, vocab_size=7).toml())
    with pytest.raises(CheckpointError, match="n_layers 5 instead of 2 and vocab_size 7"):
        catalog.describe(str(step), config_file=str(path))
    path.write_text("[train]\nsteps = 1\n")
    with pytest.raises(CheckpointError, match="says nothing of the model"):
        catalog.describe(str(step), config_file=str(path))


def test_settings_may_stand_at_the_top_of_a_toml(tmp_path: Path) -> None:
    model = Model(rope_theta=777.0)
    step = save_step(tmp_path / "step_1", weights_of(model))
    (tmp_path / "llama.toml").write_text(model.toml().removeprefix("[model]\n"))
    assert catalog.describe(str(step)).spec.rope_theta == 777.0


def test_what_a_toml_leaves_out_is_kempnerforges_default_and_said(tmp_path: Path) -> None:
    model = Model(max_seq_len=2048, left_out=("max_seq_len", "norm_eps", "rope_theta"))
    info = catalog.describe(str(run(tmp_path, model, weights_of(model))))
    assert info.spec.context_length == 2048 and info.spec.rope_theta == 10000.0
    assert {"max_seq_len 2048", "norm_eps 1e-05", "rope_theta 10000"} <= set(info.defaults)


def test_key_heads_that_a_toml_leaves_out_are_counted(tmp_path: Path) -> None:
    # The trainer takes 32 then, whatever n_heads is; the rows of k_proj tell.
    model = Model(dim=64, n_heads=32, n_kv_heads=32, left_out=("n_kv_heads", "n_heads"))
    held = weights_of(model)
    info = catalog.describe(str(run(tmp_path, model, held)))
    assert info.spec.n_kv_head == 32 and "n_heads 32" in info.defaults
    close(logits(info), logits_of(model, held, IDS))


def test_the_inner_width_may_follow_from_the_width(tmp_path: Path) -> None:
    model = Model(ffn_hidden_dim=256, left_out=("ffn_hidden_dim",))
    held = weights_of(model)
    close(logits(catalog.describe(str(run(tmp_path, model, held)))), logits_of(model, held, IDS))


def test_settings_can_be_overridden_in_the_words_of_both(tmp_path: Path) -> None:
    model = Model()
    step = run(tmp_path, replace(model, rope_theta=5.0, max_seq_len=16), weights_of(model))
    said: dict[str, Any] = {"model.rope_theta": 10000.0, "context_length": 24}
    info = catalog.describe(str(step), config=said)
    assert (info.spec.rope_theta, info.spec.context_length) == (10000.0, 24)
    assert catalog.describe(str(step), config={"max_seq_len": 20}).spec.context_length == 20
    assert said == {"model.rope_theta": 10000.0, "context_length": 24}


def test_without_a_toml_the_number_of_heads_is_asked_for(tmp_path: Path) -> None:
    model = Model()
    held = weights_of(model)
    step = save_step(tmp_path / "run/step_3", held)
    with pytest.raises(CheckpointError, match="--config n_head=N") as caught:
        catalog.describe(str(step))
    assert "q_proj has 24 rows, k_proj 12" in str(caught.value)
    for path in (step, step.parent):
        info = catalog.describe(str(path), config={"n_head": 4, "context_length": 32})
        assert "no TOML" in " ".join(info.warnings)
        close(logits(info), logits_of(model, held, IDS))


def test_without_a_toml_norms_of_queries_tell_the_heads(tmp_path: Path) -> None:
    model = Model(qk_norm=True, n_kv_heads=1)
    held = weights_of(model)
    info = catalog.describe(str(save_step(tmp_path / "step_3", held)))
    assert "n_heads 4: q_proj has 24 rows, a head 6 numbers" in info.inferred
    close(logits(info), logits_of(model, held, IDS))


def test_without_a_toml_the_activation_is_asked_for_where_no_gate_tells(tmp_path: Path) -> None:
    model = Model(activation="relu")
    held = weights_of(model)
    step = save_step(tmp_path / "step_3", held)
    with pytest.raises(CheckpointError, match="gelu or relu"):
        catalog.describe(str(step), config={"n_head": 4})
    info = catalog.describe(str(step), config={"n_head": 4, "activation": "relu"})
    close(logits(info), logits_of(model, held, IDS))


def test_without_a_toml_the_router_is_told_by_its_bias(tmp_path: Path) -> None:
    model = Model(num_experts=4, moe_router="sigmoid_topk", moe_top_k=3)
    held = weights_of(model)
    step = save_step(tmp_path / "step_3", held)
    info = catalog.describe(str(step), config={"n_head": 4, "moe_top_k": 3})
    assert info.spec.experts is not None and info.spec.experts.router == "sigmoid"
    assert "moe_router sigmoid_topk: the router has an expert_bias" in info.inferred
    assert not any("moe_router" in text for text in info.defaults)
    assert any("expert_ema" in text for text in info.unused)
    close(logits(info), logits_of(model, held, IDS))


def test_heads_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    step = save_step(tmp_path / "step_3", weights_of(Model(qk_norm=True)))
    with pytest.raises(CheckpointError, match="8 heads, but q_proj has 24 rows"):
        catalog.describe(str(step), config={"n_head": 8})


def test_norms_of_queries_have_their_own_eps_until_the_settings_had_a_head_dim(
    tmp_path: Path,
) -> None:
    old = Model(qk_norm=True, norm_eps=0.5)
    held = weights_of(old)
    info = catalog.describe(str(run(tmp_path / "old", old, held)))
    close(logits(info), logits_of(old, held, IDS, qk_eps=1e-5))
    new = replace(old, head_dim=6)
    info = catalog.describe(str(run(tmp_path / "new", new, held)))
    close(logits(info), logits_of(new, held, IDS, qk_eps=0.5))


def test_settings_without_meaning_for_a_reply_are_listed_as_unused(tmp_path: Path) -> None:
    model = Model()
    step = run(tmp_path, model, weights_of(model))
    text = (tmp_path / "train.toml").read_text() + 'init_std = 0.02\nsdpa_backend = "auto"\n'
    (tmp_path / "train.toml").write_text(text)
    (step / "train_state.pt").touch()
    assert catalog.describe(str(step)).unused == (
        "the tensors of the optimizer: only training needs them",
        "train_state.pt: only training needs it",
        "model.init_std",
        "model.sdpa_backend",
    )


# ---- tokenizers


def with_tokenizer(folder: Path) -> Path:
    shutil.copytree(FIXTURES / "dense_gqa/tokenizer", folder)
    return folder


@pytest.mark.parametrize("place", ["tokenizer", "run/step_1", "run", "shared/deep/tok", ""])
def test_its_tokenizer_is_found(place: str, tmp_path: Path) -> None:
    model = Model(vocab_size=384)
    step = save_step(tmp_path / "run/step_1", weights_of(model))
    named = {"data": f'tokenizer_path = "{place}"'} if place.startswith("shared") else {}
    (tmp_path / "train.toml").write_text(model.toml(**named))
    with_tokenizer(tmp_path / "t").rename(tmp_path / "moving")
    target = tmp_path / place
    target.mkdir(parents=True, exist_ok=True)
    for file in (tmp_path / "moving").iterdir():
        file.rename(target / file.name)
    info = catalog.describe(str(step))
    assert info.tokenizer.path == str(target / "tokenizer.json")
    assert info.stop_ids == (2,) and info.text_start == (1,) and info.mode == "raw"


def test_a_tokenizer_named_by_a_lost_path_is_found_by_its_last_part(tmp_path: Path) -> None:
    model = Model(vocab_size=384)
    step = save_step(tmp_path / "run/step_1", weights_of(model))
    (tmp_path / "train.toml").write_text(model.toml(data='tokenizer_path = "/n/lost/my-tok"'))
    with_tokenizer(tmp_path / "my-tok")
    assert catalog.describe(str(step)).tokenizer.path == str(tmp_path / "my-tok/tokenizer.json")


def test_the_tokenizer_can_be_overridden_in_the_trainers_words(tmp_path: Path) -> None:
    model = Model(vocab_size=384)
    step = run(tmp_path, model, weights_of(model))
    with_tokenizer(tmp_path / "elsewhere")
    info = catalog.describe(str(step), config={"data.tokenizer_path": str(tmp_path / "elsewhere")})
    assert info.tokenizer.path == str(tmp_path / "elsewhere/tokenizer.json")
    assert info.tokenizer.source == "given by the user"


def test_a_name_is_found_in_hugging_faces_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    model = Model(vocab_size=384)
    step = save_step(tmp_path / "run/step_1", weights_of(model))
    (tmp_path / "train.toml").write_text(model.toml(data='tokenizer_path = "some/model"'))
    info = catalog.describe(str(step))
    assert info.tokenizer.kind == "none"
    assert "'some/model' is not on this machine" in " ".join(info.warnings)
    (tmp_path / "hf/hub/models--some--model/snapshots").mkdir(parents=True)
    with_tokenizer(tmp_path / "hf/hub/models--some--model/snapshots/abc")
    assert catalog.describe(str(step)).tokenizer.path.endswith("abc/tokenizer.json")


def test_gpt2_needs_no_files_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = Model(vocab_size=50257, dim=4, n_heads=2, n_kv_heads=2)
    step = save_step(tmp_path / "run/step_1", weights_of(model), optimizer=False)
    (tmp_path / "train.toml").write_text(model.toml(data='tokenizer_path = "gpt2"'))
    info = catalog.describe(str(step))
    assert (info.tokenizer.kind, info.tokenizer.name) == ("tiktoken", "gpt2")
    assert info.stop_ids == (50256,)


def test_gpt2s_name_over_a_model_with_fewer_ids_leaves_ids_and_a_warning(tmp_path: Path) -> None:
    model = Model()
    step = save_step(tmp_path / "run/step_1", weights_of(model))
    (tmp_path / "train.toml").write_text(model.toml(data='tokenizer_path = "gpt2"'))
    info = catalog.describe(str(step))
    assert info.tokenizer.kind == "none" and info.stop_ids == ()
    assert "has 50257 ids, the model 40" in " ".join(info.warnings)


# ---- refused


@pytest.mark.parametrize(
    "name",
    [
        "vision_encoder.blocks.0.weight",
        "adapter.proj.weight",
        "cross_attention_layers.0.q_proj.weight",
        "mot_norms.image.weight",
        "layers.0.mlp.experts.text.up_w",
    ],
)
def test_models_that_see_are_refused_with_the_reason(name: str, tmp_path: Path) -> None:
    held = weights_of(Model()) | {name: torch.zeros(2, 2, 2)}
    with pytest.raises(CheckpointError, match="also sees images"):
        catalog.describe(str(save_step(tmp_path / "step_1", held)))


def test_another_trainers_distributed_checkpoint_is_named_by_what_it_holds(tmp_path: Path) -> None:
    held = {"tok_embeddings.weight": torch.zeros(4, 4), "layers.0.wq.weight": torch.zeros(4, 4)}
    with pytest.raises(CheckpointError, match=r"another trainer .*tok_embeddings\.weight"):
        catalog.describe(str(save_step(tmp_path / "step_1", held)))


def test_experts_that_ranks_overwrote_are_refused(tmp_path: Path) -> None:
    model = Model(num_experts=4)
    held = {n: t for n, t in weights_of(model).items() if ".experts.3" not in n}
    held = {n: t for n, t in held.items() if ".experts.2" not in n}
    with pytest.raises(CheckpointError, match="chooses among 4, the file holds 2"):
        catalog.describe(str(run(tmp_path, model, held)))


def test_a_missing_layer_is_named(tmp_path: Path) -> None:
    model = Model(n_layers=3)
    held = {n: t for n, t in weights_of(model).items() if not n.startswith("layers.1.")}
    with pytest.raises(CheckpointError, match=r"there is no layers\.1\."):
        catalog.describe(str(run(tmp_path, model, held)))


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    model = Model()
    held = weights_of(model)
    del held["layers.1.mlp.up_proj.weight"]
    with pytest.raises(CheckpointError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        catalog.describe(str(run(tmp_path, model, held)))
