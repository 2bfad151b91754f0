"""nanoGPT's character tokenizer: one id for each character of the training text, from its
meta.pkl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tui_chat.checkpoint.archive import read_pickle_file
from tui_chat.checkpoint.files import shown_name
from tui_chat.errors import CheckpointError

MAX_IDS = 2_000_000


class Characters:
    """Ids of single characters. What the training text did not contain has no id and is dropped."""

    def __init__(self, name: str, ids: Mapping[str, int], texts: Mapping[int, str]) -> None:
        self.name = name
        self.special: Mapping[str, int] = {}
        self._ids = dict(ids)
        self._bytes = {i: text.encode("utf-8", "replace") for i, text in texts.items()}
        self.vocab_size = max(self._bytes, default=-1) + 1

    def encode(self, text: str) -> list[int]:
        ids = self._ids
        return [ids[char] for char in text if char in ids]

    def encode_raw(self, text: str) -> list[int]:
        return self.encode(text)

    def missing(self, text: str) -> str:
        return "".join(char for char in dict.fromkeys(text) if char not in self._ids)

    def token_bytes(self, token: int) -> bytes:
        return self._bytes.get(token, b"")

    def decode(self, ids: Iterable[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


def open_characters(path: str) -> Characters:
    """The meta.pkl at `path`, read without running it. Raises CheckpointError."""
    meta = read_pickle_file(path)
    tables = (meta.get("stoi"), meta.get("itos")) if isinstance(meta, dict) else (None, None)
    ids, texts = tables
    if not isinstance(ids, dict) or not isinstance(texts, dict) or not texts:
        raise CheckpointError(
            f"cannot open {shown_name(path)}",
            "it has no tables stoi and itos, as nanoGPT's meta.pkl has",
        )
    if not all(isinstance(k, str) and _is_id(v) for k, v in ids.items()) or not all(
        _is_id(k) and isinstance(v, str) for k, v in texts.items()
    ):
        raise CheckpointError(
            f"cannot open {shown_name(path)}", "its tables are not from characters to ids and back"
        )
    return Characters(f"{len(texts)} characters", ids, texts)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_IDS
