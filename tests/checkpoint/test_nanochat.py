"""nanochat's checkpoints: what the file says, what its month is known by, and files that lie."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tui_chat
from tests.model.nanochat_oracle import Month, Weights, logits, random_weights
from tui_chat.checkpoint import catalog
from tui_chat.errors import CheckpointError

FIXTURE = Path(__file__).parent.parent / "fixtures/nanochat/d4"
MODEL = FIXTURE / "chatsft_checkpoints/d4/model_000400.pt"
SIZES = {"sequence_len": 300, "vocab_size": 64, "n_layer": 3, "n_head": 4, "n_kv_head": 2}
IDS = [(11 * n + 5) % 64 for n in range(290)]

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves tensors as the trainer does and returns the model's path. Keywords replace settings,
    None leaves one out; `meta` replaces the whole JSON, None leaves it out."""

    def make(
        weights: Weights, place: str = "base_checkpoints/d3", *, step: int = 7, **changes: Any
    ) -> Path:
        folder = tmp_path / place
        folder.mkdir(parents=True, exist_ok=True)
        settings = SIZES | {"n_embd": weights["transformer.wte.weight"].shape[1]}
        settings["n_layer"] = sum(name.endswith("c_fc.weight") for name in weights)
        default = {"step": step, "model_config": settings}
        meta = changes.pop("meta", default)
        if meta is default:
            settings.update(changes)
            meta["model_config"] = {k: v for k, v in settings.items() if v is not None}
        if meta is not None:
            (folder / f"meta_{step:06d}.json").write_text(json.dumps(meta))
        torch.save(weights, folder / f"model_{step:06d}.pt")
        return folder / f"model_{step:06d}.pt"

    return make


def compare(path: Path, weights: Weights, month: Month, **config: Any) -> None:
    """Logits of the opened file and of the arithmetic written out, over the whole context."""
    opened = tui_chat.open(str(path), config=config or None)
    for count in (1, 2, 150, 290):
        wanted = logits(weights, IDS[:count], month)[-1].float()
        found = opened.next_logits(IDS[:count])
        torch.testing.assert_close(found, wanted[: len(found)], atol=5e-4, rtol=5e-4)


# ---- the trainer's own file


def test_a_chat_model_is_read_with_its_tokenizer_two_directories_up() -> None:
    info = catalog.describe(str(MODEL))
    assert (info.format, info.run, info.step) == ("nanochat", "d4-sft", 400)
    assert info.losses == {"val_bpb": 0.9123}
    assert (info.tokenizer.kind, info.tokenizer.vocab_size) == ("nanochat", 512)
    assert info.tokenizer.path.endswith("d4/tokenizer/tokenizer.pkl")
    assert (info.template.name, info.mode) == ("nanochat", "chat")
    assert set(info.stop_ids) == {503, 507} and info.text_start == (503,)
    assert info.spec.window == (129, 129, 129, 0) and info.spec.qk_scale == 1.2
    assert any("14 March 2026" in text for text in info.inferred)
    assert any("loop_state" in text and "of meta_000400.json" in text for text in info.unused)
    assert any("logit_softcap 15" in text for text in info.defaults)
    assert info.warnings == ()


def test_the_directory_of_a_model_opens_its_newest_step(save: Save) -> None:
    weights = random_weights()
    save(weights, step=20)
    path = save(weights, step=100)
    torch.save({"state": {}}, path.with_name("optim_000100_rank0.pt"))
    assert catalog.describe(str(path.parent)).step == 100
    assert catalog.describe(str(path.parent), step=20).step == 20
    (run,) = catalog.scan([str(path.parent.parent)])
    assert [entry.step for entry in run.checkpoints] == [20, 100] and run.name == "d3-base"


def test_all_stages_are_told_apart(save: Save) -> None:
    for place, mode, run in (
        ("base_checkpoints/d3", "raw", "d3-base"),
        ("mid_checkpoints/d3", "chat", "d3-mid"),
        ("chatsft_checkpoints/d3", "chat", "d3-sft"),
        ("chatrl_checkpoints/d3", "chat", "d3-rl"),
    ):
        path = save(random_weights(rows=512), place, vocab_size=512)
        shutil.copytree(FIXTURE / "tokenizer", path.parents[2] / "tokenizer", dirs_exist_ok=True)
        info = catalog.describe(str(path))
        assert (info.mode, info.run, info.text_start) == (mode, run, (503,))


