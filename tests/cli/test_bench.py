"""`tui-chat bench` on real weights: what it reports holds together, and nothing is left behind."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import pytest
import torch

from tui_chat.engine import overlap, speed
from tui_chat.engine.api import open_checkpoint
from tui_chat.model.cuda.recorder import EagerRecorder, Work

from .conftest import CHAT, Run

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui_chat.cli.bench.SECONDS", 0.05)
    monkeypatch.setattr(speed, "READ", 2**22)


def test_every_dtype_of_a_cpu_is_measured_beside_the_memory(run: Run, home: Path) -> None:
    done = run("bench", CHAT, "--device", "cpu", "--json")
    assert (done.status, done.err) == (0, "")
    found = done.json
    assert found["checkpoint"]["step"] == 8300
    assert [row["dtype"] for row in found["speeds"]] == ["float32", "float16", "int8"]
    sizes = [row["weight_bytes"] for row in found["speeds"]]
    assert sizes[0] > 1.9 * sizes[1] and sizes[1] > 1.8 * sizes[2]
    for row in found["speeds"]:
        assert row["prompt_tokens"] == 192, "half of its context"
        assert math.isclose(row["prefill_rate"] * row["first_token_seconds"], 192)
        assert row["decode_tokens"] >= 2 and row["decode_rate"] > 0
        # What a token reads is the weights and what stands in the cache: 2 * 5 layers * 128 numbers
        # for each token before, in float32.
        behind = 192 + row["decode_tokens"] // 2
        read = row["weight_bytes"] + behind * 2 * 5 * 128 * 4
        assert math.isclose(row["bandwidth"] / row["limit_rate"], read, rel_tol=1e-6)
    assert list(home.iterdir()) == [], "it writes no settings, no state, no log"


def test_the_table_has_a_line_for_each_dtype(run: Run) -> None:
    lines = run("bench", CHAT, "--device", "cpu").out.splitlines()
    assert lines[0].startswith("demo-chat/8300 · 1.15M parameters · cpu")
    assert lines[2].split()[:3] == ["dtype", "threads", "weights"]
    assert [line.split()[0] for line in lines[3:6]] == ["float32", "float16", "int8"]
    assert all(line.endswith("%") for line in lines[3:6])
    assert "GB/s" in lines[-1]


def test_a_dtype_that_is_named_is_the_only_one(run: Run) -> None:
    found = run("bench", CHAT, "--device", "cpu", "--dtype", "bfloat16", "--json").json
    assert [row["dtype"] for row in found["speeds"]] == ["bfloat16"]
    done = run("bench", CHAT, "--dtype", "nonsense")
    assert (done.status, done.out) == (2, "")


def test_a_model_that_cannot_be_packed_is_measured_as_it_is(run: Run) -> None:
    hipgpt = FIXTURES / "S3" / "tiny_fallback" / "checkpoints" / "tiny"
    done = run("bench", str(hipgpt), "--device", "cpu", "--json")
    assert done.status == 0
    assert [row["dtype"] for row in done.json["speeds"]] == ["float32"]
    remarks = [line for line in done.err.splitlines() if "is not to be had" in line]
    assert len(remarks) == 2


def test_a_file_that_is_none_is_refused_as_everywhere(run: Run, tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"no weights")
    done = run("bench", str(tmp_path / "a.pt"))
    assert (done.status, done.out) == (3, "") and done.err.count("\n") == 1


def test_ctrl_c_ends_it_with_what_was_measured_by_then(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = speed.measure

    def pressed(*given: object, **named: object) -> speed.Speed:
        os.kill(os.getpid(), signal.SIGINT)
        return whole(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(speed, "measure", pressed)
    done = run("bench", CHAT, "--device", "cpu", "--json")
    assert done.status == 4
    assert [row["dtype"] for row in done.json["speeds"]] == ["float32"]


def test_of_tables_that_are_looked_up_and_experts_that_rest_nothing_is_read() -> None:
    tied = open_checkpoint(str(FIXTURES / "hf-qwen2" / "v4-tied-chatml"), device="cpu").loaded
    assert speed._share_read(tied) == 1.0
    untied = open_checkpoint(str(FIXTURES / "litgpt" / "pretrain-llama"), device="cpu").loaded
    spec = untied.model.spec
    table = spec.vocab_size * spec.n_embd
    assert math.isclose(speed._share_read(untied), 1 - table / untied.model.parameters)
    mixture = open_checkpoint(str(FIXTURES / "S2" / "moe_softmax"), device="cpu").loaded
    experts = mixture.model.spec.experts
    assert experts is not None and experts.used < experts.count
    assert mixture.info.plan is not None
    resting = sum(
        math.prod(recipe.shape) * (1 - experts.used / experts.count)
        for name, recipe in mixture.info.plan.recipes.items()
        if ".experts." in name
    )
    spec = mixture.model.spec
    left = mixture.model.parameters - spec.vocab_size * spec.n_embd - resting
    assert math.isclose(speed._share_read(mixture), left / mixture.model.parameters)


def test_the_bandwidth_is_that_of_a_memory() -> None:
    assert 1e8 < speed.read_bandwidth(torch.device("cpu")) < 1e13


@pytest.mark.parametrize("fails", [False, True])
def test_on_a_gpu_tokens_are_written_as_replies_write_them(
    run: Run, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    class Counting(EagerRecorder):
        calls = 0

        def record(self, work: Work) -> Work:
            def counted() -> None:
                Counting.calls += 1
                if fails and Counting.calls > 36:  # loading takes 28
                    raise RuntimeError("an operator cannot")
                work()

            return counted

    monkeypatch.setitem(overlap.RECORDERS, "cpu", lambda device: Counting())
    monkeypatch.setattr("tui_chat.cli.bench.SECONDS", 0.3)
    done = run("bench", CHAT, "--device", "cpu", "--dtype", "float32", "--json")
    (row,) = done.json["speeds"]
    assert row["decode_tokens"] >= 2
    assert Counting.calls > 28
