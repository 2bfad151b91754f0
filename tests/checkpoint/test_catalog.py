from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tui_chat
from tui_chat.checkpoint import catalog
from tui_chat.checkpoint.info import Run
from tui_chat.errors import CheckpointError, UsageError

FIXTURES = Path(__file__).parent.parent / "fixtures"
Save = Callable[..., str]


def runs(*roots: Path) -> dict[str, Run]:
    return {run.name: run for run in catalog.scan([str(root) for root in roots])}


def steps(run: Run) -> list[int | None]:
    return [entry.step for entry in run.checkpoints]


def test_finds_every_run_of_the_fixtures() -> None:
    found = runs(FIXTURES)
    assert {"out-shakespeare-char", "log", "reward", "sft_vocab50304"} <= found.keys()
    entry = found["out-shakespeare-char"].checkpoints[0]
    assert (entry.step, entry.format, entry.error) == (900, "nanoGPT", "")
    assert entry.losses["val"] < 3 and entry.parameters > 90_000 and entry.size > 10**6


def test_a_run_is_ordered_by_step_not_by_name_or_age(nanogpt: Save, tmp_path: Path) -> None:
    for step in (100, 20, 3):
        nanogpt(iter_num=step, name=f"run/step{step}.pt")
    assert steps(runs(tmp_path)["run"]) == [3, 20, 100]


def test_a_run_directory_opens_at_its_newest_step_or_the_one_asked_for(
    nanogpt: Save, tmp_path: Path
) -> None:
    for step in (10, 200, 30):
        nanogpt(iter_num=step, name=f"run/{step}.pt")
    (tmp_path / "run/300.pt").write_bytes(b"PK\x03\x04 a save in progress")
    assert catalog.describe(str(tmp_path / "run")).step == 200
    assert catalog.describe(str(tmp_path / "run"), step=30).label == "run/30"
    with pytest.raises(CheckpointError, match=r"no step 7.*10, 30, 200"):
        catalog.describe(str(tmp_path / "run"), step=7)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint"):
        catalog.describe(str(tmp_path / "empty"))
    assert catalog.describe(str(tmp_path)).label == "run/200"  # there is but one run in it
    nanogpt(name="other/ckpt.pt")
    with pytest.raises(CheckpointError, match=r"runs in it, such as /.*/other, /.*/run\."):
        catalog.describe(str(tmp_path))


def test_what_cannot_be_read_is_listed_with_the_reason(nanogpt: Save, tmp_path: Path) -> None:
    nanogpt(name="run/good.pt")
    (tmp_path / "run/page.pt").write_text("<!doctype html><p>not found")
    (tmp_path / "run/gone.pt").symlink_to(tmp_path / "nowhere.pt")
    entries = {Path(e.path).name: e for e in runs(tmp_path)["run"].checkpoints}
    assert entries["good.pt"].error == ""
    assert "web page" in entries["page.pt"].error
    assert "no such file" in entries["gone.pt"].error


def test_links_pipes_and_what_lies_beside_weights_do_no_harm(nanogpt: Save, tmp_path: Path) -> None:
    nanogpt(name="run/a/ckpt.pt")
    (tmp_path / "run/a/loop").symlink_to(tmp_path, target_is_directory=True)
    os.mkfifo(tmp_path / "run/a/pipe.pt")
    for name in ("optimizer.pt", "rng_state_0.pth", "training_args.bin", "data.bin", ".hidden.pt"):
        (tmp_path / "run/a" / name).write_bytes(b"x")
    found = runs(tmp_path, tmp_path / "run", tmp_path / "missing")
    assert [len(run.checkpoints) for run in found.values()] == [1]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read_is_passed_over(nanogpt: Save, tmp_path: Path) -> None:
    path = Path(nanogpt(name="run/ckpt.pt"))
    path.chmod(0)
    assert "ermission" in runs(tmp_path)["run"].checkpoints[0].error


def test_names_that_are_not_utf8_are_found_and_shown(nanogpt: Save, tmp_path: Path) -> None:
    odd = os.path.join(os.fsencode(tmp_path), b"run\xff")
    os.mkdir(odd)
    shutil.copy(os.fsencode(nanogpt(name="other/ckpt.pt")), os.path.join(odd, b"ck\xfe.pt"))
    entry = runs(tmp_path)["run\ufffd"].checkpoints[0]
    assert entry.error == "" and catalog.describe(entry.path).run == "run\ufffd"


def test_a_linked_directory_is_looked_into_once(nanogpt: Save, tmp_path: Path) -> None:
    nanogpt(name="elsewhere/run/ckpt.pt")
    for name in ("one", "two"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "link").symlink_to(tmp_path / "elsewhere")
    found = list(catalog.scan([str(tmp_path / "root")]))
    assert [run.name for run in found] == ["run"]


def test_a_directory_called_like_a_file_is_looked_into(nanogpt: Save, tmp_path: Path) -> None:
    nanogpt(name="ckpt.pt/ckpt.pt")
    assert list(runs(tmp_path)) == ["ckpt.pt"]


