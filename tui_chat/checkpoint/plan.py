"""How the tensors of a model are put together from those of its files. Made without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tui_chat.checkpoint.files import Stamp
from tui_chat.checkpoint.names import Recipe
from tui_chat.checkpoint.tensors import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPlan:
    """Canonical name -> how to build the tensor; and how each file was when it was looked at."""

    recipes: Mapping[str, Recipe]
    stamps: Mapping[str, Stamp]

    def __contains__(self, name: str) -> bool:
        return name in self.recipes

    @property
    def storages(self) -> tuple[Storage, ...]:
        """Every storage that is needed, in the order it lies in its file."""
        found = {
            (s.file, s.begin): s for r in self.recipes.values() for p in r.parts for s in p.storages
        }
        return tuple(found[key] for key in sorted(found))

    @property
    def nbytes(self) -> int:
        """Bytes that loading reads."""
        return sum(storage.nbytes for storage in self.storages)
