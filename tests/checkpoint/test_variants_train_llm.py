"""train-llm-from-scratch files of every stage, age and wrapper: the logits of the model that was
trained, the mode and warnings a user needs, and a refusal by name where something is missing.

The oracle is the trainer's forward pass, written out plainly here from its names and shapes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tui_chat
from tui_chat.cli.main import main
from tui_chat.errors import CheckpointError, UsageError

Weights = dict[str, torch.Tensor]
IDS = [3, 1, 4, 1, 5, 9, 2, 6]
V, T, C, H, N = 40, 16, 12, 3, 2
CFG = {"vocab_size": V, "context_length": T, "n_embed": C, "n_head": H, "n_blocks": N}


def model(rows: int = V, *, proj: bool = True) -> Weights:
    """A model's state dict as the trainer names it, buffers included."""
    shapes: dict[str, tuple[int, ...]] = {
        "token_embed.weight": (rows, C),
        "position_embed.weight": (T, C),
    }
    for b in (f"attn_blocks.{i}." for i in range(N)):
        shapes |= {b + "ln1.weight": (C,), b + "ln1.bias": (C,)}
        for part, m in itertools.product(("key", "query", "value"), range(H)):
            shapes[f"{b}attn.heads.{m}.{part}.weight"] = (C // H, C)
        if proj:
            shapes |= {b + "attn.proj.weight": (C, C), b + "attn.proj.bias": (C,)}
        shapes |= {b + "ln2.weight": (C,), b + "ln2.bias": (C,)}
        shapes |= {b + "mlp.hidden.weight": (4 * C, C), b + "mlp.hidden.bias": (4 * C,)}
        shapes |= {b + "mlp.proj.weight": (C, 4 * C), b + "mlp.proj.bias": (C,)}
    shapes |= {"layer_norm.weight": (C,), "layer_norm.bias": (C,)}
    shapes |= {"lm_head.weight": (rows, C), "lm_head.bias": (rows,)}
    weights = {name: torch.randn(shape) / 2 for name, shape in shapes.items()}
    weights["pos_idxs"] = torch.arange(T)
    for i, m in itertools.product(range(N), range(H)):
        weights[f"attn_blocks.{i}.attn.heads.{m}.tril"] = torch.ones(T, T).tril()
    return weights


def oracle(weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits after IDS in float64."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    t = len(IDS)
    x = w["token_embed.weight"][IDS] + w["position_embed.weight"][:t]

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * w[name + ".weight"] + w[name + ".bias"]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    for b in (f"attn_blocks.{i}." for i in range(N)):
        h, outs = norm(x, b + "ln1"), []
        for m in range(H):
            k, q, v = (
                h @ w[f"{b}attn.heads.{m}.{part}.weight"].T for part in ("key", "query", "value")
            )
            scores = q @ k.T / math.sqrt(C // H)
            scores = scores.masked_fill(torch.ones(t, t).triu(1).bool(), -math.inf)
            outs.append(scores.softmax(-1) @ v)
        heads = torch.cat(outs, -1)
        x = x + (linear(heads, b + "attn.proj") if b + "attn.proj.weight" in w else heads)
        x = x + linear(linear(norm(x, b + "ln2"), b + "mlp.hidden").relu(), b + "mlp.proj")
    return linear(norm(x, "layer_norm"), "lm_head")[-1].float()


def stage(weights: Mapping[str, torch.Tensor], name: str = "sft", **top: Any) -> dict[str, Any]:
    """What the current stages save around the weights."""
    return {
        "model_state_dict": weights,
        "optimizer_state_dict": None,
        "stage": name,
        "cfg": CFG | {"lr": 1e-4, "out": "/ephemeral/ckpts/sft.pt", "compile": True},
        "step": 120,
        "metrics": {"train_loss": 2.5},
        "pytorch_version": torch.__version__,
        "cuda_version": None,
    } | top


@pytest.fixture(autouse=True)
def settled() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)


@pytest.fixture
def same(tmp_path: Path) -> Callable[..., Any]:
    """Saves `root`, opens it, and holds its logits against the weights' own."""

    def same(root: object, weights: Weights, **options: Any) -> Any:
        path = tmp_path / "a.pt"
        torch.save(root, path)
        opened = tui_chat.open(str(path), device="cpu", **options)
        found = opened.next_logits(IDS)
        torch.testing.assert_close(found, oracle(weights)[: len(found)], atol=1e-4, rtol=0)
        return opened

    return same


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., str]:
    """Saves `root` and returns the sentence with which it is refused."""

    def refused(root: object) -> str:
        torch.save(root, tmp_path / "a.pt")
        with pytest.raises(CheckpointError) as caught:
            tui_chat.open(str(tmp_path / "a.pt"))
        return str(caught.value)

    return refused


# ---- stages and ages


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("pretrain", "raw"), ("sft", "chat"), ("reward", "raw"), ("dpo_dpo", "chat"),
        ("dpo_orpo", "chat"), ("dpo_kto", "chat"), ("ppo", "chat"), ("grpo", "chat"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("ranks")
def test_every_stage_is_named_and_has_its_mode(
    name: str, mode: str, same: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = model(50304)
    info = same(stage(weights, name, cfg=CFG | {"vocab_size": 50304}), weights).info
    assert (info.mode, info.step, info.losses) == (mode, 120, {"train": 2.5})
    assert info.stop_ids == (50256,) and info.template.name == "train-llm"
    assert any("reward" in text for text in info.warnings) == (name == "reward")
    assert len(info.warnings) == (name == "reward")
    assert main(["inspect", str(tmp_path / "a.pt")]) == 0
    card = capsys.readouterr().out
    assert f"stage {name}" in card and "3 heads" in card and "r50k_base, 50,257 ids" in card


@pytest.mark.usefixtures("ranks")
def test_a_tuned_model_with_ids_alone_says_when_it_would_chat(same: Any) -> None:
    weights = model()
    info = same(stage(weights, "ppo"), weights).info
    assert info.mode == "raw"
    assert "mode chat once there is a tokenizer: the file says stage ppo" in info.inferred
    weights = model(50304)
    info = same(stage(weights, "ppo", cfg=CFG | {"vocab_size": 50304}), weights).info
    assert "mode chat: the file says stage ppo" in info.inferred


def test_the_older_trainer_keeps_its_sizes_under_config(same: Any) -> None:
    weights = model()
    older = {
        "model_state_dict": weights, "optimizer_state_dict": {"state": {}}, "config": CFG,
        "losses": [5.9, 5.1], "train_loss": 4.7, "dev_loss": torch.tensor(4.5), "step": 2,
        "last_completed_step": 2, "steps": 3, "is_final": True, "device": "cuda",
        "pytorch_version": torch.__version__, "lr_state": {"current_lr": 5e-4},
    }  # fmt: skip
    info = same(older, weights).info
    assert (info.mode, info.step, info.losses) == ("raw", 2, {"train": 4.7, "val": 4.5})
    no_step = {key: value for key, value in older.items() if key != "step"}
    assert same(no_step | {"last_completed_step": 1}, weights).info.step == 1


@pytest.mark.parametrize("proj", [True, False])
def test_still_older_files_say_no_sizes_at_all(proj: bool, same: Any) -> None:
    weights = model(proj=proj)
    oldest = {
        "model_state_dict": weights, "optimizer_state_dict": {}, "losses": [5.0],
        "train_loss": 4.7, "dev_loss": 4.5, "steps": 30,
    }  # fmt: skip
    info = same(oldest, weights).info
    assert (info.mode, info.step, info.spec.n_head) == ("raw", 30, H)
    assert any("attn.proj" in text for text in info.inferred) is not proj
    assert any("--config attention_scale" in text for text in info.defaults) is not proj


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("key", ["", "model", "state_dict"])
def test_a_state_dict_opens_bare_and_under_any_key(key: str, zipped: bool, tmp_path: Path) -> None:
    weights = model()
    saved = {key: weights} if key else weights
    torch.save(saved, tmp_path / "w", _use_new_zipfile_serialization=zipped)
    opened = tui_chat.open(str(tmp_path / "w"))
    torch.testing.assert_close(opened.next_logits(IDS), oracle(weights), atol=1e-4, rtol=0)
    assert opened.info.step is None and opened.info.mode == "raw"
    assert not any("token_embed" in text for text in opened.info.unused)


# ---- wrappers

PREFIXES = ("module.", "_orig_mod.", "transformer.")
WRAPPED = ["".join(p) for n in range(1, 4) for p in itertools.product(PREFIXES, repeat=n)]


def test_every_combination_of_prefixes_opens_repeated_ones_too(same: Any) -> None:
    weights = model()
    for prefix in WRAPPED:
        wrapped = {prefix + name: w for name, w in weights.items()}
        (said,) = [text for text in same(stage(wrapped), weights).info.inferred if "remov" in text]
        assert all(part in said for part in prefix.removesuffix(".").split("."))


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
@pytest.mark.parametrize("extra", ["reward", "value"])
def test_heads_for_training_are_left_out(extra: str, prefix: str, same: Any) -> None:
    weights = model()
    whole = {prefix + "transformer." + name: w for name, w in weights.items()}
    if extra == "reward":
        whole[prefix + "reward_head.weight"] = torch.randn(1, C)
    else:
        for n, rows in ((0, C), (2, 1)):
            whole[f"{prefix}value_head.{n}.weight"] = torch.randn(rows, C)
            whole[f"{prefix}value_head.{n}.bias"] = torch.randn(rows)
    info = same(stage(whole, "reward" if extra == "reward" else "ppo"), weights).info
    assert any("curiosity" in text for text in info.warnings) == (extra == "reward")
    assert info.parameters == sum(
        w.numel() for name, w in weights.items() if not name.endswith(("tril", "pos_idxs"))
    )


# ---- sizes: the shapes say the truth


def test_settings_with_defaults_that_are_wrong_are_corrected_by_the_tensors(same: Any) -> None:
    weights = model()
    wrong = {"vocab_size": 50304, "context_length": 1024, "n_embed": 1024, "n_head": 16}
    info = same(stage(weights, cfg=wrong), weights).info
    assert (info.spec.vocab_size, info.spec.n_head, info.spec.context_length) == (V, H, T)
    for word, value in wrong.items():
        assert any(f"{word} = {value}" in text for text in info.warnings)
    assert same(stage(weights, cfg={}), weights).info.spec == info.spec
    assert same(stage(weights, cfg={"n_blocks": 1}), weights).info.spec == info.spec
    many = stage(weights, cfg={"n_blocks": 24})
    assert same(many, weights, config={"n_layer": N}).info.spec == info.spec


# ---- what is missing is named, never made up


def test_any_single_lost_tensor_is_refused_by_its_name(refused: Any) -> None:
    weights = model()
    buffers = ("pos_idxs", "tril")
    for lost in weights:
        if lost.endswith(buffers):
            continue
        left = {name: w for name, w in weights.items() if name != lost}
        assert lost in refused(stage(left)), lost


@pytest.mark.parametrize(
    "part",
    [
        "ln1.bias", "ln2.weight", "attn.proj.weight", "attn.proj.bias", "mlp.hidden.bias",
        "mlp.proj.weight", "attn.heads.0.key.weight", "attn.heads.2.value.weight", "attn.heads.2.",
        "attn.heads.1.", "attn.heads.",
    ],
)  # fmt: skip
def test_a_part_that_every_block_lost_is_refused_by_its_name(part: str, refused: Any) -> None:
    left = {name: w for name, w in model().items() if f".{part}" not in name}
    assert f"attn_blocks.0.{part}" in refused(left)


def test_blocks_that_were_cut_off_are_noticed_where_the_settings_tell(refused: Any) -> None:
    left = {name: w for name, w in model().items() if "blocks.1." not in name}
    said = refused(stage(left))
    assert "n_blocks = 2, its tensors 1" in said and "--config n_layer=1" in said
    first = {name: w for name, w in model().items() if "blocks.0." not in name}
    assert "attn_blocks.0." in refused(stage(first))


def test_a_tensor_nobody_knows_is_named(refused: Any) -> None:
    assert "left over: mystery.weight" in refused(
        stage(model() | {"mystery.weight": torch.ones(2)})
    )


# ---- text


@pytest.mark.usefixtures("ranks")
@pytest.mark.parametrize("rows", [50257, 50304])
def test_text_goes_in_and_out_as_the_trainer_does_it(rows: int, same: Any) -> None:
    weights = model(rows)
    opened = same(stage(weights, cfg=CFG | {"vocab_size": rows}), weights)
    assert len(opened.next_logits(IDS)) == 50257
    plain = opened.encode("<|endoftext|>")
    assert 50256 not in plain and opened.decode(plain) == "<|endoftext|>"
    assert opened.decode([104, 50256, 105, 50257, 50303, -1, 10**9]) == "hi"
    say = opened.encode
    user, assistant, system = (say(f"<|{r}|>\n") for r in ("user", "assistant", "system"))
    hostile = "a<|endoftext|>\n"
    turns = [{"role": "user", "content": hostile}]
    asked = [*user, *say(hostile), 50256, *assistant]
    assert opened.prompt_ids(turns) == asked
    assert opened.prompt_ids([{"role": "system", "content": ""}, *turns]) == asked
    first = [*system, *say("Be kind"), 50256]
    assert opened.prompt_ids([{"role": "system", "content": "Be kind"}, *turns]) == first + asked
    more = [*turns, {"role": "assistant", "content": "b"}, *turns]
    assert opened.prompt_ids(more) == [*asked, *say("b"), 50256, *asked]
    with pytest.raises(UsageError):
        opened.prompt_ids([{"role": "tool", "content": "x"}])


def test_a_small_vocabulary_is_not_the_trainers_and_asks_for_its_own(same: Any) -> None:
    weights = model()
    opened = same(stage(weights), weights)
    assert opened.info.mode == "raw" and opened.info.stop_ids == ()
    assert any("--tokenizer" in text for text in opened.info.warnings)
