"""A checkpoint without a tokenizer: numbers are its text."""

from __future__ import annotations

from tui_chat.tokenizers.none import IdsOnly


def test_what_it_shows_it_reads() -> None:
    tokenizer = IdsOnly(50)
    ids = [0, 49, 7, 7]
    assert tokenizer.decode(ids) == " 0 49 7 7"
    assert tokenizer.encode_raw(tokenizer.decode(ids)) == tokenizer.encode("0, 49,7\n7") == ids


def test_everything_else_has_no_id_and_is_named() -> None:
    tokenizer = IdsOnly(50)
    assert tokenizer.encode("12 fifty 50 -1 ²") == [12]
    assert tokenizer.missing("12 fifty 50 -1 ²") == "fity50-1²"
    assert tokenizer.missing("1 2 3") == ""
    assert tokenizer.encode("9" * 5000) == []
