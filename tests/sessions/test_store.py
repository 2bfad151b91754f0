from __future__ import annotations

import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tui_chat.conversation import Conversation, Message, Receipt
from tui_chat.errors import SessionError
from tui_chat.sessions import schema
from tui_chat.sessions.records import ChatMeta, first_words
from tui_chat.sessions.store import Store


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "chats.sqlite3"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with Store(path) as store:
        yield store


def begin(store: Store, *texts: str, title: str = "") -> Conversation:
    """A chat of user and assistant in turn."""
    chat = Conversation(title=title)
    store.save_conversation(ChatMeta.of(chat, checkpoint="/runs/a.pt", sampling={"top_k": 7}))
    for number, text in enumerate(texts):
        say(store, chat, text, "assistant" if number % 2 else "user")
    return chat


def say(store: Store, chat: Conversation, text: str, role: str = "user") -> Message:
    receipt = Receipt(stop_reason="stop") if role == "assistant" else None
    message = chat.add(role, text, receipt=receipt)  # type: ignore[arg-type]
    store.add_message(chat.id, message)
    return message


def texts(chat: Conversation) -> list[str]:
    return [message.text for message in chat.path()]


# ---- what is kept


def test_a_chat_comes_back_as_it_was(store: Store) -> None:
    chat = Conversation(title="sums", mode="raw", system="Be short.", created=123.5)
    store.save_conversation(ChatMeta.of(chat, checkpoint="/runs/a.pt", sampling={"top_k": 7}))
    question = chat.add("user", "2+2?")
    receipt = Receipt(
        checkpoint="demo/100",
        fingerprint="ab",
        step=100,
        seed=2**31 - 1,
        sampling={"temperature": 0.8, "stop": ["x"]},
        sampling_changes=((3, {"top_k": 1}),),
        new_tokens=4,
        decode_seconds=0.5,
        stop_reason="length",
    )
    answer = chat.add("assistant", "4", receipt=receipt)
    for message in (question, answer):
        store.add_message(chat.id, message)

    found = store.load(chat.id)
    assert list(found) == [question, answer]
    assert (found.id, found.title, found.mode, found.system) == (
        chat.id,
        "sums",
        "raw",
        "Be short.",
    )
    assert found.created == 123.5 and found.leaf == answer.id
    meta = store.meta(chat.id)
    assert meta.checkpoint == "/runs/a.pt" and meta.sampling == {"top_k": 7}
    assert store.notice == ""


@pytest.mark.parametrize(
    "text",
    ["", "\x00a\x00", "line\r\nline\r", "😀 e\u0301 \u202e", "\ud800 lone \udfff", "x" * 2_000_000],
    ids=["empty", "nul", "returns", "wide", "surrogates", "2 MB"],
)
def test_any_text_comes_back_exactly(store: Store, text: str) -> None:
    chat = begin(store, text)
    assert texts(store.load(chat.id)) == [text]
    assert store.check() == ()


def test_all_branches_and_the_chosen_one_come_back(store: Store) -> None:
    chat = begin(store, "q", "first answer")
    first = chat.leaf
    question = chat.path()[0]
    other = chat.add("assistant", "second answer", parent=question.id)
    store.add_message(chat.id, other)
    assert texts(store.load(chat.id)) == ["q", "second answer"]
    store.set_leaf(chat.id, first)
    found = store.load(chat.id)
    assert texts(found) == ["q", "first answer"]
    assert found.siblings(other.id) == [first, other.id]


def test_saving_a_chat_again_keeps_what_is_not_said(store: Store) -> None:
    chat = begin(store, "q", title="mine")
    store.save_conversation(ChatMeta(id=chat.id, system="new"))
    meta = store.meta(chat.id)
    assert (meta.title, meta.system, meta.checkpoint) == ("mine", "new", "/runs/a.pt")
    assert meta.leaf == chat.leaf and meta.sampling == {"top_k": 7}


def test_a_message_is_never_overwritten_by_another(store: Store) -> None:
    chat = begin(store, "q", "a")
    message = chat.path()[0]
    store.add_message(chat.id, message)  # the same again is no change
    with pytest.raises(SessionError):
        store.add_message(
            chat.id, Message(id=message.id, parent=None, role="user", text="something else")
        )
    with pytest.raises(SessionError):
        store.update_reply(message.id, "not a reply", None, True)
    assert texts(store.load(chat.id)) == ["q", "a"]


def test_a_message_needs_its_chat_and_its_parent(store: Store) -> None:
    chat = begin(store, "q")
    stranger = Message(parent="nobody", role="user", text="lost")
    with pytest.raises(SessionError):
        store.add_message(chat.id, stranger)
    with pytest.raises(SessionError):
        store.add_message("no chat", Message(parent=None, role="user", text="lost"))
    assert len(store.load(chat.id)) == 1


