"""GPT10.4 in every spelling that is read, against its forward pass as the course describes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tui_chat.checkpoint import catalog, weights
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

Weights = dict[str, torch.Tensor]
S1 = Path(__file__).parent.parent / "fixtures/S1"
WIDTH, LAYERS, ROWS, POSITIONS, HEADS = 24, 2, 96, 16, 3
IDS = [3, 95, 17, 0, 42, 8, 8]
MATRICES = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def course(*, bias: bool = True, width: int = WIDTH) -> Weights:
    """The weights under the names of the course."""
    torch.manual_seed(2)
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(LAYERS):
        shapes |= {
            f"blocks.{i}.ln1": (width,),
            f"blocks.{i}.attn.c_attn": (3 * width, width),
            f"blocks.{i}.attn.c_proj": (width, width),
            f"blocks.{i}.ln2": (width,),
            f"blocks.{i}.ffn.c_fc": (4 * width, width),
            f"blocks.{i}.ffn.c_proj": (width, 4 * width),
        }
    shapes["ln_f"] = (width,)
    found = {
        "token_embedding.weight": 0.5 * torch.randn(ROWS, width),
        "position_embedding.weight": 0.5 * torch.randn(POSITIONS, width),
    }
    for name, shape in shapes.items():
        found[f"{name}.weight"] = 0.3 * torch.randn(shape)
        if bias:
            found[f"{name}.bias"] = 0.3 * torch.randn(shape[0])
    return found | {"lm_head.weight": found["token_embedding.weight"]}


def reference(w: Weights, *, heads: int = HEADS, gelu: str = "tanh") -> torch.Tensor:
    """(len(IDS), ROWS): GPT-2's arithmetic under the names of the course."""
    count = len(IDS)

    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{at}.weight"], w.get(f"{at}.bias"), 1e-5)

    def linear(x: torch.Tensor, at: str) -> torch.Tensor:
        return F.linear(x, w[f"{at}.weight"], w.get(f"{at}.bias"))

    x = w["token_embedding.weight"][IDS] + w["position_embedding.weight"][:count]
    width = x.shape[1]
    for i in range(LAYERS):
        at = f"blocks.{i}"
        qkv = linear(norm(x, f"{at}.ln1"), f"{at}.attn.c_attn").chunk(3, -1)
        q, k, v = (part.view(count, heads, width // heads).transpose(0, 1) for part in qkv)
        scores = q @ k.transpose(1, 2) / (width // heads) ** 0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(count, width)
        x = x + linear(mixed, f"{at}.attn.c_proj")
        h = F.gelu(linear(norm(x, f"{at}.ln2"), f"{at}.ffn.c_fc"), approximate=gelu)
        x = x + linear(h, f"{at}.ffn.c_proj")
    return norm(x, "ln_f") @ w["lm_head.weight"].T


def settings(**changes: object) -> dict[str, object]:
    found: dict[str, object] = {
        "context_length": POSITIONS,
        "vocab_size": ROWS,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "d_model": WIDTH,
        "dropout": 0.1,
    }
    return {key: value for key, value in (found | changes).items() if value is not None}


def saved(path: Path, found: Weights, **top: Any) -> str:
    root = {"model": found, "config": settings(), "optimizer": {"state": {}}} | top
    torch.save({key: value for key, value in root.items() if value is not None}, path / "ckpt.pt")
    return str(path / "ckpt.pt")


def logits(path: str, **config: object) -> torch.Tensor:
    info = catalog.describe(path, config=config)
    model = build(info.spec, weights.load(info))
    return model.forward_all(IDS, model.new_cache())


def spelled(found: Weights, words: dict[str, str], prefix: str = "") -> Weights:
    """The same numbers with parts of their names replaced, all but the head within `prefix`."""
    renamed: Weights = {}
    for name, value in found.items():
        parts = [words.get(part, part) for part in name.split(".")]
        renamed[("" if parts[0] == "lm_head" else prefix) + ".".join(parts)] = value
    return renamed


GPT2_WORDS = {
    "token_embedding": "wte",
    "position_embedding": "wpe",
    "blocks": "h",
    "ln1": "ln_1",
    "ln2": "ln_2",
    "ffn": "mlp",
}
SPELLINGS: dict[str, tuple[dict[str, str], str]] = {
    "course": ({}, ""),
    "short-embeddings": ({"token_embedding": "tok_emb", "position_embedding": "pos_emb"}, ""),
    "underscores": ({"ln1": "ln_1", "ln2": "ln_2"}, ""),
    "mlp": ({"ffn": "mlp"}, ""),
    "gpt2": (GPT2_WORDS, ""),
    "nanogpt": (GPT2_WORDS, "transformer."),
    "within": ({}, "transformer."),
    "compiled": ({}, "_orig_mod."),
}


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("conv1d", [False, True], ids=["linear", "conv1d"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_gives_the_logits_of_the_course(
    spelling: str, conv1d: bool, bias: bool, tmp_path: Path
) -> None:
    written = course(bias=bias)
    stored = {
        name: value.t().contiguous() if conv1d and name.endswith(MATRICES) else value
        for name, value in written.items()
    }
    path = saved(tmp_path, spelled(stored, *SPELLINGS[spelling]))
    info = catalog.describe(path)
    assert info.format == "GPT10.4" and info.spec.n_head == HEADS
    assert info.plan is not None and "head.weight" not in info.plan
    torch.testing.assert_close(logits(path), reference(written), atol=2e-4, rtol=1e-4)


def test_the_form_of_gelu_is_said_to_be_a_guess_and_can_be_given(tmp_path: Path) -> None:
    written = course()
    written["ln_f.weight"] *= 30  # the two forms are close to each other
    path = saved(tmp_path, written)
    assert any("--config activation=gelu" in w for w in catalog.describe(path).defaults)
    exact, tanh = reference(written, gelu="none"), reference(written)
    assert (exact - tanh).abs().max() > 1e-3
    found = logits(path, activation="gelu")
    assert (found - exact).abs().max() < 0.1 * (exact - tanh).abs().max()
    assert not any(
        "GELU" in w for w in catalog.describe(path, config={"activation": "gelu"}).defaults
    )


def test_masks_are_no_weights(tmp_path: Path) -> None:
    written = course()
    mask = torch.ones(1, 1, POSITIONS, POSITIONS).tril()
    masks = {f"blocks.0.attn.{n}": mask for n in ("bias", "mask", "tril")}
    plain = catalog.describe(saved(tmp_path, written))
    assert catalog.describe(saved(tmp_path, written | masks)).parameters == plain.parameters


def test_a_head_of_its_own_is_used(tmp_path: Path) -> None:
    written = course() | {"lm_head.weight": torch.randn(ROWS, WIDTH)}
    path = saved(tmp_path, written)
    torch.testing.assert_close(logits(path), reference(written), atol=2e-4, rtol=1e-4)


def test_missing_heads_are_those_of_the_class_and_said(tmp_path: Path) -> None:
    path = saved(tmp_path, course(), config=settings(n_heads=None))
    info = catalog.describe(path)
    assert info.spec.n_head == 12
    assert any("12 is the default" in note for note in info.defaults)
    told = catalog.describe(path, config={"n_head": HEADS})
    assert not any("12 is the default" in note for note in told.defaults)
    torch.testing.assert_close(
        logits(path, n_head=HEADS), reference(course()), atol=2e-4, rtol=1e-4
    )


def test_bare_weights_open_by_their_names_with_a_guess(tmp_path: Path) -> None:
    torch.save(course(width=128), tmp_path / "weights.pt")
    info = catalog.describe(str(tmp_path / "weights.pt"))
    assert (info.format, info.spec.n_head) == ("GPT10.4", 2)
    assert any("width 128 / 64" in note for note in info.inferred)


def test_a_config_in_other_words_is_not_filled_up_with_defaults(tmp_path: Path) -> None:
    path = saved(tmp_path, course(), config={"n_head": HEADS, "lr": 1e-3})
    assert catalog.describe(path).spec.n_head == HEADS
    path = saved(tmp_path, course(), config={"lr": 1e-3})
    with pytest.raises(CheckpointError, match=r"--config n_head=N"):
        catalog.describe(path)


def test_nanogpt_stays_nanogpt(tmp_path: Path) -> None:
    written = spelled(course(), *SPELLINGS["nanogpt"])
    args = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": POSITIONS}
    path = saved(tmp_path, written, model_args=args, config={"dataset": "tiny"})
    assert catalog.describe(path).format == "nanoGPT"


def test_the_weights_of_gpt2_alone_are_not_claimed(tmp_path: Path) -> None:
    from tui_chat.checkpoint.formats import gpt10
    from tui_chat.checkpoint.source import Source

    bare = spelled(course(), GPT2_WORDS)
    conv1d = {n: w.t().contiguous() if n.endswith(MATRICES) else w for n, w in bare.items()}
    torch.save(conv1d, tmp_path / "pytorch_model.bin")
    assert gpt10.recognise(Source(str(tmp_path / "pytorch_model.bin"))) == 0.0


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"n_layers": 3}, "n_layers = 3, its tensors 2"),
        ({"d_model": 32}, "d_model = 32, its tensors 24"),
        ({"context_length": 99}, "context_length = 99, its tensors 16"),
        ({"n_heads": 5}, "not divisible by n_head 5"),
    ],
)
def test_a_config_that_contradicts_the_tensors_is_refused(
    said: dict[str, object], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        catalog.describe(saved(tmp_path, course(), config=settings(**said)))


def test_a_lost_tensor_is_named_in_the_files_own_spelling(tmp_path: Path) -> None:
    written = spelled(course(), GPT2_WORDS)
    del written["h.1.mlp.c_fc.weight"]
    with pytest.raises(CheckpointError, match=r"missing: h\.1\.mlp\.c_fc\.weight"):
        catalog.describe(saved(tmp_path, written))


def test_the_fixture_says_step_and_loss_and_reads_no_control_token_in_text() -> None:
    info = catalog.describe(str(S1 / "gpt2_vocab/out/ckpt.pt"))
    assert (info.step, info.losses, info.run) == (300, {"val": 4.2}, "out")
    assert info.tokenizer.name == "gpt2" and info.tokenizer.text_specials == ()
    small = catalog.describe(str(S1 / "small_vocab/out/ckpt.pt"))
    assert small.tokenizer.kind == "none"
    assert any("--tokenizer" in warning for warning in small.warnings)
