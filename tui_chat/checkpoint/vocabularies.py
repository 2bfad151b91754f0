"""Vocabularies in the binary files of llama2.c and llm.c, as lists of pieces by id.

Both kinds hold a length and that many bytes for each id. A file is believed only when its last
piece ends where the file ends.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from tui_chat.checkpoint.files import Damaged, RegularFile, refused

LLMC_TOKENIZER_MAGIC = 20240328
MAX_VOCABULARY = 64 * 1024 * 1024  # bytes of such a file
MAX_PIECES = 2**24
_LLMC_HEADER = 1024


@dataclass(frozen=True, slots=True)
class ScoredPieces:
    """llama2.c's tokenizer.bin: piece and score of each id."""

    pieces: list[bytes]
    scores: list[float]


@dataclass(frozen=True, slots=True)
class BytePieces:
    """llm.c's gpt2_tokenizer.bin: the bytes of each id, and which of them ends a document."""

    pieces: list[bytes]
    end: int


def read_scored_pieces(path: str, count: int) -> ScoredPieces:
    """The `count` pieces of a tokenizer.bin, which does not say how many it has. Raises
    CheckpointError."""
    with RegularFile(path) as file:
        try:
            raw = _whole(file)
            if len(raw) < 4 + 8 * count:
                raise Damaged(f"it is too short for a vocabulary of {count:,} ids")
            longest = struct.unpack_from("<I", raw)[0]
            pieces: list[bytes] = []
            scores: list[float] = []
            at = 4
            for token in range(count):
                if at + 8 > len(raw):
                    raise Damaged(f"it ends before id {token:,} of {count:,}")
                score, length = struct.unpack_from("<fi", raw, at)
                at += 8
                if not 0 <= length <= len(raw) - at or length > longest or math.isnan(score):
                    raise Damaged(f"its id {token:,} cannot be: {length} bytes, score {score}")
                pieces.append(raw[at : at + length])
                scores.append(score)
                at += length
            if at != len(raw):
                raise Damaged(f"{len(raw) - at:,} bytes follow its {count:,} ids")
            return ScoredPieces(pieces, scores)
        except Damaged as error:
            raise refused(path, error) from None


def read_byte_pieces(path: str) -> BytePieces:
    """The pieces of a gpt2_tokenizer.bin. Raises CheckpointError."""
    with RegularFile(path) as file:
        try:
            raw = _whole(file)
            if len(raw) < _LLMC_HEADER:
                raise Damaged("it has no header of llm.c's tokenizers")
            magic, version, count, end = struct.unpack_from("<4i", raw)
            if magic != LLMC_TOKENIZER_MAGIC or version not in (1, 2):
                raise Damaged(f"it is no tokenizer of llm.c that is known (version {version})")
            if not 0 < count <= min(MAX_PIECES, len(raw) - _LLMC_HEADER):
                raise Damaged(f"its header says {count:,} ids, which cannot be")
            if version == 1:  # did not say it: GPT-2's, whose last id it is
                end = count - 1
            pieces: list[bytes] = []
            at = _LLMC_HEADER
            for token in range(count):
                length = raw[at] if at < len(raw) else 0
                if not length or at + 1 + length > len(raw):
                    raise Damaged(f"it ends before id {token:,} of {count:,}")
                pieces.append(raw[at + 1 : at + 1 + length])
                at += 1 + length
            if at != len(raw) or not 0 <= end < count:
                raise Damaged("its header does not fit its pieces")
            return BytePieces(pieces, end)
        except Damaged as error:
            raise refused(path, error) from None


def is_llmc_tokenizer(path: str) -> bool:
    """Whether the file at `path` begins as llm.c's tokenizers do. Raises CheckpointError."""
    with RegularFile(path) as file:
        return file.size >= 4 and file.read(0, 4) == struct.pack("<i", LLMC_TOKENIZER_MAGIC)


def _whole(file: RegularFile) -> bytes:
    if file.size > MAX_VOCABULARY:
        raise Damaged(f"it has {file.size:,} bytes, more than a vocabulary has")
    return file.read(0, file.size)
