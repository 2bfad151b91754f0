"""Which checkpoints there are, and what one of them is. Reads headers only; no torch."""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tui_chat.checkpoint.binaries import looks_binary
from tui_chat.checkpoint.description import finish, run_name
from tui_chat.checkpoint.files import RegularFile, shown_name, shown_path, unopened
from tui_chat.checkpoint.formats import FORMATS
from tui_chat.checkpoint.hints import settings_file, template_hint, tokenizer_hint
from tui_chat.checkpoint.info import CatalogEntry, CheckpointInfo, Run
from tui_chat.checkpoint.plain import what
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError, TuiChatError

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".bin")
# What trainers put beside the weights: never a checkpoint, and not worth an error in the picker.
COMPANIONS = ("optim", "scheduler", "rng_state", "training_args", "train_state", "token_bytes")
MAX_DEPTH = 8
MAX_DIRECTORIES = 20_000
MAX_ENTRIES = 200_000
_SKIPPED = frozenset(("__pycache__", "node_modules", "site-packages"))

_known: dict[tuple[str, int, int], CatalogEntry] = {}
_KNOWN_MOST = 20_000


def describe(
    path: str,
    *,
    step: int | None = None,
    config: Mapping[str, object] | None = None,
    tokenizer: str = "",
    template: str = "",
    config_file: str = "",
) -> CheckpointInfo:
    """What is at `path`: a file, or a run directory, of which the newest step (or `step`) is taken.

    `config` overrides settings of the model by their ModelSpec names, `tokenizer` and `template`
    what the file says of them; `config_file` is a TOML or JSON file of the training that says its
    sizes. Raises CheckpointError in one sentence, UsageError for an argument that cannot be.
    """
    full = os.path.abspath(os.path.expanduser(path))
    if os.path.isdir(full):
        return _of_run(full, step, config, tokenizer, template, config_file)
    source = Source(full, config={**settings_file(config_file), **(config or {})})
    info = _described(source)
    if step is not None and info.step != step:
        found = "it does not say its step" if info.step is None else f"it is step {info.step}"
        raise CheckpointError(f"{shown_path(full)} is not step {step}", found)
    hint = tokenizer_hint(tokenizer, info.tokenizer)
    if hint.kind == "none" and not hint.vocab_size:
        hint = replace(hint, vocab_size=info.spec.vocab_size)
    given = template_hint(template, info.template)
    mode = info.mode
    if template:
        mode = "chat" if given.name else "raw"
    if hint.kind == "none":  # without text there is nothing to put into a template
        mode = "raw"
    warnings = info.warnings
    if tokenizer:
        warnings = tuple(text for text in warnings if "--tokenizer" not in text)
    if (hint.kind, hint.name) != (info.tokenizer.kind, info.tokenizer.name):
        info = replace(info, stop_ids=(), text_start=())  # they were ids of the other tokenizer
    return replace(info, tokenizer=hint, template=given, mode=mode, warnings=warnings)


def _described(source: Source) -> CheckpointInfo:
    sure, best = max(((form.recognise(source), form) for form in FORMATS), key=lambda pair: pair[0])
    if sure < 0.5:
        raise _unknown(source)
    try:
        found = best.describe(source)
    except CheckpointError as error:
        name = shown_path(source.path)
        if name in error.title:
            raise
        found_text = f"{error.title}: {error.found}" if error.found else error.title
        raise CheckpointError(
            f"cannot open {name} ({best.NAME})", found_text, error.remedy
        ) from None
    return finish(source, found)


def _unknown(source: Source) -> CheckpointError:
    supported = listed([form.NAME for form in FORMATS])
    names = [name for name, value in _walk(source.root, 3) if isinstance(value, TensorRef)]
    if names:
        found = f"its tensors are called {', '.join(name[:60] for name in names[:3])}"
        found += f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    else:
        root = source.archive.root
        keys = ", ".join(repr(key)[:40] for key in list(source.root)[:5])
        found = f"it holds no weights, only {what(root)}" + (f" with {keys}" if keys else "")
    return CheckpointError(
        f"cannot open {shown_path(source.path)}", found, f"Checkpoints of {supported} can be opened"
    )


def _walk(values: Mapping[str, object], depth: int) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict) and depth and name not in ("optimizer", "optimizer_state_dict"):
            yield from _walk({k: v for k, v in value.items() if isinstance(k, str)}, depth - 1)
        else:
            yield name, value


def _of_run(
    path: str,
    step: int | None,
    config: Mapping[str, object] | None,
    tokenizer: str,
    template: str,
    config_file: str,
) -> CheckpointInfo:
    """The step asked for, else the newest one that can be opened."""
    name = shown_path(path)
    entries = _entries(path, _candidates(path))
    if not entries:
        inside = [shown_path(run.path) for run in itertools.islice(scan([path]), 3)]
        raise CheckpointError(
            f"there is no checkpoint in {name}",
            f"no file in it ends in {', '.join(SUFFIXES)}",
            f"Name one of the runs in it, such as {', '.join(inside)}" if inside else "",
        )
    if step is not None:
        chosen = [entry for entry in entries if entry.step == step]
        if not chosen:
            steps = [str(entry.step) for entry in entries if entry.step is not None]
            if len(steps) > 12:
                steps[6:-6] = ["…"]
            raise CheckpointError(
                f"{name} has no step {step}", f"it has {', '.join(steps) or 'none'}"
            )
    else:
        chosen = [entry for entry in entries if not entry.error] or entries
    return describe(
        chosen[-1].path,
        config=config,
        tokenizer=tokenizer,
        template=template,
        config_file=config_file,
    )


