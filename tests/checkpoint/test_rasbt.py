"""The book's GPT in both spellings, with and without biases, wrapped and bare: always the logits of
its own forward pass, which is written out here under the book's names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.formats.rasbt import TEMPLATE
from tui_chat.conversation import Turn
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build
from tui_chat.templates.open import open_template
from tui_chat.tokenizers.bpe import GPT2_PATTERN, Bpe

Weights = dict[str, torch.Tensor]
FIXTURE = Path(__file__).parent.parent / "fixtures/rasbt/gpt-bare-bf16/model.pth"
WIDTH, LAYERS, ROWS, POSITIONS = 64, 2, 96, 16
IDS = [3, 95, 17, 0, 42, 8, 8]


def book(*, qkv_bias: bool = False, width: int = WIDTH, rows: int = ROWS) -> Weights:
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (rows, width),
        "pos_emb.weight": (POSITIONS, width),
    }
    for i in range(LAYERS):
        at = f"trf_blocks.{i}"
        for part in ("W_query", "W_key", "W_value", "out_proj"):
            shapes[f"{at}.att.{part}.weight"] = (width, width)
            if qkv_bias or part == "out_proj":
                shapes[f"{at}.att.{part}.bias"] = (width,)
        shapes |= {
            f"{at}.ff.layers.0.weight": (4 * width, width),
            f"{at}.ff.layers.0.bias": (4 * width,),
            f"{at}.ff.layers.2.weight": (width, 4 * width),
            f"{at}.ff.layers.2.bias": (width,),
        }
        shapes |= {
            f"{at}.{n}.{w}": (width,) for n in ("norm1", "norm2") for w in ("scale", "shift")
        }
    shapes |= {"final_norm.scale": (width,), "final_norm.shift": (width,)}
    shapes["out_head.weight"] = (rows, width)
    found = {name: 0.3 * torch.randn(shape) for name, shape in shapes.items()}
    masks = torch.ones(POSITIONS, POSITIONS).triu(1)
    return found | {f"trf_blocks.{i}.att.mask": masks for i in range(LAYERS)}


def fused(separate: Weights) -> Weights:
    """The same numbers under the faster variant's names."""
    found: Weights = {}
    for name, value in separate.items():
        for old, new in (("out_proj", "proj"), (".scale", ".weight"), (".shift", ".bias")):
            name = name.replace(old, new)
        if ".W_" not in name and not name.endswith("mask"):
            found[name] = value
    for i in range(LAYERS):
        for suffix in ("weight", "bias"):
            at = f"trf_blocks.{i}.att"
            parts = [separate.get(f"{at}.W_{p}.{suffix}") for p in ("query", "key", "value")]
            if parts[0] is not None:
                found[f"{at}.qkv.{suffix}"] = torch.cat([p for p in parts if p is not None])
    return found


def reference(w: Weights, heads: int) -> torch.Tensor:
    """(len(IDS), ROWS): what the book's model computes."""

    def norm(x: torch.Tensor, at: str) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        spread = x.var(-1, keepdim=True, unbiased=False)
        return w[f"{at}.scale"] * centred / torch.sqrt(spread + 1e-5) + w[f"{at}.shift"]

    count = len(IDS)
    width = w["tok_emb.weight"].shape[1]
    x = w["tok_emb.weight"][IDS] + w["pos_emb.weight"][:count]
    for i in range(LAYERS):
        at = f"trf_blocks.{i}"
        h = norm(x, f"{at}.norm1")
        q, k, v = (
            F.linear(h, w[f"{at}.att.W_{p}.weight"], w.get(f"{at}.att.W_{p}.bias"))
            .view(count, heads, width // heads)
            .transpose(0, 1)
            for p in ("query", "key", "value")
        )
        scores = q @ k.transpose(1, 2) / (width // heads) ** 0.5
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf)
        mixed = (scores.softmax(-1) @ v).transpose(0, 1).reshape(count, width)
        x = x + F.linear(mixed, w[f"{at}.att.out_proj.weight"], w[f"{at}.att.out_proj.bias"])
        h = norm(x, f"{at}.norm2")
        h = F.linear(h, w[f"{at}.ff.layers.0.weight"], w[f"{at}.ff.layers.0.bias"])
        cubic = (2 / torch.pi) ** 0.5 * (h + 0.044715 * h**3)
        h = 0.5 * h * (1 + torch.tanh(cubic))
        x = x + F.linear(h, w[f"{at}.ff.layers.2.weight"], w[f"{at}.ff.layers.2.bias"])
    return norm(x, "final_norm") @ w["out_head.weight"].T


def logits(path: Path, **config: object) -> torch.Tensor:
    info = catalog.describe(str(path), config=config)
    model = build(info.spec, weights.load(info))
    return model.forward_all(IDS, model.new_cache())


def same(found: Weights) -> Weights:
    return found


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("spelling", [same, fused])
@pytest.mark.parametrize("heads", [1, 4])
def test_both_spellings_give_the_books_logits(
    spelling: Callable[[Weights], Weights], qkv_bias: bool, heads: int, tmp_path: Path
) -> None:
    written = book(qkv_bias=qkv_bias)
    torch.save(spelling(written), tmp_path / "model.pth")
    found = logits(tmp_path / "model.pth", n_head=heads)
    torch.testing.assert_close(found, reference(written, heads), atol=2e-4, rtol=1e-4)


def test_a_file_with_its_optimizer_opens_like_the_bare_one(tmp_path: Path) -> None:
    written = book()
    torch.save(written, tmp_path / "model.pth")
    whole = {
        "model_state_dict": {f"_orig_mod.{name}": value for name, value in written.items()},
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.zeros(3)}}},
    }
    torch.save(whole, tmp_path / "model_and_optimizer.pth")
    bare = catalog.describe(str(tmp_path / "model.pth"))
    info = catalog.describe(str(tmp_path / "model_and_optimizer.pth"))
    assert info.format == bare.format == "LLMs from scratch"
    assert info.fingerprint == bare.fingerprint and info.spec == bare.spec
    assert any("_orig_mod." in note for note in info.inferred)


