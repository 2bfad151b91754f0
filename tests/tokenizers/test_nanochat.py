"""nanochat's tokenizer, read from a pickle that is not run."""

from __future__ import annotations

import contextlib
import json
import pickle
import pickletools
import time
from pathlib import Path
from typing import Any

import pytest
import tiktoken

from tui_chat.checkpoint.nanochat.encodings import read_encoding
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers import foreign
from tui_chat.tokenizers.bpe import PIECE
from tui_chat.tokenizers.foreign import ForeignBpe
from tui_chat.tokenizers.nanochat import is_known, open_nanochat
from tui_chat.tokenizers.stream import TextStream

FIXTURE = Path(__file__).parent.parent / "fixtures/nanochat/d4"
PICKLE = FIXTURE / "tokenizer/tokenizer.pkl"
REFERENCE: dict[str, Any] = json.loads((FIXTURE / "reference.json").read_text())
BYTES = {bytes([n]): n for n in range(256)}


def saved(path: Path, encoding: object, protocol: int | None = None) -> str:
    path.write_bytes(pickle.dumps(encoding, protocol))
    return str(path)


GOOD = {"name": "x", "pat_str": ".", "mergeable_ranks": BYTES, "special_tokens": {"<|bos|>": 256}}


def write(path: str, state: dict[str, object]) -> None:
    """An encoding with a state, as pickle writes it."""
    head = b"\x80\x04\x8c\rtiktoken.core\x8c\x08Encoding\x93)\x81"
    body = pickle.dumps(state, 4)[2:]
    body = body[9:] if body[:1] == b"\x95" else body
    Path(path).write_bytes(head + body[:-1] + b"b.")


@pytest.mark.parametrize("row", REFERENCE["encode"], ids=lambda row: repr(row["text"]))
def test_text_gets_the_ids_that_the_trainer_gives_it(row: dict[str, Any]) -> None:
    tokenizer = open_nanochat(str(PICKLE))
    assert tokenizer.encode(row["text"]) == row["ids"]
    assert tokenizer.encode_raw(row["text"]) == row["ids"]
    assert tokenizer.decode(row["ids"]) == row["decoded"]
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, row["ids"])) + stream.flush() == row["decoded"]


def test_a_long_text_gets_the_ids_it_has_in_one_piece() -> None:
    tokenizer = open_nanochat(str(PICKLE))
    held = read_encoding(str(PICKLE))
    whole = tiktoken.Encoding(
        "x", pat_str=held.pattern, mergeable_ranks=held.ranks, special_tokens={}
    )
    for line in ("So.\n\n", "it's 123 (no!)\r\n", "ab cd\n", "a  b\n\n \n"):
        text = line * (2 * PIECE // len(line) + 3)
        assert tokenizer.encode(text) == whole.encode_ordinary(text)


def test_control_tokens_are_known_and_never_spelled() -> None:
    tokenizer = open_nanochat(str(PICKLE))
    assert dict(tokenizer.special) == REFERENCE["special_tokens"]
    assert tokenizer.vocab_size == 512
    for text, token in tokenizer.special.items():
        assert token not in tokenizer.encode(text) + tokenizer.encode_raw(text)
        assert tokenizer.token_bytes(token) == text.encode()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_any_encoding_that_python_can_pickle(tmp_path: Path, protocol: int) -> None:
    ranks = BYTES | {b"ab": 256, b"abab": 257}
    encoding = tiktoken.Encoding(
        "own", pat_str=r"\p{N}{1,3}|\w+|\W", mergeable_ranks=ranks, special_tokens={"<|bos|>": 258}
    )
    tokenizer = open_nanochat(saved(tmp_path / "tokenizer.pkl", encoding, protocol))
    text = "ababc 1234 ä\n"
    assert tokenizer.encode(text) == encoding.encode_ordinary(text)
    assert (tokenizer.name, tokenizer.vocab_size) == ("own", 259)


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        (r"(\w+\s?)*\d|\w|\W", "word " * 9_000),
        (r"(?=(a+)+$)a|b|\d", "a" * 60 + "b"),
        (r"(?<=(a|aa)*)(?!(a|aa)*$)a|.", "a" * 2_000),
    ],
)
def test_a_pattern_that_may_never_end_cannot_hold_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, text: str
) -> None:
    monkeypatch.setattr(foreign, "SECONDS", 0.5)
    path = str(tmp_path / "tokenizer.pkl")
    write(path, GOOD | {"pat_str": pattern})
    began = time.monotonic()
    with contextlib.suppress(CheckpointError):
        tokenizer = open_nanochat(path)
        assert isinstance(tokenizer, ForeignBpe)
        assert tokenizer.encode("b1")
        with contextlib.suppress(CheckpointError):
            tokenizer.encode(text)
        assert tokenizer.encode("b2") == [98, 50]  # and goes on
    assert time.monotonic() - began < 60


