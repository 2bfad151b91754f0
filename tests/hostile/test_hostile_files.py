"""Every hostile and damaged file of the corpus: nothing runs, nothing dies, each gets one clear
sentence or opens."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import tui_chat
from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.archive import read_archive
from tui_chat.errors import CheckpointError

CORPUS = Path(__file__).parent
KINDS = ("torch", "pickle-meta", "safetensors", "nanogpt-dir", "auto", "llama2c", "llmc", "hipgpt")
CASES = [
    case
    for case in json.loads((CORPUS / "index.json").read_text())["cases"]
    if case["opens_as"] in KINDS
]
# Valid files of formats that are not supported yet, or that do not say how many heads they have.
REFUSED_YET = {"valid-safetensors"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What became of each case, opened one after the other in a process of their own."""
    work = tmp_path_factory.mktemp("hostile")
    environment = dict(os.environ, HOSTILE_MARKER=str(work / "PWNED"))
    environment["PYTHONPATH"] = str(Path(tui_chat.__file__).parent.parent)
    process = subprocess.run(
        [sys.executable, "-P", str(CORPUS / "open_cases.py"), str(CORPUS), str(work)],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    rows = [json.loads(line) for line in process.stdout.splitlines()]
    assert process.returncode == 0, process.stderr[-2000:]
    assert "Traceback" not in process.stderr
    return {row["id"]: row for row in rows}


@pytest.mark.parametrize("case", CASES, ids=[case["id"] for case in CASES])
def test_opens_or_refuses_as_it_should(
    case: dict[str, object], outcomes: dict[str, dict[str, object]]
) -> None:
    row = outcomes[str(case["id"])]
    assert row["marks"] == [] and row["imported"] == []
    assert float(str(row["seconds"])) <= float(str(case["max_seconds"]))
    assert float(str(row["extra_mb"])) <= float(str(case["max_extra_mb"]))
    if case["expect"] != "either" and case["id"] not in REFUSED_YET:
        assert row["outcome"] == case["expect"], row
    if row["outcome"] == "open":
        assert "tensors" not in case or row["tensors"] == case["tensors"]
        return
    message = str(row["message"])
    name = Path(str(case.get("file") or case["recipe"]["base"])).name  # type: ignore[index]
    assert name in message and "\n" not in message and len(message) < 500
    assert str(case.get("message_mentions", "")) in message


def mutations(good: bytes, seed: int, count: int) -> list[bytes]:
    """`good`, damaged in one of four ways each time."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        data = bytearray(good)
        at = draw.randrange(len(data))
        match draw.randrange(4):
            case 0:
                for _ in range(draw.randrange(1, 4)):
                    data[draw.randrange(len(data))] = draw.randrange(256)
            case 1:
                del data[at:]
            case 2:
                data[at : at + 64] = bytes(len(data[at : at + 64]))
            case _:
                other = draw.randrange(len(data))
                data[at : at + 32] = data[other : other + 32]
        found.append(bytes(data))
    return found


@pytest.mark.parametrize(
    "name",
    [
        "damage/base.pt",
        "valid/legacy/old.pt",
        "valid/hf/model.safetensors",
        "valid/nanogpt/meta.pkl",
        "valid/llama2c/model.bin",
    ],
)
def test_random_damage_is_refused_or_opens_and_never_raises_anything_else(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / Path(name).name
    refused = 0
    for data in mutations((CORPUS / name).read_bytes(), seed=20_260, count=250):
        path.write_bytes(data)
        try:
            read_archive(str(path))
            weights.load(catalog.describe(str(path)))
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 800
    assert refused  # damage that is never noticed would mean that nothing was read