def test_the_number_of_heads_is_the_books_and_said_to_be_a_guess(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save(book(width=192), path)
    info = catalog.describe(str(path))
    assert info.spec.n_head == 3
    assert any("3 is width 192 / 64" in note for note in info.inferred)
    told = catalog.describe(str(path), config={"n_head": 6})
    assert told.spec.n_head == 6
    assert not any("/ 64" in note for note in told.inferred)


def test_a_width_that_no_configuration_has_asks_for_the_heads() -> None:
    with pytest.raises(CheckpointError, match=r"n_head.*--config n_head=N"):
        catalog.describe(str(FIXTURE))


def test_the_users_settings_file_says_the_heads(tmp_path: Path) -> None:
    (tmp_path / "book.json").write_text('{"n_heads": 2}')
    info = catalog.describe(str(FIXTURE), config_file=str(tmp_path / "book.json"))
    assert info.spec.n_head == 2 and info.tokenizer.name == "gpt2"
    assert info.tokenizer.text_specials == ("<|endoftext|>",) and info.stop_ids == (50256,)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("gpt2-medium355M-sft.pth", "chat"),
        ("sft_model.pth", "chat"),
        ("model_pg_final.pth", "raw"),
        ("swiftsfts.pth", "raw"),
    ],
)
def test_only_the_name_tells_a_tuned_model_and_a_warning_says_so(
    name: str, mode: str, tmp_path: Path
) -> None:
    torch.save(book(width=4, rows=50257), tmp_path / name)
    info = catalog.describe(str(tmp_path / name), config={"n_head": 2})
    assert (info.mode, info.template.name) == (mode, "alpaca")
    assert any("tuned on instructions" in note for note in info.inferred)


def test_the_name_tells_the_step_of_a_longer_training(tmp_path: Path) -> None:
    for step in (1000, 500):
        torch.save(book(width=64), tmp_path / f"model_pg_{step}.pth")
    (run,) = catalog.scan([str(tmp_path)])
    assert [found.step for found in run.checkpoints] == [500, 1000]
    info = catalog.describe(run.checkpoints[0].path)
    assert info.step == 500 and "step 500: from the name of the file" in info.inferred


def test_a_chat_is_written_in_the_layout_of_chapter_7() -> None:
    bytes_and_end = {bytes([n]): n for n in range(256)}
    tokenizer = Bpe("bytes", bytes_and_end, {"<|endoftext|>": 256}, GPT2_PATTERN)
    template = open_template(TEMPLATE, tokenizer)
    assert template is not None
    asked = [Turn("user", "Name a fruit."), Turn("assistant", "Fig."), Turn("user", "Another.")]
    head = (
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n"
    )
    first = f"{head}Name a fruit.\n\n### Response:\nFig."
    second = f"{head}Another.\n\n### Response:\n"
    assert template.render(asked).ids == [*first.encode(), 256, *second.encode()]
    ruled = template.render([Turn("system", "Be brief."), Turn("user", "Hi")]).ids
    assert bytes(ruled) == f"Be brief.\n\n{head}Hi\n\n### Response:\n".encode()
    assert template.stop_ids == {256}
    assert template.stop_strings == ("\n\n### Instruction:",)


def test_a_head_that_repeats_the_embedding_is_read_once(tmp_path: Path) -> None:
    written = book()
    written["out_head.weight"] = written["tok_emb.weight"].clone()
    torch.save(written, tmp_path / "model.pth")
    info = catalog.describe(str(tmp_path / "model.pth"))
    assert info.plan is not None and "head.weight" not in info.plan
    torch.testing.assert_close(
        logits(tmp_path / "model.pth"), reference(written, 1), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("out_head.weight", "out_head.weight is missing"),
        ("trf_blocks.1.att.W_key.weight", "missing: trf_blocks.1.att.W_key.weight"),
        ("trf_blocks.1.norm2.shift", r"missing: .*1\.(mlp_norm|norm2)\.bias"),
    ],
)
def test_a_lost_tensor_is_named(lost: str, reason: str, tmp_path: Path) -> None:
    written = book()
    del written[lost]
    torch.save(written, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=reason):
        catalog.describe(str(tmp_path / "model.pth"))


def test_the_books_llama_is_not_taken_for_its_gpt(tmp_path: Path) -> None:
    written = {name: value for name, value in book().items() if "pos_emb" not in name}
    written = {
        name.replace("ff.layers.0", "ff.fc1").replace("ff.layers.2", "ff.fc3"): value
        for name, value in written.items()
    }
    torch.save(written, tmp_path / "llama.pth")
    with pytest.raises(CheckpointError) as caught:
        catalog.describe(str(tmp_path / "llama.pth"))
    assert "tok_emb.weight" in caught.value.found
