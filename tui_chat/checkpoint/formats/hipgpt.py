"""HipGPT (C++/HIP): run directories with NAME_stepN.bin, a JSON beside each, a tokenizer.json.

The weights know their own sizes. The JSON adds the step and the tokenizer's name, and is what the
program goes by: `latest_config.json` names the weights it would take. That and
`latest_checkpoint.bin` are links, which copying turns into dead ones or into files with a name in
them; each of these stands for the weights it names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tui_chat.checkpoint.archive import parse_json
from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.files import Damaged, RegularFile, shown_name, shown_path
from tui_chat.checkpoint.hipgpt.tokenizer import read_word_pieces
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.names import Table, transpose
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source
from tui_chat.errors import CheckpointError
from tui_chat.model.constant_dropout import passes

NAME = "HipGPT"

NAMES: Table = {
    "embed": "token_embedding",
    "position": "pos_embedding",
    "blocks.{i}.attn_norm": "layers.{i}.attn_norm",
    "blocks.{i}.attn.qkv": transpose("layers.{i}.qkv"),
    "blocks.{i}.attn.out": transpose("layers.{i}.o"),
    "blocks.{i}.mlp_norm": "layers.{i}.ffn_norm",
    "blocks.{i}.mlp.up": transpose("layers.{i}.ff1"),
    "blocks.{i}.mlp.down": transpose("layers.{i}.ff2"),
    "head": transpose("output_projection"),
}
_SIZES = ("vocab_size", "max_seq_len", "embed_dim", "num_heads", "ff_hidden_dim", "num_layers")
_LATEST_CONFIG, _LATEST_WEIGHTS = "latest_config.json", "latest_checkpoint.bin"
_STEP = re.compile(r"(.+)_step(\d{1,15})")
_LONGEST_NAME = 255  # bytes of a file that holds nothing but a name
_MOST_SETTINGS = 64 * 1024
_MOST_FILES = 64  # settings files of a run that are looked into


def recognise(source: Source) -> float:
    if source.is_dir:
        return 0.0
    if _stands_for(source.path):
        return 1.0
    return 1.0 if source.archive.kind == NAME else 0.0


def latest(folder: Source) -> str:
    """The weights that the program would take of the run in `folder`, "" if it does not say."""
    for name in (_LATEST_CONFIG, _LATEST_WEIGHTS):
        path = os.path.join(folder.path, name)
        found = _stands_for(path) or _linked(path)
        if found.endswith(".json"):
            found = _stands_for(os.path.join(folder.path, found))
        if found and folder.near(found):
            return found
    return ""


def describe(source: Source) -> Description:
    source = _weights(source)
    said = mapping(source.root["sizes"])
    sizes = {name: value for name, value in said.items() if isinstance(value, int)}
    warnings: list[str] = []
    inferred: list[str] = []
    unused: list[str] = []
    name, settings = _settings_of(source, sizes, inferred)
    run, step = _run_and_step(source, settings)
    if settings:
        warnings += _contradictions(name, mapping(settings.get("model")), sizes)
        unused += _training(name, settings)
    else:
        inferred.append("all sizes are those that the weights say; no settings lie beside them")
    tokenizer = _tokenizer(source, settings, sizes["vocab_size"], warnings, inferred)
    _say_dropout(source, sizes, warnings, inferred)
    return Description(
        format=NAME,
        spec={
            "vocab_size": sizes["vocab_size"],
            "n_layer": sizes["num_layers"],
            "n_head": sizes["num_heads"],
            "n_embd": sizes["embed_dim"],
            "context_length": sizes["max_seq_len"],
            "family": "hipgpt",
            "norm": "layernorm",
            "norm_eps": 1e-5,
            "final_norm": False,
            "position": "learned",
            "activation": "relu",
        },
        options={"dropout": True},
        tensors=mapping(source.root["weights"]),
        names=NAMES,
        archives=(source.archive,),
        tokenizer=tokenizer,
        run=run,
        step=step,
        warnings=warnings,
        inferred=inferred,
        defaults=["norms add 1e-5 to the variance, as the program does; no file says it"],
        unused=unused,
    )


# ---- which file is meant


def _weights(source: Source) -> Source:
    """The weights that a settings file or a lost link names, else the file itself."""
    for _ in range(4):  # a lost link names settings, which name weights
        name = _stands_for(source.path)
        if not name:
            return source
        if not source.near(name):
            raise CheckpointError(
                f"cannot open {shown_path(source.path)} ({NAME})",
                f"it names the weights {name[:80]!r}, which are not beside it",
                "Open a .bin that is there, or the run's directory",
            )
        source = Source(os.path.join(source.folder, name), config=source.config)
    return source


def _stands_for(path: str) -> str:
    """The name of the file that the settings or the lost link at `path` names; "" for any other
    file."""
    name = os.path.basename(path)
    raw = _text(path)
    if raw.lstrip()[:1] == b"{":
        return _named(_settings(raw), "checkpoint", "latest")
    if name not in (_LATEST_CONFIG, _LATEST_WEIGHTS):
        return ""
    if 0 < len(raw) <= _LONGEST_NAME:
        found = _last_part(raw.decode("utf-8", "replace").strip())
    else:  # dead, as all links of the first runs were: they named the file from elsewhere
        found = "" if os.path.exists(path) else _linked(path)
    return found if found.endswith(os.path.splitext(name)[1]) and found != name else ""


def _linked(path: str) -> str:
    """The name of what a link points to, "" for anything but a link."""
    try:
        return _last_part(os.readlink(path))
    except OSError:
        return ""


def _text(path: str) -> bytes:
    """The bytes of a file that is short enough to be settings, else none."""
    try:
        with RegularFile(path) as file:
            return file.read(0, file.size) if file.size <= _MOST_SETTINGS else b""
    except (CheckpointError, Damaged):
        return b""


def _settings(raw: bytes) -> Mapping[str, object]:
    """A run's settings, empty for any other text."""
    try:
        said = mapping(parse_json(raw, "it"))
    except Damaged:
        return {}
    model = mapping(said.get("model"))
    return said if {"max_seq_len", "embed_dim", "num_layers"} <= model.keys() else {}


