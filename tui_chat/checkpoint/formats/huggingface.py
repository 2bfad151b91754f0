"""Hugging Face directories: config.json, weights in one file or in shards, a tokenizer; and LoRA
adapters on top of them.

What is known of each family stands in checkpoint/huggingface as data. Bare weights with the names
of a known family open too, as far as their tensors tell.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tui_chat.checkpoint.archive import Archive
from tui_chat.checkpoint.description import Description, run_name
from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.hf_tokenizer import hf_tokenizer
from tui_chat.checkpoint.huggingface.lora import BASE, Adapter, read_adapter
from tui_chat.checkpoint.huggingface.reading import PREFIXES, Change, Model, read_model
from tui_chat.checkpoint.huggingface.shards import (
    Weights,
    directory_weights,
    file_tensors,
    has_weights,
)
from tui_chat.checkpoint.huggingface.table import by_tensors
from tui_chat.checkpoint.names import strip
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import MAX_SETTINGS, Source, read_json
from tui_chat.errors import CheckpointError

NAME = "Hugging Face"
LORA_NAME = "Hugging Face with LoRA"
CONFIG = "config.json"
ADAPTER = "adapter_config.json"

_STEP = re.compile(r"(?:checkpoint|global_step|step|iter)[-_]?(\d{1,12})")
_MAX_HISTORY = 1_000_000
_MAX_STATE = 2_000_000  # values in what the Trainer wrote of its progress


def claims(names: frozenset[str]) -> bool:
    """A directory with a config and weights, or with an adapter."""
    return ADAPTER in names or (CONFIG in names and has_weights(names))


def recognise(source: Source) -> float:
    if source.is_dir:
        if ADAPTER in source.files:
            return 1.0
        config = _config(source)
        return 1.0 if "model_type" in config or "architectures" in config else 0.6
    archive = source.archive
    if archive.kind not in ("safetensors", "torch", "torch stream"):
        return 0.0
    tensors = strip(file_tensors(archive), PREFIXES)[0]
    return 0.8 if by_tensors(tensors) else 0.0


def describe(source: Source) -> Description:
    if source.is_dir and ADAPTER in source.files and not _is_whole(source):
        return _adapted(source)
    return _plain(source, None)


def _is_whole(source: Source) -> bool:
    """Whether an adapter lies beside a whole model, to which it may have been added already."""
    return CONFIG in source.files and has_weights(source.files)


def _plain(source: Source, adapter: Adapter | None) -> Description:
    """A model, with what an adapter adds to it."""
    base = adapter.base if adapter else source
    weights, config = _parts(base)
    change: Change | None = adapter.apply if adapter else None
    model = read_model(config, weights.tensors, source.config, change)
    found = _description(source, base, weights, model)
    if source.is_dir and not adapter and ADAPTER in source.files:
        found.unused.append(f"{ADAPTER}: the weights beside it are whole without it")
    return found


def _parts(source: Source) -> tuple[Weights, Mapping[str, object]]:
    if source.is_dir:
        return directory_weights(source), _config(source)
    archive: Archive = source.archive
    named = _table(source.config_file) if source.config_file.endswith(".json") else {}
    beside = source.near(CONFIG)
    config = named or (_table(beside) if beside else {})
    return Weights(file_tensors(archive), (archive,)), config


def _config(source: Source) -> Mapping[str, object]:
    path = source.near(CONFIG)
    return _table(path) if path else {}


def _table(path: str, values: int = MAX_SETTINGS) -> Mapping[str, object]:
    return mapping(read_json(path, values))


def _description(source: Source, base: Source, weights: Weights, model: Model) -> Description:
    folder = source.folder
    tokenizer = hf_tokenizer(folder)
    if tokenizer.hint.kind == "none" and base is not source:
        tokenizer = hf_tokenizer(base.folder)
    run, step = _run(folder)
    state = _state(source)
    reached = state.get("global_step")
    if step is None and isinstance(reached, int) and not isinstance(reached, bool):
        step = reached
    inferred = [*weights.remarks, *model.inferred]
    if not source.is_dir and not _config(source) and not source.config_file:
        inferred.insert(0, f"it is read as {model.model_type}: its tensors are named so")
    return Description(
        format=NAME,
        spec=model.spec,
        tensors=model.tensors,
        names=model.names,
        ignored=model.ignored,
        archives=weights.archives,
        tokenizer=tokenizer.hint,
        run=run,
        step=step,
        losses=_losses(state),
        template=tokenizer.template,
        stop_ids=tokenizer.stop_ids,
        text_start=tokenizer.text_start,
        mode="chat" if tokenizer.template.name else "raw",
        warnings=[*model.warnings, *tokenizer.warnings],
        inferred=inferred,
        defaults=model.defaults,
        unused=model.unused,
        description=model.model_type,
    )


def _adapted(source: Source) -> Description:
    adapter = read_adapter(source)
    found = _plain(source, adapter)
    found.format = LORA_NAME
    found.options = {BASE: adapter.base.path}
    found.archives = (*found.archives, *adapter.archives)
    found.inferred = [*adapter.remarks, *found.inferred]
    found.description = f"{found.description}, adapter on {shown_name(adapter.base.path)}"
    return found


def _run(folder: str) -> tuple[str, int | None]:
    """The run's name and the step, from the names of directories."""
    name = shown_name(folder)
    hit = _STEP.fullmatch(name)
    if hit is not None:
        return run_name(folder), int(hit[1])
    above = os.path.dirname(folder)
    # .../models--organisation--name/snapshots/revision, as downloads are kept
    if shown_name(above) == "snapshots":
        cached = shown_name(os.path.dirname(above))
        if cached.startswith("models--"):
            return cached[len("models--") :].replace("--", "/"), None
    return name, None


def _state(source: Source) -> Mapping[str, object]:
    """What the Trainer wrote of its progress; nothing where that cannot be read."""
    path = source.near("trainer_state.json") if source.is_dir else ""
    if not path:
        return {}
    try:
        return _table(path, _MAX_STATE)
    except CheckpointError:
        return {}


def _losses(state: Mapping[str, object]) -> dict[str, float]:
    found: dict[str, float] = {}
    history = state.get("log_history")
    for row in history[:_MAX_HISTORY] if isinstance(history, list) else ():
        for ours, word in (("train", "loss"), ("val", "eval_loss")):
            value = mapping(row).get(word)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e8:
                found[ours] = float(value)
    return found
