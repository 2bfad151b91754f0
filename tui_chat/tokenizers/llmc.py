"""llm.c's gpt2_tokenizer.bin: GPT-2's pieces in the order of their ids, which is the order in which
they are merged."""

from __future__ import annotations

from collections.abc import Iterable

from tui_chat.checkpoint.files import shown_path
from tui_chat.checkpoint.vocabularies import read_byte_pieces
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.bpe import GPT2_END, GPT2_PATTERN, Bpe


def open_llmc(path: str, *, raw_specials: Iterable[str] = ()) -> Bpe:
    """The tokenizer at `path`. Raises CheckpointError."""
    found = read_byte_pieces(path)
    ranks = {piece: token for token, piece in enumerate(found.pieces) if token != found.end}
    if len(ranks) != len(found.pieces) - 1:
        raise CheckpointError(f"cannot open {shown_path(path)}", "two of its pieces are the same")
    return Bpe("gpt2", ranks, {GPT2_END: found.end}, GPT2_PATTERN, raw_specials=raw_specials)