def _named(settings: Mapping[str, object], section: str, key: str) -> str:
    """A file's name in the settings: until August 2025 they held whole paths."""
    value = mapping(settings.get(section)).get(key)
    return _last_part(value) if isinstance(value, str) else ""


def _last_part(path: str) -> str:
    name = path.replace("\\", "/").rsplit("/", 1)[-1]
    return "" if name in (".", "..") or "\0" in name else name


# ---- what lies beside the weights


def _settings_of(
    source: Source, sizes: Mapping[str, int], inferred: list[str]
) -> tuple[str, Mapping[str, object]]:
    """The settings that belong to the weights, and their file's name; empty if there are none."""
    weights = os.path.basename(os.path.realpath(source.path))
    own = os.path.splitext(weights)[0] + "_config.json"
    if weights == _LATEST_WEIGHTS:  # a link that became a copy
        own = _LATEST_CONFIG
    # Links last: they may have moved on.
    others = sorted(name for name in source.files if name.endswith(".json") and name != own)
    others.sort(key=lambda name: name == _LATEST_CONFIG)
    found: dict[str, Mapping[str, object]] = {}
    for name in [own, *others[:_MOST_FILES]]:
        path = source.near(name)
        settings = _settings(_text(path)) if path else {}
        if not settings:
            continue
        if name == own or _named(settings, "checkpoint", "latest") == weights:
            return name, settings
        if all(mapping(settings.get("model")).get(size) == sizes[size] for size in _SIZES):
            found[name] = settings
    steps = {str(mapping(settings.get("checkpoint")).get("step")) for settings in found.values()}
    if len(steps) != 1:
        return "", {}
    name, settings = next(iter(found.items()))
    inferred.append(
        f"the settings are those of {shown_name(name)}, the only ones beside the weights with "
        "their sizes"
    )
    return name, settings


