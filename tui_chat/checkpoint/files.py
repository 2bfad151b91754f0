"""Files as a stranger left them: opened without waiting, read without running.

Only regular files are opened, never a device, a pipe or a socket. Knows nothing of formats.
"""

from __future__ import annotations

import io
import os
import stat
from dataclasses import dataclass
from types import TracebackType

from tui_chat.display import visible
from tui_chat.errors import CheckpointError


class Damaged(ValueError):
    """What is in a file cannot be so. The readers raise it with a reason; `refused`
    adds the file's name.
    """


class BeingWritten(CheckpointError):
    """A file changed while it was read, or is not all there yet."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """Tells one state of a file from another without reading it."""

    size: int  # bytes
    mtime_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_size, status.st_mtime_ns, status.st_ino)


def shown_name(path: str) -> str:
    """The last part of a path as people may read it: undecodable bytes become a replacement
    mark."""
    name = os.path.basename(os.path.normpath(path)) or path
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


MAX_SHOWN = 200  # characters of a path in a message


def shown_path(path: str) -> str:
    """A path as a message names it: from the working directory where it lies below it, else in
    full. Safe to draw, on one line, and cut in its middle where it is very long."""
    full = os.path.abspath(path)
    try:
        here = os.path.join(os.getcwd(), "")
    except OSError:  # the working directory was removed
        here = ""
    if here and full.startswith(here):
        full = full[len(here) :]
    text = visible(full).replace("\n", "␊").replace("\t", "␉")
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[: MAX_SHOWN // 3]}…{text[-(MAX_SHOWN - MAX_SHOWN // 3 - 1) :]}"


class RegularFile:
    """One regular file, open for reading. A context manager; not for several threads."""

    def __init__(self, path: str) -> None:
        flags = os.O_RDONLY
        for name in ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY"):  # each is missing on some system
            flags |= getattr(os, name, 0)
        self.path = path
        try:
            descriptor = os.open(path, flags)
        except (OSError, ValueError) as error:
            raise unopened(path, error) from None
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a directory" if stat.S_ISDIR(status.st_mode) else "a device, pipe or socket"
                raise CheckpointError(
                    f"cannot open {shown_path(path)}", f"it is {kind}, not a file"
                )
            self._raw = io.FileIO(descriptor, closefd=True)
        except BaseException:
            os.close(descriptor)
            raise
        self.stamp = Stamp.of(status)
        self.modified = status.st_mtime
        self.size = status.st_size

    def __enter__(self) -> RegularFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._raw.close()

    def read(self, begin: int, count: int) -> bytes:
        """Exactly `count` bytes from `begin`. Raises Damaged where the file is shorter."""
        if begin < 0 or count < 0 or begin + count > self.size:
            raise Damaged(f"it ends at byte {self.size:,} but {begin + count:,} are needed")
        buffer = bytearray(count)
        self.read_into(begin, memoryview(buffer))
        return bytes(buffer)

    def read_into(self, begin: int, view: memoryview) -> None:
        """Fill `view` with the bytes from `begin`. Raises Damaged where the file is shorter."""
        try:
            self._raw.seek(begin)
            done = 0
            while done < len(view):
                count = self._raw.readinto(view[done:])
                if not count:
                    raise Damaged(f"it became shorter than {begin + len(view):,} bytes")
                done += count
        except OSError as error:
            raise unopened(self.path, error) from None

    def unchanged(self) -> bool:
        """Whether the open file is still as it was when it was opened."""
        return Stamp.of(os.fstat(self._raw.fileno())) == self.stamp


def unopened(path: str, error: OSError | ValueError) -> CheckpointError:
    """The error for people when the system refuses `path`."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return CheckpointError(f"cannot open {shown_path(path)}", reason[:1].lower() + reason[1:])


def refused(path: str, error: Damaged) -> CheckpointError:
    """The error for people when a reader found `path` damaged or unreadable."""
    return CheckpointError(f"cannot open {shown_path(path)}", str(error))


def being_written(path: str) -> BeingWritten:
    """The error for people when a file changes while it is read, as when a training run saves."""
    return BeingWritten(
        f"cannot open {shown_path(path)}", "it is being written", "Try again in a moment"
    )
