"""Finds runs and their checkpoints under directories, without a stall and without a loop.

A checkpoint is a file or, where a format claims it, a directory. What one is, the catalog says; it
is asked once for each state of a file.
"""

from __future__ import annotations

import itertools
import os
import re
import stat
from collections.abc import Callable, Iterable, Iterator

from tui_chat.checkpoint.binaries import looks_binary
from tui_chat.checkpoint.description import name_of_run, run_name
from tui_chat.checkpoint.files import RegularFile, unopened
from tui_chat.checkpoint.formats import claimed
from tui_chat.checkpoint.hipgpt.file import looks_like_hipgpt
from tui_chat.checkpoint.info import CatalogEntry, CheckpointInfo, Run
from tui_chat.errors import CheckpointError, TuiChatError

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".gguf")
# What trainers put beside the weights: never a checkpoint, and not worth an error in the picker.
COMPANIONS = ("optim", "scheduler", "rng_state", "training_args", "train_state", "token_bytes")
MAX_DEPTH = 8
MAX_DIRECTORIES = 20_000
MAX_ENTRIES = 200_000
_SKIPPED = frozenset(("__pycache__", "node_modules", "site-packages"))

# The stages of a pipeline, each with a part of one checkpoint.
_STAGE = re.compile(r"pp\d+")

_known: dict[tuple[str, int, int], CatalogEntry] = {}
_KNOWN_MOST = 20_000


class _Folder:
    """What a directory holds: possible checkpoint files, directories, and links to directories."""

    def __init__(self, path: str, budget: list[int]) -> None:
        self.path = path
        self.files: list[str] = []
        self.folders: list[str] = []
        self.links: list[str] = []
        self.names: set[str] = set()
        with os.scandir(path) as entries:
            for entry in entries:
                budget[1] -= 1
                if budget[1] < 0:
                    break
                self.names.add(entry.name)
                try:
                    if entry.is_dir():
                        if not entry.name.startswith(".") and entry.name not in _SKIPPED:
                            (self.links if entry.is_symlink() else self.folders).append(entry.name)
                    elif _is_candidate(entry.name) and not _doubles(path, entry):
                        self.files.append(entry.name)
                except OSError:
                    continue
        self.claimed = bool(claimed(frozenset(self.names)))


class Scanner:
    """Walks directories; `overview` says what a checkpoint is, or raises."""

    def __init__(self, overview: Callable[[str], CheckpointInfo]) -> None:
        self._overview = overview
        self._budget = [MAX_DIRECTORIES, MAX_ENTRIES]

    def scan(self, roots: Iterable[str]) -> Iterator[Run]:
        """Every run under the roots, one directory after the other.

        Yields as it goes. No directory is looked at twice, so no loop of links can catch it; what
        lies behind a link comes last. Skips what it may not read, and all that is no regular file.
        A checkpoint that cannot be read is listed with the reason.
        """
        seen: set[tuple[int, int]] = set()
        for root in roots:
            full = os.path.abspath(os.path.expanduser(root))
            if os.path.isdir(full):
                yield from self._walk(full, seen)
            elif os.path.isfile(full):
                entry = self._entry(full)
                if entry is not None:
                    yield Run(name=entry.run, path=os.path.dirname(full), checkpoints=(entry,))

    def entries(self, path: str) -> list[CatalogEntry]:
        """The checkpoints of the run at `path`: itself, its files, its steps. Raises
        CheckpointError where it may not be read."""
        try:
            folder = _Folder(path, [MAX_DIRECTORIES, MAX_ENTRIES])
        except OSError as error:
            raise unopened(path, error) from None
        return self._run_at(folder, [], set(), [MAX_DIRECTORIES, MAX_ENTRIES])

    def _walk(self, root: str, seen: set[tuple[int, int]]) -> Iterator[Run]:
        budget = self._budget
        waiting: list[tuple[str | _Folder, int]] = [(root, 0)]
        while waiting and budget[0] > 0 and budget[1] > 0:
            at, depth = waiting.pop()
            folder = at if isinstance(at, _Folder) else _listed(at, seen, budget)
            if folder is None:
                continue
            inside: list[_Folder] = []
            found = self._run_at(folder, inside, seen, budget, deeper=depth < MAX_DEPTH)
            if found:
                runs = {entry.run for entry in found if not entry.error}
                name = runs.pop() if len(runs) == 1 else name_of_run(folder.path)
                yield Run(name=name, path=folder.path, checkpoints=tuple(found))
            if depth < MAX_DEPTH:
                behind = [os.path.join(folder.path, name) for name in reversed(folder.links)]
                waiting[:0] = [(name, depth + 1) for name in behind]
                waiting += [(child, depth + 1) for child in reversed(inside)]

    def _run_at(
        self,
        folder: _Folder,
        inside: list[_Folder],
        seen: set[tuple[int, int]],
        budget: list[int],
        *,
        deeper: bool = True,
    ) -> list[CatalogEntry]:
        """The checkpoints of the run that a directory is, in order; `inside` gets the directories
        in it that are none of its steps."""
        found = self._own(folder)
        here = name_of_run(folder.path)
        for name in folder.folders if deeper else ():
            child = _listed(os.path.join(folder.path, name), seen, budget)
            if child is None or (folder.claimed and _STAGE.fullmatch(name)):
                continue
            steps = self._own(child) if child.claimed else []
            if steps and (steps[0].run == here or steps[0].error):
                found += steps
            else:
                inside.append(child)
        found.sort(key=lambda e: (-1 if e.step is None else e.step, e.modified, e.path))
        return found

    def _own(self, folder: _Folder) -> list[CatalogEntry]:
        """The checkpoint that a directory is, else those that lie in it as files."""
        paths = (
            [folder.path]
            if folder.claimed
            else [os.path.join(folder.path, name) for name in folder.files]
        )
        return [entry for path in paths if (entry := self._entry(path)) is not None]

    def _entry(self, path: str) -> CatalogEntry | None:
        """What the picker shows of a checkpoint; None for what is none at all."""
        try:
            key = _state(path)
        except OSError as error:
            return CatalogEntry(path=path, run=run_name(path), error=_reason(unopened(path, error)))
        if key is None:
            return None
        entry = _known.get(key)
        if entry is None:
            if path.endswith(".bin") and os.path.isfile(path) and not _begins_like_weights(path):
                return None
            entry = self._fresh(path, key)
            if len(_known) >= _KNOWN_MOST:
                _known.clear()
            _known[key] = entry
        return entry

    def _fresh(self, path: str, state: tuple[str, int, int]) -> CatalogEntry:
        _, size, modified = state
        try:
            info = self._overview(path)
        except TuiChatError as error:
            return CatalogEntry(
                path=path,
                run=run_name(path),
                size=size,
                modified=modified / 1e9,
                error=_reason(error),
            )
        return CatalogEntry(
            path=info.path,
            format=info.format,
            run=info.run,
            step=info.step,
            losses=info.losses,
            parameters=info.parameters,
            dtype=info.dtype,
            size=info.size,
            modified=info.modified,
            fingerprint=info.fingerprint,
        )


