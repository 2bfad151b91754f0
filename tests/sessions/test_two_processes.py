"""Another process may come and go while the app holds its chats open."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tui_chat.conversation import Conversation, Message
from tui_chat.sessions.records import ChatMeta
from tui_chat.sessions.store import Store
from tui_chat.sessions.writer import SessionWriter

ROOT = Path(__file__).resolve().parents[2]


def look(data: Path) -> str:
    """`tui-chat sessions list` in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "tui_chat", "sessions", "list"],
        cwd=ROOT,
        env={**os.environ, "TUI_CHAT_DATA_DIR": str(data)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_process_that_looks_and_goes_leaves_the_log_of_the_running_app_in_place(
    tmp_path: Path,
) -> None:
    path = tmp_path / "chats.sqlite3"
    store = Store(path)
    writer = SessionWriter(store)  # a second connection of the same process
    chat = Conversation()
    writer.save_conversation(ChatMeta.of(chat))
    for number in range(3):
        message: Message = chat.add("user", f"message {number}")
        writer.add_message(chat.id, message).result(10)
        assert "message 0" in look(tmp_path)
    wal = os.stat(f"{path}-wal")
    assert wal.st_nlink == 1
    # What another program sees, and what is there after a crash, is all three.
    with Store(path) as other:
        assert [m.text for m in other.load(chat.id).path()] == [
            "message 0", "message 1", "message 2",
        ]  # fmt: skip
    kept = subprocess.run(
        [sys.executable, "-m", "tui_chat", "sessions", "show", "1"],
        cwd=ROOT,
        env={**os.environ, "TUI_CHAT_DATA_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "message 2" in kept
    assert writer.close()
    store.close()
