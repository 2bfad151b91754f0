"""One SQLite file of chats: opened, mended, written in transactions. Knows no chat.

A file that cannot be written gives a database in memory, one that is damaged is set aside and what
can be read of it carried over; `notice` says so in a sentence for people.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from tui_chat.errors import SessionError
from tui_chat.sessions import rescue, schema

_LARGEST_COPY = 256 * 2**20  # bytes of old chats that are shown when the database lies in memory


class Database:
    """The file at `path`, or memory when `path` is None or cannot be written.

    Raises SessionError for a file of another program or of a newer version.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.notice = ""
        self._lock = threading.RLock()
        self._depth = 0
        self._file: tuple[int, int] | None = None
        self._connection = self._open()

    @classmethod
    def open(cls, path: Path) -> Self:
        """Like the constructor, but where the file must not be touched: memory, and a `notice`."""
        try:
            return cls(path)
        except SessionError as error:
            store = cls(None)
            store.notice = f"This chat is not saved: {error}"
            return store

    @property
    def in_memory(self) -> bool:
        return self.path is None

    def twin(self) -> Self:
        """A second connection to the same chats for another thread. A store in memory is its own.

        Raises SessionError when the file cannot be opened any more.
        """
        if self.path is None:
            return self
        twin = type(self)(self.path)
        if twin.in_memory:
            raise SessionError("the chat could not be saved", twin.notice)
        return twin

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- opening

    def _open(self) -> sqlite3.Connection:
        path = self.path
        if path is None:
            return schema.connect(None)
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            return self._open_file(path)
        except (OSError, sqlite3.Error) as error:
            self.path = None
            connection = schema.connect(None)
            self._show_old(path, connection)
            self.notice = f"Chats stay in memory and are lost at the end: {_reason(error, path)}."
            return connection

    def _open_file(self, path: Path) -> sqlite3.Connection:
        before = _identity(path)
        try:
            connection = schema.connect(path)
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            connection = self._rescued(path, before)
        self._file = _identity(path)
        return connection

    def _rescued(self, path: Path, damaged: tuple[int, int] | None) -> sqlite3.Connection:
        with rescue.rescue_lock(path):
            if _identity(path) != damaged:
                return schema.connect(path)  # another instance was quicker
            aside = rescue.set_aside(path)
            connection = schema.connect(path)
            got = rescue.salvage(aside, connection)
        lost = f", {got.lost} could not be read" if got.lost else ""
        self.notice = (
            f"The saved chats were damaged: {got.messages} messages of {got.chats} chats "
            f"were rescued{lost}. The damaged file is kept as {aside}."
        )
        return connection

    def _mend(self, error: Exception) -> bool:
        """Set the file aside when `error` says it is damaged; whether trying again may help."""
        if self.path is None or not _is_damage(error):
            return False
        with contextlib.suppress(OSError, SessionError, *rescue.FAULTS):
            connection = self._rescued(self.path, self._file)
            self._connection.close()
            self._connection, self._file = connection, _identity(self.path)
            return True
        return False

    @staticmethod
    def _show_old(path: Path, memory: sqlite3.Connection) -> None:
        with contextlib.suppress(OSError, sqlite3.Error):
            if path.is_file() and path.stat().st_size <= _LARGEST_COPY:
                rescue.salvage(path, memory)

    def _same_file(self) -> None:
        """Open anew when another instance has set a damaged file aside.

        What is written to the old file would be lost.
        """
        if self.path is not None and _identity(self.path) != self._file:
            connection = self._open_file(self.path)
            self._connection.close()
            self._connection = connection

    # ---- writing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All writes within are committed together, or none.

        One inside another is undone by itself.
        """
        with self._lock:
            if not self._depth:
                try:
                    self._same_file()
                    self._connection.execute("BEGIN IMMEDIATE")
                except (OSError, sqlite3.Error) as error:
                    raise self._failed("saved", error) from error
            else:
                self._connection.execute(f"SAVEPOINT s{self._depth}")
            self._depth += 1
            try:
                yield self._connection
            except BaseException as error:
                self._depth -= 1
                self._undo()
                if isinstance(error, (sqlite3.Error, UnicodeDecodeError)):
                    failure = self._failed("saved", error)
                    if not self._depth:
                        self._mend(error)
                    raise failure from error
                raise
            self._depth -= 1
            try:
                self._connection.execute(f"RELEASE s{self._depth}" if self._depth else "COMMIT")
            except sqlite3.Error as error:
                self._undo()
                raise self._failed("saved", error) from error

    def _undo(self) -> None:
        # SQLite may have undone everything by itself, for instance when the disk is full.
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                if self._depth:
                    self._connection.execute(f"ROLLBACK TO s{self._depth}")
                    self._connection.execute(f"RELEASE s{self._depth}")
                else:
                    self._connection.execute("ROLLBACK")

    def _failed(self, done: str, error: Exception) -> SessionError:
        remedy = "The text stays on the screen, and is tried again" if done == "saved" else ""
        return SessionError(f"the chat could not be {done}", _reason(error, self.path), remedy)

    # ---- reading

    def _read(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._lock:
            try:
                if not self._depth:
                    self._same_file()
                return self._connection.execute(query, values).fetchall()
            except (OSError, sqlite3.Error, UnicodeDecodeError) as error:
                if not self._depth and self._mend(error):
                    return self._read(query, *values)
                raise self._failed("read", error) from error


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        at = os.stat(path)
    except OSError:
        return None
    return at.st_dev, at.st_ino


def _is_damage(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    damaged = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
    return code in damaged or isinstance(error, (schema.DamagedError, UnicodeDecodeError))


def _reason(error: BaseException, path: Path | None) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    words = {
        sqlite3.SQLITE_FULL: "the disk is full",
        sqlite3.SQLITE_READONLY: "the directory cannot be written",
        sqlite3.SQLITE_CANTOPEN: "the file cannot be opened",
        sqlite3.SQLITE_BUSY: f"another program has held it for {schema.BUSY_SECONDS:g} seconds",
        sqlite3.SQLITE_IOERR: "the disk reports a fault",
        sqlite3.SQLITE_CORRUPT: "the file is damaged",
        sqlite3.SQLITE_NOTADB: "the file is damaged",
    }.get(code)
    if words is None:
        words = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return f"{words} ({path})" if path is not None else words
