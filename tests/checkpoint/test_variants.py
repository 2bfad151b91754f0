"""nanoGPT files as people really leave them: every way to save, trim, wrap and
move one must give the logits of the model that was trained.
"""

from __future__ import annotations

import pickle
import shutil
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import tui_chat
from tests.checkpoint.plain_gpt import ARGS, HEADS, oracle, same
from tui_chat.cli.main import main
from tui_chat.errors import CheckpointError

Weights = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(7)


@pytest.fixture
def card(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """What `tui-chat inspect` prints, in one line."""

    def card(path: str | Path, *options: str) -> str:
        assert main(["inspect", str(path), *options]) == 0
        return " ".join(capsys.readouterr().out.split())

    return card


# ---- how the numbers lie in the file


def as_slices(weights: Weights) -> Weights:
    """All tensors cut from one storage, with something before and after."""
    flat = torch.cat([torch.randn(5), *(w.flatten() for w in weights.values()), torch.randn(9)])
    found, at = {}, 5
    for name, w in weights.items():
        found[name] = flat[at : at + w.numel()].view(w.shape)
        at += w.numel()
    return found


def as_columns(weights: Weights) -> Weights:
    """Every matrix stored turned over, every vector every third number of a longer one."""
    return {
        name: w.t().contiguous().t()
        if w.dim() == 2
        else torch.stack([w, w.neg(), w.mul(9)], 1)[:, 0]
        for name, w in weights.items()
    }


class Tagged(torch.nn.Module):
    """The weights as parameters of a module whose state dict has the trainer's names."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        for name, w in weights.items():
            owner: torch.nn.Module = self
            *path, last = name.split(".")
            for part in path:
                if part not in dict(owner.named_children()):
                    owner.add_module(part, torch.nn.Module())
                owner = owner.get_submodule(part)
            owner.register_parameter(last, torch.nn.Parameter(w))


LAYOUTS: dict[str, Callable[[Weights], Mapping[str, torch.Tensor]]] = {
    "plain": lambda w: w,
    "slices of one storage": as_slices,
    "transposed and strided": as_columns,
    "parameters": lambda w: {name: torch.nn.Parameter(t) for name, t in w.items()},
    "an ordered state_dict with metadata": lambda w: Tagged(w).state_dict(),
    "an ordered dict": OrderedDict,
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_however_the_numbers_lie_the_logits_are_those_of_the_model(
    layout: str, zipped: bool, gpt: Any, tmp_path: Path
) -> None:
    weights = gpt()
    saved = {"model": LAYOUTS[layout](weights), "model_args": ARGS, "iter_num": 7}
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert same(tmp_path / "a.pt", oracle(weights)).info.step == 7


def test_a_parameter_with_an_attribute_of_its_own_is_still_its_numbers(
    gpt: Any, nanogpt: Any
) -> None:
    weights = gpt()
    tagged = dict(weights)
    tagged["transformer.wpe.weight"] = torch.nn.Parameter(weights["transformer.wpe.weight"])
    tagged["transformer.wpe.weight"].no_decay = True
    tagged["transformer.ln_f.weight"] = weights["transformer.ln_f.weight"].clone()
    tagged["transformer.ln_f.weight"].no_decay = True  # a plain tensor pickles another way
    same(nanogpt(tagged), oracle(weights))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "mps", "xpu:0"])
def test_the_device_it_was_saved_on_does_not_matter(
    device: str, zipped: bool, gpt: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = gpt()
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: device)
        saved = {"model": weights, "model_args": ARGS, "best_val_loss": torch.tensor(1.5)}
        torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert device.encode() in (tmp_path / "a.pt").read_bytes()
    assert same(tmp_path / "a.pt", oracle(weights)).info.losses == {"val": 1.5}


@pytest.mark.parametrize("run_in", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("saved_in", ["float64", "float16", "bfloat16"])
def test_weights_of_any_precision_run_in_any_other(
    saved_in: str, run_in: str, gpt: Any, nanogpt: Any
) -> None:
    weights = {name: w.to(getattr(torch, saved_in)) for name, w in gpt().items()}
    wanted = oracle(weights)
    room = {"float32": 2e-3, "float16": 5e-3, "bfloat16": 5e-2}[run_in] * float(wanted.abs().max())
    opened = same(nanogpt(weights), wanted, room if run_in != "float32" else 2e-3, dtype=run_in)
    assert (opened.info.dtype, opened.loaded.dtype) == (saved_in, run_in)


# ---- what the model may lack or have more


@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("bias", [True, False])
def test_with_and_without_biases_under_any_prefix(
    bias: bool, prefix: str, gpt: Any, nanogpt: Any
) -> None:
    weights = gpt(bias=bias)
    path = nanogpt(
        {prefix + name: w for name, w in weights.items()}, model_args=ARGS | {"bias": bias}
    )
    opened = same(path, oracle(weights))
    removed = [text for text in opened.info.inferred if "removed" in text]
    assert bool(removed) == bool(prefix)


def test_files_from_before_the_bias_setting_have_biases(gpt: Any, nanogpt: Any) -> None:
    weights = gpt()
    assert "bias" not in ARGS
    same(nanogpt(weights, model_args=ARGS), oracle(weights))


@pytest.mark.parametrize(
    "lost",
    [
        "transformer.wpe.weight",
        "transformer.ln_f.weight",
        "transformer.ln_f.bias",
        "transformer.h.1.ln_2.bias",
        "transformer.h.0.attn.c_attn.weight",
        "transformer.h.*.attn.c_attn.bias",
        "transformer.h.*.mlp.c_proj.bias",
        "transformer.h.*.ln_1.bias",
        "transformer.h.*.ln_1.weight",
    ],
)
def test_a_file_that_lost_tensors_is_refused_by_their_names(
    lost: str, gpt: Any, nanogpt: Any
) -> None:
    names = {lost.replace("*", str(i)) for i in range(2)}
    left = {name: w for name, w in gpt().items() if name not in names}
    with pytest.raises(CheckpointError) as caught:
        tui_chat.open(nanogpt(left))
    assert min(names) in str(caught.value)


def test_settings_that_promise_biases_are_held_to_it(gpt: Any, nanogpt: Any) -> None:
    with pytest.raises(CheckpointError, match=r"bias"):
        tui_chat.open(nanogpt(gpt(bias=False), model_args=ARGS | {"bias": True}))


def test_a_last_layer_that_was_cut_off_is_noticed(gpt: Any, nanogpt: Any) -> None:
    left = {name: w for name, w in gpt().items() if "h.1." not in name}
    with pytest.raises(CheckpointError, match=r"n_layer = 2, its tensors 1.*--config n_layer=1"):
        tui_chat.open(nanogpt(left))
    same(nanogpt(left), oracle(left), config={"n_layer": 1})


def test_a_tensor_that_nobody_knows_is_named(gpt: Any, nanogpt: Any) -> None:
    more = gpt() | {"transformer.h.0.attn.lora_A": torch.zeros(2, 8)}
    with pytest.raises(CheckpointError, match=r"left over: transformer\.h\.0\.attn\.lora_A"):
        tui_chat.open(nanogpt(more))


def test_the_mean_of_the_last_steps_opens_like_a_step(nanogpt: Any, gpt: Any) -> None:
    weights = gpt()
    averaged = torch.optim.swa_utils.AveragedModel(torch.nn.Linear(1, 1)).state_dict()
    held = {f"module.{name}": weight for name, weight in weights.items()}
    opened = same(nanogpt(held | {"n_averaged": averaged["n_averaged"]}), oracle(weights))
    assert "n_averaged: not needed to compute the model" in opened.info.unused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_mask_buffers_do_not_count_as_biases(dtype: torch.dtype, gpt: Any, nanogpt: Any) -> None:
    weights = gpt(bias=False)
    masks = {
        f"transformer.h.{i}.attn.{name}": torch.ones(1, 1, 16, 16).tril().to(dtype)
        for i in range(2)
        for name in ("bias", "masked_bias")
    }
    path = nanogpt(weights | masks, model_args=ARGS | {"bias": False})
    same(path, oracle(weights))


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_a_head_of_its_own_makes_the_output(zipped: bool, gpt: Any, tmp_path: Path) -> None:
    weights = gpt()
    copied = weights | {"lm_head.weight": weights["transformer.wte.weight"].clone()}
    untied = weights | {"lm_head.weight": torch.randn(65, 8)}
    bare = {name: w for name, w in weights.items() if name != "lm_head.weight"}
    for n, found in enumerate((copied, untied, bare)):
        path = tmp_path / f"{n}.pt"
        saved = {"model": found, "model_args": ARGS}
        torch.save(saved, path, _use_new_zipfile_serialization=zipped)
        same(path, oracle(found))
    assert not torch.allclose(oracle(untied), oracle(copied), atol=0.01)


# ---- what stands around the weights


@pytest.mark.parametrize(
    "key", ["model", "state_dict", "model_state_dict", "model_state", "weights", ""]
)
def test_weights_under_other_keys_or_bare_open_with_the_number_of_heads(
    key: str, gpt: Any, tmp_path: Path, card: Callable[..., str]
) -> None:
    weights = gpt()
    torch.save({key: weights} if key else weights, tmp_path / "weights")
    with pytest.raises(CheckpointError, match=r"n_head.*--config n_head=N"):
        tui_chat.open(str(tmp_path / "weights"))
    for heads in (1, 2, 4):
        wanted = oracle(weights, heads=heads)
        same(tmp_path / "weights", wanted, config={"n_head": heads})
    with pytest.raises(CheckpointError, match="3"):
        tui_chat.open(str(tmp_path / "weights"), config={"n_head": 3})
    assert "2 heads" in card(tmp_path / "weights", "--config", "n_head=2")


def test_each_part_around_the_weights_may_be_missing(gpt: Any, nanogpt: Any) -> None:
    weights = gpt()
    for missing in ("optimizer", "iter_num", "best_val_loss", "config"):
        opened = same(nanogpt(weights, **{missing: None}), oracle(weights))
        assert (opened.info.step is None) == (missing == "iter_num")
        assert (opened.info.losses == {}) == (missing == "best_val_loss")
    trimmed = {key: value for key, value in ARGS.items() if key != "n_head"}
    with pytest.raises(CheckpointError, match="n_head"):
        tui_chat.open(nanogpt(weights, model_args=trimmed))
    same(nanogpt(weights, model_args=trimmed), oracle(weights), config={"n_head": HEADS})
    said = {"dataset": "x", "n_head": HEADS}  # the script's own settings say it as well
    same(nanogpt(weights, model_args=trimmed, config=said), oracle(weights))


def test_step_and_loss_are_numbers_however_they_were_kept(
    gpt: Any, nanogpt: Any, card: Callable[..., str]
) -> None:
    kept: list[Any] = [1.5, torch.tensor(1.5), torch.tensor([1.5]), torch.tensor(1.5).bfloat16()]
    for loss in kept:
        path = nanogpt(best_val_loss=loss, iter_num=torch.tensor(900))
        assert "step 900" in card(path) and "1.5" in card(path)
    for loss in (torch.tensor(1e9), float("nan"), float("inf"), "1.5", [1.5]):
        info = tui_chat.open(nanogpt(best_val_loss=loss, iter_num=-1)).info
        assert info.losses == {} and info.step is None


def test_a_file_of_any_name_in_any_folder_opens(gpt: Any, nanogpt: Any, tmp_path: Path) -> None:
    weights = gpt()
    path = nanogpt(weights)
    for name in ("my model.bin", "ckpt", "ckpt.pt.bak", "日本/x.safetensors", "a.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / name)
        assert same(tmp_path / name, oracle(weights)).info.format == "nanoGPT"


# ---- the tokenizer


def meta(path: Path, text: str) -> None:
    chars = sorted(set(text))
    table = {
        "vocab_size": len(chars),
        "itos": dict(enumerate(chars)),
        "stoi": {char: n for n, char in enumerate(chars)},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(table))


LETTERS = "".join(map(chr, range(40, 105)))  # 65 characters


@pytest.mark.parametrize(
    "place", ["data/tiny/meta.pkl", "out/meta.pkl", "out/data/tiny/meta.pkl", "out/tiny/meta.pkl"]
)
def test_the_characters_are_found_where_scripts_and_people_leave_them(
    place: str, nanogpt: Any, tmp_path: Path, card: Callable[..., str]
) -> None:
    meta(tmp_path / place, LETTERS)
    path = nanogpt()
    opened = tui_chat.open(path)
    assert opened.encode("CAé(\n") == [27, 25, 0] and opened.decode([27, 25, 0, 65, -1]) == "CA("
    assert "chars, 65 ids" in card(path) and "meta.pkl" in card(path)
    assert len(opened.prompt_ids([{"role": "user", "content": "HA"}])) > 2
    assert opened.info.mode == "raw" and opened.info.stop_ids == ()


def test_without_the_characters_it_says_which_file_to_bring(
    nanogpt: Any, tmp_path: Path, card: Callable[..., str]
) -> None:
    path = nanogpt()
    assert "! no tokenizer found for 65 ids: put the data/tiny/meta.pkl" in card(path)
    meta(tmp_path / "elsewhere/meta.pkl", LETTERS)
    opened = tui_chat.open(path, tokenizer=str(tmp_path / "elsewhere/meta.pkl"))
    assert opened.encode("HA") == [32, 25] and opened.info.warnings == ()


@pytest.mark.usefixtures("ranks")
def test_padded_rows_of_gpt2_are_never_offered(
    gpt: Any, nanogpt: Any, tmp_path: Path, card: Callable[..., str]
) -> None:
    weights = gpt(rows=50304)
    meta(tmp_path / "out/meta.pkl", LETTERS)  # of another training: it has 65 of 50,304 ids
    path = nanogpt(weights, model_args=ARGS | {"vocab_size": 50304})
    opened = same(path, oracle(weights)[:50257])
    assert opened.encode("a<|endoftext|>") == [97, 50256]
    assert opened.decode([97, 50257, 50303, 99999, -1, 98]) == "ab"
    assert opened.info.stop_ids == (50256,)
    assert "tiktoken gpt2, 50,257 ids" in card(path) and "50,304 rows" in card(path)
