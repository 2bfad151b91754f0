"""The tables of the store of chats, how they came to be, and which database files are ours to open.

`MIGRATIONS` is a list of functions, one for each version; a new one is appended, a released one is
never edited.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from tui_chat.errors import SessionError

APPLICATION_ID = 0x54554943  # "TUIC"
BUSY_SECONDS = 5.0
_MAGIC = b"SQLite format 3\x00"


def _first(connection: sqlite3.Connection) -> None:
    # seq orders messages: clocks jump, sequences do not. crc32 is over the UTF-8 of the text,
    # because three of four flipped bits pass SQLite's own integrity check.
    connection.execute(
        """CREATE TABLE conversations (
            id TEXT PRIMARY KEY,
            title TEXT NOT NULL DEFAULT '',
            mode TEXT NOT NULL DEFAULT 'chat',
            system TEXT NOT NULL DEFAULT '',
            created REAL NOT NULL,
            updated REAL NOT NULL,
            leaf TEXT,
            deleted_at REAL,
            pinned INTEGER NOT NULL DEFAULT 0,
            checkpoint TEXT NOT NULL DEFAULT '',
            sampling TEXT
        )"""
    )
    connection.execute(
        """CREATE TABLE messages (
            seq INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            conversation TEXT NOT NULL REFERENCES conversations(id) ON DELETE CASCADE,
            parent TEXT,
            role TEXT NOT NULL,
            text TEXT NOT NULL,
            crc32 INTEGER NOT NULL,
            created REAL NOT NULL,
            receipt TEXT,
            finished INTEGER NOT NULL DEFAULT 1
        )"""
    )
    connection.execute("CREATE INDEX messages_of ON messages (conversation, seq)")
    connection.execute("CREATE INDEX conversations_updated ON conversations (updated)")


Migration = Callable[[sqlite3.Connection], None]
MIGRATIONS: tuple[Migration, ...] = (_first,)


# The tables as the last migration leaves them, less the row number.
COLUMNS = {
    "conversations": "id, title, mode, system, created, updated, leaf, deleted_at, pinned, "
    "checkpoint, sampling",
    "messages": "id, conversation, parent, role, text, crc32, created, receipt, finished",
}


class DamagedError(sqlite3.DatabaseError):
    """The file is ours and not whole, though SQLite itself finds no fault."""


def decoded(data: bytes) -> str:
    """Text of a row.

    Lone surrogates survive a round trip, and damaged bytes do not end the reading of a chat.
    """
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "replace")


def connect(
    path: Path | None, *, migrations: Sequence[Migration] = MIGRATIONS
) -> sqlite3.Connection:
    """Open the store at `path` (None: in memory), make or migrate its tables.

    Raises SessionError for a file that is not ours, has a newer schema, or holds triggers or views
    (they would run with our statements); sqlite3.DatabaseError when it is damaged,
    sqlite3.OperationalError when it cannot be read or written, OSError likewise.
    """
    if path is not None:
        if not path.exists():
            path.touch(mode=0o600)
        _refuse_foreign_header(path)
    connection = _connection(":memory:" if path is None else str(path))
    try:
        _configure(connection)
        _check(connection, path, len(migrations))
        # Only a file that has proved to be ours is changed.
        if path is not None:
            _switch_to_wal(connection)
        _migrate(connection, path, migrations)
        # A look at both tables, so that damage near their roots shows now.
        for table, columns in COLUMNS.items():
            try:
                connection.execute(
                    f"SELECT {columns} FROM {table} ORDER BY rowid DESC LIMIT 1"
                ).fetchone()
            except sqlite3.OperationalError as error:
                if "no such column" in str(error):
                    raise DamagedError("columns are missing") from error
                raise
    except BaseException as error:
        connection.close()
        if isinstance(error, UnicodeDecodeError):  # SQLite's own words name a damaged table
            raise DamagedError("names are damaged") from error
        raise
    return connection


def connect_read_only(path: Path, *, immutable: bool) -> sqlite3.Connection:
    """Look at a file without changing it.

    A WAL database in a folder that cannot be written needs `immutable`.
    """
    how = "immutable=1" if immutable else "mode=ro"
    connection = _connection(f"file:{quote(str(path.absolute()))}?{how}", uri=True)
    try:
        _configure(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _connection(name: str, *, uri: bool = False) -> sqlite3.Connection:
    # The screen and the writer thread share one connection when there is no file; the store's lock
    # guards it. Transactions are begun and ended by hand.
    return sqlite3.connect(
        name, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=uri
    )


def _configure(connection: sqlite3.Connection) -> None:
    connection.text_factory = decoded
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    # Of two instances that make the switch at once SQLite turns one away without waiting.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
            if not busy or time.monotonic() > deadline:
                raise
            time.sleep(0.005)
        else:
            return


# Files whose first bytes this process has read, by device and inode.
_headers_read: set[tuple[int, int]] = set()
_reading_header = threading.Lock()


def _refuse_foreign_header(path: Path) -> None:
    """Refuse by its first bytes a database of another program, before SQLite touches it.

    Once for each file: closing any descriptor of a file drops all locks that this process holds on
    it (POSIX), those of its SQLite connections included; another process would then believe itself
    alone and take the write-ahead log away.
    """
    with _reading_header:
        try:
            status = path.stat()
            if (status.st_dev, status.st_ino) in _headers_read:
                return
            with path.open("rb") as file:
                head = file.read(100)
        except FileNotFoundError:
            return
        if len(head) == 100 and head.startswith(_MAGIC):
            owner = int.from_bytes(head[68:72], "big")
            # 0: ours may still lie in the write-ahead log, so ask SQLite.
            if owner not in (0, APPLICATION_ID):
                raise _foreign(path)
        _headers_read.add((status.st_dev, status.st_ino))


def _foreign(path: Path | None) -> SessionError:
    return SessionError(
        f"{path} is not a store of chats",
        "it is a database of another program",
        "Move it away, or set TUI_CHAT_DATA_DIR to another directory",
    )


def _check(connection: sqlite3.Connection, path: Path | None, newest: int) -> None:
    # One look at all three: between two, another instance may be making the tables.
    connection.execute("BEGIN")
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    kinds = {row[0] for row in connection.execute("SELECT DISTINCT type FROM sqlite_master")}
    connection.execute("COMMIT")
    if owner != APPLICATION_ID and (owner or kinds):
        raise _foreign(path)
    if version > newest:
        raise SessionError(
            f"the chats in {path} were saved by a newer tui-chat",
            f"their schema is version {version}, this program knows {newest}",
            "Update tui-chat, or set TUI_CHAT_DATA_DIR to another directory",
        )
    if version and not kinds:
        raise DamagedError("the tables are missing")
    if strange := kinds & {"trigger", "view"}:
        raise SessionError(
            f"{path} was changed by another program",
            f"it holds a {' and a '.join(sorted(strange))}, which tui-chat never makes",
            "Move it away, or set TUI_CHAT_DATA_DIR to another directory",
        )


def _migrate(
    connection: sqlite3.Connection, path: Path | None, migrations: Sequence[Migration]
) -> None:
    if connection.execute("PRAGMA user_version").fetchone()[0] == len(migrations):
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        # Read again: another instance may have migrated while this one waited for the lock.
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if path is not None and 0 < version < len(migrations):
            _copy(path, path.with_name(f"{path.stem}.before-version-{version + 1}{path.suffix}"))
        for number, migration in enumerate(migrations[version:], version + 1):
            migration(connection)
            connection.execute(f"PRAGMA user_version = {number}")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _copy(path: Path, copy: Path) -> None:
    """A copy from before a migration. One that exists is older still, and stays."""
    if copy.exists():
        return
    with (
        closing(connect_read_only(path, immutable=False)) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
