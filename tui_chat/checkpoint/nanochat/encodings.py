"""tiktoken's encodings as they lie in pickles, read without running them.

Such a pickle holds one object of `tiktoken.core.Encoding` and its state: a name, a split pattern,
pieces with their ids and control tokens with theirs. Of an encoding that tiktoken knows by name,
the state is the name alone.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass

from tui_chat.checkpoint.archive import read_pickle_file
from tui_chat.checkpoint.files import Damaged, refused, unopened
from tui_chat.checkpoint.plain import Opaque, mapping
from tui_chat.checkpoint.source import MAX_VOCABULARY, read_json

# What nanochat puts before a conversation and around its turns.
TURN_TOKENS = (
    "<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>",
)  # fmt: skip
_BOS, _ASSISTANT_END, _GPT2_END = TURN_TOKENS[0], TURN_TOKENS[-1], "<|endoftext|>"
_ENDS = {"gpt2": 50256, "r50k_base": 50256, "cl100k_base": 100257}
_ENCODING = "tiktoken.core.Encoding"
MAX_PATTERN = 100_000  # characters


@dataclass(frozen=True, slots=True)
class PickledEncoding:
    """`pattern` is "" and `ranks` and `special` are empty where only the name is pickled."""

    name: str
    pattern: str
    ranks: dict[bytes, int]
    special: dict[str, int]

    @property
    def registered(self) -> bool:
        """Whether the name is all there is."""
        return not self.ranks

    @property
    def known_special(self) -> Mapping[str, int]:
        """The control tokens, also of an encoding of which only the name is pickled."""
        return {_GPT2_END: _ENDS[self.name]} if self.name in _ENDS else self.special

    @property
    def vocab_size(self) -> int:
        """1 + the largest id; 0 where only the name is pickled."""
        return max((*self.ranks.values(), *self.special.values()), default=-1) + 1


def read_encoding(path: str) -> PickledEncoding:
    """The encoding pickled at `path`; the last few are remembered. Raises CheckpointError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise unopened(path, error) from None
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _read(path: str, mtime_ns: int, size: int) -> PickledEncoding:
    root = read_pickle_file(path)
    if not is_encoding(root):
        raise refused(path, Damaged(f"it holds no {_ENCODING}, as nanochat's tokenizer.pkl does"))
    assert isinstance(root, Opaque)
    if root.state:
        return PickledEncoding(root.state[:80], "", {}, {})
    said = root.fields
    name, pattern = said.get("name"), said.get("pat_str")
    ranks, special = said.get("mergeable_ranks"), said.get("special_tokens")
    if not isinstance(name, str) or not isinstance(pattern, str) or len(pattern) > MAX_PATTERN:
        raise refused(path, Damaged("its encoding has no name or no split pattern"))
    if not isinstance(ranks, dict) or not ranks or not isinstance(special, dict):
        raise refused(path, Damaged("its encoding has no pieces or no control tokens"))
    if not all(isinstance(piece, bytes) and _is_id(token) for piece, token in ranks.items()):
        raise refused(path, Damaged("its pieces are not from bytes to ids"))
    if not all(isinstance(text, str) and _is_id(token) for text, token in special.items()):
        raise refused(path, Damaged("its control tokens are not from texts to ids"))
    return PickledEncoding(name[:80], pattern, ranks, special)


def read_added(path: str) -> tuple[dict[str, int], int]:
    """The control tokens of a tokenizer.json, and how many ids it has. Raises CheckpointError."""
    said = mapping(read_json(path, MAX_VOCABULARY))
    pieces = mapping(mapping(said.get("model")).get("vocab"))
    added = said.get("added_tokens")
    rows = [mapping(row) for row in added] if isinstance(added, list) else []
    special = {
        text: token
        for text, token in ((row.get("content"), row.get("id")) for row in rows)
        if isinstance(text, str) and _is_id(token) and isinstance(token, int)
    }
    ids = [token for token in pieces.values() if isinstance(token, int)]
    return special, max((*ids, *special.values()), default=-1) + 1


def begin_and_ends(special: Mapping[str, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that stand before every text of nanochat, and those that end one."""
    begin = [special[text] for text in (_BOS, _GPT2_END) if text in special][:1]
    ends = [special[text] for text in (_BOS, _ASSISTANT_END, _GPT2_END) if text in special]
    return tuple(begin), tuple(ends)


def is_encoding(root: object) -> bool:
    """Whether the contents of a pickle are an encoding of tiktoken."""
    return isinstance(root, Opaque) and root.name == _ENCODING


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**22
