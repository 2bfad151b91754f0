"""Tokenizers inside GGUF files: byte-level ones against the library they were trained with, scored
ones against a slow search for the best pair."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import pytest
from tokenizers import Regex, pre_tokenizers
from tokenizers import Tokenizer as Library
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel, Digits, PreTokenizer, Split
from tokenizers.trainers import BpeTrainer

from tui_chat.checkpoint.gguf.splits import SPLITS
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.gguf import open_gguf
from tui_chat.tokenizers.huggingface import HuggingFace
from tui_chat.tokenizers.merges import merges_of

Opened = Callable[[str], HuggingFace]
CORPUS = [path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
TEXTS = [
    "", " ", "a", "Hello, world!", "it's he'LL WE'RE", "x  y   z", "\n\n  \t end", "123456 7 89",
    "été 漢字 🙂 ñ", "a.b,c;d -- e", "CamelCaseWord lowerUPPER", "tab\tand\r\nnewline \r\n ",
    "def f(x):\n    return x ** 2\n", "  two spaces", "trailing   ", "<|end|> and </s>",
    "http://x.y/z?q=1&r=2", "Ⅷ ½ ٣", "don't", "I'M", "a\u00a0b", "…!?", "—x—",
]  # fmt: skip


@pytest.fixture
def opened() -> Iterator[Opened]:
    made: list[HuggingFace] = []

    def open_(path: str) -> HuggingFace:
        made.append(open_gguf(path))
        return made[-1]

    yield open_
    for tokenizer in made:
        tokenizer.close()


def split(pattern: str) -> PreTokenizer:
    """As the tokenizer.json of such a model has it."""
    steps = [Split(Regex(pattern), "isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    return pre_tokenizers.Sequence(steps)


CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
END = r"\s*[\r\n]+|\s+(?!\S)|\s+"
OWN = {
    "gpt-2": ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": split(
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END
    ),
    "llama-bpe": split(
        CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + END
    ),
    "tekken": split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|" + END
    ),
    "gpt-4o": split(
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        + CONTRACTIONS
        + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        + CONTRACTIONS
        + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|"
        + END
    ),
}


@pytest.mark.parametrize("pre", OWN)
def test_byte_level_tokenizers_encode_as_the_library_they_were_trained_with(
    pre: str, tmp_path: Path, opened: Opened
) -> None:
    library = Library(BPE(ignore_merges=SPLITS[pre].whole))
    library.pre_tokenizer = OWN[pre]
    library.decoder = ByteLevelDecoder()
    library.train_from_iterator(
        CORPUS,
        BpeTrainer(
            vocab_size=700, special_tokens=["<|end|>"], initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )  # fmt: skip
    said = json.loads(library.to_str())["model"]
    tokens = sorted(said["vocab"], key=said["vocab"].__getitem__)
    writer = gguf.GGUFWriter(str(tmp_path / "t.gguf"), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3, *[1] * (len(tokens) - 1)])
    writer.add_token_merges([" ".join(pair) for pair in said["merges"]])
    finish(writer)
    tokenizer = opened(str(tmp_path / "t.gguf"))
    assert tokenizer.vocab_size == 700 and dict(tokenizer.special) == {"<|end|>": 0}
    for text in [*TEXTS, *(page[:3000] for page in CORPUS)]:
        before = text.split("<|end|>")[0]  # the library takes it for the control token
        assert tokenizer.encode(before) == library.encode(before).ids, text[:60]
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_raw(text) == library.encode(text).ids
    assert 0 not in tokenizer.encode("<|end|>")


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# ---- SentencePiece's kind


def scored(path: Path, *, prefix: bool = True, user: str = "") -> tuple[str, dict[str, float]]:
    """A vocabulary of pieces grown from a text by joining what is frequent, as one by scores."""
    words = " ".join(CORPUS).replace("\n", " ").split()
    counts: dict[str, int] = {}
    for word in words:
        piece = "\u2581" + word
        for size in range(2, 7):
            for at in range(len(piece) - size + 1):
                part = piece[at : at + size]
                counts[part] = counts.get(part, 0) + 1
    letters = sorted({char for word in words for char in word if char.isascii()} | {"\u2581"})
    best = sorted(counts, key=lambda part: (-counts[part] * len(part), part))[:400]
    pieces: dict[str, float] = {part: -float(n) for n, part in enumerate(best)}
    pieces |= {letter: -1000.0 - n for n, letter in enumerate(letters)}
    control = ["<unk>", "<s>", "</s>"]
    every = [*control, *(f"<0x{n:02X}>" for n in range(256)), *([user] if user else []), *pieces]
    kinds = [2, 3, 3, *[6] * 256, *([4] if user else []), *[1] * len(pieces)]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_tokenizer_model("llama")
    writer.add_token_list(every)
    writer.add_token_scores([pieces.get(piece, 0.0) for piece in every])
    writer.add_token_types(kinds)
    if not prefix:
        writer.add_add_space_prefix(False)
    finish(writer)
    return str(path), pieces


def slowly(text: str, pieces: dict[str, float], ids: dict[str, int], prefix: bool) -> list[int]:
    """SentencePiece's rule word for word: join the neighbours that score best, the left ones first,
    until none can be joined; what is no piece is its bytes."""
    parts = list((" " if prefix else "") + text)
    parts = ["\u2581" if part == " " else part for part in parts]
    while True:
        pairs = [
            (-pieces[left + right], n)
            for n, (left, right) in enumerate(itertools.pairwise(parts))
            if left + right in pieces and left in pieces and right in pieces
        ]
        if not pairs:
            break
        at = min(pairs)[1]
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    found: list[int] = []
    for part in parts:
        found += [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]
    return found


@pytest.mark.parametrize("prefix", [True, False])
def test_scored_tokenizers_join_the_best_pair_first(
    prefix: bool, tmp_path: Path, opened: Opened
) -> None:
    path, pieces = scored(tmp_path / "t.gguf", prefix=prefix)
    tokenizer = opened(path)
    every = [f"<0x{n:02X}>" for n in range(256)]
    ids = {piece: n for n, piece in enumerate(["<unk>", "<s>", "</s>", *every, *pieces])}
    chance = random.Random(2)
    text = " ".join(CORPUS)
    samples = [text[at : at + 80] for at in (chance.randrange(len(text)) for _ in range(60))]
    for sample in [*TEXTS[1:], *samples]:
        got = tokenizer.encode(sample)
        assert got == slowly(sample, pieces, ids, prefix), sample
        assert tokenizer.decode(got) == sample


def test_control_pieces_are_never_spelled_by_text(tmp_path: Path, opened: Opened) -> None:
    tokenizer = opened(scored(tmp_path / "t.gguf")[0])
    assert dict(tokenizer.special) == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert not {0, 1, 2} & set(tokenizer.encode("<s>a</s><unk>"))
    assert tokenizer.encode_raw("</s>")[-1] == 2
    assert tokenizer.token_bytes(3 + 0x41) == b"A"


def test_pieces_of_the_user_stand_whole(tmp_path: Path, opened: Opened) -> None:
    path, _ = scored(tmp_path / "t.gguf", prefix=False, user="\u2581\u2581\u2581\u2581")
    tokenizer = opened(path)
    token = 3 + 256
    assert tokenizer.encode("a        b").count(token) == 2
    assert tokenizer.decode([token]) == "    "


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("scores", [1.0], "1 scores"),
        ("token_type", [1, 1], "types"),
        ("model", "rwkv", "rwkv"),
    ],
)
def test_lists_that_do_not_fit_are_refused(
    key: str, value: object, what: str, tmp_path: Path
) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "t.gguf"), "llama")
    said = {"model": "llama", "tokens": ["a", "b", "c"], "scores": [0.0] * 3, "token_type": [1] * 3}
    for name, entry in {**said, key: value}.items():
        full = f"tokenizer.ggml.{name}"
        writer.add_string(full, entry) if isinstance(entry, str) else writer.add_array(full, entry)
    finish(writer)
    with pytest.raises(CheckpointError, match=what):
        open_gguf(str(tmp_path / "t.gguf"))


def test_a_merge_that_is_no_pair_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(str(tmp_path / "t.gguf"), "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "ab"])
    writer.add_token_merges(["a b", "ab"])
    finish(writer)
    with pytest.raises(CheckpointError, match="two pieces"):
        open_gguf(str(tmp_path / "t.gguf"))


def test_merges_come_highest_score_first() -> None:
    scores = {"a": -9.0, "b": -9.0, "ab": -2.0, "abb": -1.0, "bb": float("nan")}
    ids = {piece: n for n, piece in enumerate(scores)}
    assert merges_of(scores, ids) == [("a", "bb"), ("ab", "b"), ("a", "b")]