def scan(roots: Iterable[str]) -> Iterator[Run]:
    """Every run under the roots, one directory after the other: each directory with checkpoints is
    a run.

    Yields as it goes. No directory is looked at twice, so no loop of links can catch it; what lies
    behind a link comes last. Skips what it may not read, and all that is no regular file. A
    checkpoint that cannot be read is listed with the reason.
    """
    seen: set[tuple[int, int]] = set()
    budget = [MAX_DIRECTORIES, MAX_ENTRIES]
    for root in roots:
        full = os.path.abspath(os.path.expanduser(root))
        if os.path.isdir(full):
            yield from _scan(full, seen, budget)
        elif os.path.isfile(full):
            entry = _entry(full)
            if entry is not None:
                yield Run(name=entry.run, path=os.path.dirname(full), checkpoints=(entry,))


def _scan(root: str, seen: set[tuple[int, int]], budget: list[int]) -> Iterator[Run]:
    waiting = [(root, 0)]
    while waiting and budget[0] > 0 and budget[1] > 0:
        path, depth = waiting.pop()
        try:
            status = os.stat(path)
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            budget[0] -= 1
            names, folders, links = _listed(path, budget)
        except OSError:
            continue
        entries = _entries(path, names)
        if entries:
            runs = {entry.run for entry in entries if not entry.error}
            name = runs.pop() if len(runs) == 1 else shown_name(path)
            yield Run(name=name, path=path, checkpoints=tuple(entries))
        if depth < MAX_DEPTH:
            inside = [os.path.join(path, name) for name in sorted(folders, reverse=True)]
            behind = [os.path.join(path, name) for name in sorted(links, reverse=True)]
            waiting[:0] = [(name, depth + 1) for name in behind]
            waiting += [(name, depth + 1) for name in inside]


def _listed(path: str, budget: list[int]) -> tuple[list[str], list[str], list[str]]:
    """Names of possible checkpoints, of directories and of links to directories."""
    names: list[str] = []
    folders: list[str] = []
    links: list[str] = []
    with os.scandir(path) as entries:
        for entry in entries:
            budget[1] -= 1
            if budget[1] < 0:
                break
            try:
                if entry.is_dir():
                    if not entry.name.startswith(".") and entry.name not in _SKIPPED:
                        (links if entry.is_symlink() else folders).append(entry.name)
                elif _is_candidate(entry.name):
                    names.append(entry.name)
            except OSError:
                continue
    return names, folders, links


def _candidates(path: str) -> list[str]:
    try:
        return _listed(path, [0, MAX_ENTRIES])[0]
    except OSError as error:
        raise unopened(path, error) from None


def _is_candidate(name: str) -> bool:
    lower = name.lower()
    return lower.endswith(SUFFIXES) and not lower.startswith((*COMPANIONS, "."))


def _entries(folder: str, names: Iterable[str]) -> list[CatalogEntry]:
    """The checkpoints of a directory, by step; what has no step comes first, by age."""
    found = [entry for name in names if (entry := _entry(os.path.join(folder, name))) is not None]
    found.sort(key=lambda e: (-1 if e.step is None else e.step, e.modified, e.path))
    return found


def _entry(path: str) -> CatalogEntry | None:
    """What the picker shows of a file; None for what is no checkpoint at all."""
    try:
        status = os.stat(path)
    except OSError as error:
        return CatalogEntry(path=path, run=run_name(path), error=_reason(unopened(path, error)))
    if not stat.S_ISREG(status.st_mode):
        return None
    key = (path, status.st_size, status.st_mtime_ns)
    entry = _known.get(key)
    if entry is None:
        if path.endswith(".bin") and not _begins_like_weights(path):
            return None
        entry = _fresh(path, status)
        if len(_known) >= _KNOWN_MOST:
            _known.clear()
        _known[key] = entry
    return entry


def _fresh(path: str, status: os.stat_result) -> CatalogEntry:
    try:
        info = _described(Source(path))
    except TuiChatError as error:
        return CatalogEntry(
            path=path,
            run=run_name(path),
            size=status.st_size,
            modified=status.st_mtime,
            error=_reason(error),
        )
    return CatalogEntry(
        path=path,
        format=info.format,
        run=info.run,
        step=info.step,
        losses=info.losses,
        parameters=info.parameters,
        dtype=info.dtype,
        size=status.st_size,
        modified=status.st_mtime,
        fingerprint=info.fingerprint,
    )


def _reason(error: TuiChatError) -> str:
    """Why, without the file's name, which stands beside it."""
    return error.found or error.title


def _begins_like_weights(path: str) -> bool:
    """A .bin may be anything; only what torch, llama2.c or llm.c wrote is looked at."""
    try:
        with RegularFile(path) as file:
            head = file.read(0, min(file.size, 64))
            return head[:2] in (b"PK", b"\x80\x02") or looks_binary(head, file.size)
    except (CheckpointError, ValueError):
        return False
