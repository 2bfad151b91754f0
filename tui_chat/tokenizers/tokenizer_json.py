"""Reads a byte-level BPE tokenizer.json into a tokenizer that tiktoken runs.

The pieces of such a file spell bytes in GPT-2's alphabet; undone, they are tiktoken's ranks. Merges
that do not follow the order of ids, normalizers and pre-tokenizers other than those named here are
refused rather than approximated.
"""

from __future__ import annotations

from collections.abc import Mapping

from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import read_json
from tui_chat.errors import CheckpointError
from tui_chat.tokenizers.bpe import GPT2_PATTERN, Bpe

# Digits stand alone, and what is left is split as by GPT-2. A run of spaces before a digit ends
# there, as it would at the end of the text, so it stays whole: hence the digit in the look-ahead.
DIGITS_PATTERN = (
    r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s"
)


def open_tokenizer_json(path: str, *, hidden: bool = False) -> Bpe:
    """The tokenizer at `path`. Raises CheckpointError, naming what it cannot read."""
    try:
        return _opened(path, hidden)
    except _Unsupported as error:
        raise CheckpointError(f"cannot open {shown_name(path)}", str(error)) from None


class _Unsupported(ValueError):
    """A part of the file that is not read."""


def _opened(path: str, hidden: bool) -> Bpe:
    said = read_json(path)
    if not isinstance(said, dict):
        raise _Unsupported("it is not a table")
    model = mapping(said.get("model"))
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise _Unsupported(f"its model is {str(kind)[:40]!r}; only BPE is read")
    if model.get("byte_fallback"):
        raise _Unsupported("it is of the SentencePiece kind (byte_fallback), which is not read yet")
    if said.get("normalizer") is not None:
        raise _Unsupported(
            f"it normalizes the text ({_type(said['normalizer'])}), which is not read yet"
        )
    pattern = _pattern(said.get("pre_tokenizer"))
    special = _special(said.get("added_tokens"))
    ranks = _ranks(model, set(special.values()))
    return Bpe("tokenizer.json", ranks, special, pattern, hidden=hidden)


def _type(part: object) -> str:
    return str(mapping(part).get("type"))[:40]


def _pattern(part: object) -> str:
    """The regular expression that splits the text, from the pre-tokenizer."""
    if _is_byte_level(part, use_regex=True):
        return GPT2_PATTERN
    steps = mapping(part).get("pretokenizers")
    if _type(part) == "Sequence" and isinstance(steps, list) and len(steps) == 2:
        first = mapping(steps[0])
        if first.get("type") == "Digits" and first.get("individual_digits") is True:
            if _is_byte_level(steps[1], use_regex=True):
                return DIGITS_PATTERN
            if _is_byte_level(steps[1], use_regex=False):
                return r"\p{N}|[^\p{N}]++"
    raise _Unsupported(f"its pre-tokenizer ({_type(part)}) is none of those that are read")


def _is_byte_level(part: object, *, use_regex: bool) -> bool:
    said = mapping(part)
    return (
        said.get("type") == "ByteLevel"
        and said.get("use_regex", True) is use_regex
        and said.get("add_prefix_space", False) is False
    )


def _special(part: object) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in part if isinstance(part, list) else []:
        text, token = mapping(row).get("content"), mapping(row).get("id")
        if (
            not isinstance(text, str)
            or not isinstance(token, int)
            or isinstance(token, bool)
            or text in found
        ):
            raise _Unsupported("one of its added tokens has no text or no id")
        found[text] = token
    return found


def _ranks(model: Mapping[str, object], taken: set[int]) -> dict[bytes, int]:
    """Pieces as bytes with their ids, once it is sure that ids follow the order of merging."""
    vocab, merges = mapping(model.get("vocab")), model.get("merges")
    if not vocab or not isinstance(merges, list):
        raise _Unsupported("it has no vocabulary or no merges")
    back = {char: byte for byte, char in byte_alphabet().items()}
    ranks: dict[bytes, int] = {}
    for text, token in vocab.items():
        if not isinstance(token, int) or isinstance(token, bool):
            raise _Unsupported(f"the piece {text[:40]!r} has no whole number as its id")
        if token in taken:
            continue  # a control token that also stands in the vocabulary
        if not text or any(char not in back for char in text):
            raise _Unsupported(f"the piece {text[:40]!r} is not spelled in bytes")
        ranks[bytes(back[char] for char in text)] = token
    last = -1
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(p, str) for p in pair)
        ):
            raise _Unsupported("one of its merges is not a pair of pieces")
        token = vocab.get(pair[0] + pair[1])
        if not isinstance(token, int) or pair[0] not in vocab or pair[1] not in vocab:
            raise _Unsupported(
                f"it merges {pair[0][:20]!r} and {pair[1][:20]!r}, which are not all pieces"
            )
        if token <= last and model.get("ignore_merges") is not True:
            raise _Unsupported("its merges do not follow the order of its ids, which is not read")
        last = max(last, token)
    return ranks


def byte_alphabet() -> dict[int, str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others follow
    from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + n) for n, byte in enumerate(others)
    }
