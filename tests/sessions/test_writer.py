from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tui_chat.conversation import Conversation, Message, Receipt
from tui_chat.errors import SessionError
from tui_chat.sessions.records import ChatMeta
from tui_chat.sessions.store import Store
from tui_chat.sessions.writer import SessionWriter

SOON = 10.0  # seconds; a deadline, never a pause


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.sqlite3"


@pytest.fixture
def writer(path: Path) -> Iterator[SessionWriter]:
    writer = SessionWriter(path)
    yield writer
    writer.close()


def begin(writer: SessionWriter) -> tuple[Conversation, Message]:
    """A chat with one question and a reply about to stream."""
    chat = Conversation()
    writer.save_conversation(ChatMeta.of(chat))
    writer.add_message(chat.id, chat.add("user", "q"))
    reply = chat.add("assistant", "")
    writer.add_message(chat.id, reply, finished=False)
    return chat, reply


def last(path: Path, chat: Conversation) -> Message:
    with Store(path) as store:
        return store.load(chat.id).path()[-1]


def test_a_message_is_on_the_disk_when_its_future_is_done(
    path: Path, writer: SessionWriter
) -> None:
    chat = Conversation()
    writer.save_conversation(ChatMeta.of(chat))
    writer.add_message(chat.id, chat.add("user", "q")).result(SOON)
    assert last(path, chat).text == "q"


def test_a_callback_hears_of_the_saving(writer: SessionWriter) -> None:
    chat = Conversation()
    heard = threading.Event()
    writer.save_conversation(ChatMeta.of(chat)).add_done_callback(lambda _: heard.set())
    assert heard.wait(SOON)


def test_a_running_reply_is_saved_by_itself(path: Path) -> None:
    writer = SessionWriter(path, interval=0.01)
    chat, reply = begin(writer)
    writer.update_reply(reply.id, "so far", None, False).result(SOON)
    found = last(path, chat)
    assert found.text == "so far"
    assert found.receipt is not None and found.receipt.stop_reason is None
    writer.close()


def test_the_newest_text_of_a_running_reply_wins_and_the_others_are_not_written(path: Path) -> None:
    with Store(None) as store:
        writer = SessionWriter(store, interval=60)
        chat, reply = begin(writer)
        assert writer.flush()
        with store.transaction() as db:
            before = db.total_changes
        futures = [writer.update_reply(reply.id, "x" * n, None, False) for n in range(1000)]
        writer.update_reply(reply.id, "all", Receipt(stop_reason="stop"), True).result(SOON)
        assert all(future.done() and future.exception() is None for future in futures)
        with store.transaction() as db:
            assert db.total_changes - before <= 4
        assert store.load(chat.id).path()[-1].text == "all"
        writer.close()


def test_a_new_message_takes_the_running_text_along(path: Path) -> None:
    writer = SessionWriter(path, interval=60)
    chat, reply = begin(writer)
    assert writer.flush()
    waiting = writer.update_reply(reply.id, "so far", None, False)
    writer.rename(chat.id, "title").result(SOON)
    assert waiting.done() and last(path, chat).text == "so far"
    writer.close()


def test_closing_writes_what_waits(path: Path) -> None:
    writer = SessionWriter(path, interval=60)
    chat, reply = begin(writer)
    for n in range(50):
        writer.update_reply(reply.id, f"text {n}", None, False)
    assert writer.close()
    assert last(path, chat).text == "text 49"
    with pytest.raises(SessionError):
        writer.rename(chat.id, "too late").result(SOON)


def test_a_full_disk_is_told_once_and_nothing_is_lost_when_there_is_room_again() -> None:
    heard: list[SessionError | None] = []
    with Store(None) as store:
        writer = SessionWriter(store, heard.append, interval=0.001, retry=0.01)
        chat, reply = begin(writer)
        assert writer.flush()
        with store.transaction() as db:
            db.execute("PRAGMA max_page_count = 16")
        text = "word " * 40_000
        saved = writer.update_reply(reply.id, text, Receipt(stop_reason="stop"), True)
        assert isinstance(saved.exception(SOON), SessionError)
        more = writer.add_message(chat.id, chat.add("user", "and then?"))
        assert isinstance(more.exception(SOON), SessionError)
        assert not writer.flush()
        assert [str(error) for error in heard] == [str(saved.exception())]
        assert "the disk is full" in str(heard[0])
        with store.transaction() as db:
            db.execute("PRAGMA max_page_count = 1000000")
        deadline = threading.Event()
        while len(heard) < 2 and not deadline.wait(0.01):
            pass
        assert heard[1] is None
        assert [message.text for message in store.load(chat.id).path()] == ["q", text, "and then?"]
        assert writer.close()


def test_one_call_that_cannot_be_done_does_not_hold_up_the_others(path: Path) -> None:
    heard: list[SessionError | None] = []
    writer = SessionWriter(path, heard.append)
    chat = Conversation()
    futures = [
        writer.save_conversation(ChatMeta.of(chat)),
        writer.add_message("no chat", Message(parent=None, role="user", text="x")),
        writer.save_conversation(ChatMeta(id="b", sampling={"x": object()})),
        writer.add_message(chat.id, chat.add("user", "q")),
    ]
    failed = [isinstance(future.exception(SOON), SessionError) for future in futures]
    assert failed == [False, True, True, False]
    assert writer.close() and len(heard) == 2
    assert last(path, chat).text == "q"


def test_a_file_of_another_program_is_an_error_and_not_the_end(tmp_path: Path) -> None:
    path = tmp_path / "chats.sqlite3"
    path.write_bytes(b"SQLite format 3\x00" + bytes(52) + b"ABCD" + bytes(28))
    heard = threading.Event()
    writer = SessionWriter(path, lambda error: heard.set(), retry=60)
    saved = writer.save_conversation(ChatMeta(id="a"))
    assert isinstance(saved.exception(SOON), SessionError)
    assert heard.wait(SOON)
    assert not writer.close()


def test_a_listener_that_fails_does_not_stop_the_saving(path: Path) -> None:
    def listener(error: SessionError | None) -> None:
        raise RuntimeError

    writer = SessionWriter(path, listener)
    assert writer.rename("nobody", "x").exception(SOON) is not None
    chat = Conversation()
    assert writer.save_conversation(ChatMeta.of(chat)).exception(SOON) is None
    writer.close()


def test_a_store_in_memory_is_written_and_read_by_two_threads() -> None:
    with Store(None) as store:
        writer = SessionWriter(store)
        chat, reply = begin(writer)
        for n in range(200):
            writer.update_reply(reply.id, "x" * n, None, False)
            store.list()
        assert writer.close()
        assert store.load(chat.id).path()[-1].text == "x" * 199


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the test forks")
@pytest.mark.parametrize("writers", [1, 2])
def test_kill_9_while_streaming_loses_nothing_acknowledged(writers: int) -> None:
    script = Path(__file__).with_name("crash.py")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, str(script), "--count", "20", "--writers", str(writers)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout)
    assert figures["kills"] == 20 * writers
    assert figures["acknowledged"] > 20
    assert (figures["lost"], figures["shortened"], figures["corrupt"]) == (0, 0, 0)
    assert figures["interrupted_replies_kept"] > 0
