from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import tui_chat
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec
from tui_chat.tokenizers.open import open_tokenizer

META = Path(__file__).parent.parent / "fixtures/nanogpt/char-bias/data/shakespeare_char/meta.pkl"


def spec(rows: int) -> ModelSpec:
    return ModelSpec(vocab_size=rows, n_layer=1, n_head=1, n_embd=4, context_length=8)


def test_without_a_tokenizer_ids_are_shown_and_no_text_goes_in() -> None:
    tokenizer = open_tokenizer(TokenizerHint(kind="none"), spec(20_000))
    assert tokenizer.decode([15496, 0]) == " 15496 0" and tokenizer.vocab_size == 20_000
    assert tokenizer.encode("hi") == [] and tokenizer.missing("hii") == "hi"
    assert tokenizer.token_bytes(20_000) == b""


def test_characters_round_trip_and_strangers_are_dropped_by_name() -> None:
    tokenizer = open_tokenizer(TokenizerHint(kind="chars", path=str(META)), spec(65))
    assert (
        tokenizer.decode(tokenizer.encode("ROMEO:\nO, what's this?")) == "ROMEO:\nO, what's this?"
    )
    assert tokenizer.encode("aé🙂b") == tokenizer.encode("ab")
    assert tokenizer.missing("aé🙂é") == "é🙂" and tokenizer.vocab_size == 65
    assert tokenizer.token_bytes(65) == b""


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="does not belong"):
        open_tokenizer(TokenizerHint(kind="chars", path=str(META)), spec(64))


@pytest.mark.parametrize(
    "meta",
    [
        [],
        {},
        {"stoi": {"a": 0}},
        {"stoi": {0: 0}, "itos": {0: "a"}},
        {"stoi": {"a": -1}, "itos": {-1: "a"}},
    ],
)
def test_a_pickle_that_is_no_character_table_is_refused(meta: object, tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta))
    with pytest.raises(CheckpointError, match=r"meta\.pkl"):
        open_tokenizer(TokenizerHint(kind="chars", path=str(path)), spec(65))


def test_tiktoken_is_loaded_only_where_it_is_used() -> None:
    code = (
        "import sys; from tui_chat.tokenizers.open import open_tokenizer; "
        "from tui_chat.templates.open import open_template; "
        "assert not {'tiktoken', 'torch'} & set(sys.modules)"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(tui_chat.__file__).parent.parent))
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
