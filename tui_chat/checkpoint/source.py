"""A checkpoint as the formats see it: its data, and what lies beside it."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import NoReturn

from tui_chat.checkpoint.archive import Archive, parse_json, read_archive
from tui_chat.checkpoint.files import Damaged, RegularFile, refused
from tui_chat.checkpoint.plain import mapping
from tui_chat.errors import CheckpointError

MAX_TEXT = 64 * 1024 * 1024
MAX_LISTED = 20_000
_SETTLED = 2.0  # seconds without a change in a directory
MAX_SETTINGS = 200_000  # values in a JSON file of settings
MAX_VOCABULARY = 4_000_000  # values in one with a vocabulary and merges


class Source:
    """A file or a directory that may be a checkpoint. Everything is read when it is first asked
    for.

    `config` holds the model settings that the user gave; they go before what the files say.
    `config_file` is the path of a file of settings that the user named, "" where none was.
    """

    def __init__(
        self,
        path: str,
        *,
        config: Mapping[str, object] | None = None,
        config_file: str = "",
    ) -> None:
        self.path = os.path.abspath(path)
        self.is_dir = os.path.isdir(path)
        self.folder = self.path if self.is_dir else os.path.dirname(self.path)
        self.config = dict(config or {})
        self.config_file = config_file and os.path.abspath(os.path.expanduser(config_file))

    @property
    def archive(self) -> Archive:
        """The file itself. Raises CheckpointError; a directory has no archive of its own."""
        return self._archive()

    @cached_property
    def _archive(self) -> Callable[[], Archive]:
        """The file or why it cannot be read, which each of the formats asks for."""
        try:
            found = read_archive(self.path)
        except CheckpointError as error:
            return functools.partial(_raise, error)
        return lambda: found

    @property
    def root(self) -> Mapping[str, object]:
        """The named values at the top of the file; empty for a directory or for anything but a
        dict."""
        return {} if self.is_dir else mapping(self.archive.root)

    @cached_property
    def files(self) -> frozenset[str]:
        """Names of what lies in the directory, or beside the file."""
        try:
            status = os.stat(self.folder)
        except (OSError, ValueError):
            return frozenset()
        # What has just changed may change again within one tick of the file system's clock.
        if time.time() - status.st_mtime < _SETTLED:
            return frozenset(_names(self.folder))
        return _listed(self.folder, status.st_dev, status.st_ino, status.st_mtime_ns)

    def near(self, *parts: str) -> str:
        """The path of a regular file given relative to the checkpoint's folder, "" if there is
        none."""
        path = os.path.normpath(os.path.join(self.folder, *parts))
        return path if os.path.isfile(path) else ""

    def open(self, name: str) -> Archive:
        """Another file of the checkpoint's folder as data. `name` is a bare file name."""
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise refused(
                self.path, Damaged(f"it names the file {name[:60]!r}, which is not beside it")
            )
        return read_archive(os.path.join(self.folder, name))


def read_json(path: str, values: int = MAX_SETTINGS) -> object:
    """The JSON file at `path`, of at most so many values. Raises CheckpointError in one sentence,
    whatever is in it."""
    return _parsed(path, lambda raw: parse_json(raw, "it", values))


def read_toml(path: str) -> object:
    """The TOML file at `path`. Raises CheckpointError in one sentence, whatever is in it."""
    return _parsed(path, _parse_toml)


def _parsed(path: str, parse: Callable[[bytes], object]) -> object:
    with RegularFile(path) as file:
        try:
            if file.size > MAX_TEXT:
                raise Damaged(f"it has {file.size:,} bytes, more than a text file of settings has")
            return parse(file.read(0, file.size))
        except Damaged as error:
            raise refused(path, error) from None


def _parse_toml(raw: bytes) -> object:
    import tomllib  # rarely needed, and slow to import

    try:
        return tomllib.loads(raw.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Damaged(f"it is not TOML ({str(error)[:80]})") from None


@functools.lru_cache(maxsize=4)
def _listed(folder: str, device: int, inode: int, changed: int) -> frozenset[str]:
    """The names in a directory in one state, listed once for all of its files."""
    return frozenset(_names(folder))


def _raise(error: CheckpointError) -> NoReturn:
    raise error.with_traceback(None)


def _names(folder: str) -> Iterator[str]:
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= MAX_LISTED:
                    return
                yield entry.name
    except OSError:
        return
