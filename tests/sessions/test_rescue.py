from __future__ import annotations

import random
from pathlib import Path

import pytest

from tui_chat.conversation import Conversation
from tui_chat.errors import SessionError
from tui_chat.sessions.records import ChatMeta
from tui_chat.sessions.store import Store

CHATS, MESSAGES = 5, 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "chats.sqlite3"


def fill(path: Path) -> dict[str, list[str]]:
    """Chats of one branch each; returns their texts by chat id."""
    said: dict[str, list[str]] = {}
    with Store(path) as store, store.transaction():
        for number in range(CHATS):
            chat = Conversation()
            store.save_conversation(ChatMeta.of(chat))
            said[chat.id] = [f"chat {number} line {i} " + "word " * 40 for i in range(MESSAGES)]
            for i, text in enumerate(said[chat.id]):
                store.add_message(chat.id, chat.add("assistant" if i % 2 else "user", text))
    return said


def begin(store: Store, text: str) -> Conversation:
    chat = Conversation()
    store.save_conversation(ChatMeta.of(chat))
    store.add_message(chat.id, chat.add("user", text))
    return chat


def damage(path: Path, at: int, junk: bytes) -> bytes:
    data = bytearray(path.read_bytes())
    data[at : at + len(junk)] = junk
    path.write_bytes(data)
    return bytes(data)


def asides(path: Path) -> list[Path]:
    return sorted(path.parent.glob("chats.damaged-*.sqlite3"))


def rescued(path: Path) -> tuple[dict[str, list[str]], str]:
    """What a user sees of all chats, and the notice."""
    with Store(path) as store:
        chats = {row.id: [m.text for m in store.load(row.id).path()] for row in store.list()}
        return chats, store.notice


@pytest.mark.parametrize("size", [0, 30])
def test_an_empty_file_becomes_a_store_and_a_stump_is_set_aside(path: Path, size: int) -> None:
    path.write_bytes(b"S" * size)
    with Store(path) as store:
        assert not store.in_memory and store.list() == []
        assert bool(store.notice) == bool(size)
    assert [p.read_bytes() for p in asides(path)] == ([b"S" * size] if size else [])


def test_a_damaged_page_costs_only_what_lay_on_it(path: Path) -> None:
    said = fill(path)
    size = path.stat().st_size
    data = damage(path, size // 2 // 4096 * 4096, random.Random(1).randbytes(4096))
    found, notice = rescued(path)
    assert "damaged" in notice and "rescued" in notice
    assert [p.read_bytes() for p in asides(path)] == [data]
    every = {text for texts in said.values() for text in texts}
    read = [text for texts in found.values() for text in texts]
    assert set(read) <= every, "nothing that was not written"
    assert len(read) >= 0.8 * CHATS * MESSAGES
    for id, texts in found.items():
        assert texts == [text for text in said[id] if text in set(texts)], "in their order"


def test_after_a_rescue_the_store_works_and_is_whole(path: Path) -> None:
    fill(path)
    damage(path, path.stat().st_size // 2, bytes(6000))
    rescued(path)
    with Store(path) as store:
        assert store.notice == "" and store.check() == ()
        chat = begin(store, "new")
        assert store.latest() == chat.id
    assert len(asides(path)) == 1


def test_damage_found_while_running_is_mended_without_a_restart(path: Path) -> None:
    said = fill(path)
    size = path.stat().st_size
    with Store(path) as store:
        damage(path, size // 3 // 4096 * 4096, bytes(range(256)) * 32)
        read = sum(len(store.load(row.id)) for row in store.list())
        assert "rescued" in store.notice
        assert len(asides(path)) == 1
        assert read >= 0.7 * sum(map(len, said.values()))
        chat = next(iter(said))
        store.rename(chat, "still here")
    with Store(path) as store:
        assert any(row.title == "still here" for row in store.list())


def test_another_instance_follows_to_the_mended_file(path: Path) -> None:
    fill(path)
    with Store(path) as other:
        other.list()
        damage(path, path.stat().st_size // 2, bytes(6000))
        first, _ = rescued(path)
        id = next(iter(first))
        other.rename(id, "from the other")
        assert len(asides(path)) == 1
    with Store(path) as store:
        assert any(row.title == "from the other" for row in store.list())


def test_a_flipped_bit_in_a_text_is_noticed_and_the_text_kept(path: Path) -> None:
    said = fill(path)
    data = path.read_bytes()
    text = "chat 2 line 7 "
    at = data.index(text.encode())
    damage(path, at + len(text), b"W")
    with Store(path) as store:
        ids = list(said)
        assert len(store.load(ids[1])) == MESSAGES and store.notice == ""
        chat = store.load(ids[2])
        assert len(chat) == MESSAGES and chat.path()[7].text.startswith(text + "W")
        assert "1 message of this chat changed" in store.notice
        assert len(store.check()) == 1


@pytest.mark.parametrize("seed", range(12))
def test_any_damage_gives_a_working_store_and_no_invented_text(path: Path, seed: int) -> None:
    said = fill(path)
    dice = random.Random(seed)
    size = path.stat().st_size
    for _ in range(dice.choice([1, 3, 40])):
        damage(path, dice.randrange(size - 64), dice.randbytes(dice.choice([1, 8, 64])))
    if seed % 4 == 3:
        path.write_bytes(path.read_bytes()[: dice.randrange(size)])
    store = Store.open(path)
    with store:
        read: list[str] = []
        for row in store.list():
            chat = store.load(row.id)
            if not store.notice.endswith("in places."):
                read += [message.text for message in chat]
        try:
            begin(store, "goes on")
        except SessionError as error:  # writing found the damage, so now it is mended
            assert "the file is damaged" in str(error)
            begin(store, "goes on")
    assert set(read) <= {text for texts in said.values() for text in texts}
