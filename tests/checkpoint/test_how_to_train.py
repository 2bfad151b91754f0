"""how-to-train-your-gpt in the eras of its rotary code, whole and with settings missing.

The oracle is the trainer's forward pass, written out here with the table that the file stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tui_chat.checkpoint import catalog, weights
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

Weights = dict[str, torch.Tensor]
S4 = Path(__file__).parent.parent / "fixtures/S4"
WIDTH, LAYERS, ROWS, TABLE = 24, 2, 96, 64
IDS = [3, 95, 17, 0, 42, 8, 8, 61]


@dataclass
class GPTConfig:
    """The trainer's class, pickled as an object of this module."""

    vocab_size: int = ROWS
    d_model: int = WIDTH
    num_heads: int = 3
    num_layers: int = LAYERS
    max_seq_len: int = 32
    dropout: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)


def tables(dim: int, *, halves: bool, theta: float = 10000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin as the code of the two eras makes them: (TABLE, dim)."""
    frequency = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    angle = torch.outer(torch.arange(TABLE).float(), frequency)
    wide = torch.cat([angle, angle], -1) if halves else angle.repeat_interleave(2, -1)
    return wide.cos(), wide.sin()


def trained(*, heads: int = 3, halves: bool = False, theta: float = 10000.0) -> Weights:
    torch.manual_seed(1)
    cos, sin = tables(WIDTH // heads, halves=halves, theta=theta)
    found: Weights = {"token_embedding.weight": 0.5 * torch.randn(ROWS, WIDTH)}
    for i in range(LAYERS):
        at = f"layers.{i}"
        found |= {
            f"{at}.norm1.weight": 1 + 0.2 * torch.randn(WIDTH),
            f"{at}.attention.qkv_proj.weight": 0.3 * torch.randn(3 * WIDTH, WIDTH),
            f"{at}.attention.out_proj.weight": 0.3 * torch.randn(WIDTH, WIDTH),
            f"{at}.attention.rotary.cos_cached": cos.clone(),
            f"{at}.attention.rotary.sin_cached": sin.clone(),
            f"{at}.norm2.weight": 1 + 0.2 * torch.randn(WIDTH),
            f"{at}.ffn.w1.weight": 0.3 * torch.randn(4 * WIDTH, WIDTH),
            f"{at}.ffn.w2.weight": 0.3 * torch.randn(4 * WIDTH, WIDTH),
            f"{at}.ffn.w3.weight": 0.3 * torch.randn(WIDTH, 4 * WIDTH),
        }
    found["final_norm.weight"] = 1 + 0.2 * torch.randn(WIDTH)
    found["lm_head.weight"] = found["token_embedding.weight"]
    return found


def reference(w: Weights, heads: int, *, halves: bool) -> torch.Tensor:
    """(len(IDS), ROWS): what the trainer's model computes."""
    count, dim = len(IDS), WIDTH // heads

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w[f"{name}.weight"]

    def turned(x: torch.Tensor) -> torch.Tensor:
        if halves:
            return torch.cat([-x[..., dim // 2 :], x[..., : dim // 2]], -1)
        return torch.stack([-x[..., 1::2], x[..., ::2]], -1).flatten(-2)

    x = w["token_embedding.weight"][IDS]
    for i in range(LAYERS):
        at = f"layers.{i}"
        cos = w[f"{at}.attention.rotary.cos_cached"][:count]
        sin = w[f"{at}.attention.rotary.sin_cached"][:count]
        h = norm(x, f"{at}.norm1") @ w[f"{at}.attention.qkv_proj.weight"].T
        q, k, v = h.view(count, 3, heads, dim).permute(1, 2, 0, 3)
        q, k = q * cos + turned(q) * sin, k * cos + turned(k) * sin
        scores = q @ k.transpose(1, 2) / dim**0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(count, WIDTH)
        x = x + mixed @ w[f"{at}.attention.out_proj.weight"].T
        h = norm(x, f"{at}.norm2")
        gated = F.silu(h @ w[f"{at}.ffn.w1.weight"].T) * (h @ w[f"{at}.ffn.w2.weight"].T)
        x = x + gated @ w[f"{at}.ffn.w3.weight"].T
    return norm(x, "final_norm") @ w["lm_head.weight"].T


def saved(path: Path, found: Weights, **top: Any) -> str:
    root = {"model_state_dict": found, "config": GPTConfig()} | top
    torch.save({key: value for key, value in root.items() if value is not None}, path / "model.pt")
    return str(path / "model.pt")


def logits(path: str, **config: object) -> torch.Tensor:
    info = catalog.describe(path, config=config)
    model = build(info.spec, weights.load(info, dtype="float32"))
    return model.forward_all(IDS, model.new_cache())


def without(config: GPTConfig, *names: str) -> GPTConfig:
    """As a file looks whose class has changed since."""
    for name in names:
        del config.__dict__[name]
    return config


@pytest.mark.parametrize("halves", [True, False], ids=["until-2026-05-10", "since-2026-06-23"])
@pytest.mark.parametrize("heads", [1, 3, 6, 12])
def test_each_era_is_told_by_its_table(heads: int, halves: bool, tmp_path: Path) -> None:
    written = trained(heads=heads, halves=halves)
    path = saved(tmp_path, written, config=without(GPTConfig(), "num_heads"))
    wanted = reference(written, heads, halves=halves)
    torch.testing.assert_close(logits(path), wanted, atol=2e-4, rtol=1e-4)
    info = catalog.describe(path)
    assert info.spec.n_head == heads
    # Heads of two numbers turn alike in every era; older tables are without doubt.
    doubtful = not halves and heads < 12
    assert any("cannot be told" in note for note in info.inferred) is doubtful
    old = halves and heads < 12
    assert any("--config embed_scale" in note for note in info.defaults) is old


@pytest.mark.parametrize("heads", [1, 3, 6, 12])
def test_the_weeks_between_are_opened_by_name(heads: int, tmp_path: Path) -> None:
    """Tables of neighbours, heads turned by halves: the code between 2026-05-10 and 2026-06-23."""
    written = trained(heads=heads, halves=False)
    path = saved(tmp_path, written)
    wanted = reference(written, heads, halves=True)
    found = logits(path, n_head=heads, rope_layout="mismatched")
    torch.testing.assert_close(found, wanted, atol=2e-4, rtol=1e-4)


def test_the_two_layouts_differ_so_that_telling_them_matters(tmp_path: Path) -> None:
    path = saved(tmp_path, trained())
    assert (logits(path) - logits(path, rope_layout="half")).abs().max() > 0.01
    told = catalog.describe(path, config={"rope_layout": "half"})
    assert not any("cannot be told" in note for note in told.inferred)


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("theta", [500.0, 500000.0])
def test_a_table_of_another_base_is_followed_and_said(
    theta: float, halves: bool, tmp_path: Path
) -> None:
    written = trained(halves=halves, theta=theta)
    path = saved(tmp_path, written)
    info = catalog.describe(path)
    assert info.spec.rope_theta == pytest.approx(theta, rel=1e-3)
    assert any(f"has the base {theta:g}" in note for note in info.inferred)
    wanted = reference(written, 3, halves=halves)
    torch.testing.assert_close(logits(path), wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 0.0, 5e-324])
@pytest.mark.parametrize("name", ["cos_cached", "sin_cached"])
def test_a_table_that_no_base_gives_is_refused(name: str, value: float, tmp_path: Path) -> None:
    written = {key: tensor.double() for key, tensor in trained().items()}
    written[f"layers.0.attention.rotary.{name}"][1] = value
    with pytest.raises(CheckpointError, match="no base gives the angles"):
        catalog.describe(saved(tmp_path, written))


@pytest.mark.parametrize("value", [torch.zeros(8), torch.zeros(1, 8), torch.zeros(64, 0), 3, "x"])
def test_what_is_no_table_is_refused(value: object, tmp_path: Path) -> None:
    written: dict[str, Any] = trained() | {"layers.0.attention.rotary.cos_cached": value}
    with pytest.raises(CheckpointError, match="cos_cached is no table"):
        catalog.describe(saved(tmp_path, written))


@pytest.mark.parametrize("length", [0, -5, "32", 1.5, True])
def test_a_length_that_cannot_be_is_refused(length: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="context_length"):
        catalog.describe(saved(tmp_path, trained(), config=GPTConfig(max_seq_len=length)))


def test_layers_that_turn_differently_are_refused(tmp_path: Path) -> None:
    written = trained()
    other = tables(WIDTH // 3, halves=False, theta=50.0)
    written["layers.1.attention.rotary.cos_cached"] = other[0]
    written["layers.1.attention.rotary.sin_cached"] = other[1]
    with pytest.raises(CheckpointError, match="layers have different ones"):
        catalog.describe(saved(tmp_path, written))


def test_weights_and_tables_in_bfloat16_open(tmp_path: Path) -> None:
    path = saved(tmp_path, {name: value.bfloat16() for name, value in trained().items()})
    info = catalog.describe(path)
    assert (info.dtype, info.spec.rope_theta) == ("bfloat16", 10000.0)
    assert info.spec.rope_layout == "interleaved"


def test_a_file_without_tables_takes_the_heads_of_its_config(tmp_path: Path) -> None:
    written = trained()
    bare = {name: value for name, value in written.items() if "rotary" not in name}
    path = saved(tmp_path, bare)
    assert catalog.describe(path).spec.n_head == 3
    assert any("no rotary table" in warning for warning in catalog.describe(path).warnings)
    wanted = reference(written, 3, halves=False)
    torch.testing.assert_close(logits(path), wanted, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [None, "gone"])
def test_without_a_length_the_scripts_own_is_taken_and_said(
    config: str | None, tmp_path: Path
) -> None:
    left = None if config is None else without(GPTConfig(), "max_seq_len", "vocab_size", "d_model")
    path = saved(tmp_path, trained(), config=left)
    info = catalog.describe(path)
    assert (info.spec.context_length, info.spec.n_head, info.spec.n_embd) == (128, 3, WIDTH)
    assert any("max_seq_len" in note for note in info.defaults)
    told = catalog.describe(path, config={"context_length": 48})
    assert told.spec.context_length == 48
    assert not any("max_seq_len" in note for note in told.defaults)


def test_the_context_ends_where_the_table_does(tmp_path: Path) -> None:
    info = catalog.describe(saved(tmp_path, trained(), config=GPTConfig(max_seq_len=4096)))
    assert info.spec.context_length == TABLE
    assert any("4096" in note for note in info.inferred)


def test_a_config_that_contradicts_the_table_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="num_heads = 4, its tensors 3"):
        catalog.describe(saved(tmp_path, trained(), config=GPTConfig(num_heads=4)))


def test_a_bare_compiled_state_dict_opens(tmp_path: Path) -> None:
    torch.save({f"_orig_mod.{n}": w for n, w in trained().items()}, tmp_path / "weights.pt")
    info = catalog.describe(str(tmp_path / "weights.pt"))
    assert info.format == "how-to-train-your-gpt" and info.spec.n_head == 3
    assert info.plan is not None and "head.weight" not in info.plan


def test_chapter_8s_file_says_step_and_loss_and_the_scripts_file_neither() -> None:
    info = catalog.describe(str(S4 / "chapter8_best_model/best_model.pt"))
    assert (info.step, info.losses) == (5000, {"train": 3.21})
    assert info.tokenizer.kind == "none" and info.stop_ids == ()
    script = catalog.describe(str(S4 / "main_model_pt/model.pt"))
    assert (script.step, script.losses) == (None, {})
    assert script.tokenizer.text_specials == ("<|endoftext|>",) and script.stop_ids == (50256,)


def test_a_lost_matrix_is_named(tmp_path: Path) -> None:
    written = trained()
    del written["layers.1.ffn.w2.weight"]
    with pytest.raises(CheckpointError, match=r"missing: layers\.1\.ffn\.w2\.weight"):
        catalog.describe(saved(tmp_path, written))