def test_a_file_that_changed_is_read_anew(nanogpt: Save, tmp_path: Path) -> None:
    path = nanogpt(iter_num=1, name="run/ckpt.pt")
    assert steps(runs(tmp_path)["run"]) == [1]
    nanogpt(iter_num=2, name="run/ckpt.pt")
    os.utime(path, ns=(1, 1))
    assert steps(runs(tmp_path)["run"]) == [2]


def test_thousands_of_other_files_are_passed_quickly(nanogpt: Save, tmp_path: Path) -> None:
    import time

    nanogpt(name="a.pt")
    for n in range(5_000):
        (tmp_path / f"f{n}.txt").touch()
    began = time.process_time()
    assert len(runs(tmp_path)) == 1
    assert time.process_time() - began < 1


# ---- what the user says instead


def test_the_user_may_name_tokenizer_and_template(nanogpt: Save) -> None:
    path = nanogpt()
    meta = FIXTURES / "nanogpt/char-bias/data/shakespeare_char/meta.pkl"
    info = catalog.describe(path, tokenizer=str(meta), template="plain")
    assert (info.tokenizer.kind, info.tokenizer.source) == ("chars", "given by the user")
    assert info.template.name == "plain" and info.mode == "chat" and info.warnings == ()
    assert catalog.describe(path, tokenizer=str(meta.parent)).tokenizer.kind == "chars"
    assert catalog.describe(path, tokenizer="gpt2").tokenizer.name == "gpt2"
    sft = str(FIXTURES / "S0/sft_vocab50304/sft.pt")
    assert catalog.describe(sft, template="none").mode == "raw"
    assert catalog.describe(sft, tokenizer="none").tokenizer.vocab_size == 50304


@pytest.mark.parametrize(
    "said", [{"tokenizer": "no-such"}, {"template": "no-such"}, {"config": {"n_heads": 1}}]
)
def test_what_cannot_be_named_is_wrong_usage(said: dict[str, object], nanogpt: Save) -> None:
    with pytest.raises(UsageError):
        catalog.describe(nanogpt(), **said)  # type: ignore[arg-type]


def test_a_setting_the_user_gives_wins(nanogpt: Save) -> None:
    path = nanogpt()
    assert catalog.describe(path, config={"n_head": 4}).spec.n_head == 4
    assert catalog.describe(path, config={"activation": "gelu_tanh"}).spec.activation == "gelu_tanh"
    with pytest.raises(CheckpointError, match="n_head"):
        catalog.describe(path, config={"n_head": 3})


@pytest.mark.parametrize(
    ("name", "text"), [("c.json", '{"model": {"n_heads": 4}}'), ("c.toml", "n_head = 4")]
)
def test_a_file_of_settings_may_say_what_the_weights_do_not(
    name: str, text: str, nanogpt: Save, tmp_path: Path
) -> None:
    path = nanogpt(model_args=None, config=None)
    (tmp_path / name).write_text(text)
    given = str(tmp_path / name)
    assert catalog.describe(path, config_file=given).spec.n_head == 4
    assert catalog.describe(path, config_file=given, config={"n_head": 2}).spec.n_head == 2
    (tmp_path / name).write_text("[" * 100_000)
    with pytest.raises(CheckpointError, match=r"not|deep"):
        catalog.describe(path, config_file=given)


# ---- without torch


def test_describing_a_large_checkpoint_takes_no_torch_and_little_time(tmp_path: Path) -> None:
    """What counts is how many tensors there are, since no number in them is read."""
    layers, width = 12, 64
    from_fixture = torch.load(
        FIXTURES / "nanogpt/char-bias/out-shakespeare-char/ckpt.pt", weights_only=True
    )
    model = {
        name.replace(".h.0.", f".h.{i}."): w
        for name, w in from_fixture["model"].items()
        for i in range(layers)
        if ".h.1." not in name and ".h.2." not in name
    }
    state = {
        i: {"exp_avg": torch.zeros(width), "exp_avg_sq": torch.zeros(width)} for i in range(150)
    }
    root = {"model": model, "model_args": {"n_head": 4}, "optimizer": {"state": state}}
    torch.save(root, tmp_path / "ckpt.pt")
    code = (
        "import sys, time; from tui_chat.checkpoint import catalog; "
        "info = catalog.describe(sys.argv[1]); assert info.spec.n_layer == 12; "
        "assert not {'torch', 'tiktoken', 'numpy', 'pickle', 'zipfile'} & set(sys.modules); "
        "print(time.process_time())"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(tui_chat.__file__).parent.parent))
    command = [sys.executable, "-c", code, str(tmp_path / "ckpt.pt")]
    times = [
        float(
            subprocess.run(
                command, env=environment, capture_output=True, text=True, check=True
            ).stdout
        )
        for _ in range(3)
    ]
    assert min(times) < 0.3  # seconds of CPU, start of Python included
