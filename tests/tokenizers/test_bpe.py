from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import regex  # type: ignore[import-untyped]
from hypothesis import given, settings
from hypothesis import strategies as st

from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.bpe import GPT2_PATTERN, PIECE, Bpe, open_named, pieces, read_ranks
from tui_chat.tokenizers.stream import TextStream

GPT2_ORIGINAL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = {bytes([n]): n for n in range(256)}
texts = st.text(alphabet=st.sampled_from(list("aBé 12\n\t.,'s½日🙂\u00a0\u2003_")), max_size=40)


def small(**options: Any) -> Bpe:
    ranks = BYTES | {b"he": 256, b"ll": 257, b"hell": 258, b" w": 259, b"  ": 260}
    return Bpe("small", ranks, {"<|end|>": 261, "<|endoftext|>": 262}, GPT2_PATTERN, **options)


@given(st.text(max_size=60))
@settings(max_examples=100, deadline=None)
def test_text_comes_back_whole_and_the_stream_shows_the_same(text: str) -> None:
    tokenizer = small()
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == text


@given(st.lists(st.integers(0, 270), max_size=30))
@settings(max_examples=100, deadline=None)
def test_the_stream_never_shows_half_a_character(ids: list[int]) -> None:
    tokenizer = small()
    stream = TextStream(tokenizer)
    assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids)


def test_a_character_of_four_tokens_appears_when_it_is_whole() -> None:
    stream = TextStream(small())
    assert [stream.push(byte) for byte in "🙂".encode()] == ["", "", "", "🙂"]
    assert stream.push("🙂".encode()[0]) == "" and stream.flush() == "\ufffd"


def test_what_spells_a_control_token_is_ordinary_text() -> None:
    tokenizer = small(raw_specials=("<|endoftext|>",))
    assert 262 not in tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.encode_raw("a<|endoftext|>b<|end|>")[:3] == [97, 262, 98]
    assert 261 not in tokenizer.encode_raw("<|end|>")
    assert tokenizer.decode([262]) == "<|endoftext|>"
    assert small(hidden=True).decode([104, 262, 261, 105]) == "hi"


@pytest.mark.parametrize("token", [-1, 263, 10**9])
def test_an_id_without_text_is_no_text(token: int) -> None:
    assert small().token_bytes(token) == b"" and small().decode([token]) == ""


def test_a_lone_surrogate_becomes_a_question_mark() -> None:
    assert small().decode(small().encode("a\ud800b")) == "a?b"


@pytest.mark.parametrize(
    "text", [" " * 1_000_000, "\t" * 1_000_000, "a" * 300_000, " word" * 100_000]
)
def test_a_very_long_text_is_encoded(text: str) -> None:
    tokenizer = small()
    began = time.process_time()
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert time.process_time() - began < 5


@given(st.integers(1, 30), texts.map(lambda text: text * 4))
@settings(max_examples=150, deadline=None)
def test_cutting_a_long_text_does_not_change_its_split(size: int, text: str) -> None:
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    # Every stretch from one place to cut to the next has to fit into the part that is searched.
    # It is not cut at the end of a line behind a sign, which belong together in GPT-4's split.
    places = regex.sub(r"(?<=[^\s])(?=\s)(?<![^\s\p{L}\p{N}](?=[\r\n]))", "\0", text)
    if all(len(stretch) < size // 2 for stretch in places.split("\0")):
        split = [word for piece in cut for word in regex.findall(GPT2_PATTERN, piece)]
        assert split == regex.findall(GPT2_PATTERN, text)


def test_short_texts_are_not_cut() -> None:
    assert list(pieces("a" * PIECE)) == ["a" * PIECE] and list(pieces("")) == []


@given(texts)
@settings(max_examples=300, deadline=None)
def test_the_fast_pattern_splits_as_the_original(text: str) -> None:
    assert regex.findall(GPT2_PATTERN, text) == regex.findall(GPT2_ORIGINAL, text)


# ---- GPT-2 by name


def test_a_rank_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "gpt2.tiktoken").write_bytes(b"IQ== 0\nnot base64 1\n")
    with pytest.raises(CheckpointError, match="line 2"):
        read_ranks(str(tmp_path / "gpt2.tiktoken"))


def test_without_the_file_and_without_a_network_it_says_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tiktoken

    def offline(name: str) -> tiktoken.Encoding:
        raise ConnectionError("no network")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    monkeypatch.setenv("TUI_CHAT_TOKENIZERS_DIR", str(tmp_path))
    with pytest.raises(CheckpointError, match=r"gpt2.*gpt2\.tiktoken"):
        open_named("gpt2")


@pytest.fixture
def gpt2(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bpe]:
    folder = os.environ.get("TUI_CHAT_TEST_DATA", "")
    if not os.path.isfile(os.path.join(folder, "gpt2.tiktoken")):
        pytest.skip("TUI_CHAT_TEST_DATA names no directory with gpt2.tiktoken")
    monkeypatch.setenv("TUI_CHAT_TOKENIZERS_DIR", folder)
    return open_named


def test_gpt2_gives_the_published_ids(gpt2: Callable[..., Bpe]) -> None:
    tokenizer = gpt2("gpt2", raw_specials=("<|endoftext|>",))
    assert tokenizer.encode("Hello world") == [15496, 995]
    assert tokenizer.vocab_size == 50257 and tokenizer.special == {"<|endoftext|>": 50256}
    assert tokenizer.encode_raw("a<|endoftext|>b") == [64, 50256, 65]
    assert gpt2("r50k_base", hidden=True).decode([15496, 50256, 995, 50257, 50303]) == "Hello world"