def _run_and_step(source: Source, settings: Mapping[str, object]) -> tuple[str, int | None]:
    """By the file's name, which the settings may only add to."""
    stem = os.path.splitext(os.path.basename(os.path.realpath(source.path)))[0]
    named = _STEP.fullmatch(stem)
    if named:
        return shown_name(named.group(1)), int(named.group(2))
    step = mapping(settings.get("checkpoint")).get("step")
    if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 10**15:
        return "", step
    return "", None


def _contradictions(name: str, model: Mapping[str, object], sizes: Mapping[str, int]) -> list[str]:
    return [
        f"{shown_name(name)} says {word} = {str(model[word])[:20]}, the weights {sizes[word]}: "
        "the weights are right"
        for word in _SIZES
        # 0 stands for as many as the tokenizer has
        if word in model and model[word] != sizes[word] and (word, model[word]) != ("vocab_size", 0)
    ]


def _training(name: str, settings: Mapping[str, object]) -> list[str]:
    words = [str(word)[:40] for word in mapping(settings.get("training"))][:12]
    return [f"{', '.join(words)} of {shown_name(name)}: only training needs them"] if words else []


def _tokenizer(
    source: Source,
    settings: Mapping[str, object],
    rows: int,
    warnings: list[str],
    inferred: list[str],
) -> TokenizerHint:
    """The tokenizer.json of the run, or of the directories above it, where old runs left it."""
    name = _named(settings, "tokenizer", "path") or "tokenizer.json"
    beside = tuple(dict.fromkeys((name, "tokenizer.json")))
    places = [*((other,) for other in beside), ("..", name), ("..", "..", name)]
    for parts in places:
        path = source.near(*parts)
        if not path:
            continue
        try:
            found = read_word_pieces(path)
        except CheckpointError as error:
            warnings.append(f"{shown_name(path)} is not used: {error.found}")
            continue
        count = len(found.texts)
        if count > rows or (count < rows and len(parts) > 1):
            warnings.append(f"{shown_name(path)} is not used: it has {count:,} ids, not {rows:,}")
            continue
        if count < rows:
            warnings.append(
                f"{shown_name(path)} has {count:,} ids, the model {rows:,}: it may be another run's"
            )
        if not found.ranked:
            inferred.append(
                "merges follow the order of ids, as in the first versions: the tokenizer has no "
                "merge_rank"
            )
        return TokenizerHint(
            kind="hipgpt",
            path=path,
            source=f"{shown_path(path)} has as many ids as the model"
            if count == rows
            else f"{shown_path(path)} lies beside the weights",
            vocab_size=count,
        )
    warnings.append(
        f"no tokenizer found for {rows:,} ids: put the run's tokenizer.json beside the weights, or "
        "name it with --tokenizer; until then only ids are shown"
    )
    return TokenizerHint(kind="none", source="no tokenizer.json found", vocab_size=rows)


def _say_dropout(
    source: Source, sizes: Mapping[str, int], warnings: list[str], inferred: list[str]
) -> None:
    width, length = sizes["embed_dim"], sizes["max_seq_len"]
    if source.config.get("dropout", True) is False:
        inferred.append("dropout is off, as you asked; the program itself never switches it off")
    elif any(passes(place) for place in range((length - 1) * width, length * width)):
        inferred.append(
            "dropout stays on in every reply, as in the program itself: --config dropout=false "
            "switches it off"
        )
    else:
        warnings.append(
            f"the program never switches dropout off, and in a window of {length} x {width} it "
            "drops all that the layers add for the next token: only the last token counts. "
            "--config dropout=false lets the layers speak"
        )
        return
    if width > 32:
        inferred.append(
            "attention's output is computed apart from its input; the program overwrites the one "
            "with the other while reading it, so its own results may vary"
        )
