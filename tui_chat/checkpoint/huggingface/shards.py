"""The weights of a directory: one file, or shards and the index that says which tensor is in which.

Knows the names that Hugging Face gives such files, and opens others where those are missing. Only
headers are read; no name in an index can lead out of the directory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tui_chat.checkpoint.archive import Archive
from tui_chat.checkpoint.files import shown_path
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

# In the order in which Hugging Face itself looks.
_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
MAX_INDEX = 500_000  # entries of an index
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")
# Never the weights of the model that config.json describes.
_OTHERS = (
    "adapter_", "optimizer", "scheduler", "rng_state", "training_args", "train_state", "trainer",
    "consolidated", "scaler", "random_states", ".",
)  # fmt: skip
# Where a training script that saved more than the weights keeps them.
_INSIDE = ("model", "state_dict", "model_state_dict", "module")


@dataclass(frozen=True, slots=True)
class Weights:
    """Tensors under the names the files have, and the files. `remarks` say which files were taken
    where there was a choice."""

    tensors: Mapping[str, object]
    archives: tuple[Archive, ...]
    remarks: tuple[str, ...] = ()


def has_weights(names: frozenset[str]) -> bool:
    """Whether a directory with these names in it may hold a model's weights."""
    return bool(_chosen(names))


def directory_weights(source: Source) -> Weights:
    """All tensors of the directory `source`. Raises CheckpointError, which names the shard and the
    tensors it should hold."""
    chosen = _chosen(source.files)
    if not chosen:
        raise CheckpointError(
            "there are no weights beside config.json",
            "neither model.safetensors nor pytorch_model.bin nor shards of them are there",
            "Copy them into the directory; they are the large files of the training",
        )
    first = chosen[0]
    if first.endswith(".index.json"):
        return _indexed(source, first)
    remarks = () if first in _FILES else (f"the weights are read from {_shown(chosen)}",)
    shard = _SHARD.fullmatch(first)
    if shard is not None:
        _all_there(source, shard, chosen)
    tensors: dict[str, object] = {}
    archives = tuple(source.open(name) for name in chosen)
    for archive in archives:
        tensors.update(file_tensors(archive))
    return Weights(tensors, archives, remarks)


def file_tensors(archive: Archive) -> Mapping[str, object]:
    """The tensors of one file, also where they are wrapped in a dict."""
    root = mapping(archive.root)
    if any(isinstance(value, TensorRef) for value in root.values()):
        return {k: v for k, v in root.items() if isinstance(v, TensorRef)}
    for key in _INSIDE:
        inside = mapping(root.get(key))
        if any(isinstance(value, TensorRef) for value in inside.values()):
            return {k: v for k, v in inside.items() if isinstance(v, TensorRef)}
    return {}


def _chosen(names: frozenset[str]) -> tuple[str, ...]:
    """The file, the index or the shards to read; empty if there is nothing of the kind."""
    for name in _FILES:
        if name in names:
            return (name,)
    weights = sorted(
        name
        for name in names
        if not name.lower().startswith(_OTHERS) and name.lower().endswith(_SUFFIXES)
    )
    indexes = sorted(
        name
        for name in names
        if name.endswith((".safetensors.index.json", ".bin.index.json"))
        and not name.startswith(_OTHERS)
    )
    if indexes:
        return (indexes[0],)
    for suffix in _SUFFIXES:
        same = [name for name in weights if name.endswith(suffix)]
        shards = [name for name in same if _SHARD.fullmatch(name)]
        if shards:
            stem = shards[0].rsplit("-", 3)[0]
            return tuple(name for name in shards if name.rsplit("-", 3)[0] == stem)
        if same:
            return (same[0],)
    return ()


def _all_there(source: Source, shard: re.Match[str], chosen: tuple[str, ...]) -> None:
    stem, _, count, suffix = shard.groups()
    for number in range(1, min(int(count), 9999) + 1):
        name = f"{stem}-{number:05d}-of-{count}{suffix}"
        if name not in chosen:
            raise CheckpointError(
                f"cannot open {shown_path(source.path)}", f"{name} is missing of its {count} shards"
            )


def _indexed(source: Source, index: str) -> Weights:
    where = mapping(
        mapping(read_json(os.path.join(source.folder, index), MAX_INDEX)).get("weight_map")
    )
    name = shown_path(source.path)
    if not where or not all(isinstance(file, str) for file in where.values()):
        raise CheckpointError(f"cannot open {name}", f"{index} does not say which tensor is where")
    files: dict[str, list[str]] = {}
    for tensor, file in where.items():
        files.setdefault(str(file), []).append(tensor)
    archives: list[Archive] = []
    tensors: dict[str, object] = {}
    for file in sorted(files):
        bare = os.path.basename(file) == file and file not in ("", ".", "..")
        if file not in source.files and bare:
            raise CheckpointError(
                f"cannot open {name}",
                f"{file[:80]} is missing, which holds {_some(files[file])}",
                "Copy the missing file into the directory",
            )
        archive = source.open(file)
        held = file_tensors(archive)
        missing = [tensor for tensor in files[file] if tensor not in held]
        if missing:
            raise CheckpointError(
                f"cannot open {name}", f"{_some(missing)} should be in {file}, and is not"
            )
        for tensor, ref in held.items():
            # A tensor in two shards is the one of the shard that the index names.
            if where.get(tensor, file) == file:
                tensors[tensor] = ref
        archives.append(archive)
    return Weights(tensors, tuple(archives))


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{names[0][:80]}{more}"


def _shown(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
