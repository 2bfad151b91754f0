"""Limits that hold whatever else is limited, and small files that would take gigabytes."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tui_chat
from tui_chat.checkpoint.catalog import describe, scan
from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.checkpoint.yaml_file import parse_yaml
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.huggingface import open_huggingface

GOOD = Path(__file__).parents[1] / "fixtures" / "hf-gpt2" / "v4-base"


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_memory_stays_limited_where_all_programs_have_a_limit_already(tmp_path: Path) -> None:
    """As under `ulimit -v`, which nobody may raise again."""
    (tmp_path / "work.py").write_text(
        "def answer(request, data):\n    return {'size': len(bytes(request['size']))}, b''\n"
    )
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))\n"
        f"sys.path.append({str(tmp_path)!r})\n"
        "from tui_chat import child\n"
        "child._folder_of = lambda package: package\n"
        f"c = child.Child('work', ({str(tmp_path)!r},), seconds=2, megabytes=100)\n"
        "for size in 60, 400, 60:\n"
        "    try:\n"
        "        print(c.call({'size': size << 20})[0])\n"
        "    except child.Refused as error:\n"
        "        print(error)\n"
        "c.close()\n"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(tui_chat.__file__).parent.parent))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    fits = f"{{'size': {60 << 20}}}"
    assert done.stdout.splitlines() == [fits, "it takes too much memory", fits], done.stderr


@pytest.mark.parametrize("item", ["{},", "[],", "1,"])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json"])
def test_json_of_very_many_values_is_not_parsed(tmp_path: Path, name: str, item: str) -> None:
    folder = Path(shutil.copytree(GOOD, tmp_path / "model"))
    text = (folder / name).read_text("utf-8").rstrip()
    (folder / name).write_text(text[:-1] + ',"x":[' + item * 5_000_000 + "1]}", "utf-8")
    began = time.process_time()
    try:
        info = describe(str(folder))
    except CheckpointError as error:
        assert "config.json" in str(error) and "entries" in str(error)
    else:
        with pytest.raises(CheckpointError, match="entries"):
            open_huggingface(str(folder / name)) if name == "tokenizer.json" else read_json(
                str(folder / name)
            )
        assert info.format == "Hugging Face"
    assert time.process_time() - began < 5


def test_merges_of_very_many_lines_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (tmp_path / "merges.txt").write_text("a b\n" * 3_000_000)
    with pytest.raises(CheckpointError, match="more merges"):
        open_huggingface(str(tmp_path / "vocab.json"))


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _list(kind: int, count: int, raw: bytes) -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + raw


@pytest.mark.parametrize(
    ("keys", "tensors", "value"),
    [
        (20_000, 0, _list(7, 4000, b"\1" * 4000)),
        (300, 0, struct.pack("<I", 8) + _text("x" * 300_000)),
        (1, 0, _list(8, 3_000_000, bytes(24_000_000))),
        (0, 200_000, b""),
    ],
    ids=["numbers", "texts", "vocabulary", "tensors"],
)
def test_a_gguf_header_keeps_no_more_than_it_may(
    tmp_path: Path, keys: int, tensors: int, value: bytes
) -> None:
    path = tmp_path / "model.gguf"
    places = b"".join(
        _text(f"t{n}") + struct.pack("<IQIQ", 1, 8, 0, 32 * n) for n in range(tensors)
    )
    with path.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, tensors, keys))
        for n in range(keys):
            file.write(_text(f"key{n}") + value)
        file.write(places + bytes(32 * tensors + 64))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=r"more than|cannot be"):
        describe(str(path))
    assert time.process_time() - began < 3


def test_thousands_of_files_that_are_nothing_are_scanned_soon(tmp_path: Path) -> None:
    for n in range(5000):
        (tmp_path / f"f{n}.pt").write_bytes(b"PK\3\4....")
    os.utime(tmp_path, (1e9, 1e9))
    began = time.process_time()
    (run,) = scan([str(tmp_path)])
    assert len(run.checkpoints) == 5000 and all(entry.error for entry in run.checkpoints)
    assert time.process_time() - began < 5


def test_a_directory_is_seen_anew_once_it_has_changed(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    os.utime(tmp_path, (1e9, 1e9))
    assert Source(str(tmp_path / "a")).files == {"a"}
    (tmp_path / "b").touch()
    assert Source(str(tmp_path / "a")).files == {"a", "b"}
    os.utime(tmp_path, (1e9, 2e9))
    assert Source(str(tmp_path / "a")).files == {"a", "b"}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "a/" * 5000, "\x1b]0;x\x07", "/dev/zero"])
def test_a_base_that_no_file_can_be_called_is_not_found(tmp_path: Path, name: str) -> None:
    lora = GOOD.parents[1] / "hf-lora" / "llama"
    folder = Path(shutil.copytree(lora, tmp_path / "adapter"))
    path = folder / "adapter_config.json"
    said = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": name}
    path.write_text(json.dumps(said), "utf-8")
    with pytest.raises(CheckpointError, match="is not here") as caught:
        describe(str(folder))
    assert str(caught.value).isprintable()


def test_a_character_beyond_unicode_in_yaml_is_refused() -> None:
    with pytest.raises(Damaged, match="not YAML"):
        parse_yaml(b'name: "\\UFFFFFFFF"')
