"""Vocabularies in binary files, as lists of pieces by id: llama2.c's, SentencePiece's, llm.c's.

All of them hold a length and that many bytes for each id. A file is believed only when its last
piece ends where the file ends.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tui_chat.checkpoint.files import Damaged, RegularFile, refused

LLMC_TOKENIZER_MAGIC = 20240328
MAX_VOCABULARY = 64 * 1024 * 1024  # bytes of such a file
MAX_PIECES = 2**24
_LLMC_HEADER = 1024


@dataclass(frozen=True, slots=True)
class ScoredPieces:
    """llama2.c's tokenizer.bin, or the tokenizer.model it is made of: piece and score by id."""

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


# ---- SentencePiece's tokenizer.model: protocol buffers, of which three fields are needed

_PIECE, _TRAINER, _NORMALIZER = 1, 2, 3  # fields of the file
_MODEL_TYPE, UNIGRAM, BPE = 3, 1, 2  # a field of the trainer's part, and its values
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of a piece
_SPACE = "\u2581".encode()


@dataclass(frozen=True, slots=True)
class SentencePieces:
    """A SentencePiece tokenizer.model: piece, score and type by id, and how it was trained."""

    pieces: list[bytes]  # UTF-8, spaces as U+2581
    scores: list[float]
    kinds: list[int]
    model_type: int  # UNIGRAM or BPE
    normalizer: Mapping[int, int | bytes]  # fields of the normalizer's part
    byte_fallback: bool


def read_pieces(path: str) -> SentencePieces:
    """The tokenizer.model at `path`. Raises CheckpointError."""
    with RegularFile(path) as file:
        try:
            found: list[tuple[bytes, float, int]] = []
            trainer: Mapping[int, int | bytes] = {}
            normalizer: Mapping[int, int | bytes] = {}
            for number, value in _fields(_whole(file)):
                if not isinstance(value, bytes):
                    continue
                if number == _PIECE:
                    found.append(_scored(value))
                elif number == _TRAINER:
                    trainer = dict(_fields(value))
                elif number == _NORMALIZER:
                    normalizer = dict(_fields(value))
            if not found or len(found) > MAX_PIECES:
                raise Damaged("it has no pieces" if not found else "it has too many pieces")
            model_type = trainer.get(_MODEL_TYPE, UNIGRAM)
            if model_type not in (UNIGRAM, BPE):
                raise Damaged("it is a SentencePiece model of words or of single characters")
            return SentencePieces(
                [piece for piece, _, _ in found],
                [score for _, score, _ in found],
                [kind for _, _, kind in found],
                model_type,
                normalizer,
                BYTE in {kind for _, _, kind in found},
            )
        except Damaged as error:
            raise refused(path, error) from None


def read_sentencepiece(path: str) -> ScoredPieces:
    """The pieces of a tokenizer.model of the kind that llama2.c trains: BPE with byte pieces, ids 0
    to 2 unknown, begin and end. Raises CheckpointError for any other."""
    found = read_pieces(path)
    if found.model_type != BPE:
        raise refused(path, Damaged("it is a SentencePiece model of another kind than BPE"))
    if found.kinds[:3] != [UNKNOWN, CONTROL, CONTROL] or not set(found.kinds[3:]) <= {NORMAL, BYTE}:
        raise refused(path, Damaged("its control tokens are not those of llama2.c"))
    return ScoredPieces([piece.replace(_SPACE, b" ") for piece in found.pieces], found.scores)


def _scored(raw: bytes) -> tuple[bytes, float, int]:
    """Piece, score and type."""
    said = dict(_fields(raw))
    piece, score, kind = said.get(1), said.get(2, bytes(4)), said.get(3, NORMAL)
    if not isinstance(piece, bytes) or not isinstance(score, bytes) or len(score) != 4:
        raise Damaged("one of its pieces has no text or no score")
    number: float = struct.unpack("<f", score)[0]
    if math.isnan(number) or not isinstance(kind, int):
        raise Damaged("one of its pieces has no text or no score")
    return piece, number, kind


def _fields(raw: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a protocol buffer: a whole number, or bytes."""
    at = 0
    while at < len(raw):
        key, at = _varint(raw, at)
        wire = key & 7
        if wire == 0:
            value, at = _varint(raw, at)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(raw, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise Damaged("it is no SentencePiece model")
        if size > len(raw) - at:
            raise Damaged("it ends in the middle of a piece")
        yield key >> 3, raw[at : at + size]
        at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for n in range(10):
        if at + n >= len(raw):
            break
        value |= (raw[at + n] & 127) << 7 * n
        if raw[at + n] < 128:
            return value, at + n + 1
    raise Damaged("it is no SentencePiece model")


def is_llmc_tokenizer(path: str) -> bool:
    """Whether the file at `path` begins as llm.c's tokenizers do. Raises CheckpointError."""
    with RegularFile(path) as file:
        return file.size >= 4 and file.read(0, 4) == struct.pack("<i", LLMC_TOKENIZER_MAGIC)


def _whole(file: RegularFile) -> bytes:
    if file.size > MAX_VOCABULARY:
        raise Damaged(f"it has {file.size:,} bytes, more than a vocabulary has")
    return file.read(0, file.size)
