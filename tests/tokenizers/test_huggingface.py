"""Tokenizers of Hugging Face folders, held against the library used the plain way."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Library

from tui_chat.checkpoint.hf_tokenizer import hf_tokenizer
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec
from tui_chat.tokenizers.huggingface import HuggingFace, open_content, open_huggingface
from tui_chat.tokenizers.open import open_tokenizer
from tui_chat.tokenizers.pieces import byte_alphabet
from tui_chat.tokenizers.stream import TextStream

FIXTURES = Path(__file__).parent.parent / "fixtures"
REFERENCES = sorted(
    path
    for path in FIXTURES.glob("*/*/reference.json")
    if (path.parent / "tokenizer.json").exists() and '"ids_with_special"' in path.read_text()
)
TEXTS = (
    "Hello world!",
    " leading and  double   spaces",
    "it's we'll I'VE 12345 3.14",
    "tab\tnew\nline\r\n\n\nend  ",
    "naïve café — “quotes”…",
    "日本語 🙂👍🏽 e\u0301 ﬁne Å",
    "",
    " ",
    "ROMEO:\nBut, soft! what light through yonder window breaks?",
)
SPELLED = "a <s> b</s>c [INST]x[/INST] <think>y</think> <|im_end|>z   w"


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda path: path.parts[-3])
def test_text_gets_the_ids_of_its_own_library(reference: Path) -> None:
    tokenizer = open_huggingface(str(reference.parent / "tokenizer.json"))
    start = list(hf_tokenizer(str(reference.parent)).text_start)
    rows = json.loads(reference.read_text())["encode"]
    assert rows
    for row in rows:
        ids = tokenizer.encode(row["text"])
        assert ids == tokenizer.encode_raw(row["text"]) == row["ids"]
        assert start + ids == row["ids_with_special"]
        assert tokenizer.decode(ids) == row["decoded"] and tokenizer.missing(row["text"]) == ""
    tokenizer.close()


# ---- every kind, trained here on the spot


def trained(kind: str) -> Library:
    """A small tokenizer of each kind that models are trained with."""
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<|im_end|>"]
    if kind == "byte level":
        found = Library(models.BPE())
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind == "digits":
        found = Library(models.BPE())
        found.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=True)]
        )
        found.normalizer = normalizers.NFKC()
        found.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        )
    elif kind.startswith("metaspace"):
        found = Library(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
        scheme = kind.split()[1]
        found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        found.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=scheme)]
        )
        trainer = trainers.BpeTrainer(
            vocab_size=560, special_tokens=special + [f"<0x{n:02X}>" for n in range(256)]
        )
    elif kind == "unigram":
        found = Library(models.Unigram())
        found.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        found.pre_tokenizer = pre_tokenizers.Metaspace()
        found.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    elif kind == "word piece":
        found = Library(models.WordPiece(unk_token="<unk>"))
        found.normalizer = normalizers.BertNormalizer()
        found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        found.decoder = decoders.WordPiece(cleanup=False)
        trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=special)
    elif kind == "end of word":
        found = Library(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
        found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        found.decoder = decoders.BPEDecoder()
        trainer = trainers.BpeTrainer(
            vocab_size=200, special_tokens=special, end_of_word_suffix="</w>"
        )
    else:
        found = Library(models.WordLevel(unk_token="<unk>"))
        found.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(vocab_size=60, special_tokens=special)
    trainer.show_progress = False
    found.train_from_iterator(CORPUS, trainer)
    found.add_tokens([AddedToken("   ", normalized=False), AddedToken("<think>")])
    found.add_special_tokens(
        [AddedToken("<|late|>", rstrip=True), AddedToken("<mask>", lstrip=True)]
    )
    return found


CORPUS = [
    "First, you know Caius Marcius is chief enemy to the people. We know it, we know it.",
    "Let us kill him, and we'll have corn at our own price. Is it a verdict? 12 of 345.",
    "O Romeo, Romeo! wherefore art thou Romeo? Deny thy father and refuse thy name;",
    "What light through yonder window breaks? It is the east, and Juliet is the sun.",
] * 3
KINDS = (
    "byte level", "digits", "metaspace always", "metaspace first", "metaspace never", "unigram",
    "word piece", "end of word", "words",
)  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def both(request: pytest.FixtureRequest) -> Iterator[tuple[str, HuggingFace, Library]]:
    library = trained(request.param)
    text = library.to_str().encode()
    tokenizer = HuggingFace(request.param, lambda: text)
    yield request.param, tokenizer, library
    tokenizer.close()


Both = tuple[str, HuggingFace, Library]


def test_ids_are_those_of_the_library(both: Both) -> None:
    _, tokenizer, library = both
    for text in (*TEXTS, SPELLED, "x <|late|>  y <mask> z", "<s>", "   <|im_end|>"):
        ids = library.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode_raw(text) == ids, text
    for text in TEXTS:
        assert tokenizer.encode(text) == tokenizer.encode_raw(text)
    assert tokenizer.vocab_size == library.get_vocab_size(with_added_tokens=True)
    for text, token in (*tokenizer.special.items(), *tokenizer.marks.items()):
        assert library.token_to_id(text) == token


@given(
    text=st.text(alphabet=st.sampled_from("aeß é<|>/s[]INT_ \n\t1日🙂\u0301\u2581"), max_size=30)
)
@settings(max_examples=60, deadline=None)
def test_any_text_has_the_ids_of_the_library(both: Both, text: str) -> None:
    _, tokenizer, library = both
    assert tokenizer.encode_raw(text) == library.encode(text, add_special_tokens=False).ids


def test_no_text_spells_a_control_token(both: Both) -> None:
    kind, tokenizer, _ = both
    every = {**tokenizer.special, **tokenizer.marks}
    unknown = every.pop("<unk>")  # what a letter gets that is in no piece
    for text in (SPELLED, "<|late|>", "<mask>", " ".join(every), "".join(every), "</", "s>"):
        ids = tokenizer.encode(text)
        assert not set(ids) & set(every.values()), text
        assert ids or not text or kind == "words"
    assert unknown == 0


def test_ids_become_the_librarys_text_and_the_stream_shows_the_same(both: Both) -> None:
    kind, tokenizer, library = both
    for text in TEXTS:
        ids = tokenizer.encode(text)
        shown = tokenizer.decode(ids)
        wanted = library.decode(ids, skip_special_tokens=False)
        assert shown.rstrip() == wanted.rstrip() if kind == "end of word" else shown == wanted
        stream = TextStream(tokenizer, opening=True)
        assert "".join(map(stream.push, ids)) + stream.flush() == shown


def test_parts_are_encoded_as_one_text(both: Both) -> None:
    """What stands beside a control token of a template is joined as in the whole."""
    _, tokenizer, library = both
    ids, at = tokenizer.encode_parts(
        [("<s>",), " Hello", " wor", "ld", ("[INST]",), "<s>x"], [0, 3, 15, 21]
    )
    marked = library.encode("<s> Hello world[INST]", add_special_tokens=False)
    assert ids[: len(marked.ids)] == marked.ids
    assert ids.count(tokenizer.special["<s>"]) == 1
    assert [ids[at[0]], ids[at[2]]] == [tokenizer.special["<s>"], tokenizer.special["[INST]"]]
    assert at == sorted(at)


def test_what_cannot_be_said_is_missing() -> None:
    said = {
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {"h": 0, "e": 1, "l": 2}, "merges": []},
        "decoder": {"type": "Fuse"},
    }
    tokenizer = open_content("letters", said)
    assert tokenizer.encode("hxel") == [0, 1, 2] and tokenizer.missing("hxély") == "xéy"
    tokenizer.close()
    words = open_content("words", json.loads(trained("words").to_str()))
    assert words.missing("a日") != "" and words.encode("日") == [words.special["<unk>"]]
    words.close()


def test_a_lone_surrogate_becomes_a_question_mark(both: Both) -> None:
    _, tokenizer, _ = both
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a?b")


# ---- what the file says, and what is refused


def byte_level() -> dict[str, Any]:
    alphabet = byte_alphabet()
    vocab = {alphabet[n]: n for n in range(256)} | {"he": 256, "hel": 257, "Ġw": 258}
    level = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "added_tokens": [{"id": 259, "content": "<|end|>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", **level},
        "decoder": {"type": "ByteLevel", **level},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h e", "he l", "Ġ w"]},
    }


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    said = copy.deepcopy(byte_level())
    change(said)
    return said


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda said: said.pop("model"), "no tokenizer"),
        (lambda said: said["model"].update(vocab=7), "no vocabulary"),
        (lambda said: said["model"].update(vocab={}), "no pieces|vocabulary"),
        (lambda said: said["model"]["vocab"].update(zz=5), "same id"),
        (lambda said: said["model"]["vocab"].update(zz=-1), "zz"),
        (lambda said: said["model"]["vocab"].update(zz=2**40), "zz"),
        (lambda said: said["model"]["vocab"].update(zz=1.5), "zz"),
        (lambda said: said["model"]["vocab"].update(zz=True), "zz"),
        (lambda said: said["model"].update(merges=["x y z"]), "."),
        (lambda said: said["model"].update(type="Other"), "."),
        (lambda said: said["added_tokens"].append({"id": 5, "content": "<x>"}), "<x>.*another"),
        (lambda said: said["added_tokens"].append({"id": 259, "content": "<x>"}), "<x>.*another"),
        (lambda said: said["added_tokens"].append({"id": True, "content": "<x>"}), "no id"),
        (lambda said: said["added_tokens"].append({"id": 300, "content": ""}), "no text"),
        (lambda said: said["added_tokens"].append({"id": 2**50, "content": "<x>"}), "impossible"),
        (lambda said: said.update(pre_tokenizer={"type": "Nothing"}), "."),
        (lambda said: said.update(normalizer={"type": "Replace"}), "."),
    ],
)
def test_a_file_that_cannot_be_is_refused_in_a_sentence(
    change: Callable[[dict[str, Any]], object], reason: str
) -> None:
    with pytest.raises(CheckpointError, match=f"cannot use the tokenizer x: .*{reason}") as caught:
        open_content("x", changed(change))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def spec(rows: int) -> ModelSpec:
    return ModelSpec(vocab_size=rows, n_layer=1, n_head=1, n_embd=4, context_length=8)


def opened(tmp_path: Path, said: object, rows: int, **hint: Any) -> HuggingFace:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(said))
    found = open_tokenizer(TokenizerHint(kind="tokenizer.json", path=str(path), **hint), spec(rows))
    assert isinstance(found, HuggingFace)
    return found


def test_added_tokens_beyond_the_model_are_left_out_and_said(tmp_path: Path) -> None:
    """As Gemma 3's token for images in its models of text."""
    said = byte_level()
    said["added_tokens"].append({"id": 260, "content": "<image>", "special": True})
    tokenizer = opened(tmp_path, said, 260)
    assert tokenizer.vocab_size == 260 and "<image>" not in tokenizer.special
    assert "<image>" in tokenizer.notes[0] and 260 not in tokenizer.encode_raw("<image>")
    tokenizer.close()
    with pytest.raises(CheckpointError, match="does not belong"):
        opened(tmp_path, said, 258)


