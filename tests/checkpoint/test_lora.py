"""LoRA adapters: the logits of base and adapter together, which base is found, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.checkpoint.hf_folder import Folder
from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.formats import huggingface
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

FIXTURES = Path(__file__).parents[1] / "fixtures"
FOLDER = FIXTURES / "hf-lora"
NAMES = sorted(path.name for path in FOLDER.iterdir())


def logits_of(path: Path, **options: object) -> torch.Tensor:
    info = catalog.describe(str(path), **options)  # type: ignore[arg-type]
    model = build(info.spec, weights.load(info, dtype="float32"))
    prompt = json.loads((FOLDER / "llama/logits.json").read_text("utf-8"))["prompt_ids"]
    return model.forward(prompt, model.new_cache())


def wanted(name: str) -> torch.Tensor:
    return torch.tensor(json.loads((FOLDER / name / "logits.json").read_text("utf-8"))["logits"])


def equal(got: torch.Tensor, want: torch.Tensor) -> bool:
    return bool((got - want).abs().max() <= 1e-4 * want.abs().max())


@pytest.mark.parametrize("name", NAMES)
def test_base_and_adapter_give_the_logits_of_both(name: str) -> None:
    assert equal(logits_of(FOLDER / name), wanted(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_adapter_makes_a_difference(name: str) -> None:
    """Else the test above would not show that it was added."""
    base = json.loads((FOLDER / name / "adapter_config.json").read_text("utf-8"))
    alone = logits_of(FOLDER / name / base["base_model_name_or_path"])
    assert not equal(alone, wanted(name))


def test_the_adapter_says_what_it_is_on() -> None:
    info = catalog.describe(str(FOLDER / "llama"))
    assert info.format == huggingface.LORA_NAME
    assert "4 matrices are changed by rank 4" in info.inferred
    assert "adapter on llama" in info.description
    assert any(text.startswith("the base is ") for text in info.inferred)


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """A copy of an adapter whose settings can be changed, away from its base."""

    def copied(name: str = "llama", **said: object) -> Path:
        folder = tmp_path / "run" / "adapter"
        shutil.copytree(FOLDER / name, folder)
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text("utf-8")) | said
        path.write_text(json.dumps(config), "utf-8")
        return folder

    return copied


LLAMA = FIXTURES / "hf-families/llama"


def test_the_base_may_lie_beside_the_adapter(adapter: Callable[..., Path]) -> None:
    folder = adapter(base_model_name_or_path="somewhere/else/my-llama")
    shutil.copytree(LLAMA, folder.parent / "my-llama")
    assert equal(logits_of(folder), wanted("llama"))


def test_the_base_may_be_named_in_full(adapter: Callable[..., Path]) -> None:
    assert equal(logits_of(adapter(base_model_name_or_path=str(LLAMA))), wanted("llama"))


def test_a_downloaded_base_is_found_by_its_name(
    adapter: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    inside = tmp_path / "home/hub/models--someone--tiny"
    for revision, base in (("aaaaaaaa", "llama-linear"), ("bbbbbbbb", "llama")):
        shutil.copytree(FIXTURES / "hf-families" / base, inside / "snapshots" / revision)
    (inside / "refs").mkdir()
    (inside / "refs/main").write_text("bbbbbbbb\n")
    assert equal(logits_of(adapter(base_model_name_or_path="someone/tiny")), wanted("llama"))


def test_a_missing_base_is_asked_for_and_can_be_named(adapter: Callable[..., Path]) -> None:
    folder = adapter(base_model_name_or_path="nobody/nothing")
    with pytest.raises(CheckpointError) as failed:
        catalog.describe(str(folder))
    assert "'nobody/nothing' is not here" in str(failed.value)
    assert "--config base=PATH" in failed.value.remedy
    assert equal(logits_of(folder, config={"base": str(LLAMA)}), wanted("llama"))


def test_an_adapter_without_a_base_name_asks_for_one(adapter: Callable[..., Path]) -> None:
    folder = adapter(base_model_name_or_path=None)
    with pytest.raises(CheckpointError, match="does not name its base"):
        catalog.describe(str(folder))
    assert equal(logits_of(folder, config={"base": str(LLAMA)}), wanted("llama"))


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"peft_type": "PREFIX_TUNING"}, "PREFIX_TUNING"),
        ({"use_dora": True}, "DoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "changing its base"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication"),
        ({"alpha_pattern": {"(q|k)_proj": 4}}, "pattern"),
        ({"lora_alpha": "much"}, "lora_alpha"),
    ],
)
def test_other_kinds_of_adapter_are_refused_by_name(
    adapter: Callable[..., Path], said: dict[str, object], reason: str
) -> None:
    folder = adapter(base_model_name_or_path=str(LLAMA), **said)
    with pytest.raises(CheckpointError, match=reason.replace("(", r"\(")):
        catalog.describe(str(folder))


def test_an_adapter_of_another_model_is_refused(adapter: Callable[..., Path]) -> None:
    folder = adapter(base_model_name_or_path=str(FIXTURES / "hf-families/gpt2"))
    with pytest.raises(CheckpointError, match="its base does not have"):
        catalog.describe(str(folder))
    wide = FIXTURES / "hf-llama/v5-sharded-bf16-llama3chat"
    with pytest.raises(CheckpointError, match="32 x 4 and 4 x 32 for a matrix of 64 x 64"):
        catalog.describe(str(folder), config={"base": str(wide)})


def test_a_step_of_an_adapters_training_belongs_to_its_run(adapter: Callable[..., Path]) -> None:
    folder = adapter(base_model_name_or_path=str(LLAMA))
    step = folder.rename(folder.parent / "checkpoint-40")
    history = [{"loss": 2.5, "step": 20}, {"eval_loss": 2.25, "step": 40}]
    (step / "trainer_state.json").write_text(json.dumps({"log_history": history}))
    info = catalog.describe(str(step))
    assert (info.run, info.step) == ("run", 40)
    assert info.losses == {"train": 2.5, "val": 2.25}
    assert catalog.describe(str(folder.parent)).path == str(step)


def test_a_changed_head_is_not_taken_for_the_embedding_it_was(
    adapter: Callable[..., Path], copy: Callable[..., Folder]
) -> None:
    """torch writes a tied head twice with one checksum; the adapter changes one of the two."""
    base = copy("llama-llama3")
    tensors = base.tensors
    both = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    torch.save(both, base.path / "pytorch_model.bin")
    (base.path / "model.safetensors").unlink()
    folder = adapter("tied-head", base_model_name_or_path=str(base.path))
    assert equal(logits_of(folder), wanted("tied-head"))
