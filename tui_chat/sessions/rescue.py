"""Setting a damaged store aside, and reading out of it, row by row, what can still be read.

The damaged file is renamed and never written again; each message counts as rescued only when its
checksum holds.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tui_chat.sessions import schema
from tui_chat.sessions.records import first_words

try:
    import fcntl
except ImportError:  # Windows: two instances that both find damage take their turns by luck.
    fcntl = None  # type: ignore[assignment]

_WIDEST_GAP = 200_000  # rows looked for one by one where both scans broke off

# SQLite's message about a damaged table may hold bytes that are no text.
FAULTS = (sqlite3.Error, UnicodeError)

_CHAT = schema.COLUMNS["conversations"]
_MESSAGE = schema.COLUMNS["messages"]


@dataclass(frozen=True, slots=True)
class Salvaged:
    """How much came over, and how many messages were seen but not readable or not as they were
    written.
    """

    chats: int
    messages: int
    lost: int


def checksum(text: str) -> int:
    return zlib.crc32(text.encode("utf-8", "surrogatepass"))


@contextlib.contextmanager
def rescue_lock(path: Path) -> Iterator[None]:
    """One rescuer at a time, so that a second instance does not set aside what the first one has
    just mended.
    """
    if fcntl is None:
        yield
        return
    lock = path.with_name(path.name + ".lock")
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
        lock.unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a damaged store with its log, so that SQLite finds both under the new name."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    aside = path.with_name(f"{path.stem}.damaged-{stamp}{path.suffix}")
    number = 1
    while aside.exists():
        number += 1
        aside = path.with_name(f"{path.stem}.damaged-{stamp}-{number}{path.suffix}")
    # The log goes first: without its database it can do no harm, a new database beside a foreign
    # log might.
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def salvage(path: Path, target: sqlite3.Connection) -> Salvaged:
    """Copy every readable row of the store at `path` into `target`, changing nothing at `path`."""
    best = Salvaged(0, 0, 0)
    for immutable in (False, True):
        try:
            source = schema.connect_read_only(path, immutable=immutable)
        except FAULTS:
            continue
        with contextlib.closing(source):
            target.execute("BEGIN IMMEDIATE")
            try:
                found = _copy_rows(source, target)
            except BaseException:
                target.execute("ROLLBACK")
                raise
            if found.messages > best.messages or (found.chats and not best.chats):
                target.execute("COMMIT")
                best = found
                break
            target.execute("ROLLBACK")
            best = found if found.lost > best.lost else best
    return best


def _rows(
    source: sqlite3.Connection, table: str, columns: str
) -> Iterator[tuple[object, ...] | None]:
    """Rows of a table in order, None for each that is there and cannot be read."""
    for rowid in _rowids(source, table):
        try:
            row = source.execute(
                f"SELECT {columns} FROM {table} WHERE rowid = ?", (rowid,)
            ).fetchone()
        except FAULTS:
            yield None
        else:
            if row is not None:
                yield row


def _rowids(source: sqlite3.Connection, table: str) -> list[int]:
    """Row numbers from both ends up to the damage, and all numbers of the gap between."""
    forward, whole = _scan(source, f"SELECT rowid FROM {table} NOT INDEXED ORDER BY rowid")
    if whole:
        return forward
    backward, _ = _scan(source, f"SELECT rowid FROM {table} NOT INDEXED ORDER BY rowid DESC")
    low = forward[-1] if forward else 0
    high = backward[-1] if backward else low + 1
    gap = range(low + 1, min(high, low + 1 + _WIDEST_GAP))
    return [*forward, *gap, *(n for n in reversed(backward) if n > low)]


def _scan(source: sqlite3.Connection, query: str) -> tuple[list[int], bool]:
    found: list[int] = []
    try:
        for (rowid,) in source.execute(query):
            if not isinstance(rowid, int):
                return found, False
            found.append(rowid)
    except FAULTS:
        return found, False
    return found, True


def _copy_rows(source: sqlite3.Connection, target: sqlite3.Connection) -> Salvaged:
    chats: set[str] = set()
    for row in _rows(source, "conversations", _CHAT):
        with contextlib.suppress(*FAULTS):
            if row is not None and isinstance(row[0], str) and row[2] in ("chat", "raw"):
                target.execute(f"INSERT INTO conversations ({_CHAT}) VALUES ({_holes(_CHAT)})", row)
                chats.add(row[0])
    messages = lost = 0
    newest: dict[str, str] = {}  # the last rescued message of each chat
    kept: set[str] = set()
    for row in _rows(source, "messages", _MESSAGE):
        if row is None or not _sound(row):
            lost += 1
            continue
        (id, chat, parent, role, text, crc, created, receipt, finished) = row
        assert isinstance(id, str) and isinstance(chat, str) and isinstance(text, str)
        if chat not in chats:
            target.execute(
                "INSERT INTO conversations (id, title, created, updated) VALUES (?, ?, ?, ?)",
                (chat, f"Rescued: {first_words(text)}", created, created),
            )
            chats.add(chat)
        if parent not in kept:
            # Its parent is gone, or it never had one: hang a reply below what came before it in the
            # same chat.
            parent = newest.get(chat) if parent is not None else None
        data = text.encode("utf-8", "surrogatepass")
        try:
            target.execute(
                f"INSERT INTO messages ({_MESSAGE}) "
                "VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?)",
                (id, chat, parent, role, data, crc, created, receipt, finished),
            )
        except FAULTS:
            lost += 1
            continue
        kept.add(id)
        newest[chat] = id
        messages += 1
    for chat, leaf in newest.items():
        target.execute(
            "UPDATE conversations SET leaf = ? WHERE id = ? AND "
            "(leaf IS NULL OR leaf NOT IN (SELECT id FROM messages))",
            (leaf, chat),
        )
    return Salvaged(len(chats), messages, lost)


def _sound(row: tuple[object, ...]) -> bool:
    id, chat, parent, role, text, crc, created, _, finished = row
    return (
        isinstance(id, str)
        and isinstance(chat, str)
        and (parent is None or isinstance(parent, str))
        and role in ("system", "user", "assistant")
        and isinstance(text, str)
        and isinstance(created, float)
        and finished in (0, 1)
        and crc == checksum(text)
    )


def _holes(columns: str) -> str:
    return ", ".join("?" * (columns.count(",") + 1))
