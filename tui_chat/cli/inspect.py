"""`tui-chat inspect`, `list` and `paths`: what lies where, read without torch."""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Mapping

from tui_chat.checkpoint.files import unopened
from tui_chat.checkpoint.info import CatalogEntry, CheckpointInfo, Run
from tui_chat.cli import options
from tui_chat.cli.output import table, write_json, write_line
from tui_chat.display import one_line
from tui_chat.model.spec import ModelSpec
from tui_chat.settings import Paths, bundled, load


def inspect(arguments: argparse.Namespace) -> int:
    """What was understood of a checkpoint, and how it is known."""
    from tui_chat.checkpoint.catalog import describe

    given = options.load_options(arguments)
    info = describe(
        arguments.path,
        step=given.step,
        config=given.config,
        tokenizer=given.tokenizer,
        template=given.template,
        config_file=given.config_file,
    )
    if arguments.json:
        write_json(info.as_dict())
        return 0
    write_line(table([row for row in _card(info) if row[1]]))
    for warning in info.warnings:
        write_line(f"! {warning}")
    return 0


def _card(info: CheckpointInfo) -> list[list[str]]:
    spec = info.spec
    size = f"{bytes_in_words(info.size)}, {date(info.modified)}" if info.size else ""
    tokenizer = " ".join(filter(None, (info.tokenizer.kind, info.tokenizer.name)))
    if info.tokenizer.vocab_size:
        tokenizer += f", {info.tokenizer.vocab_size:,} ids"
    mode = {"chat": "chat: turns wrapped in the template", "raw": "raw: the text is continued"}
    return [
        ["path", info.path],
        ["about", info.description],
        ["format", info.format],
        ["run", info.run],
        ["step", "" if info.step is None else f"{info.step:,}"],
        ["loss", losses_in_words(info.losses)],
        ["size", size],
        ["model", f"{shape_in_words(spec)} · {count(info.parameters)} parameters · {info.dtype}"],
        ["", _details(spec)],
        ["context", f"{spec.context_length:,} tokens"],
        ["vocabulary", f"{spec.vocab_size:,} rows"],
        ["tokenizer", _because(tokenizer, info.tokenizer.source)],
        ["template", _because(info.template.name or "none", info.template.source)],
        ["stop ids", " ".join(map(str, info.stop_ids))],
        ["mode", mode[info.mode]],
        ["fingerprint", info.fingerprint],
    ]


def _because(what: str, source: str) -> str:
    return f"{what} ({source})" if source else what


def shape_in_words(spec: ModelSpec) -> str:
    """ "4 layers · 4 heads · 128 wide"; grouped key and value heads are said."""
    heads = f"{spec.n_head} heads"
    if spec.n_kv_head != spec.n_head:
        heads += f" ({spec.n_kv_head} for keys and values)"
    return f"{spec.n_layer} layers · {heads} · {spec.n_embd} wide"


def _details(spec: ModelSpec) -> str:
    position = {"learned": "learned positions", "rope": "rotary positions", "none": "no positions"}
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}
    activation = {"gelu_tanh": "GELU (tanh)", "relu2": "ReLU²"}
    parts = [
        position[spec.position],
        norm[spec.norm],
        ("gated " if spec.gated else "") + activation.get(spec.activation, spec.activation.upper()),
    ]
    if spec.family != "decoder":
        parts.insert(0, f"{spec.family} family")
    if any(spec.window):
        parts.append(f"windows of {', '.join(map(str, sorted({w for w in spec.window if w})))}")
    return " · ".join(parts)


def runs(arguments: argparse.Namespace) -> int:
    """Runs and their steps under the directories."""
    from tui_chat.checkpoint.catalog import scan

    for directory in arguments.directories:
        try:
            os.stat(os.path.expanduser(directory))
        except (OSError, ValueError) as error:
            raise unopened(directory, error) from None
    found = list(scan(arguments.directories or usual_places()))
    if arguments.json:
        write_json([dataclasses.asdict(run) for run in found])
        return 0
    blocks = [_block(run) for run in found]
    write_line("\n\n".join(blocks) if blocks else "No checkpoints here.")
    return 0


def usual_places() -> list[str]:
    """Where checkpoints are looked for when no directory is named, without repeats."""
    settings, _ = load(Paths.find())
    here = ["checkpoints", *settings.roots, str(bundled("checkpoints"))]
    return list(dict.fromkeys(here))


def _block(run: Run) -> str:
    """A run, its readable checkpoints as a table, and below it why others cannot be read."""
    lines = [f"{run.name}  ({run.path})"]
    rows = [[*_about(e), _file(run, e)] for e in run.checkpoints if not e.error]
    if rows:
        head = ("step", "loss", "parameters", "type", "size", "saved", "file")
        drawn = table(rows, head=head, right=(0, 2, 4))
        lines += [f"  {line}" for line in drawn.split("\n")]
    lines += [f"  {_file(run, e)}: {one_line(e.error)}" for e in run.checkpoints if e.error]
    return "\n".join(lines)


def _file(run: Run, entry: CatalogEntry) -> str:
    return one_line(entry.path.removeprefix(run.path + "/"))


def _about(entry: CatalogEntry) -> list[str]:
    return [
        "" if entry.step is None else f"{entry.step:,}",
        losses_in_words(entry.losses),
        count(entry.parameters),
        entry.dtype,
        bytes_in_words(entry.size),
        date(entry.modified),
    ]


def paths(arguments: argparse.Namespace) -> int:
    """Where everything lies."""
    here = Paths.find()
    places = {
        "settings": here.settings_file,
        "themes": here.themes,
        "chats": here.database,
        "tokenizers": here.data / "tokenizers",
        "state": here.state_file,
        "log": here.log,
        "demo checkpoints": bundled("checkpoints"),
        "bundled themes": bundled("themes"),
    }
    if arguments.json:
        write_json({name.replace(" ", "_"): str(path) for name, path in places.items()})
    else:
        write_line(table([[name, str(path)] for name, path in places.items()]))
    return 0


# ---- numbers for people


def count(number: int) -> str:
    """984312 -> "984k", 124439808 -> "124M": three digits."""
    size = float(number)
    for unit in ("", "k", "M", "B"):
        if size < 999.5 or unit == "B":
            return f"{size:.3g}{unit}" if size < 999.5 else f"{size:,.0f}{unit}"
        size /= 1000
    raise AssertionError


def bytes_in_words(number: int) -> str:
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def losses_in_words(losses: Mapping[str, float]) -> str:
    return " · ".join(f"{name} {value:.4g}" for name, value in losses.items())