def test_a_reinforced_models_meta_holds_only_its_sizes(save: Save) -> None:
    path = save(random_weights(), "chatrl_checkpoints/d3")
    path.with_name("meta_000007.json").write_text(
        json.dumps({"model_config": SIZES | {"n_embd": 32, "window_pattern": "L"}})
    )
    info = catalog.describe(str(path))
    assert (info.step, info.losses, info.spec.window) == (7, {}, ())


# ---- every month


def test_files_from_march_2026_on(save: Save) -> None:
    weights = random_weights()
    path = save(weights, window_pattern="SSL")
    compare(path, weights, Month(4, 2, pattern="SSL", short=128))


def test_without_a_window_pattern_every_layer_sees_all(save: Save) -> None:
    weights = random_weights()
    path = save(weights)
    compare(path, weights, Month(4, 2))
    assert any("window_pattern" in text for text in catalog.describe(str(path)).defaults)


def test_missing_lambdas_change_nothing(save: Save) -> None:
    weights = random_weights()
    bare = {name: t for name, t in weights.items() if name not in ("resid_lambdas", "x0_lambdas")}
    compare(save(bare), bare, Month(4, 2))
    neutral = bare | {"resid_lambdas": torch.ones(3), "x0_lambdas": torch.zeros(3)}
    torch.testing.assert_close(
        tui_chat.open(str(save(neutral, "a/b"))).next_logits(IDS[:9]),
        tui_chat.open(str(save(bare, "c/d"))).next_logits(IDS[:9]),
    )


@pytest.mark.parametrize(
    ("parts", "gate", "month"),
    [
        ("lambdas values", 12, Month(4, 2, "SSSL", 128, 100_000.0, 1.15)),
        ("lambdas values", 32, Month(4, 2, "SSSL", 150, 1e4, 1.0, 2.0, bfloat16_angles=True)),
        ("lambdas values pairs", 32, Month(4, 2, "S", 150, 1e4, 1.0, 2.0, bfloat16_angles=True)),
        ("lambdas", 0, Month(4, 2, "SL", 150, 1e4, 1.0, bfloat16_angles=True)),
        ("", 0, Month(4, 2, "L", 0, 1e4, 1.0, bfloat16_angles=True)),
    ],
    ids=["9 March 2026", "17 January", "27 January", "11 January", "October 2025"],
)
def test_older_files_are_known_by_what_they_lack(
    save: Save, parts: str, gate: int, month: Month
) -> None:
    weights = random_weights(parts=parts, gate=gate, layers=4)
    path = save(weights, window_pattern=month.pattern if parts else None)
    compare(path, weights, month)


def test_the_softcap_of_one_week_can_be_given(save: Save) -> None:
    weights = random_weights(parts="lambdas values", gate=32)
    month = Month(4, 2, "L", 0, 1e4, 1.0, 2.0, bfloat16_angles=True)
    path = save(weights, window_pattern="L")
    assert any("logit_softcap=20" in text for text in catalog.describe(str(path)).inferred)
    compare(path, weights, replace(month, softcap=20.0), logit_softcap=20.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_embeddings_stored_in_16_bits(save: Save, dtype: torch.dtype) -> None:
    weights = random_weights()
    for name in weights:
        if "wte" in name or "value_embeds" in name:
            weights[name] = weights[name].to(dtype)
    compare(save(weights), weights, Month(4, 2))


def test_padded_rows_are_left_out(save: Save) -> None:
    weights = random_weights(rows=128)
    path = save(weights, vocab_size=70)
    info = catalog.describe(str(path))
    assert info.spec.vocab_size == 70
    assert any("58 of the 128 rows are padding" in text for text in info.inferred)
    assert len(tui_chat.open(str(path)).next_logits([1])) == 70
    compare(path, weights, Month(4, 2))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda w: {f"_orig_mod.{name}": t for name, t in w.items()},
        lambda w: {f"module._orig_mod.{name}": t for name, t in w.items()},
        lambda w: {"model": w},
        lambda w: {"model": w, "optimizer": {"state": {}}},
    ],
)
def test_wrapped_weights(save: Save, wrap: Callable[[Weights], Any]) -> None:
    weights = random_weights()
    path = save(weights)
    torch.save(wrap(weights), path)
    compare(path, weights, Month(4, 2))


# ---- moved, renamed, without settings


