"""`tui-chat sessions`: the saved chats from the shell."""

from __future__ import annotations

import argparse
import dataclasses

from tui_chat.checkpoint.card import date
from tui_chat.cli.output import remark, table, write_json, write_line
from tui_chat.conversation import Message
from tui_chat.errors import SessionError
from tui_chat.sessions.records import SessionRow
from tui_chat.sessions.store import Store
from tui_chat.settings import Paths


def sessions(arguments: argparse.Namespace) -> int:
    database = Paths.find().database
    # Looking makes no file where there is none.
    with Store(database if database.exists() else None) as store:
        if store.notice:
            remark(store.notice)
        match arguments.action:
            case "list":
                _list(store, arguments)
            case "show":
                _show(store, arguments)
            case "delete" | "undelete":
                _mark(store, arguments)
            case "check":
                return _check(store, arguments)
    return 0


def _list(store: Store, arguments: argparse.Namespace) -> None:
    rows = store.list(include_deleted=arguments.deleted, limit=arguments.limit)
    if arguments.json:
        write_json([dataclasses.asdict(row) for row in rows])
        return
    if not rows:
        write_line("No chats are saved.")
        return
    # Numbers are those that `show` and `delete` take: they count what is not deleted.
    shown = iter(range(1, len(rows) + 1))
    write_line(
        table(
            [
                [
                    "-" if row.deleted_at is not None else str(next(shown)),
                    row.id[:8],
                    date(row.updated),
                    str(row.messages),
                    _marked(row),
                ]
                for row in rows
            ],
            head=("", "id", "changed", "messages", "title"),
            right=(0, 3),
        )
    )


def _marked(row: SessionRow) -> str:
    notes = [
        note
        for note, holds in (("pinned", row.pinned), ("deleted", row.deleted_at is not None))
        if holds
    ]
    return f"{row.title} [{', '.join(notes)}]" if notes else row.title


def _show(store: Store, arguments: argparse.Namespace) -> None:
    name = arguments.chat or store.latest()
    if name is None:
        raise SessionError("no chats are saved")
    row = store.find(name)
    before = store.notice
    chat = store.load(row.id)
    if store.notice != before:
        remark(store.notice)
    if arguments.json:
        write_json(
            {
                "id": chat.id,
                "title": row.title,
                "mode": chat.mode,
                "system": chat.system,
                "created": chat.created,
                "updated": row.updated,
                "checkpoint": row.checkpoint,
                "leaf": chat.leaf,
                "messages": [dataclasses.asdict(message) for message in chat],
            }
        )
        return
    write_line(f"# {row.title}")
    if chat.mode == "raw":
        write_line("\n" + chat.raw_text())
        return
    if chat.system:
        write_line(f"\n## system\n\n{chat.system}")
    for message in chat.path():
        write_line(f"\n## {_who(message)}\n\n{message.text}")


def _who(message: Message) -> str:
    if message.role != "assistant" or message.receipt is None:
        return message.role
    parts = [message.receipt.checkpoint or message.role]
    reason = message.receipt.stop_reason
    if reason != "stop":
        parts.append("interrupted" if reason is None else reason)
    return f"{parts[0]} ({', '.join(parts[1:])})" if parts[1:] else parts[0]


def _mark(store: Store, arguments: argparse.Namespace) -> None:
    # All are found before the first is changed: numbers move when a chat leaves the list.
    rows = [store.find(name) for name in arguments.chats]
    with store.transaction():
        for row in rows:
            store.delete(row.id) if arguments.action == "delete" else store.undelete(row.id)
    if arguments.json:
        write_json([row.id for row in rows])
        return
    for row in rows:
        write_line(f"{arguments.action}d {row.id[:8]}  {row.title}")
    if arguments.action == "delete":
        ids = " ".join(row.id[:8] for row in rows)
        remark(f"`tui-chat sessions undelete {ids}` brings back what was deleted")


def _check(store: Store, arguments: argparse.Namespace) -> int:
    faults = store.check()
    if arguments.json:
        write_json(list(faults))
    else:
        write_line("\n".join(faults) if faults else "All saved chats are sound.")
    return SessionError.exit_status if faults else 0