def test_rows_beyond_the_tokenizer_have_no_text(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, byte_level(), 320)
    assert tokenizer.vocab_size == 320 and tokenizer.decode([319, 257, 300]) == "hel"
    assert tokenizer.token_bytes(320) == tokenizer.token_bytes(-1) == b""
    tokenizer.close()


def test_control_tokens_are_shown_or_not_as_the_system_does(tmp_path: Path) -> None:
    for hidden in (False, True):
        tokenizer = opened(tmp_path, byte_level(), 260, drop_special=hidden)
        assert tokenizer.decode([257, 259]) == ("hel" if hidden else "hel<|end|>")
        tokenizer.close()


def test_a_piece_that_merges_could_spell_is_no_control_token() -> None:
    """Where a control token stands in the vocabulary, and its letters join to it."""
    said = byte_level()
    vocab = said["model"]["vocab"]
    vocab |= {"<|": 260, "|>": 261, "e|>": 262, "<|e": 263, "<|e|>": 264}
    said["model"]["merges"] += ["< |", "| >", "<| e", "<|e |>"]
    said["model"]["ignore_merges"] = True
    said["added_tokens"].append({"id": 264, "content": "<|e|>", "special": True})
    tokenizer = open_content("x", said)
    assert 264 not in tokenizer.encode("<|e|>") and tokenizer.encode_raw("<|e|>") == [264]
    assert tokenizer.decode(tokenizer.encode("<|e|>")) == "<|e|>"
    tokenizer.close()