def test_an_interrupted_reply_is_kept_and_has_no_stop_reason(path: Path) -> None:
    with Store(path) as store:
        chat = begin(store, "q")
        reply = chat.add("assistant", "")
        store.add_message(chat.id, reply, finished=False)
        store.update_reply(reply.id, "so fa", None, False)
    with Store(path) as store:
        last = store.load(chat.id).path()[-1]
    assert last.text == "so fa"
    assert last.receipt is not None and last.receipt.stop_reason is None


def test_an_unfinished_text_that_comes_late_does_not_replace_the_finished_one(store: Store) -> None:
    chat = begin(store, "q")
    reply = chat.add("assistant", "")
    store.add_message(chat.id, reply, finished=False)
    store.update_reply(reply.id, "all of it", Receipt(stop_reason="stop"), True)
    store.update_reply(reply.id, "all", None, False)
    last = store.load(chat.id).path()[-1]
    assert last.text == "all of it"
    assert last.receipt is not None and last.receipt.stop_reason == "stop"


def test_a_receipt_of_a_later_version_is_read_as_far_as_it_is_known(store: Store) -> None:
    chat = begin(store, "q", "a")
    with store.transaction() as db:
        db.execute('UPDATE messages SET receipt = \'{"seed": 5, "new": 1, "stop_reason": "odd"}\'')
    receipt = store.load(chat.id).path()[-1].receipt
    assert receipt == Receipt(seed=5, stop_reason=None)


# ---- the list


def test_the_list_shows_titles_counts_and_the_newest_words(store: Store) -> None:
    begin(
        store, "how do  I\nsort a list of numbers by their last digit in one line?", "Like\nthis."
    )
    named = begin(store, "x", title="named")
    first, second = store.list()
    assert (first.id, first.title, first.messages) == (named.id, "named", 1)
    assert second.title == "how do I sort a list of numbers by their last…"
    assert (second.messages, second.preview) == (2, "Like this.")
    assert second.checkpoint == "/runs/a.pt"
    assert store.list(limit=1) == [first]


def test_the_chat_changed_last_comes_first_and_pinned_ones_before(store: Store) -> None:
    old, new = begin(store, "old"), begin(store, "new")
    assert store.latest() == new.id
    say(store, old, "again")
    assert store.latest() == old.id
    assert [row.id for row in store.list()] == [old.id, new.id]
    store.pin(new.id)
    assert [row.id for row in store.list()] == [new.id, old.id]


def test_a_chat_without_messages_is_not_listed(store: Store) -> None:
    begin(store)
    assert store.list() == [] and store.latest() is None


def test_a_deleted_chat_can_be_had_back_until_it_is_purged(store: Store) -> None:
    chat = begin(store, "q", "a")
    store.delete(chat.id)
    assert store.list() == [] and store.latest() is None
    assert store.list(include_deleted=True)[0].deleted_at is not None
    assert store.purge(older_than_days=30) == 0
    store.undelete(chat.id)
    assert texts(store.load(chat.id)) == ["q", "a"]
    store.delete(chat.id)
    time.sleep(0.001)
    assert store.purge(older_than_days=0) == 1
    with pytest.raises(SessionError):
        store.load(chat.id)


def test_earlier_prompts_are_each_given_once_oldest_first(store: Store) -> None:
    begin(store, "one", "reply", "two", "reply", "one")
    begin(store, "three", "reply", "x" * 30_000)
    store.delete(begin(store, "deleted").id)
    assert list(store.prompts()) == ["two", "one", "three"]
    assert list(store.prompts(limit=2)) == ["one", "three"]


def test_renaming_to_nothing_brings_the_first_words_back(store: Store) -> None:
    chat = begin(store, "first words")
    store.rename(chat.id, "title")
    assert store.list()[0].title == "title"
    store.rename(chat.id, "")
    assert store.list()[0].title == "first words"
    with pytest.raises(SessionError):
        store.rename("nobody", "x")


def test_a_chat_is_found_by_its_number_and_by_the_beginning_of_its_id(store: Store) -> None:
    for id in ("aaaa1", "aabb2"):
        store.save_conversation(ChatMeta(id=id))
        store.add_message(id, Message(parent=None, role="user", text=id))
    assert store.find("1").id == "aabb2"
    assert store.find("aaa").id == "aaaa1"
    for name in ("aa", "3", "0", "zz", "", "%", "²"):
        with pytest.raises(SessionError):
            store.find(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ""),
        (" a\n b ", "a b"),
        ("x" * 60, "x" * 48 + "…"),
        ("one, " * 20, "one, " * 8 + "one…"),
    ],
)
def test_first_words(text: str, words: str) -> None:
    assert first_words(text) == words


# ---- files that are not ours, or not of our time