def test_a_file_alone_tells_its_heads_by_its_value_gates(save: Save) -> None:
    weights = random_weights(n_kv_head=2)
    path = save(weights, "elsewhere", meta=None)
    info = catalog.describe(str(path))
    assert (info.spec.n_head, info.spec.n_kv_head, info.spec.context_length) == (4, 2, 2048)
    assert any("n_head 4" in text for text in info.inferred)
    assert any("SSSL" in text for text in info.warnings)
    assert info.run == "elsewhere" and info.step == 7


def test_a_file_alone_without_gates_takes_the_trainers_heads_or_those_given(save: Save) -> None:
    weights = random_weights(parts="", width=256, n_head=2, n_kv_head=2, layers=2)
    path = save(weights, "elsewhere", meta=None)
    info = catalog.describe(str(path))
    assert (info.spec.n_head, info.spec.head_dim) == (2, 128)
    assert any("--config n_head=N" in text for text in info.warnings)
    given = catalog.describe(str(path), config={"n_head": 4})
    assert (given.spec.n_head, given.spec.n_kv_head) == (4, 4)


def test_a_renamed_file_uses_the_only_settings_beside_it(save: Save) -> None:
    path = save(random_weights(), window_pattern="L")
    renamed = path.rename(path.with_name("my-model.pt"))
    info = catalog.describe(str(renamed))
    assert (info.spec.context_length, info.spec.n_kv_head, info.step) == (300, 2, 7)


def test_settings_from_elsewhere_can_be_named(save: Save, tmp_path: Path) -> None:
    weights = random_weights()
    path = save(weights, "elsewhere", meta=None)
    named = tmp_path / "meta.json"
    named.write_text(json.dumps({"model_config": SIZES | {"n_embd": 32, "window_pattern": "SSL"}}))
    info = catalog.describe(str(path), config_file=str(named))
    assert (info.spec.context_length, info.spec.window) == (300, (129, 129, 0))
    named.write_text("{}")
    with pytest.raises(CheckpointError, match="it has no model_config"):
        catalog.describe(str(path), config_file=str(named))


def test_a_tokenizer_beside_the_model_goes_first(save: Save) -> None:
    path = save(random_weights(rows=512), "flat", vocab_size=512)
    for name in ("tokenizer.pkl", "token_bytes.pt"):
        shutil.copy(FIXTURE / "tokenizer" / name, path.parent)
    info = catalog.describe(str(path))
    assert info.tokenizer.path == str(path.with_name("tokenizer.pkl"))
    assert info.mode == "chat" and any("a chat model" in text for text in info.inferred)
    (run,) = catalog.scan([str(path.parent)])
    assert [Path(entry.path).name for entry in run.checkpoints] == ["model_000007.pt"]


def test_a_moved_base_model_is_known_by_the_depth_in_its_settings(save: Save) -> None:
    meta = {"step": 7, "model_config": SIZES | {"n_embd": 32}, "user_config": {"depth": 3}}
    info = catalog.describe(str(save(random_weights(), "flat", meta=meta)))
    assert info.mode == "raw" and info.template.name == ""


def test_nanochats_other_tokenizer_is_a_json(save: Save) -> None:
    path = save(random_weights(rows=320), "chatsft_checkpoints/d3", vocab_size=265)
    letters = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters += range(0x100, 0x100 + 256 - len(letters))
    names = list(json.loads((FIXTURE / "reference.json").read_text())["special_tokens"])
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    content = {
        "version": "1.0",
        "added_tokens": [
            {"id": 256 + n, "content": name, "special": True, "single_word": False,
             "lstrip": False, "rstrip": False, "normalized": False}
            for n, name in enumerate(names)
        ],
        "normalizer": None,
        "pre_tokenizer": {**level, "use_regex": True},
        "post_processor": None,
        "decoder": {**level, "use_regex": True},
        "model": {"type": "BPE", "vocab": {chr(c): n for n, c in enumerate(letters)}, "merges": []},
    }  # fmt: skip
    folder = path.parents[2] / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(content))
    info = catalog.describe(str(path))
    assert (info.tokenizer.kind, info.mode, info.text_start) == ("tokenizer.json", "chat", (256,))
    ids = tui_chat.open(str(path)).prompt_ids([{"role": "user", "content": "!"}])
    assert ids == [256, 257, 0, 258, 259]


