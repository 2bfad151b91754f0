"""How the tensors of a model are put together from those of its files, and which bytes that takes.
Made without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tui_chat.checkpoint.files import Stamp
from tui_chat.checkpoint.names import Recipe
from tui_chat.checkpoint.tensors import ITEM_BYTES, Storage, TensorRef

Key = tuple[str, int]  # file, first byte: one storage

_ALIGNED = 8  # bytes of the largest number: a buffer that begins at a multiple fits every dtype


@dataclass(frozen=True, slots=True)
class Use:
    """A tensor of a file in its part of a recipe: itself, its scales, or what is added to it."""

    recipe: Recipe
    part: int
    ref: TensorRef

    @property
    def main(self) -> bool:
        """Whether it is the part itself."""
        return self.recipe.parts[self.part] is self.ref


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes [begin, end) of a storage and who needs them. Spans of a storage do not overlap."""

    begin: int
    end: int
    uses: tuple[Use, ...]

    @property
    def straight(self) -> Use | None:
        """The only use, where these bytes are its numbers in their order: they can be read to
        their place without a stop."""
        use = self.uses[0]
        return use if len(self.uses) == 1 and use.main and in_order(use.ref) else None


@dataclass(frozen=True, slots=True)
class Read:
    """What is needed of a storage, by place."""

    storage: Storage
    spans: tuple[Span, ...]

    @property
    def nbytes(self) -> int:
        """A checksum can only be held against all the bytes it was made of."""
        if self.storage.crc32 is not None:
            return self.storage.nbytes
        return sum(span.end - span.begin for span in self.spans)


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """Canonical name -> how to build the tensor; and how each file was when it was looked at."""

    recipes: Mapping[str, Recipe]
    stamps: Mapping[str, Stamp]

    def __contains__(self, name: str) -> bool:
        return name in self.recipes

    def reads(self) -> dict[Key, Read]:
        """Every storage that is needed, in the order it lies in its file."""
        uses: dict[Key, list[Use]] = {}
        storages: dict[Key, Storage] = {}
        for recipe in dict.fromkeys(self.recipes.values()):
            for number, part in enumerate(recipe.parts):
                for ref in refs_of(part):
                    if ref.numel:
                        key = key_of(ref.storage)
                        storages[key] = ref.storage
                        uses.setdefault(key, []).append(Use(recipe, number, ref))
        return {key: Read(storages[key], tuple(_spans(uses[key]))) for key in sorted(uses)}

    @property
    def nbytes(self) -> int:
        """Bytes that loading reads."""
        return sum(read.nbytes for read in self.reads().values())


def key_of(storage: Storage) -> Key:
    return storage.file, storage.begin


def in_order(ref: TensorRef) -> bool:
    """Whether the numbers of a tensor follow one another in its storage and stand for
    themselves."""
    if ref.scales is not None or ref.deltas or ref.grid or ref.encoding:
        return False
    step = 1
    for size, stride in zip(reversed(ref.shape), reversed(ref.stride), strict=True):
        if size != 1 and stride != step:
            return False
        step *= size
    return True


def bytes_of(ref: TensorRef) -> tuple[int, int]:
    """Where in its storage the bytes of a tensor begin and end."""
    if ref.encoding:
        return 0, ref.storage.nbytes
    item = ITEM_BYTES[ref.dtype]
    walk = ref.grid or ref.shape
    last = ref.offset + sum((size - 1) * step for size, step in zip(walk, ref.stride, strict=True))
    return ref.offset * item, (last + 1) * item


def refs_of(part: TensorRef) -> Iterable[TensorRef]:
    """The tensor itself, then all that its numbers are computed with."""
    yield part
    if part.scales is not None:
        yield from refs_of(part.scales)
    for delta in part.deltas:
        yield from refs_of(delta.down)
        yield from refs_of(delta.up)


def _spans(uses: list[Use]) -> Iterable[Span]:
    """The spans of a storage; uses that overlap share one."""
    placed = []
    for use in uses:
        begin, end = bytes_of(use.ref)
        straight = use.main and in_order(use.ref)
        placed.append((begin if straight else begin - begin % _ALIGNED, end, use))
    placed.sort(key=lambda entry: entry[:2])
    first, last, together = 0, 0, list[Use]()
    for begin, end, use in placed:
        if together and begin >= last:
            yield _span(first, last, together)
            together = []
        first, last = (min(first, begin), max(last, end)) if together else (begin, end)
        together.append(use)
    yield _span(first, last, together)


def _span(begin: int, end: int, uses: list[Use]) -> Span:
    if len(uses) > 1:
        begin -= begin % _ALIGNED
    return Span(begin, end, tuple(uses))
