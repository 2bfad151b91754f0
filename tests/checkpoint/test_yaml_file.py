"""YAML of settings: what trainers write is read, what could run or swell is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tui_chat.checkpoint.hints import settings_file
from tui_chat.checkpoint.yaml_file import MAX_YAML, parse_yaml, read_yaml
from tui_chat.errors import CheckpointError


def test_plain_settings_are_read_as_the_trainers_own_reader_takes_them() -> None:
    text = (
        "a: 1\nb: 1.0e-06\nc: 1e-6\nd: null\ne: ~\nf: true\ng: yes\nh: 'yes'\ni: {}\nj: []\n"
        'k:\n- 1\n- 0\nl:\n  m: .inf\n  n: -0x10\no: 1_000\np: |\n  two\n  lines\nq: "\\u00e9"\n'
    )
    assert parse_yaml(text.encode()) == yaml.safe_load(text)
    assert parse_yaml(b"") is None
    assert parse_yaml(b"when: 2024-05-01\n") == {"when": "2024-05-01"}


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"a: !!python/object/apply:os.system [touch PWNED]", "tag"),
        (b"!mine {}", "tag"),
        (b"a: !!binary aGk=", "tag"),
        (b"a: &x [1]\nb: [*x, *x]", "aliases"),
        (b"a: 1\na: 2", "twice"),
        (b"? [1, 2]\n: 3", "no text"),
        (b"- " * 40 + b"1", "deeply"),
        (b"[" * 5000, "deeply"),
        (b"a: [1", "not YAML"),
        (b"a: 1\n---\nb: 2", "more than one"),
        (b"a: \xff", "UTF-8"),
        (b"a: " + b"9" * 5000, "too long"),
        (b"a: \x00", "not YAML"),
        (b"%YAML 9.9\n---\na", "not YAML"),
        (b"- \n" * 60_000, "entries"),
    ],
)
def test_what_is_no_plain_settings_is_refused(raw: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as failed:
        read_yaml(str(path))
    assert what in failed.value.found and len(failed.value.found) < 160


def test_a_file_too_long_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"#" * (MAX_YAML + 1))
    with pytest.raises(CheckpointError, match="more than a file of settings has"):
        read_yaml(str(path))


def test_a_config_file_in_yaml_says_the_sizes(tmp_path: Path) -> None:
    path = tmp_path / "train.yaml"
    path.write_text("model:\n  n_head: 4\n  block_size: 32\n  head_size: null\nlr: 3.0e-4\n")
    assert settings_file(str(path)) == {"n_head": 4, "context_length": 32}
    path.write_text("vocab_size: 50\npadded_vocab_size: 64\nn_query_groups: 2\n")
    assert settings_file(str(path)) == {"vocab_size": 64, "n_kv_head": 2}
