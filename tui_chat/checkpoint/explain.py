"""What a format has to say about how it read a file: concluded, filled in, left out, to be acted
on."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tui_chat.checkpoint.names import BESIDE, removed_words
from tui_chat.checkpoint.words import listed

_MOST = 60  # names in one sentence
_LONGEST = 40  # characters of a name


@dataclass(slots=True)
class Notes:
    """Sentences by kind, as Description has them; a warning is what someone should act on."""

    overrides: Mapping[str, object]  # what the user said, which nobody concluded
    warnings: list[str] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    def shapes(self, shown: Mapping[str, object]) -> None:
        """Settings that the names and shapes of the tensors gave."""
        self._settings(self.inferred, shown, "from the names and shapes of the tensors")

    def fixed(self, settings: Mapping[str, object], whose: str = "the trainer's code") -> None:
        """Settings that no file of this trainer says, because its code has no choice."""
        self._settings(self.defaults, settings, f"the file does not say, fixed in {whose}")

    def _settings(self, kind: list[str], settings: Mapping[str, object], reason: str) -> None:
        known = [
            f"{name} {_value(value)}"
            for name, value in settings.items()
            if value is not None and name not in self.overrides
        ]
        if known:
            kind.append(f"{listed(known)}: {reason}")

    def removed(self, prefixes: list[str]) -> None:
        """What `names.strip` took away."""
        self.inferred += removed_words(prefixes)

    def keys(self, values: Mapping[str, object], used: Iterable[str], place: str) -> None:
        """Keys of a dict of the file that were not looked at."""
        known = set(used)
        self._left([key for key in values if key not in known], f"of {place}")

    def tensors(self, tensors: Iterable[str], patterns: Iterable[str]) -> None:
        """Tensors that the model is computed without."""
        names = list(tensors)
        for pattern in (*patterns, *BESIDE):
            found = [name for name in names if fnmatchcase(name, pattern)]
            if found:
                many = f"{len(found)} tensors {pattern}" if len(found) > 1 else found[0][:_LONGEST]
                self.unused.append(f"{many}: not needed to compute the model")

    def head(self, tied: bool, name: str, tensors: Container[str]) -> None:
        """Whether the output matrix is the embedding's, among the tensors of the file."""
        why = f"{name} repeats the embedding" if name in tensors else f"there is no {name}"
        self.inferred.append(
            f"the head is tied: {why}"
            if tied
            else f"the head is a matrix of its own: {name} differs from the embedding"
        )

    def _left(self, names: list[str], where: str) -> None:
        if names:
            shown = [name[:_LONGEST] for name in names[:_MOST]]
            more = [f"{len(names) - _MOST} more"] if len(names) > _MOST else []
            self.unused.append(f"{listed([*shown, *more])} {where}")


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)[:_LONGEST]
