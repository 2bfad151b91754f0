"""Checkpoints and saved chats as rows of a list, and the filter that is typed above them. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tui_chat.checkpoint.info import CatalogEntry, Run
from tui_chat.display import one_line
from tui_chat.tui import words
from tui_chat.tui.widgets.row_list import Row, column


@dataclass(frozen=True, slots=True)
class ChatRow:
    """One saved chat as lists show it."""

    id: str
    title: str
    preview: str
    updated: float
    messages: int
    checkpoint: str
    mode: Literal["chat", "raw"]


def matches(query: str, *texts: str) -> bool:
    """Every word of the query occurs somewhere, case aside."""
    haystack = " ".join(texts).casefold()
    return all(word in haystack for word in query.casefold().split())


def checkpoint_rows(
    runs: Iterable[Run],
    query: str,
    now: float,
    width: int,
    current: str = "",
    draft: str = "",
) -> list[Row]:
    """A heading for each run and a row for each step that matches the query, newest step first.

    `now` is seconds since the epoch, `width` cells; `current` is the path of the open checkpoint,
    `draft` that of the one that drafts for it.
    """
    rows: list[Row] = []
    for run in runs:
        name = one_line(run.name, min(60, max(8, width - 2)))
        steps = [
            entry
            for entry in reversed(run.checkpoints)
            if matches(query, run.name, entry.path, entry.format, f"step {entry.step}", entry.error)
        ]
        if steps:
            where = one_line(run.path, width - len(name) - 4) if width >= 50 else ""
            rows.append(Row("", ((name, "heading"), (f"  {where}", "muted"))))
            for entry in steps:
                sign = "● " if entry.path == current else "◌ " if entry.path == draft else ""
                rows.append(_checkpoint_row(entry, now, width, sign))
    return rows


def _checkpoint_row(entry: CatalogEntry, now: float, width: int, mark: str) -> Row:
    file = one_line(Path(entry.path).name, 60)
    sign = (mark or "  ", "accent")
    if entry.error:
        room = 24 if width >= 50 else 12
        error = one_line(entry.error, max(10, width - room - 4))
        return Row(entry.path, (sign, (column(file, room), "muted"), (f" {error}", "error")))
    name = f"step {entry.step}" if entry.step is not None else file
    losses = [f"{k} {entry.losses[k]:.3f}" for k in ("val", "train") if k in entry.losses]
    loss = "".join(losses[:1])
    if width < 50:
        return Row(
            entry.path, (sign, (column(name, width - 15), "text"), (column(loss, 12), "accent"))
        )
    pieces: list[tuple[str, str]] = [
        sign,
        (column(name, 24 if width >= 76 else 16), "text"),
        (column(loss, 12), "accent"),
        (column(words.count(entry.parameters) if entry.parameters else "", 6, right=True), "text"),
        (column(words.size(entry.size), 9, right=True), "muted"),
        (column(words.age(max(0.0, now - entry.modified)), 8, right=True), "muted"),
    ]
    if width >= 76:
        pieces.append((f"  {one_line(entry.format, 20)} {entry.dtype}", "muted"))
    return Row(entry.path, tuple(pieces))


def chat_rows(
    chats: Iterable[ChatRow], query: str, now: float, width: int, current: str = ""
) -> list[Row]:
    """A row for each chat that matches the query, in the order given."""
    rows: list[Row] = []
    for chat in chats:
        if not matches(query, chat.title, chat.preview, chat.checkpoint):
            continue
        title = one_line(chat.title or chat.preview or "empty chat", 200)
        age = column(words.age(max(0.0, now - chat.updated)), 8, right=True)
        sign = ("● " if chat.id == current else "  ", "accent")
        if width < 50:
            rows.append(Row(chat.id, (sign, (column(title, width - 11), "text"), (age, "muted"))))
            continue
        rows.append(
            Row(
                chat.id,
                (
                    sign,
                    (column(title, max(16, width - 34)), "text"),
                    (age, "muted"),
                    (column(f"{chat.messages}", 5, right=True), "muted"),
                    (f"  {column(one_line(chat.checkpoint, 40), 16)}", "muted"),
                ),
            )
        )
    return rows