def database(path: Path, *statements: str) -> None:
    path.parent.mkdir(exist_ok=True)
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.mark.parametrize(
    "statements",
    [
        ("PRAGMA application_id = 77", "CREATE TABLE theirs (x)"),
        ("CREATE TABLE conversations (id)",),
    ],
    ids=["marked", "unmarked"],
)
def test_a_database_of_another_program_is_refused_and_left_alone(
    path: Path, statements: tuple[str, ...]
) -> None:
    database(path, *statements)
    before = path.read_bytes()
    with pytest.raises(SessionError, match="another program"):
        Store(path)
    store = Store.open(path)
    assert store.in_memory and "another program" in store.notice
    begin(store, "goes on")
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_newer_schema_is_refused(path: Path) -> None:
    Store(path).close()
    database(path, "PRAGMA user_version = 99")
    with pytest.raises(SessionError, match="newer tui-chat"):
        Store(path)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON messages BEGIN DELETE FROM conversations; END",
        "CREATE VIEW v AS SELECT * FROM messages",
    ],
)
def test_triggers_and_views_are_refused(path: Path, statement: str) -> None:
    Store(path).close()
    database(path, statement)
    with pytest.raises(SessionError, match="changed by another program"):
        Store(path)


def test_an_old_schema_is_migrated_after_a_copy(path: Path) -> None:
    with Store(path) as store:
        chat = begin(store, "q")

    def second(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE conversations ADD COLUMN colour TEXT")

    schema.connect(path, migrations=(*schema.MIGRATIONS, second)).close()
    database(path, "UPDATE conversations SET colour = 'red'")
    copy = path.with_name("chats.before-version-2.sqlite3")
    with Store(copy) as old:
        assert texts(old.load(chat.id)) == ["q"]


def test_a_migration_that_fails_leaves_the_old_schema(path: Path) -> None:
    with Store(path) as store:
        chat = begin(store, "q")

    def second(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE conversations ADD COLUMN colour TEXT")
        connection.execute("SELECT * FROM nowhere")

    with pytest.raises(sqlite3.OperationalError):
        schema.connect(path, migrations=(*schema.MIGRATIONS, second))
    with Store(path) as store:
        assert texts(store.load(chat.id)) == ["q"]


# ---- disks and neighbours


def test_where_no_directory_can_be_made_chats_stay_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with Store(tmp_path / "file" / "chats.sqlite3") as store:
        assert store.in_memory and "in memory" in store.notice
        chat = begin(store, "q")
        assert texts(store.load(chat.id)) == ["q"]
        assert store.twin() is store


def test_in_a_read_only_home_old_chats_are_shown_and_new_ones_stay_in_memory(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    home = tmp_path_factory.mktemp("home")
    path = home / "chats.sqlite3"
    with Store(path) as store:
        chat = begin(store, "old")
    for folder in (home, *home.parents[:4]):  # pytest's own folders let nobody else in
        if folder.stat().st_mode & 0o777 != 0o700:
            continue
        folder.chmod(0o755)
    path.chmod(0o444)
    home.chmod(0o555)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            with Store(path) as store:
                begin(store, "new")
                shown = {row.title for row in store.list()}
                read = texts(store.load(chat.id)) == ["old"]
                code = 0 if store.in_memory and read and shown == {"old", "new"} else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    home.chmod(0o755)


def test_a_full_disk_is_one_sentence_and_costs_nothing_saved(store: Store) -> None:
    chat = begin(store, "q")
    with store.transaction() as db:
        pages = db.execute("PRAGMA page_count").fetchone()[0]
        db.execute(f"PRAGMA max_page_count = {pages + 2}")
    with pytest.raises(SessionError, match="the disk is full") as caught:
        say(store, chat, "x" * 100_000)
    assert "\n" not in str(caught.value)
    with store.transaction() as db:
        db.execute("PRAGMA max_page_count = 100000")
    store.add_message(chat.id, chat.path()[-1])
    assert texts(store.load(chat.id)) == ["q", "x" * 100_000]


def test_two_instances_write_at_once_and_lose_nothing(path: Path) -> None:
    Store(path).close()

    def write(number: int) -> str:
        with Store(path) as store:
            return begin(store, *(f"{number}.{i}" for i in range(25))).id

    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(write, range(4)))
    with Store(path) as store:
        for number, id in enumerate(ids):
            assert texts(store.load(id)) == [f"{number}.{i}" for i in range(25)]


def test_chats_are_for_their_owner_alone(store: Store, path: Path) -> None:
    begin(store, "secret")
    for file in (path.parent, *path.parent.iterdir()):
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == 0, file


def test_a_transaction_is_whole_or_not_at_all(store: Store) -> None:
    chat = begin(store, "q")
    with pytest.raises(KeyError), store.transaction():
        say(store, chat, "lost")
        raise KeyError
    assert texts(store.load(chat.id)) == ["q"]
    with store.transaction():
        store.rename(chat.id, "kept")
        with pytest.raises(SessionError):
            store.rename("nobody", "x")
    assert store.list()[0].title == "kept"
