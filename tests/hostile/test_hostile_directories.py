"""Hugging Face directories that lie: each is refused in one sentence that is safe to print, within
the limits of time."""

from __future__ import annotations

import json
import shutil
import struct
import time
from pathlib import Path

import pytest

from tui_chat.checkpoint.catalog import describe
from tui_chat.errors import CheckpointError

GOOD = Path(__file__).parents[1] / "fixtures" / "hf-gpt2" / "v4-base"
EVIL = "\x1b]0;x\x07\x9b31m\u202e\n\ttext\ud800"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOOD, tmp_path / "model"))


def change(path: Path, **said: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **said}), "utf-8")


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        describe(str(folder))
    return str(caught.value)


@pytest.mark.parametrize("key", ["activation_function", "n_head", "model_type"])
def test_what_a_config_says_is_printable_in_an_error(folder: Path, key: str) -> None:
    change(folder / "config.json", **{key: EVIL})
    text = refusal(folder)
    assert text.isprintable()


def test_the_name_of_a_shard_is_printable_in_an_error(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"wte.weight": f"{EVIL}.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    text = refusal(folder)
    assert text.isprintable() and "is missing" in text


def test_an_error_names_a_file_with_a_short_name_too(folder: Path) -> None:
    change(folder / "config.json", n_head="x")
    short = folder.rename(folder.parent / "a")
    assert refusal(short).startswith(f"cannot open {short} ")


def test_a_header_of_very_many_tensors_is_refused_soon(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"h.0.attn.{n}.weight": entry for n in range(80_000)}).encode()
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    began = time.process_time()
    assert "80,000 tensors" in refusal(folder)
    assert time.process_time() - began < 5


def test_a_header_longer_than_any_is_not_read(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 80_000_000) + b"{" + b" " * 80_000_000)
    assert "80,000,000 bytes" in refusal(folder)


@pytest.mark.parametrize("loss", [-(10**400), 10**400, -1e300])
def test_a_loss_that_cannot_be_is_left_out(folder: Path, loss: float) -> None:
    state = {"log_history": [{"loss": loss}, {"eval_loss": 2.5}]}
    (folder / "trainer_state.json").write_text(json.dumps(state), "utf-8")
    assert describe(str(folder)).losses == {"val": 2.5}
