"""The arguments of all commands. Sampling options are the rows of `sampling.KNOBS`.

Importing this loads neither torch nor textual: `tui-chat --help` answers at once.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from tui_chat.engine.events import LoadOptions
from tui_chat.errors import UsageError
from tui_chat.sampling import KNOBS, PRESETS, Knob, SamplingParams, knob

COMMANDS = {
    "ask": "one reply, streamed to stdout as it is made",
    "next": "the table of tokens that may come next",
    "score": "how likely a given text is, token by token",
    "inspect": "what was understood of a checkpoint, and why",
    "bench": "how fast it is here, beside what the memory allows",
    "list": "runs and their steps under directories",
    "sessions": "the saved chats: list, show, delete, undelete, check",
    "paths": "where everything lies",
}

_USAGE = "tui-chat [PATH ...] [options]\n       tui-chat COMMAND ..."


class Parser(argparse.ArgumentParser):
    """Complains with a UsageError: one sentence, and where the help is."""

    def error(self, message: str) -> NoReturn:
        # Our own readers say "takes a number, not 'x'": their option becomes the subject.
        sentence = re.sub(r"^argument (\S+): (takes|is) ", r"\1 \2 ", message)
        raise UsageError(sentence, "", f"`{self.prog} --help` lists what there is")


def app_parser() -> Parser:
    """`tui-chat [PATH...]`; its help lists the commands too."""
    commands = "\n".join(f"  {name:10} {text}" for name, text in COMMANDS.items())
    parser = Parser(
        prog="tui-chat",
        usage=_USAGE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Open any language model you trained and talk to it.",
        epilog=f"commands:\n{commands}\n\n"
        "`tui-chat COMMAND --help` says more. A file called like a command is opened as ./NAME.",
    )
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="PATH",
        help="checkpoint file or run directory; none: the last one used, else the demo",
    )
    _load_options(parser)
    _draft_options(parser)
    _debug(parser)
    parser.add_argument("--version", action="store_true", help="print the version")
    return parser


def command_parser(command: str) -> Parser:
    """The parser of one command."""
    parser = Parser(prog=f"tui-chat {command}", description=f"{COMMANDS[command].capitalize()}.")
    match command:
        case "ask":
            _prompt(parser, "PROMPT", "what to answer; - or none: standard input")
            _samples(parser)
            _draft_options(parser)
        case "next":
            _prompt(parser, "PROMPT", "the text so far; - or none: standard input")
            parser.add_argument(
                "--top", type=_whole, default=20, metavar="K", help="rows (20); 0: every token"
            )
        case "score":
            _prompt(parser, "TEXT", "the text to score; - or none: standard input", knobs=False)
        case "inspect":
            parser.add_argument(
                "path", type=_path, metavar="PATH", help="checkpoint file or run directory"
            )
            _closer(parser)
            _load_options(parser)
        case "bench":
            parser.add_argument(
                "path", type=_path, metavar="PATH", help="checkpoint file or run directory"
            )
            _load_options(parser)
        case "list":
            parser.add_argument(
                "directories",
                nargs="*",
                type=_path,
                metavar="DIR",
                help="where to look (the usual places)",
            )
        case "sessions":
            _sessions(parser)
        case "paths":
            pass
    if command != "sessions":
        _json(parser)
    _debug(parser)
    return parser


def _closer(parser: argparse.ArgumentParser) -> None:
    """A closer look than at what the file says."""
    parser.add_argument(
        "--check", action="store_true", help="measure it on text: was it read right?"
    )
    parser.add_argument(
        "--text", type=_path, metavar="FILE", help="the text to measure on (one found beside it)"
    )
    parser.add_argument(
        "--preview", action="store_true", help="a conversation as the template hands it on"
    )


def _json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def _debug(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--debug", action="store_true", help="show a traceback when it fails")


def _prompt(parser: argparse.ArgumentParser, name: str, help: str, *, knobs: bool = True) -> None:
    parser.add_argument("path", type=_path, metavar="PATH", help="checkpoint file or run directory")
    parser.add_argument("prompt", nargs="?", metavar=name, help=help)
    parser.add_argument("--ids", metavar="IDS", help='token ids instead of text: "15496 995"')
    if knobs:
        mode = parser.add_mutually_exclusive_group()
        mode.add_argument(
            "--chat", action="store_const", const="chat", dest="mode", help="wrap in the template"
        )
        mode.add_argument(
            "--raw", action="store_const", const="raw", dest="mode", help="continue the text"
        )
        parser.add_argument("--system", metavar="TEXT", help="system prompt")
        _knob_options(parser)
    _load_options(parser)


def _samples(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-n", type=_whole, default=1, metavar="N", help="samples, one after another, seed by seed"
    )
    parser.add_argument(
        "--logprobs", type=_whole, metavar="K", help="with --json: each token and the K likeliest"
    )


def _knob_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument("--greedy", action="store_true", help="always the likeliest token")
    group.add_argument(
        "--preset", metavar="NAME", help=f"{', '.join(PRESETS)}, or one of your settings"
    )
    for row in KNOBS:
        default = "" if row.kind == "texts" else f" ({row.shown(row.default)})"
        group.add_argument(
            f"--{row.name.replace('_', '-')}",
            dest=row.name,
            type=_reader(row),
            action="append" if row.kind == "texts" else "store",
            metavar={"float": "X", "int": "N", "seed": "N", "texts": "TEXT"}[row.kind],
            help=(row.help.rstrip(".") + default).replace("%", "%%"),
        )


def _reader(row: Knob) -> Any:
    """The type of a knob's option."""

    def read(text: str) -> object:
        match row.kind:
            case "texts":
                return text.replace("\\n", "\n").replace("\\t", "\t")
            case "seed" if text == "random":
                return None
            case "float":
                return _number(text)
        return _whole(text)

    return read


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a number, not {text[:40]!r}") from None


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a whole number, not {text[:40]!r}") from None