def test_a_registered_tokenizer_is_known_by_its_name(save: Save) -> None:
    path = save(random_weights(rows=50304), vocab_size=50257)
    head = b"\x80\x04\x8c\rtiktoken.core\x8c\x08Encoding\x93)\x81\x8c\x04"
    path.with_name("tokenizer.pkl").write_bytes(head + b"gpt2b.")
    info = catalog.describe(str(path))
    assert (info.tokenizer.kind, info.tokenizer.name) == ("tiktoken", "gpt2")
    assert (info.text_start, info.stop_ids) == ((50256,), (50256,))
    path.with_name("tokenizer.pkl").write_bytes(head + b"evilb.")
    info = catalog.describe(str(path))
    assert info.tokenizer.kind == "none"
    assert any("'evil', which is not known" in text for text in info.warnings)


def test_another_models_tokenizer_is_not_used(save: Save) -> None:
    path = save(random_weights())
    shutil.copy(FIXTURE / "tokenizer/tokenizer.pkl", path.parent)
    info = catalog.describe(str(path))
    assert info.tokenizer.kind == "none" and info.mode == "raw"
    assert any("has 512 ids" in text and "--tokenizer" in text for text in info.warnings)


def test_a_tokenizer_can_be_named(save: Save) -> None:
    path = save(random_weights(rows=512), "chatsft_checkpoints/d3", vocab_size=512)
    for named in (FIXTURE / "tokenizer/tokenizer.pkl", FIXTURE / "tokenizer"):
        info = catalog.describe(str(path), tokenizer=str(named))
        assert (info.tokenizer.kind, info.mode) == ("nanochat", "chat")
        assert info.text_start == (503,) and set(info.stop_ids) == {503, 507}
        opened = tui_chat.open(str(path), tokenizer=str(named))
        ids = opened.prompt_ids([{"role": "user", "content": "Hi"}])
        assert ids[:2] == [503, 504] and {503, 507} <= set(opened.info.stop_ids)


# ---- files that lie


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"n_layer": 5}, "n_layer = 5, its tensors 3"),
        ({"n_embd": 48}, "n_embd = 48, its tensors 32"),
        ({"vocab_size": 65}, "vocab_size = 65, its tensors 64"),
        ({"n_head": 3}, "not divisible"),
        ({"n_head": 8}, "c_k"),
        ({"n_kv_head": 4}, "c_k"),
        ({"n_head": "four"}, "n_head is four, not a number"),
        ({"n_kv_head": 0.5}, "n_kv_head is 0.5, not a number"),
        ({"sequence_len": -4}, "context_length is -4"),
        ({"sequence_len": 10**12}, "context_length"),
        ({"window_pattern": "XL"}, "window_pattern"),
        ({"window_pattern": ""}, "window_pattern"),
        ({"window_pattern": ["S"]}, "window_pattern"),
    ],
)
def test_settings_that_do_not_fit_are_named(save: Save, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        catalog.describe(str(save(random_weights(), **changes)))
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"resid_lambdas": torch.ones(2)}, "resid_lambdas.weight is 2"),
        ({"smear_gate.weight": torch.ones(2, 24)}, "smear_gate.weight is 2 x 24"),
        ({"smear_gate.weight": torch.ones(1, 99)}, "smear_gate.weight is 1 x 99"),
        ({"smear_lambda": None}, "there is no smear_lambda.weight"),
        ({"value_embeds.0.weight": None}, "there is no value_embeds.0.weight"),
        ({"value_embeds.0.weight": torch.ones(64, 32)}, "value_embeds.0.weight is 64 x 32"),
        ({"transformer.h.1.mlp.c_proj.weight": None}, "transformer.h.1.mlp.c_proj.weight"),
        ({"transformer.h.0.attn.c_proj_scalar": torch.ones(32)}, "c_proj_scalar"),
        ({"transformer.wte.weight": None}, "transformer.wte.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    save: Save, change: dict[str, torch.Tensor | None], says: str
) -> None:
    path = save(random_weights())
    changed = {name: t for name, t in (random_weights() | change).items() if t is not None}
    torch.save(changed, path)
    with pytest.raises(CheckpointError) as caught:
        catalog.describe(str(path))
    assert says in str(caught.value)


def test_a_tokenizer_that_would_run_a_command_is_not_run(save: Save, tmp_path: Path) -> None:
    path = save(random_weights(rows=512), vocab_size=512)
    marker = tmp_path / "ran"
    path.with_name("tokenizer.pkl").write_bytes(
        b"\x80\x04cposix\nsystem\n\x8c" + bytes([6 + len(str(marker))]) + b"touch "
        + str(marker).encode() + b"\x85R."
    )  # fmt: skip
    info = catalog.describe(str(path))
    assert info.tokenizer.kind == "none" and not marker.exists()
    assert any("tiktoken.core.Encoding" in text for text in info.warnings)
