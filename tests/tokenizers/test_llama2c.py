"""llama2.c's tokenizer against ids of the C program, and against its algorithm written plainly."""

from __future__ import annotations

import json
import struct
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.vocabularies import ScoredPieces, read_scored_pieces, read_sentencepiece
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec
from tui_chat.tokenizers.llama2c import Llama2c
from tui_chat.tokenizers.open import open_tokenizer
from tui_chat.tokenizers.stream import TextStream

FIXTURE = Path(__file__).parent.parent / "fixtures/llama2c/ckpt-and-v0"
VOCABULARY = read_scored_pieces(str(FIXTURE / "tokenizer.bin"), 384)
ENCODED: list[dict[str, Any]] = json.loads((FIXTURE / "reference.json").read_text())["encode"]
TOKENIZER = Llama2c("tokenizer.bin", VOCABULARY)


def plainly(text: str, vocabulary: ScoredPieces = VOCABULARY) -> list[int]:
    """run.c's encode: join the best pair, look through all pairs again."""
    ids = {piece: token for token, piece in reversed(list(enumerate(vocabulary.pieces)))}
    pieces = [ids[b" "]] if text else []
    for char in text:
        found = ids.get(char.encode())
        pieces += [byte + 3 for byte in char.encode()] if found is None else [found]
    while True:
        best, at = -1e10, -1
        for n in range(len(pieces) - 1):
            joined = ids.get(vocabulary.pieces[pieces[n]] + vocabulary.pieces[pieces[n + 1]])
            if joined is not None and vocabulary.scores[joined] > best:
                best, at = vocabulary.scores[joined], n
        if at < 0:
            return pieces
        joined = ids[vocabulary.pieces[pieces[at]] + vocabulary.pieces[pieces[at + 1]]]
        pieces[at : at + 2] = [joined]


@pytest.mark.parametrize("row", ENCODED, ids=[row["text"] for row in ENCODED])
def test_gives_the_ids_of_the_c_program(row: dict[str, Any]) -> None:
    assert TOKENIZER.encode(row["text"]) == row["ids"] == plainly(row["text"])
    assert TOKENIZER.decode(row["ids"]) == row["text"]


@given(
    st.text(alphabet=st.one_of(st.sampled_from(" theandor\n,.é🙂"), st.characters(codec="utf-8")))
)
@settings(max_examples=300, deadline=None)
def test_any_text_gives_the_ids_of_the_plain_algorithm_and_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids == plainly(text) and TOKENIZER.decode(ids) == text


def vocabulary(*pieces: tuple[bytes, float]) -> ScoredPieces:
    """The 259 that every such vocabulary begins with, and then `pieces`."""
    found = [(b"<unk>", 0.0), (b"\n<s>\n", 0.0), (b"\n</s>\n", 0.0)]
    found += [(f"<0x{byte:02X}>".encode(), 0.0) for byte in range(256)]
    found += pieces
    return ScoredPieces([piece for piece, _ in found], [score for _, score in found])


def test_pieces_across_words_are_found_as_well() -> None:
    across = vocabulary(
        (b" ", -1.0), (b"a", -2.0), (b"a ", -3.0), (b"a a", -4.0), (b" a", -5.0), (b"b", -6.0)
    )
    tokenizer = Llama2c("across", across)
    for text in ("a a", "a a a", "ba a b", "a  a", " a a"):
        assert tokenizer.encode(text) == plainly(text, across)


def test_of_equal_scores_the_leftmost_pair_is_joined() -> None:
    same = vocabulary((b" ", 0.0), (b"a", 0.0), (b"aa", -1.0))
    assert Llama2c("same", same).encode("aaa") == [259, 261, 260] == plainly("aaa", same)


def test_text_never_becomes_a_control_token() -> None:
    for text in ("<s>", "\n<s>\n", "</s>", "<unk>", "<0x41>"):
        ids = TOKENIZER.encode(text)
        assert min(ids) > 2 and TOKENIZER.decode(ids) == text