def test_an_encoding_that_tiktoken_knows_is_pickled_as_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoding = tiktoken.Encoding("gpt2", pat_str="a", mergeable_ranks=BYTES, special_tokens={})
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "gpt2", encoding)
    path = saved(tmp_path / "tokenizer.pkl", encoding)
    assert "mergeable_ranks" not in str(list(pickletools.genops(Path(path).read_bytes())))
    found = read_encoding(path)
    assert found.registered and (found.name, found.vocab_size) == ("gpt2", 0)
    (tmp_path / "gpt2.tiktoken").write_bytes(b"aGU= 0\nbGw= 1\n")
    monkeypatch.setenv("TUI_CHAT_TOKENIZERS_DIR", str(tmp_path))
    with pytest.raises(CheckpointError, match="no piece for 256 of the 256 bytes"):
        open_nanochat(path)  # the rank file of that name is what is read


def test_the_file_is_read_again_when_it_has_changed(tmp_path: Path) -> None:
    def encoding(name: str) -> tiktoken.Encoding:
        return tiktoken.Encoding(name, pat_str=".", mergeable_ranks=BYTES, special_tokens={})

    path = saved(tmp_path / "tokenizer.pkl", encoding("one"))
    assert read_encoding(path).name == "one"
    saved(tmp_path / "tokenizer.pkl", encoding("another"))
    assert read_encoding(path).name == "another"


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (GOOD | {"pat_str": None}, "no name or no split pattern"),
        (GOOD | {"pat_str": "a" * 200_000}, "no name or no split pattern"),
        (GOOD | {"mergeable_ranks": {}}, "no pieces"),
        (GOOD | {"mergeable_ranks": [b"a"]}, "no pieces"),
        (GOOD | {"mergeable_ranks": {"a": 0}}, "not from bytes to ids"),
        (GOOD | {"mergeable_ranks": {b"a": -1}}, "not from bytes to ids"),
        (GOOD | {"mergeable_ranks": {b"a": 2**40}}, "not from bytes to ids"),
        (GOOD | {"mergeable_ranks": {b"a": True}}, "not from bytes to ids"),
        (GOOD | {"special_tokens": {"<|bos|>": "256"}}, "not from texts to ids"),
        (GOOD | {"special_tokens": {"<|bos|>": 3}}, "same id"),
        (GOOD | {"special_tokens": {"": 256}}, "empty text"),
        (GOOD | {"mergeable_ranks": {b"a": 1, b"b": 1}}, "same id"),
        (GOOD | {"mergeable_ranks": {b"a": 1}}, "no piece for 255"),
        (GOOD | {"pat_str": "((("}, "cannot use the tokenizer"),
    ],
)
def test_tables_that_cannot_be_are_refused(
    tmp_path: Path, state: dict[str, object], says: str
) -> None:
    path = str(tmp_path / "tokenizer.pkl")
    write(path, state)
    with pytest.raises(CheckpointError, match=says):
        open_nanochat(path)


@pytest.mark.parametrize("found", [{"stoi": {}}, [1, 2], "text", None])
def test_another_pickle_is_no_tokenizer(tmp_path: Path, found: object) -> None:
    with pytest.raises(CheckpointError, match=r"no tiktoken\.core\.Encoding"):
        read_encoding(saved(tmp_path / "tokenizer.pkl", found))


def test_nanochats_own_patterns_are_known() -> None:
    own = read_encoding(str(PICKLE)).pattern
    assert is_known(own) and is_known(own.replace("{1,2}", "{1,3}"))
    assert not is_known(own + "|(a+)+$") and not is_known(own.replace("{1,2}", "{1,22}"))
