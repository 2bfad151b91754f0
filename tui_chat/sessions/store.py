"""The saved chats: one SQLite file, safe against crashes, power cuts and a second instance.

A call that returns has its effect on the disk (write-ahead log, synchronous=FULL). Messages are
added and replies finished; nothing overwrites another message. Knows no screen and no model.
Screens write through `SessionWriter`, which keeps waiting for the disk off their thread.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Sequence

from tui_chat.conversation import Conversation, Message, Mode, Receipt
from tui_chat.errors import SessionError
from tui_chat.sessions import rescue
from tui_chat.sessions.database import Database
from tui_chat.sessions.records import (
    PREVIEW,
    ChatMeta,
    SessionRow,
    first_words,
    receipt_from_json,
    receipt_to_json,
)


class Store(Database):
    """The chats at `path`, or in memory when `path` is None or cannot be written.

    `notice` then says why, and also when chats were damaged. Raises SessionError for a file of
    another program or of a newer version, and in every method that cannot do its work. May be used
    from several threads.
    """

    # ---- writing

    def save_conversation(self, meta: ChatMeta) -> None:
        """Make or update a chat. Never touches its messages."""
        sampling = None if meta.sampling is None else json.dumps(dict(meta.sampling))
        with self.transaction() as db:
            db.execute(
                """INSERT INTO conversations
                    (id, title, mode, system, created, updated, leaf, checkpoint, sampling)
                VALUES (?, CAST(? AS TEXT), ?, CAST(? AS TEXT), ?, ?, ?, CAST(? AS TEXT), ?)
                ON CONFLICT (id) DO UPDATE SET
                    title = coalesce(nullif(excluded.title, ''), title),
                    mode = excluded.mode,
                    system = excluded.system,
                    leaf = coalesce(excluded.leaf, leaf),
                    checkpoint = coalesce(nullif(excluded.checkpoint, ''), checkpoint),
                    sampling = coalesce(excluded.sampling, sampling)""",
                (
                    meta.id,
                    _data(meta.title),
                    meta.mode,
                    _data(meta.system),
                    meta.created or time.time(),
                    time.time(),
                    meta.leaf,
                    _data(meta.checkpoint),
                    sampling,
                ),
            )

    def add_message(self, conversation: str, message: Message, *, finished: bool = True) -> None:
        """Store a message and make it the leaf of its chat. A reply about to stream is added with
        finished=False.

        Adding the same message twice is harmless; another text under a known id is refused with
        SessionError.
        """
        with self.transaction() as db:
            known = db.execute(
                "SELECT conversation, role, text, finished FROM messages WHERE id = ?",
                (message.id,),
            ).fetchone()
            if known is not None:
                if known[:2] == (conversation, message.role) and (
                    known[2] == message.text or not known[3]
                ):
                    return
                raise SessionError(
                    "the message was not saved", f"another one has the id {message.id}"
                )
            if (
                message.parent is not None
                and not db.execute(
                    "SELECT 1 FROM messages WHERE id = ? AND conversation = ?",
                    (message.parent, conversation),
                ).fetchone()
            ):
                raise SessionError(
                    "the message was not saved",
                    f"the one before it, {message.parent}, is not in the chat",
                )
            if not db.execute(
                "UPDATE conversations SET leaf = ?, updated = ? WHERE id = ?",
                (message.id, time.time(), conversation),
            ).rowcount:
                raise _no_chat(conversation)
            db.execute(
                """INSERT INTO messages
                    (id, conversation, parent, role, text, crc32, created, receipt, finished)
                VALUES (?, ?, ?, ?, CAST(? AS TEXT), ?, ?, ?, ?)""",
                (
                    message.id,
                    conversation,
                    message.parent,
                    message.role,
                    _data(message.text),
                    rescue.checksum(message.text),
                    message.created,
                    receipt_to_json(message.receipt),
                    finished,
                ),
            )

    def reopen_reply(self, message_id: str) -> None:
        """Mark a finished reply as being written again: it is gone on with."""
        with self.transaction() as db:
            db.execute("UPDATE messages SET finished = 0 WHERE id = ?", (message_id,))

    def update_reply(
        self, message_id: str, text: str, receipt: Receipt | None, finished: bool
    ) -> None:
        """Give a reply what it has become.

        An unfinished text that comes late never replaces a finished one.
        """
        with self.transaction() as db:
            changed = db.execute(
                """UPDATE messages SET text = CAST(? AS TEXT), crc32 = ?,
                    receipt = coalesce(?, receipt), finished = ?
                WHERE id = ? AND role = 'assistant' AND (? OR NOT finished)""",
                (
                    _data(text),
                    rescue.checksum(text),
                    receipt_to_json(receipt),
                    finished,
                    message_id,
                    finished,
                ),
            ).rowcount
            if changed:
                db.execute(
                    "UPDATE conversations SET updated = ? "
                    "WHERE id = (SELECT conversation FROM messages WHERE id = ?)",
                    (time.time(), message_id),
                )
            elif not db.execute(
                "SELECT 1 FROM messages WHERE id = ? AND role = 'assistant'", (message_id,)
            ).fetchone():
                raise SessionError("the reply was not saved", f"there is no reply {message_id}")

    def set_leaf(self, conversation: str, leaf: str | None) -> None:
        """Remember which branch is shown."""
        self._change(conversation, "leaf = ?", leaf)

    def rename(self, conversation: str, title: str) -> None:
        """Give a chat a title; "" goes back to the first words of its first message."""
        self._change(conversation, "title = CAST(? AS TEXT)", _data(title))

    def pin(self, conversation: str, pinned: bool = True) -> None:
        """Pinned chats come first in the list."""
        self._change(conversation, "pinned = ?", pinned)

    def delete(self, conversation: str) -> None:
        """Take a chat out of the list. `undelete` brings it back until `purge`."""
        self._change(conversation, "deleted_at = ?", time.time())

    def undelete(self, conversation: str) -> None:
        self._change(conversation, "deleted_at = ?", None)

    def _change(self, conversation: str, what: str, value: object) -> None:
        with self.transaction() as db:
            if not db.execute(
                f"UPDATE conversations SET {what} WHERE id = ?", (value, conversation)
            ).rowcount:
                raise _no_chat(conversation)

    def purge(self, older_than_days: float = 30.0) -> int:
        """Remove for good the chats deleted longer ago than this; returns how many."""
        with self.transaction() as db:
            return db.execute(
                "DELETE FROM conversations WHERE deleted_at < ?",
                (time.time() - older_than_days * 86400,),
            ).rowcount

    # ---- reading

    def list(self, include_deleted: bool = False, limit: int | None = None) -> list[SessionRow]:
        """Chats that hold a message, pinned ones first, then the one changed last."""
        rows = self._read(
            f"""SELECT c.id, c.title, c.created, c.updated, c.checkpoint, c.mode, c.pinned,
                c.deleted_at,
                (SELECT count(*) FROM messages WHERE conversation = c.id),
                (SELECT substr(text, 1, {4 * PREVIEW}) FROM messages
                    WHERE conversation = c.id AND role = 'user' ORDER BY seq LIMIT 1),
                (SELECT substr(text, 1, {4 * PREVIEW}) FROM messages
                    WHERE conversation = c.id ORDER BY seq DESC LIMIT 1)
            FROM conversations c
            WHERE (? OR c.deleted_at IS NULL)
                AND EXISTS (SELECT 1 FROM messages WHERE conversation = c.id)
            ORDER BY c.pinned DESC, c.updated DESC LIMIT ?""",
            include_deleted,
            -1 if limit is None else limit,
        )
        return [_row(*row) for row in rows]

    def prompts(self, limit: int = 200) -> Sequence[str]:
        """What the user said last in any chat, each text once, oldest first: the prompt's history.

        Pastes are left out, and of very many messages only the newest are looked at.
        """
        rows = self._read(
            """SELECT text FROM messages m JOIN conversations c ON c.id = m.conversation
            WHERE m.role = 'user' AND c.deleted_at IS NULL AND length(m.text) < 20000
            ORDER BY m.seq DESC LIMIT ?""",
            10 * limit,
        )
        newest_first = dict.fromkeys(str(text) for (text,) in rows)
        return [*newest_first][:limit][::-1]

    def latest(self) -> str | None:
        """The id of the chat changed last, None when there is none."""
        rows = self._read(
            """SELECT id FROM conversations c WHERE deleted_at IS NULL
                AND EXISTS (SELECT 1 FROM messages WHERE conversation = c.id)
            ORDER BY updated DESC LIMIT 1"""
        )
        return str(rows[0][0]) if rows else None

    def meta(self, conversation: str) -> ChatMeta:
        """A chat without its messages: checkpoint and knobs last used.

        Raises SessionError when there is none.
        """
        rows = self._read(
            "SELECT title, mode, system, created, leaf, checkpoint, sampling "
            "FROM conversations WHERE id = ?",
            conversation,
        )
        if not rows:
            raise _no_chat(conversation)
        title, mode, system, created, leaf, checkpoint, sampling = rows[0]
        knobs = None
        with contextlib.suppress(ValueError):
            stored = json.loads(str(sampling)) if sampling else None
            knobs = stored if isinstance(stored, dict) else None
        return ChatMeta(
            id=conversation,
            title=title,
            mode="raw" if mode == "raw" else "chat",
            system=system,
            created=created,
            leaf=leaf,
            checkpoint=checkpoint,
            sampling=knobs,
        )

    def load(self, conversation: str) -> Conversation:
        """The chat with all its branches.

        A reply that was being written when the program died has a receipt whose `stop_reason` is
        None. Messages whose text is not what was written are kept and named in `notice`. Raises
        SessionError.
        """
        meta = self.meta(conversation)
        chat = Conversation(
            id=meta.id, title=meta.title, mode=meta.mode, system=meta.system, created=meta.created
        )
        damaged = 0
        last: str | None = None
        for id, parent, role, text, crc, created, stored, finished in self._read(
            "SELECT id, parent, role, text, crc32, created, receipt, finished "
            "FROM messages WHERE conversation = ? ORDER BY seq",
            conversation,
        ):
            receipt = receipt_from_json(stored)
            if not finished and receipt is None:
                receipt = Receipt(mode=meta.mode)
            damaged += crc != rescue.checksum(text)
            chat.insert(
                Message(
                    id=id,
                    parent=parent if parent is None or parent in chat else last,
                    role=role,
                    text=text,
                    created=created,
                    receipt=receipt,
                )
            )
            last = chat.leaf = id
        if meta.leaf is not None and meta.leaf in chat:
            chat.leaf = meta.leaf
        if damaged:
            self.notice = (
                f"{damaged} message{'s' * (damaged > 1)} of this chat changed on the disk since "
                "saved: the text may be wrong in places."
            )
        return chat

    def find(self, name: str) -> SessionRow:
        """The chat meant by its number in `list` (1 is the first) or by the beginning of its id.

        Deleted chats are found by id alone. Raises SessionError when there is none, or more than
        one.
        """
        rows = self.list(include_deleted=True)
        if name.isascii() and name.isdigit() and len(name) < 6:
            shown = [row for row in rows if row.deleted_at is None]
            if 0 < int(name) <= len(shown):
                return shown[int(name) - 1]
        found = [row for row in rows if name and row.id.startswith(name)]
        if len(found) == 1:
            return found[0]
        if found:
            raise SessionError(f"{len(found)} chats begin with {name!r}", "", "Give more of the id")
        raise _no_chat(name)

    def check(self) -> tuple[str, ...]:
        """Faults of the file and of single messages, in words; empty when all is well.

        Reads everything.
        """
        faults = [str(row[0]) for row in self._read("PRAGMA integrity_check") if row[0] != "ok"]
        for id, text, crc in self._read("SELECT id, text, crc32 FROM messages"):
            if crc != rescue.checksum(text):
                faults.append(f"the text of message {id} is not what was saved")
        return tuple(faults)


def _row(
    id: str,
    title: str,
    created: float,
    updated: float,
    checkpoint: str,
    mode: Mode,
    pinned: int,
    deleted_at: float | None,
    messages: int,
    first: str | None,  # None: nothing was typed in a raw chat
    last: str,
) -> SessionRow:
    return SessionRow(
        id=id,
        title=title or first_words(first or last) or "(empty)",
        created=created,
        updated=updated,
        messages=messages,
        preview=first_words(last, PREVIEW),
        checkpoint=checkpoint,
        mode=mode,
        pinned=bool(pinned),
        deleted_at=deleted_at,
    )


def _no_chat(name: str) -> SessionError:
    return SessionError(f"there is no chat {name!r}", "", "`tui-chat sessions list` shows all")


def _data(text: str) -> bytes:
    """What is stored of a text. A paste may hold lone surrogates, which plain UTF-8 refuses."""
    return text.encode("utf-8", "surrogatepass")
