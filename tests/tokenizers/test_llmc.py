"""llm.c's vocabulary file gives the ids of the ranks it was written from."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec
from tui_chat.tokenizers.base import Tokenizer
from tui_chat.tokenizers.open import open_tokenizer

PIECES = [*(bytes([b]) for b in range(256)), b"he", b"ll", b"hell", b"hello", b"<|endoftext|>"]
END = len(PIECES) - 1
MAGIC = 20240328


def written(path: Path, pieces: list[bytes], *numbers: int) -> str:
    begin = struct.pack(f"<{len(numbers)}i", *numbers).ljust(1024, b"\0")
    path.write_bytes(begin + b"".join(bytes([len(piece)]) + piece for piece in pieces))
    return str(path)


def opened(path: str) -> Tokenizer:
    hint = TokenizerHint(kind="llmc", path=path, text_specials=("<|endoftext|>",))
    spec = ModelSpec(vocab_size=len(PIECES), n_layer=1, n_head=1, n_embd=4, context_length=8)
    return open_tokenizer(hint, spec)


def test_merges_in_the_order_of_the_ids(tmp_path: Path) -> None:
    tokenizer = opened(written(tmp_path / "t.bin", PIECES, MAGIC, 2, len(PIECES), END))
    assert tokenizer.encode("hello") == [259] and tokenizer.encode("help") == [256, 108, 112]
    assert tokenizer.decode([259, 33, END]) == "hello!<|endoftext|>"
    assert tokenizer.special == {"<|endoftext|>": END} and tokenizer.vocab_size == len(PIECES)


def test_only_a_raw_prompt_may_spell_the_end_of_a_document(tmp_path: Path) -> None:
    tokenizer = opened(written(tmp_path / "t.bin", PIECES, MAGIC, 2, len(PIECES), END))
    assert tokenizer.encode_raw("a<|endoftext|>b") == [97, END, 98]
    assert END not in tokenizer.encode("a<|endoftext|>b")


@pytest.mark.parametrize(
    ("pieces", "numbers", "reason"),
    [
        (PIECES, (MAGIC + 1, 2, len(PIECES), END), "no tokenizer of llm.c"),
        (PIECES, (MAGIC, 3, len(PIECES), END), "version 3"),
        (PIECES, (MAGIC, 2, 2**31 - 1, END), "2,147,483,647 ids"),
        (PIECES, (MAGIC, 2, -1, END), "-1 ids"),
        (PIECES, (MAGIC, 2, len(PIECES), len(PIECES)), "does not fit"),
        (PIECES, (MAGIC, 2, len(PIECES) - 1, 0), "does not fit"),
        (PIECES[:-1], (MAGIC, 2, len(PIECES), END), f"before id {END}"),
        ([*PIECES[:256], b"he", b"he", b"x", b"y", b"z"], (MAGIC, 2, len(PIECES), END), "the same"),
        ([b"", *PIECES[1:]], (MAGIC, 2, len(PIECES), END), "before id 0"),
        ([b"zz", *PIECES[1:]], (MAGIC, 2, len(PIECES), END), "256 bytes"),
    ],
)
def test_a_damaged_file_is_refused(
    pieces: list[bytes], numbers: tuple[int, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        opened(written(tmp_path / "t.bin", pieces, *numbers))