def test_control_tokens_have_no_text_and_a_new_beginning_loses_its_space() -> None:
    hello = TOKENIZER.encode("Hello")
    assert TOKENIZER.decode([1, *hello, 2, 1, *hello]) == "HelloHello"
    assert (
        TOKENIZER.token_bytes(1) == TOKENIZER.token_bytes(384) == TOKENIZER.token_bytes(-1) == b""
    )
    assert TOKENIZER.special == {"<unk>": 0, "<s>": 1, "</s>": 2}


def test_a_reply_keeps_its_first_space_and_never_shows_half_a_character() -> None:
    stream = TextStream(TOKENIZER)
    ids = TOKENIZER.encode("café 🙂")
    shown = [stream.push(token) for token in ids]
    assert "".join(shown) + stream.flush() == " café 🙂" and "\ufffd" not in "".join(shown)


def test_a_lone_surrogate_and_a_missing_space_piece_do_no_harm() -> None:
    assert TOKENIZER.decode(TOKENIZER.encode("a\ud800b")) == "a?b"
    bare = Llama2c("bytes alone", vocabulary())
    assert bare.encode("a") == [3 + 0x20, 3 + 0x61] and bare.decode(bare.encode("a b")) == "a b"


def test_a_long_text_is_encoded_in_time() -> None:
    began = time.process_time()
    word = TOKENIZER.encode("x" * 20_000)
    words = TOKENIZER.encode("Once upon a time there was a dog. " * 5_000)
    assert time.process_time() - began < 5 and len(word) > 5_000 and len(words) > 50_000


def hint(path: Path, size: int = 384) -> TokenizerHint:
    return TokenizerHint(kind="llama2c", path=str(path), vocab_size=size)


def spec(rows: int) -> ModelSpec:
    return ModelSpec(vocab_size=rows, n_layer=1, n_head=1, n_embd=4, context_length=8)


def test_the_model_says_how_many_ids_a_named_file_has() -> None:
    tokenizer = open_tokenizer(hint(FIXTURE / "tokenizer.bin", 0), spec(384))
    assert tokenizer.vocab_size == 384
    with pytest.raises(CheckpointError, match=r"tokenizer\.bin.*bytes follow its 383 ids"):
        open_tokenizer(hint(FIXTURE / "tokenizer.bin", 0), spec(383))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "too short"),
        (struct.pack("<I", 4) + struct.pack("<fi", 0.0, 2**31 - 1) * 384, "id 0 cannot be"),
        (struct.pack("<I", 4) + struct.pack("<fi", 0.0, -1) * 384, "id 0 cannot be"),
        (struct.pack("<I", 4) + struct.pack("<fi", float("nan"), 0) * 384, "score nan"),
        (struct.pack("<I", 4) + struct.pack("<fi", 0.0, 0) * 384, "256 of the 256 bytes"),
        ((FIXTURE / "tokenizer.bin").read_bytes()[:-1], "id 383 cannot be"),
    ],
)
def test_a_damaged_file_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        open_tokenizer(hint(tmp_path / "tokenizer.bin"), spec(384))


MODEL = (FIXTURE / "tokenizer.model").read_bytes()


def test_a_sentencepiece_model_holds_the_same_pieces_and_scores() -> None:
    found = read_sentencepiece(str(FIXTURE / "tokenizer.model"))
    assert found.pieces[3:] == VOCABULARY.pieces[3:] and found.scores == VOCABULARY.scores


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x7f", "in the middle"),
        (b"\x80" * 20, "no SentencePiece model"),
        (b"\x0b", "no SentencePiece model"),
        (b"\x0a\x02\x08\x01", "no text"),
        (MODEL[:-400], "no SentencePiece model"),
        (MODEL.replace(b"\x18\x02 \x80\x03", b"\x18\x01 \x80\x03"), "another kind than BPE"),
        (b"\x0a\x06\x0a\x04more" + MODEL, "control tokens"),
    ],
)
def test_another_sentencepiece_model_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(CheckpointError, match=reason):
        open_tokenizer(hint(tmp_path / "tokenizer.model"), spec(384))