def _listed(path: str, seen: set[tuple[int, int]], budget: list[int]) -> _Folder | None:
    """What a directory holds; None if it was seen before or may not be read."""
    try:
        status = os.stat(path)
        if (status.st_dev, status.st_ino) in seen or budget[0] <= 0:
            return None
        seen.add((status.st_dev, status.st_ino))
        budget[0] -= 1
        return _Folder(path, budget)
    except OSError:
        return None


def _is_candidate(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not lower.startswith((*COMPANIONS, "."))


def _doubles(folder: str, entry: os.DirEntry[str]) -> bool:
    """Whether it is a link to a file beside it, as trainers mark their latest checkpoint."""
    if not entry.is_symlink():
        return False
    target = os.path.realpath(entry.path)
    if not os.path.exists(target):  # the run was moved, or its trainer misled the link
        target = os.path.join(os.path.realpath(folder), os.path.basename(target))
    return os.path.dirname(target) == os.path.realpath(folder) and os.path.isfile(target)


def _state(path: str) -> tuple[str, int, int] | None:
    """What changes when a checkpoint does: path, bytes, newest change in nanoseconds. None for
    what is neither a regular file nor a directory. Raises OSError."""
    status = os.stat(path)
    if stat.S_ISREG(status.st_mode):
        return path, status.st_size, status.st_mtime_ns
    if not stat.S_ISDIR(status.st_mode):
        return None
    size, newest = 0, status.st_mtime_ns
    with os.scandir(path) as entries:
        for entry in itertools.islice(entries, MAX_ENTRIES):
            try:
                inner = entry.stat()
            except OSError:
                continue
            if stat.S_ISREG(inner.st_mode):
                size, newest = size + inner.st_size, max(newest, inner.st_mtime_ns)
    return path, size, newest


def _reason(error: TuiChatError) -> str:
    """Why, without the file's name, which stands beside it."""
    return error.found or error.title


def _begins_like_weights(path: str) -> bool:
    """A .bin may be anything; only what begins like a checkpoint is looked at."""
    try:
        with RegularFile(path) as file:
            head = file.read(0, min(file.size, 64))
            return (
                head[:2] in (b"PK", b"\x80\x02")
                or looks_binary(head, file.size)
                or looks_like_hipgpt(file)
            )
    except (CheckpointError, ValueError):
        return False
