"""HipGPT's tokenizer: its own program's ids, and any table against the merging loop as written."""

from __future__ import annotations

import itertools
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec
from tui_chat.tokenizers.hipgpt import WordPieceMerges, open_word_pieces
from tui_chat.tokenizers.open import open_tokenizer
from tui_chat.tokenizers.stream import TextStream

S3 = Path(__file__).parent.parent / "fixtures/S3"
RUNS = {
    "tiny_fallback": S3 / "tiny_fallback/checkpoints/tiny",
    "flash_head32": S3 / "flash_head32/checkpoints/shakespeare_v1",
}


def encoded(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((S3 / name / "reference.json").read_text())["encode"]
    return found


@pytest.mark.parametrize("name", RUNS)
def test_gives_the_ids_and_the_text_of_its_own_program(name: str) -> None:
    tokenizer = open_word_pieces(str(RUNS[name] / "tokenizer.json"))
    rows = encoded(name)
    assert len(rows) >= 4
    for row in rows:
        assert tokenizer.encode(row["text"]) == tokenizer.encode_raw(row["text"]) == row["ids"]
        assert tokenizer.decode(row["ids"]) == row["decoded"]


def test_opens_by_its_hint_and_must_fit_the_model() -> None:
    path = str(RUNS["tiny_fallback"] / "tokenizer.json")
    hint = TokenizerHint(kind="hipgpt", path=path)
    fits = ModelSpec(vocab_size=220, n_layer=1, n_head=1, n_embd=8, context_length=8)
    assert open_tokenizer(hint, fits).vocab_size == 220
    short = ModelSpec(vocab_size=219, n_layer=1, n_head=1, n_embd=8, context_length=8)
    with pytest.raises(CheckpointError, match="220 ids, the model only 219"):
        open_tokenizer(hint, short)


# ---- any table


def as_written(word: str, rank_of: Callable[[str, str], int | None]) -> list[str]:
    """The merging loop of its program: a pass for each best pair."""
    pieces = [*word[:-1], word[-1] + "</w>"]
    while len(pieces) > 1:
        best, best_rank = ("", ""), 2**31 - 1
        for pair in itertools.pairwise(pieces):
            rank = rank_of(*pair)
            if rank is not None and rank < best_rank:
                best, best_rank = pair, rank
        if best_rank == 2**31 - 1:
            break
        merged, at = [], 0
        while at < len(pieces):
            if tuple(pieces[at : at + 2]) == best:
                merged.append("".join(best))
                at += 2
            else:
                merged.append(pieces[at])
                at += 1
        pieces = merged
    return pieces


@pytest.mark.parametrize("ranked", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_merges_as_the_loop_of_its_program_does(seed: int, ranked: bool) -> None:
    """Tables as training makes them, and tables with ranks in any order, twice the same rank, and
    merges whose result is no piece."""
    draw = random.Random(seed)
    letters = "ab" if seed % 2 else "abcé"
    texts = [*letters, *(letter + "</w>" for letter in letters)]
    ranks: dict[tuple[str, str], int] = {}
    for n in range(30):
        left, right = draw.choice([t for t in texts if "</w>" not in t]), draw.choice(texts)
        ranks.setdefault((left, right), n if seed < 20 else draw.randrange(12))
        if left + right not in texts and (seed < 20 or draw.random() < 0.8):
            texts.append(left + right)
    tokenizer = WordPieceMerges("test", texts, ranks if ranked else None)
    ids = {text: token for token, text in enumerate(texts)}

    def rank_of(left: str, right: str) -> int | None:
        if not ranked:
            return ids.get(left + right)
        return ranks.get((left, right)) if left in ids and right in ids else None

    merged = 0
    for _ in range(60):
        word = "".join(draw.choice(letters) for _ in range(draw.randrange(1, 40)))
        pieces = as_written(word, rank_of)
        merged += len(word) - len(pieces)
        assert tokenizer.encode(word) == [ids[piece] for piece in pieces if piece in ids]
    assert merged > 100


def written(path: Path, **said: Any) -> str:
    path.write_text(json.dumps(said), encoding="utf-8")
    return str(path)


def test_of_equal_texts_the_later_id_wins_and_both_are_shown(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.json", stoi_to_token=["a", "a</w>", "a"], merge_rank=[["a", "a</w>", 0]]
    )
    tokenizer = open_word_pieces(path)
    # Merged, the two letters are no piece any more, and so they are dropped.
    assert tokenizer.encode("a aa aaa") == [1, 2]
    assert tokenizer.decode([0, 2, 1, 9, -1]) == "aaa "


def test_a_merge_of_what_is_no_piece_does_not_apply(tmp_path: Path) -> None:
    path = written(
        tmp_path / "t.json",
        stoi_to_token=["a", "b</w>", "ab</w>", "x"],
        merge_rank=[["x", "y", 0], ["a", "b</w>", 7]],
    )
    tokenizer = open_word_pieces(path)
    assert tokenizer.encode("ab xy") == [2, 3]
    assert tokenizer.missing("ab xy a") == "ya"  # y ends a word, and so does the last a


def test_only_what_c_calls_white_space_parts_words(tmp_path: Path) -> None:
    path = written(tmp_path / "t.json", stoi_to_token=["a", "a</w>", "\u00a0", "\u2028", "\x1f"])
    tokenizer = open_word_pieces(path)
    assert tokenizer.encode("a\ta\na\va\fa\ra a") == [1] * 7
    assert tokenizer.encode("a\u00a0a\u2028a\x1fa") == [0, 2, 0, 3, 0, 4, 1]
    assert tokenizer.encode(" \n\t ") == []


def test_characters_of_four_bytes_are_one_piece(tmp_path: Path) -> None:
    path = written(tmp_path / "t.json", stoi_to_token=["é", "🐹", "🐹</w>"], merge_rank=[])
    tokenizer = open_word_pieces(path)
    assert tokenizer.encode("é🐹🐹") == [0, 1, 2]
    assert tokenizer.decode([0, 1, 2]) == "é🐹🐹 "
    stream = TextStream(tokenizer)
    assert [stream.push(token) for token in (0, 1, 2)] == ["é", "🐹", "🐹 "]


def test_a_table_without_ranks_is_merged_by_the_ids_of_the_results(tmp_path: Path) -> None:
    """As the first versions did, which wrote none."""
    texts = ["a", "b", "c</w>", "bc</w>", "ab", "abc</w>"]
    tokenizer = open_word_pieces(written(tmp_path / "t.json", stoi_to_token=texts))
    assert tokenizer.encode("abc") == [5]  # b and c first
    assert tokenizer.encode("abab") == [4, 0]  # the last b is no piece
    later = open_word_pieces(written(tmp_path / "u.json", stoi_to_token=texts, merge_rank=[]))
    assert later.encode("abc") == [0, 1, 2]


def test_a_word_of_a_quarter_million_letters_takes_seconds() -> None:
    tokenizer = open_word_pieces(str(RUNS["tiny_fallback"] / "tokenizer.json"))
    began = time.process_time()
    ids = tokenizer.encode("thethatandyou" * 20_000)
    assert len(ids) > 20_000
    assert time.process_time() - began < 20


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({}, "no list stoi_to_token"),
        ({"stoi_to_token": {}}, "no list stoi_to_token"),
        ({"stoi_to_token": []}, "not one of texts"),
        ({"stoi_to_token": ["a", 3]}, "not one of texts"),
        ({"stoi_to_token": ["a"], "merge_rank": {}}, "merge_rank is not a list"),
        ({"stoi_to_token": ["a"], "merge_rank": [["a", "a"]]}, "two texts and a rank"),
        ({"stoi_to_token": ["a"], "merge_rank": [["a", "a", "0"]]}, "two texts and a rank"),
        ({"stoi_to_token": ["a"], "merge_rank": [["a", "a", True]]}, "two texts and a rank"),
        ({"stoi_to_token": ["a"], "merge_rank": [["a", "a", 0.5]]}, "two texts and a rank"),
        ({"stoi_to_token": ["a"], "merge_rank": [7]}, "two texts and a rank"),
    ],
)
def test_a_table_that_is_none_is_refused_in_one_sentence(
    said: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason) as error:
        open_word_pieces(written(tmp_path / "tokenizer.json", **said))
    assert "tokenizer.json" in str(error.value) and "\n" not in str(error.value)
