"""Formats that other packages bring: the worked example of docs/formats.md, installed and used."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tui_chat.checkpoint.formats import FORMATS
from tui_chat.checkpoint.gguf.architectures import ARCHITECTURES
from tui_chat.checkpoint.huggingface.table import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "formats.md"


def test_the_page_names_all_that_opens_and_nothing_else() -> None:
    page = DOCS.read_text("utf-8")
    table = page[page.index("| format |") : page.index("**Hugging Face families**")]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:] if line]
    written = {name.split(" (")[0] for row in rows for name in row.split(", ")}
    assert written == {form.NAME for form in FORMATS} | {"build-nanogpt"}
    for words, known in (
        ("Hugging Face families", FAMILIES),
        ("GGUF architectures", ARCHITECTURES),
    ):
        paragraph = page[page.index(f"**{words}**") :].split("\n\n")[0]
        assert set(re.findall(r"`([^`]+)`", paragraph)) - {"model_type"} == set(known)


def install(folder: Path, module: str, code: str) -> None:
    """What pip leaves behind of a package with one module and one entry point."""
    (folder / f"{module}.py").write_text(code)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[tui_chat.formats]\n{module} = {module}\n")


def inspect(path: Path, *packages: Path) -> subprocess.CompletedProcess[str]:
    search = os.pathsep.join(str(package) for package in (*packages, ROOT))
    return subprocess.run(
        [sys.executable, "-m", "tui_chat", "inspect", "--json", str(path)],
        env={**os.environ, "PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """What the trainer of the worked example saves, compiled and wrapped."""
    width, inner = 16, 24
    shapes = {"tok": (31, width), "norm": (width,), "out": (31, width)}
    for i in range(2):
        shapes |= {f"layer.{i}.{name}": (width, width) for name in ("q", "k", "v", "o")}
        shapes |= {f"layer.{i}.{name}": (inner, width) for name in ("gate", "up")}
        shapes |= {f"layer.{i}.norm1": (width,), f"layer.{i}.norm2": (width,)}
        shapes[f"layer.{i}.down"] = (width, inner)
    weights = {f"_orig_mod.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    path = tmp_path / "ckpt.pt"
    torch.save({"weights": weights, "hyper": {"heads": 4, "ctx": 32}, "step": 5000}, path)
    return path


def test_the_worked_example_opens_the_file_it_is_about(saved: Path, tmp_path: Path) -> None:
    code = re.search(r"```python\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    assert code is not None
    package = tmp_path / "site"
    package.mkdir()
    install(package, "minitrain_format", code.group(1))
    without = inspect(saved)
    assert without.returncode == 3 and "Checkpoints of" in without.stderr
    done = inspect(saved, package)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["format"], said["step"]) == ("minitrain", 5000)
    assert (said["spec"]["n_layer"], said["spec"]["context_length"]) == (2, 32)
    assert any("_orig_mod." in line for line in said["inferred"])


@pytest.mark.parametrize(
    "code", ["raise RuntimeError('broken')", "NAME = 'half'", "import no_such_module"]
)
def test_a_format_that_cannot_be_used_is_left_out_with_a_warning(
    code: str, saved: Path, tmp_path: Path
) -> None:
    package = tmp_path / "site"
    package.mkdir()
    install(package, "broken_format", code)
    done = inspect(saved, package)
    assert done.returncode == 3
    assert "broken_format" in done.stderr and "Traceback" not in done.stderr
