"""`tui-chat inspect`, `list` and `paths`: what lies where, read without torch."""

from __future__ import annotations

import argparse
import dataclasses
import os

from tui_chat.checkpoint.card import bytes_in_words, card, count, date, losses_in_words, notes
from tui_chat.checkpoint.files import unopened
from tui_chat.checkpoint.info import CatalogEntry, CheckpointInfo, Run
from tui_chat.checkpoint.tokenizer_size import with_tokenizer_size
from tui_chat.cli import options
from tui_chat.cli.output import columns, hanging, labelled, table, write_json, write_line
from tui_chat.display import one_line
from tui_chat.engine.events import LoadOptions
from tui_chat.settings import Paths, bundled, load


def inspect(arguments: argparse.Namespace) -> int:
    """What was understood of a checkpoint, and how it is known."""
    given = options.load_options(arguments)
    check = None
    if arguments.check or arguments.text:
        from tui_chat.cli.inspect_check import measured

        info, check = measured(arguments.path, given, arguments.text or "")
    else:
        info = _described(arguments.path, given)
    sample = None
    if arguments.preview:
        from tui_chat.cli.inspect_check import preview

        sample = preview(info)
    info = with_tokenizer_size(info)
    if arguments.json:
        report = info.as_dict()
        if check is not None:
            report["check"] = check.as_dict()
        if sample is not None:
            report["preview"] = sample
        write_json(report)
        return 0
    show(info)
    if check is not None:
        from tui_chat.cli.inspect_check import show_check

        show_check(check, info)
    if sample is not None:
        from tui_chat.cli.inspect_check import show_preview

        show_preview(sample)
    return 0


def _described(path: str, given: LoadOptions) -> CheckpointInfo:
    from tui_chat.checkpoint.catalog import describe

    return describe(
        path,
        step=given.step,
        config=given.config,
        tokenizer=given.tokenizer,
        template=given.template,
        config_file=given.config_file,
    )


def show(info: CheckpointInfo) -> None:
    """The card, then what is not plainly in the file."""
    width = columns()
    write_line(labelled(card(info), width))
    for title, sentences in notes(info):
        mark = "! " if title == "warnings" else "- "
        write_line(f"\n{title}")
        for sentence in sentences:
            write_line(hanging(mark, sentence, width))


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
    return "." if entry.path == run.path else one_line(entry.path.removeprefix(run.path + "/"))


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
        "tokenizers": os.environ.get("TUI_CHAT_TOKENIZERS_DIR") or here.data / "tokenizers",
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
