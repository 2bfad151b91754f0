"""nanochat's tokenizer: a pickled encoding of tiktoken, built anew from what the pickle says."""

from __future__ import annotations

import re
from collections.abc import Iterable

from tui_chat.checkpoint.nanochat.encodings import read_encoding
from tui_chat.tokenizers.base import Tokenizer
from tui_chat.tokenizers.bpe import GPT2_PATTERN, Bpe, open_named
from tui_chat.tokenizers.foreign import ForeignBpe

GPT2_ORIGINAL = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# nanochat's own split, which is GPT-4's but for how many digits stand together.
_OWN = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)


def open_nanochat(
    path: str, *, hidden: bool = False, raw_specials: Iterable[str] = ()
) -> Tokenizer:
    """The tokenizer.pkl at `path`. Raises CheckpointError."""
    held = read_encoding(path)
    if held.registered:
        return open_named(held.name, hidden=hidden, raw_specials=raw_specials)
    kind = Bpe if is_known(held.pattern) else ForeignBpe
    return kind(
        held.name, held.ranks, held.special, held.pattern, hidden=hidden, raw_specials=raw_specials
    )


def is_known(pattern: str) -> bool:
    """Whether a split pattern is GPT-2's or nanochat's, with any number of digits together: those
    take a time that grows with the text alone."""
    return (
        pattern in (GPT2_PATTERN, GPT2_ORIGINAL)
        or re.sub(r"\\p\{N\}\{1,[1-9]\}", r"\\p{N}{1,2}", pattern) == _OWN
    )
