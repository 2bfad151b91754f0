"""HipGPT's tokenizer.json: the text of each id, and the pairs that are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tui_chat.checkpoint.files import Damaged, refused
from tui_chat.checkpoint.source import MAX_VOCABULARY, read_json

MAX_PIECES = 2**24


@dataclass(frozen=True, slots=True)
class WordPieces:
    """A HipGPT tokenizer: text by id, and the pairs that are merged, the lowest rank first.

    `ranked` False: the file is of the time when a merge had no rank of its own, and the ids of
    the results were the ranks.
    """

    texts: list[str]
    ranks: Mapping[tuple[str, str], int]
    ranked: bool


def is_word_pieces(path: str) -> bool:
    """Whether the JSON file at `path` is such a tokenizer. Raises CheckpointError."""
    said = read_json(path, MAX_VOCABULARY)
    return isinstance(said, dict) and "stoi_to_token" in said


def read_word_pieces(path: str) -> WordPieces:
    """The tokenizer.json at `path`. Raises CheckpointError."""
    said = read_json(path, MAX_VOCABULARY)
    try:
        return _word_pieces(said)
    except Damaged as error:
        raise refused(path, error) from None


def _word_pieces(said: object) -> WordPieces:
    texts = said.get("stoi_to_token") if isinstance(said, dict) else None
    if not isinstance(said, dict) or not isinstance(texts, list):
        raise Damaged("it is no tokenizer of HipGPT: it has no list stoi_to_token")
    if not 0 < len(texts) <= MAX_PIECES or not all(isinstance(text, str) for text in texts):
        raise Damaged("its list stoi_to_token is not one of texts")
    known = frozenset(texts)
    merges = said.get("merge_rank")
    if merges is None:
        return WordPieces(texts, {}, False)
    if not isinstance(merges, list):
        raise Damaged("its merge_rank is not a list")
    ranks: dict[tuple[str, str], int] = {}
    for merge in merges:
        match merge:
            case [str(left), str(right), int(rank)] if not isinstance(rank, bool):
                if left in known and right in known:
                    ranks[left, right] = rank
            case _:
                raise Damaged("one of its merges is not two texts and a rank")
    return WordPieces(texts, ranks, True)
