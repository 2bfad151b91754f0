"""How refusals name the path that was tried and the value that was found."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tui_chat.checkpoint.catalog import describe
from tui_chat.checkpoint.files import MAX_SHOWN, shown_path
from tui_chat.checkpoint.names import removed_words
from tui_chat.checkpoint.pickles import Record
from tui_chat.checkpoint.plain import Opaque, what
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError


def test_a_path_is_shown_from_here_or_in_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    assert shown_path("ckpt.pt") == shown_path(str(here / "ckpt.pt")) == "ckpt.pt"
    assert shown_path("./out/../run/ckpt.pt") == "run/ckpt.pt"
    assert shown_path("../ckpt.pt") == str(tmp_path / "ckpt.pt")
    assert shown_path(str(tmp_path / "here2" / "a.pt")) == str(tmp_path / "here2" / "a.pt")
    assert shown_path(".") == str(here)


def test_a_path_is_shown_where_the_working_directory_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert shown_path("/runs/ckpt.pt") == "/runs/ckpt.pt"


@pytest.mark.parametrize(
    "name", ["a\x1b[31m.pt", "a\nb\rc\td.pt", "\u202egpj.pt", os.fsdecode(b"\xff\xfe.pt"), "\ud800"]
)
def test_a_hostile_name_is_shown_on_one_line_and_steers_nothing(name: str) -> None:
    shown = shown_path(f"/runs/{name}")
    assert shown.startswith("/runs/")
    assert not set("\x1b\n\r\t\u202e") & set(shown)
    shown.encode("utf-8")
    with pytest.raises(CheckpointError) as caught:
        describe(f"/nowhere/{name}")
    assert caught.value.title == f"cannot open {shown_path(f'/nowhere/{name}')}"


def test_a_long_path_keeps_its_beginning_and_its_end() -> None:
    shown = shown_path("/runs/" + "deep/" * 500 + "ckpt.pt")
    assert len(shown) == MAX_SHOWN
    assert shown.startswith("/runs/deep/") and shown.endswith("/deep/ckpt.pt") and "…" in shown


def test_the_refusal_of_a_file_elsewhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        describe(str(tmp_path / "ckpt.pt"))
    assert str(caught.value) == f"cannot open {tmp_path}/ckpt.pt: no such file or directory."


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({}, "an empty dict"),
        ({"a": 1}, "a dict"),
        ([], "an empty list"),
        ("text", "a text"),
        (None, "None"),
        (1.5, "a number"),
        (Opaque("os.mkdir"), "an object of os.mkdir"),
        (Opaque("a persistent id"), "a persistent id"),
        (Opaque(str(Record("x"))), "an object of x"),
        (object(), "an object"),
    ],
)
def test_a_value_is_named_with_its_article(value: object, words: str) -> None:
    assert what(value) == words


def test_a_class_with_a_long_name_is_cut() -> None:
    assert len(what(Opaque("x" * 5000))) == 80


def test_prefixes_that_were_removed_are_listed_as_one_or_many() -> None:
    assert removed_words([]) == []
    assert removed_words(["module."]) == [
        "the tensors' names had module. in them, which was removed"
    ]
    (both,) = removed_words(["module.", "_orig_mod."])
    assert "module. and _orig_mod. in them, which were removed" in both
    assert [listed(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
