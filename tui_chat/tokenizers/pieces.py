"""From the pieces of a tokenizer.json to the bytes they stand for, by the decoder that the file
names.

What this makes is a table: ids become text without asking a library, one at a time and in any
order.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Mapping

SPACE = "\u2581"  # SentencePiece's sign for a space
BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def byte_alphabet() -> dict[int, str]:
    """GPT-2's letters for the 256 bytes: printable ones stand for themselves, the others follow
    from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(0x100 + n) for n, byte in enumerate(others)
    }


class Decoder:
    """`bytes_of(piece)` is what a piece stands for in the middle of a text. Where
    `space_first`, a space that the first piece of a text begins with is left out."""

    def __init__(self, tokenizer: Mapping[str, object], complete: bool) -> None:
        """`tokenizer` is a tokenizer.json; `complete` says that its vocabulary has all the bytes
        as <0xNN>. Where the file names no decoder, its pre-tokenizer tells what is meant."""
        self.space_first = False
        self._bytes_only = False
        self._steps: list[Callable[[str], str]] = []
        self._byte_pieces = False
        self._fused = False
        steps = list(_flat(tokenizer.get("decoder"), "decoders"))
        for step in steps or _meant(tokenizer, complete):
            self._add(step)

    def bytes_of(self, piece: str) -> bytes:
        if self._bytes_only:
            found = _letters()
            if all(char in found for char in piece):
                return bytes(map(found.__getitem__, piece))
            return _utf8(piece)
        if self._byte_pieces and (byte := BYTE_PIECE.fullmatch(piece)):
            return bytes([int(byte.group(1), 16)])
        for step in self._steps:
            piece = step(piece)
        return _utf8(piece)

    def _add(self, step: Mapping[str, object]) -> None:
        match step.get("type"):
            case "ByteLevel":
                self._bytes_only = True
            case "ByteFallback":
                self._byte_pieces = True
            case "Fuse":
                self._fused = True
            case "Metaspace":
                sign = str(step.get("replacement", SPACE))
                self._steps.append(lambda piece: piece.replace(sign, " "))
                never = step.get("prepend_scheme", "always") == "never"
                self.space_first |= not never and step.get("add_prefix_space", True) is not False
            case "Replace":
                old, new = step.get("pattern"), step.get("content")
                old = old.get("String") if isinstance(old, dict) else None
                if isinstance(old, str) and old and isinstance(new, str):
                    self._steps.append(lambda piece: piece.replace(str(old), str(new)))
            case "Strip":
                self._strip(step)
            case "WordPiece":
                prefix = str(step.get("prefix", "##"))
                self.space_first = True
                self._steps.append(
                    lambda piece: (
                        piece.removeprefix(prefix) if piece.startswith(prefix) else f" {piece}"
                    )
                )
            case "BPEDecoder":
                suffix = str(step.get("suffix", "</w>"))
                self._steps.append(lambda piece: piece.replace(suffix, " ") if suffix else piece)

    def _strip(self, step: Mapping[str, object]) -> None:
        content, start, stop = (step.get(name) for name in ("content", "start", "stop"))
        if not isinstance(content, str) or not isinstance(start, int) or not isinstance(stop, int):
            return
        if self._fused:
            self.space_first |= content == " " and start > 0
            return

        def stripped(piece: str) -> str:
            for _ in range(min(start, len(piece))):
                piece = piece.removeprefix(content)
            for _ in range(min(stop, len(piece))):
                piece = piece.removesuffix(content)
            return piece

        self._steps.append(stripped)


@functools.cache
def _letters() -> Mapping[str, int]:
    return {char: byte for byte, char in byte_alphabet().items()}


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


def _flat(part: object, inner: str) -> Iterator[Mapping[str, object]]:
    """The steps of a part of the file, those of sequences one after the other."""
    if not isinstance(part, dict):
        return
    if part.get("type") != "Sequence":
        yield part
        return
    steps = part.get(inner)
    for step in steps if isinstance(steps, list) else []:
        yield from _flat(step, inner)


def _meant(tokenizer: Mapping[str, object], complete: bool) -> list[Mapping[str, object]]:
    """The decoder of a file that names none."""
    before = {step.get("type") for step in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")}
    if "ByteLevel" in before:
        return [{"type": "ByteLevel"}]
    if "Metaspace" in before or complete:
        return [{"type": "Metaspace"}, {"type": "ByteFallback"}]
    model = tokenizer.get("model")
    prefix = model.get("continuing_subword_prefix") if isinstance(model, dict) else None
    # Words with a space between them, which is what the library does.
    return [{"type": "WordPiece", "prefix": prefix or "##"}]