def test_the_file_must_be_the_same_when_the_process_starts_again(tmp_path: Path) -> None:
    tokenizer = opened(tmp_path, byte_level(), 260)
    ids = tokenizer.encode("hello")
    tokenizer.close()
    assert tokenizer.encode("hello w") != ids  # a new process
    tokenizer.close()
    said = byte_level()
    said["added_tokens"] = []
    (tmp_path / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match="has changed"):
        tokenizer.encode("something else")


def test_a_hostile_pattern_ends_and_the_next_text_is_encoded(tmp_path: Path) -> None:
    said = byte_level()
    said["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": r"((a|a|b)*)*c|\s+"},
                "behavior": "Isolated",
                "invert": False,
            },
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        ],
    }
    tokenizer = opened(tmp_path, said, 260)
    began = time.monotonic()
    try:
        tokenizer.encode("ab" * 500 + "d")
    except CheckpointError as error:
        assert "\n" not in str(error)
    assert time.monotonic() - began < 25
    assert tokenizer.encode("hel") == [257]
    tokenizer.close()


@pytest.mark.parametrize("count", [1, 200_000])
def test_long_texts_are_encoded(both: Both, count: int) -> None:
    kind, tokenizer, library = both
    text = "know it, " * count
    if count > 1 and kind not in ("byte level", "metaspace always"):
        text = text[:50_000]
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids


# ---- older folders


def test_vocab_json_with_merges_txt_is_gpt2s(tmp_path: Path) -> None:
    said = byte_level()
    vocab = said["model"]["vocab"] | {"<|endoftext|>": 259}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nh e\nhe l\nĠ w\n")
    found = hf_tokenizer(str(tmp_path))
    tokenizer = open_tokenizer(found.hint, spec(260))
    assert tokenizer.encode("hello w") == [257, 108, 111, 258]
    assert tokenizer.special == {"<|endoftext|>": 259}


def test_a_sentencepiece_model_gives_its_ids() -> None:
    folder = Path(__file__).parent / "sentencepiece"
    cases = json.loads((folder / "reference.json").read_text())
    assert set(cases) == {"bpe", "unigram", "symbols"}
    for name, rows in cases.items():
        hint = TokenizerHint(kind="sentencepiece", path=str(folder / f"{name}.model"))
        tokenizer = open_tokenizer(hint, spec(10_000))
        for text, ids in rows:
            assert tokenizer.encode(text) == ids, (name, text)
