"""What one checkpoint is, and which of a run's is meant. Reads headers only; no torch."""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

from tui_chat.checkpoint.description import finish
from tui_chat.checkpoint.files import shown_path
from tui_chat.checkpoint.formats import FORMATS, Format, claimed, claiming, plug_ins
from tui_chat.checkpoint.hf_tokenizer import hf_tokenizer
from tui_chat.checkpoint.hints import settings_file, template_hint, tokenizer_hint
from tui_chat.checkpoint.info import CheckpointInfo, Run, TokenizerHint
from tui_chat.checkpoint.nanochat.encodings import begin_and_ends, read_encoding
from tui_chat.checkpoint.plain import what
from tui_chat.checkpoint.scan import SUFFIXES, Scanner
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError, TuiChatError


def describe(
    path: str,
    *,
    step: int | None = None,
    config: Mapping[str, object] | None = None,
    tokenizer: str = "",
    template: str = "",
    config_file: str = "",
) -> CheckpointInfo:
    """What is at `path`: a checkpoint, or a run directory, of which the newest step (or `step`) is
    taken. A file that is part of a checkpoint directory stands for the directory.

    `config` overrides settings of the model by their ModelSpec names, `tokenizer` and `template`
    what the file says of them; `config_file` is a file of the training that says its sizes. Raises
    CheckpointError in one sentence, UsageError for an argument that cannot be.
    """
    full = os.path.abspath(os.path.expanduser(path))
    settings = dict(config or {})
    if os.path.isdir(full):
        full = _chosen(full, step, settings, config_file)
    source, form = _recognised(full, settings, config_file)
    info = _described(source, form)
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
        begin, ends = _controls(hint)
        # Of a checkpoint without a tokenizer they are the model's own, else the other tokenizer's.
        own = info.stop_ids if info.tokenizer.kind == "none" else ()
        known = (token for token in (*own, *ends) if token < info.spec.vocab_size)
        info = replace(info, stop_ids=tuple(dict.fromkeys(known)), text_start=begin)
    return replace(info, tokenizer=hint, template=given, mode=mode, warnings=warnings)


def _controls(hint: TokenizerHint) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What a given tokenizer begins and ends texts with, as far as its folder tells."""
    if hint.kind in ("tokenizer.json", "sentencepiece"):
        return (), hf_tokenizer(os.path.dirname(hint.path)).stop_ids
    if hint.kind != "nanochat":
        return (), ()
    return begin_and_ends(read_encoding(hint.path).known_special)


def _recognised(
    path: str, settings: Mapping[str, object], config_file: str = ""
) -> tuple[Source, Format]:
    """What is at `path`, and the format that knows it."""
    source = Source(path, config=settings, config_file=config_file)
    if source.is_dir:
        form, error = _surest(source, claimed(source.files))
        if form is None:
            raise error or CheckpointError(
                f"cannot open {shown_path(path)}",
                "it looks like a checkpoint directory, but none of the formats recognises it",
            )
        return source, form
    owners = _owners(source.files)
    form, error = _surest(source, FORMATS, sure=0.9 if owners else 0.5)
    if form is None and owners:
        folder = Source(source.folder, config=settings, config_file=config_file)
        owner, _ = _surest(folder, owners)
        if owner is not None:
            return folder, owner
        form, error = _surest(source, FORMATS)
    if form is None:
        form, _ = _surest(source, plug_ins())
    if form is None:
        raise error or _unknown(source)
    return source, form


@functools.lru_cache(maxsize=4)
def _owners(names: frozenset[str]) -> tuple[Format, ...]:
    """The formats to which a directory with these names belongs; asked once for all its files."""
    return claiming(FORMATS, names)


def _surest(
    source: Source, among: tuple[Format, ...], sure: float = 0.5
) -> tuple[Format | None, CheckpointError | None]:
    """The format that recognises `source` best, if any is sure enough; else why it cannot be read
    at all."""
    best, best_form, failed = 0.0, None, None
    for form in among:
        try:
            found = form.recognise(source)
        except CheckpointError as error:
            failed = failed or error
            continue
        if found > best:
            best, best_form = found, form
    return (best_form, None) if best >= sure else (None, failed)


def _described(source: Source, form: Format) -> CheckpointInfo:
    if source.config_file and not getattr(form, "READS_CONFIG_FILE", False):
        source.config = {**settings_file(source.config_file), **source.config}
    try:
        found = form.describe(source)
    except CheckpointError as error:
        name = shown_path(source.path)
        if f"cannot open {name}" in error.title:
            raise
        found_text = f"{error.title}: {error.found}" if error.found else error.title
        raise CheckpointError(
            f"cannot open {name} ({form.NAME})", found_text, error.remedy
        ) from None
    return finish(source, found)


def overview(path: str) -> CheckpointInfo:
    """What is at `path`, a file or a checkpoint directory, as it says itself."""
    return _described(*_recognised(path, {}))


def _chosen(path: str, step: int | None, settings: Mapping[str, object], config_file: str) -> str:
    """The checkpoint that a directory stands for: itself, the step asked for, else the one that the
    run marks as its newest or the newest that can be opened, with what the user says."""
    if step is None and not claimed(Source(path).files):
        # Where the run itself says which, the others need not be read.
        for marked in _marked(path):
            if _opens(marked, settings, config_file):
                return marked
    name = shown_path(path)
    scanner = Scanner(overview)
    entries = scanner.entries(path)
    own = [entry for entry in entries if entry.path == path]
    if own and step in (None, own[0].step):
        return path
    if not entries:
        runs = list(itertools.islice(scanner.scan([path]), 3))
        if len(runs) == 1:  # there is no doubt which one is meant
            return _chosen(runs[0].path, step, settings, config_file)
        inside = ", ".join(shown_path(run.path) for run in runs)
        raise CheckpointError(
            f"there is no checkpoint in {name}",
            f"no file in it ends in {', '.join(SUFFIXES)}",
            f"Name one of the runs in it, such as {inside}" if inside else "",
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
        whole = [entry for entry in entries if not entry.error]
        if not whole and (settings or config_file):
            helped = (e for e in reversed(entries) if _opens(e.path, settings, config_file))
            whole = list(itertools.islice(helped, 1))
        chosen = whole or entries
    return chosen[-1].path


def _opens(path: str, settings: Mapping[str, object], config_file: str) -> bool:
    try:
        _described(*_recognised(path, settings, config_file))
    except TuiChatError:
        return False
    return True


def _marked(path: str) -> list[str]:
    """What the formats say that the run in `path` itself marks as its newest."""
    folder = Source(path)
    asked = [latest for form in FORMATS if (latest := getattr(form, "latest", None))]
    return [os.path.join(path, name) for latest in asked if (name := latest(folder))]


def scan(roots: Iterable[str]) -> Iterator[Run]:
    """Every run under the roots, see scan.Scanner."""
    return Scanner(overview).scan(roots)


def _unknown(source: Source) -> CheckpointError:
    supported = listed([form.NAME for form in (*FORMATS, *plug_ins())])
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
