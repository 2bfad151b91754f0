"""`inspect` with a closer look: measured on text, and the prompt that a template makes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

from .conftest import BASE, CHAT, Run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
IDS_ONLY = str(FIXTURES / "S1/small_vocab/out/ckpt.pt")


def test_check_measures_beside_the_stored_loss(run: Run) -> None:
    done = run("inspect", BASE, "--check")
    assert done.status == 0
    card, check = done.out.split("\ncheck\n")
    assert "format" in card and "bits a byte" in check and check.count("stored") == 1
    assert " · stored: train " in check
    assert check.rstrip().endswith("Nothing looks wrong.")
    found = run("inspect", BASE, "--check", "--json").json
    assert found["check"]["warnings"] == [] and found["format"] == "tui-chat"
    ratio = found["check"]["tokens"] / found["check"]["bytes"] / math.log(2)
    wanted = found["check"]["nats_per_token"] * ratio
    assert math.isclose(found["check"]["bits_per_byte"], wanted, rel_tol=1e-9)
    assert all(set(one) >= {"settings", "better"} for one in found["check"]["tried"])


def test_check_names_the_setting_that_would_be_right(run: Run) -> None:
    done = run("inspect", BASE, "--check", "--config", "rope_layout=interleaved")
    assert "! positions look half" in done.out and "--config rope_layout=half" in done.out


def test_check_of_a_chat_finds_no_fault_in_it_and_names_what_was_made_wrong(run: Run) -> None:
    right = run("inspect", CHAT, "--check").out.split("\ncheck\n")[1]
    assert "assistant's turns" in right and "nats by counting tokens" in right
    assert right.rstrip().endswith("Nothing looks wrong.")
    for wrong, said in (
        (("--config", "rope_layout=interleaved"), "--config rope_layout=half"),
        (("--template", "chatml"), "leave out --template"),
    ):
        found = run("inspect", CHAT, "--check", *wrong).out
        assert said in " ".join(found.split()) and "Nothing looks wrong." not in found


def test_check_on_a_given_text(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("Once upon a time there was a king. " * 10)
    done = run("inspect", BASE, "--text", str(file))
    assert "mine.txt" in done.out
    file.write_bytes(b"\0\1\2")
    assert run("inspect", BASE, "--text", str(file)).status == 3
    assert run("inspect", BASE, "--text", str(tmp_path / "none.txt")).status == 3


def test_without_a_tokenizer_the_check_says_so(run: Run) -> None:
    done = run("inspect", IDS_ONLY, "--check")
    assert done.status == 0 and "! there is no tokenizer" in done.out
    assert "no tokenizer" in run("inspect", IDS_ONLY, "--check", "--json").json["check"]["why_not"]


def test_preview_shows_control_tokens_apart_from_text(run: Run) -> None:
    shown = run("inspect", CHAT, "--preview").out.split("\npreview")[1]
    assert "⟦<|user|>⟧Hello!⟦<|end|>⟧" in shown
    found = run("inspect", CHAT, "--preview", "--json").json["preview"]
    assert {"text": "<|assistant|>", "control": True} in found["pieces"]
    assert len(found["ids"]) >= len(found["pieces"])


def test_preview_of_a_model_without_a_template(run: Run) -> None:
    done = run("inspect", BASE, "--preview")
    assert done.status == 0 and "no chat template" in done.out


def test_inspect_counts_the_ids_of_the_tokenizer(run: Run) -> None:
    for name in ("hf-llama", "hf-phi3", "litgpt/pretrain-llama"):
        (file,) = (FIXTURES / name).rglob("tokenizer.json")
        said = json.loads(file.read_text())
        ids = [*said["model"]["vocab"].values(), *(row["id"] for row in said["added_tokens"])]
        found = run("inspect", str(file.parent), "--json").json
        assert found["tokenizer"]["vocab_size"] == max(ids) + 1 <= found["spec"]["vocab_size"]
        assert f"{max(ids) + 1} ids" in run("inspect", str(file.parent)).out
        assert not [text for text in found["warnings"] if "belong together" in text]


def test_inspect_warns_of_a_tokenizer_with_more_ids_than_the_model_has(run: Run) -> None:
    found = run("inspect", IDS_ONLY, "--tokenizer", "gpt2", "--json").json
    assert found["tokenizer"]["vocab_size"] == 50257
    (said,) = [text for text in found["warnings"] if "belong together" in text]
    assert "50,257 ids" in said and f"{found['spec']['vocab_size']:,} rows" in said
    assert said in " ".join(run("inspect", IDS_ONLY, "--tokenizer", "gpt2").out.split())


def test_a_named_tokenizer_brings_its_stop_ids_to_the_models_own(run: Run, tmp_path: Path) -> None:
    whole = FIXTURES / "hf-qwen3/v5-headdim"
    said = json.loads((whole / "tokenizer.json").read_text())
    ids = {row["content"]: row["id"] for row in said["added_tokens"]}
    bare, other = tmp_path / "bare", tmp_path / "other"
    for folder, names in (
        (bare, ("model.safetensors",)),
        (other, ("tokenizer.json", "tokenizer_config.json")),
    ):
        folder.mkdir()
        for name in names:
            shutil.copy(whole / name, folder)
    config = json.loads((whole / "config.json").read_text())
    for own in (ids["<|endoftext|>"], 7):
        (bare / "config.json").write_text(json.dumps(config | {"eos_token_id": own}))
        assert run("inspect", str(bare), "--json").json["stop_ids"] == [own]
        done = run("inspect", str(bare), "--tokenizer", str(other), "--json")
        assert done.json["stop_ids"] == [own, ids["<|im_end|>"]]
