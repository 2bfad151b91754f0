"""The TOML that a model was trained with, where the checkpoint itself does not hold its settings.

It is the one the user named, or one that lies in or above the run and fits the tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from tui_chat.checkpoint.files import shown_path
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import read_json, read_toml
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError

LEVELS = 5  # how far above a checkpoint its TOML or tokenizer is looked for
_FOLDERS = ("", "config", "configs", "configs/train", "configs/model")
MAX_FILES = 100  # TOML files looked at
MAX_BYTES = 256 * 1024  # of one that nobody named


@dataclass(frozen=True, slots=True)
class Training:
    """A TOML by its tables. `path` "" and no values: there is none."""

    path: str = ""
    given: bool = False  # the user named it
    model: Mapping[str, object] = field(default_factory=dict)
    data: Mapping[str, object] = field(default_factory=dict)
    checkpoint: Mapping[str, object] = field(default_factory=dict)


def read_training(path: str, *, given: bool = False) -> Training | None:
    """The TOML (or JSON) at `path`, None where it says nothing of a model. The model's settings may
    stand at the top, without a table. Raises CheckpointError."""
    said = mapping(read_json(path) if path.endswith(".json") else read_toml(path))
    model = mapping(said.get("model"))
    if not model and {"dim", "n_layers"} <= said.keys():
        model = {key: value for key, value in said.items() if not isinstance(value, dict)}
    if not model:
        return None
    return Training(path, given, model, mapping(said.get("data")), mapping(said.get("checkpoint")))


def find_training(
    folder: str, given: str, clash: Callable[[Mapping[str, object]], str], warnings: list[str]
) -> Training:
    """The TOML of the checkpoint in `folder`: the `given` one, else the nearest that fits.

    `clash(model)` says in words how a table of settings differs from the tensors, "" where it does
    not. What was passed over is said in `warnings`. Raises CheckpointError for a given file that
    cannot be read or does not fit.
    """
    if given:
        found = read_training(given, given=True)
        if found is None:
            raise CheckpointError(
                f"{shown_path(given)} says nothing of the model", "it has no table [model]"
            )
        if differs := clash(found.model):
            raise CheckpointError(
                f"{shown_path(given)} is not this model's",
                differs,
                "What training was started with beside it can be given with --config model.NAME=N",
            )
        return found
    fitting: list[Training] = []
    unfit: list[str] = []
    for path in _tomls(folder):
        try:
            found = read_training(path)
        except CheckpointError:
            continue  # whatever else lies around
        if found is None:
            continue
        if differs := clash(found.model):
            unfit.append(f"{shown_path(path)} is not this model's: {differs}")
        else:
            fitting.append(found)
    if not fitting:
        warnings += unfit[:1]
        return Training()
    # Several trainings of one size may share a directory; each says where its checkpoints go.
    own = [found for found in fitting if _saves_to(found, os.path.dirname(folder))]
    chosen = (own or fitting)[0]
    others = [other for other in own or fitting if other.model != chosen.model]
    if others:
        names = listed([shown_path(other.path) for other in others[:3]])
        warnings.append(
            f"{shown_path(chosen.path)} is taken for its settings, but {names} would fit too: "
            "name the right one with --config-file"
        )
    return chosen


def _tomls(folder: str) -> Iterator[str]:
    """The TOML files in, above and beside a directory, the nearest first."""
    seen = 0
    for level in above(folder):
        for inside in _FOLDERS:
            place = os.path.join(level, inside) if inside else level
            try:
                names = sorted(name for name in os.listdir(place) if name.endswith(".toml"))
            except OSError:
                continue
            for name in names:
                path = os.path.join(place, name)
                try:
                    small = os.stat(path).st_size <= MAX_BYTES
                except OSError:
                    continue
                seen += 1
                if seen > MAX_FILES:
                    return
                if small and os.path.isfile(path):
                    yield path


def _saves_to(training: Training, run: str) -> bool:
    said = training.checkpoint.get("dir")
    if not isinstance(said, str) or not said:
        return False
    tail = os.path.normpath(said).split(os.sep)
    tail = [part for part in tail if part not in ("", ".", "..")]
    return bool(tail) and run.split(os.sep)[-len(tail) :] == tail


def above(folder: str) -> Iterator[str]:
    """The directory and those above it, LEVELS in all."""
    for _ in range(LEVELS):
        yield folder
        parent = os.path.dirname(folder)
        if parent == folder:
            return
        folder = parent