def _path(text: str) -> str:
    """Not the empty text, which would mean the working directory: a variable that was not set."""
    if not text:
        raise argparse.ArgumentTypeError("is empty")
    return text


def _describe_options(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("checkpoint")
    group.add_argument("--step", type=_whole, metavar="N", help="step of a run (the latest)")
    group.add_argument("--tokenizer", metavar="PATH|NAME", help="another tokenizer")
    group.add_argument("--template", metavar="PATH|NAME", help="another chat template")
    group.add_argument(
        "--template-variable",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a variable of the template, such as enable_thinking=false; repeatable",
    )
    group.add_argument(
        "--config",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the model that is missing or wrong, such as n_head=12; repeatable",
    )
    group.add_argument(
        "--config-file", metavar="FILE", help="TOML or JSON file the model was trained with"
    )
    return group


def _load_options(parser: argparse.ArgumentParser) -> None:
    group = _describe_options(parser)
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps (the fastest)")
    group.add_argument("--dtype", metavar="NAME", help="float32, bfloat16, float16, int8")
    group.add_argument(
        "--kv-cache", metavar="NAME", help="int8: keys and values in less memory (as computed)"
    )
    group.add_argument(
        "--compile",
        action="store_true",
        help="on a GPU: compile the model while you already talk, and use it when it is ready",
    )


def _draft_options(parser: argparse.ArgumentParser) -> None:
    """What makes replies faster and leaves them what they are."""
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument(
        "--draft",
        type=_path,
        metavar="PATH",
        help="a smaller or earlier checkpoint proposes what comes next: the same reply, sooner",
    )
    drafts.add_argument(
        "--lookup",
        action="store_true",
        help="propose what followed the same words before: sooner where a text repeats itself",
    )


def _sessions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    which = "number in the list, or the beginning of an id"

    def add(name: str, help: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=help, description=f"{help.capitalize()}.")
        _json(action)
        return action

    shown = add("list", "all chats, the newest first")
    shown.add_argument("--deleted", action="store_true", help="deleted ones too")
    shown.add_argument("--limit", type=_whole, metavar="N", help="at most N")
    show = add("show", "what was said in a chat")
    show.add_argument("chat", nargs="?", metavar="CHAT", help=f"{which}; none: the newest")
    for name, help in (("delete", "take chats out of the list"), ("undelete", "bring them back")):
        add(name, help).add_argument("chats", nargs="+", metavar="CHAT", help=which)
    add("check", "read everything and name what is damaged")


# ---- from arguments to what the engine takes


def load_options(arguments: argparse.Namespace) -> LoadOptions:
    """What the user said about the checkpoint beyond its path. Raises UsageError."""
    return LoadOptions(
        step=arguments.step,
        device=getattr(arguments, "device", None) or "",
        dtype=getattr(arguments, "dtype", None) or "",
        kv_cache=getattr(arguments, "kv_cache", None) or "",
        compile=getattr(arguments, "compile", False),
        tokenizer=arguments.tokenizer or "",
        template=arguments.template or "",
        config=config(arguments.config),
        config_file=arguments.config_file or "",
        template_variables=config(arguments.template_variable, "--template-variable"),
    )


_EXAMPLES = {
    "--config": "--config n_head=12",
    "--template-variable": "--template-variable enable_thinking=false",
}


def config(pairs: Sequence[str], option: str = "--config") -> dict[str, object]:
    """`KEY=VALUE` pairs, each value a number, true or false where it reads like one."""
    values: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not all(part.isidentifier() for part in key.split(".")):
            raise UsageError(
                f"{option} takes KEY=VALUE",
                f"{pair!r} is not",
                f"For example {_EXAMPLES[option]}",
            )
        values[key] = _typed(text)
    return values


def _typed(text: str) -> object:
    if text.lower() in ("true", "false", "none", "null"):
        return {"true": True, "false": False}.get(text.lower())
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def sampling(arguments: argparse.Namespace) -> SamplingParams:
    """The knobs: those of the preset, turned by the options. Raises UsageError."""
    params = _preset(arguments.preset) if arguments.preset else SamplingParams()
    if arguments.greedy:
        if arguments.temperature:
            raise UsageError("--greedy means --temperature 0", "another temperature was given")
        params = params.with_(temperature=0.0)
    for row in KNOBS:
        value = getattr(arguments, row.name)
        if value is not None:
            params = params.with_(**{row.name: knob(row.name).checked(value)})
    return params


def _preset(name: str) -> SamplingParams:
    for known, params in PRESETS.items():
        if known.lower() == name.lower():
            return params
    from tui_chat.settings import Paths, load

    settings, _ = load(Paths.find())
    if name in settings.presets:
        return settings.presets[name]
    raise UsageError(
        f"there is no preset {name!r}", "", f"There are {', '.join([*PRESETS, *settings.presets])}"
    )


def token_ids(text: str) -> tuple[int, ...]:
    """`"15496 995"` or `"15496, 995"` as ids. Raises UsageError."""
    try:
        return tuple(int(part) for part in text.replace(",", " ").strip("[] ").split())
    except ValueError:
        raise UsageError("--ids takes token ids", f"{text!r} is not a list of numbers") from None
