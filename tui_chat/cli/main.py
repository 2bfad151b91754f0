"""`tui-chat`: finds out what is wanted, does it, and turns what goes wrong into a sentence.

Loads neither torch nor textual; each command imports what it needs when it runs.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Sequence

from tui_chat.cli import options
from tui_chat.cli.output import STOPPED
from tui_chat.display import one_line
from tui_chat.engine.events import LoadOptions
from tui_chat.errors import CheckpointError, TuiChatError, UsageError

_NOTHING_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: the process's) and return its exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None and hasattr(signal, "SIGPIPE"):
        # End like any filter when whoever reads the output has enough (`| head`).
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        return _run(arguments)
    except SystemExit as end:  # argparse, after printing its help
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        return STOPPED
    except BrokenPipeError:
        sys.stdout = None  # nothing more can be flushed at exit
        return STOPPED
    except TuiChatError as error:
        _traceback_if_asked(arguments)
        _complain(str(error))
        return error.exit_status
    except Exception as error:
        _traceback_if_asked(arguments)
        _complain(f"something unexpected went wrong: {type(error).__name__}: {error}")
        if "--debug" not in arguments:
            _complain("Run it again with --debug to see where.")
        return 1


def _run(arguments: list[str]) -> int:
    words = [word for word in arguments if word != "--debug"]
    if words and words[0] in options.COMMANDS and not os.path.lexists(words[0]):
        return _command(words[0], words[1:])
    if words and not words[0].startswith("-"):
        _must_exist(words[0])  # before the options: those of a mistyped command are not the app's
    parsed = options.app_parser().parse_args(arguments)
    if parsed.version:
        from tui_chat import __version__

        print(f"tui-chat {__version__}")
        return 0
    load = options.load_options(parsed)
    for path in filter(None, (*parsed.paths, parsed.draft)):
        _must_exist(path)
    return _app(parsed.paths, load, draft=parsed.draft or "", lookup=parsed.lookup)


def _must_exist(path: str) -> None:
    """Raises CheckpointError for a path where nothing is: most often a command's name mistyped."""
    try:
        os.stat(os.path.expanduser(path))
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno not in _NOTHING_THERE:
            return  # something is there, and whoever opens it says what stands in the way
        raise CheckpointError(
            "there is no such file, directory or command",
            one_line(path, 200) or "the path is empty",
            "`tui-chat --help` lists the commands",
        ) from None


def _command(command: str, words: list[str]) -> int:
    parser = options.command_parser(command)
    # `ask PATH --greedy PROMPT`: what has no dashes may stand anywhere. argparse cannot do that for
    # commands that have commands of their own.
    parse = parser.parse_args if command == "sessions" else parser.parse_intermixed_args
    arguments = parse(words)
    match command:
        case "ask":
            from tui_chat.cli.generate import ask

            return ask(arguments)
        case "next" | "score":
            from tui_chat.cli import tokens

            return tokens.next_tokens(arguments) if command == "next" else tokens.score(arguments)
        case "inspect" | "list":
            from tui_chat.cli import inspect

            return inspect.inspect(arguments) if command == "inspect" else inspect.runs(arguments)
        case "bench":
            from tui_chat.cli.bench import bench

            return bench(arguments)
        case "sessions":
            from tui_chat.cli.sessions import sessions

            return sessions(arguments)
    from tui_chat.cli.inspect import paths

    return paths(arguments)


def _app(paths: list[str], load: LoadOptions, *, draft: str, lookup: bool) -> int:
    for stream, name in ((sys.stdin, "standard input"), (sys.stdout, "standard output")):
        if stream is None or not stream.isatty():
            raise UsageError(
                "the app needs a terminal",
                f"{name} is not one",
                "`tui-chat ask PATH` answers without one",
            )
    if hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # Python's own choice, which the app expects
    # How often a second Textual may paint, which it reads when it is imported. A key waits half a
    # period on average; twice the default brings its echo from 15 ms to 3.
    os.environ.setdefault("TEXTUAL_FPS", "120")
    from tui_chat.tui.app import run

    return run(paths, load, draft=draft, lookup=lookup)


def _complain(text: str) -> None:
    from tui_chat.cli.output import remark

    remark(f"tui-chat: {text}")


def _traceback_if_asked(arguments: list[str]) -> None:
    if "--debug" in arguments:
        import traceback

        traceback.print_exc()
