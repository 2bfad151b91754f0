from __future__ import annotations

import io
import json
import os
import pty
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import tui_chat
from tui_chat.checkpoint.card import bytes_in_words, count
from tui_chat.cli.output import table
from tui_chat.conversation import Conversation, Receipt
from tui_chat.sessions.records import ChatMeta
from tui_chat.sessions.store import Store
from tui_chat.settings import Paths

from .conftest import BASE, CHAT, CHECKPOINTS, Run

ROOT = Path(__file__).resolve().parents[2]
CHARS = str(ROOT / "tests/fixtures/nanogpt/char-bias")
IDS_ONLY = str(ROOT / "tests/fixtures/S1/small_vocab/out/ckpt.pt")

# ---- next, score


def test_the_next_token_table_holds_the_models_own_logits(run: Run) -> None:
    found = run("next", BASE, "The", "--top", "5", "--top-k", "2", "--json").json
    checkpoint = tui_chat.open(BASE)
    logits = checkpoint.next_logits(found["prompt_ids"])
    best = logits.topk(5)
    rows = found["tokens"]
    assert [row["id"] for row in rows] == best.indices.tolist()
    assert [row["logit"] for row in rows] == pytest.approx(best.values.tolist())
    assert [row["cut_by"] for row in rows] == [None, None, "top_k", "top_k", "top_k"]
    assert sum(row["kept_prob"] for row in rows) == pytest.approx(1)
    probs = logits.double().softmax(0)
    assert found["entropy_bits"] == pytest.approx(float(-(probs * probs.log2()).sum()))
    assert [row["logprob"] for row in rows] == pytest.approx(probs[best.indices].log().tolist())


def test_all_rows_are_the_whole_vocabulary(run: Run) -> None:
    rows = run("next", BASE, "The", "--top", "0", "--json").json["tokens"]
    assert len(rows) == len({row["id"] for row in rows}) == 640


def test_the_next_token_table_for_people(run: Run) -> None:
    lines = run("next", BASE, "The", "--top", "3", "--greedy").out.splitlines()
    assert lines[0].split() == ["id", "token", "logit", "logprob", "prob", "kept", "cut", "by"]
    assert lines[1].endswith("100.00%") and lines[2].endswith("temperature")
    assert lines[-1].endswith("bits · greedy")


def test_the_next_token_comes_after_all_that_the_context_holds(run: Run) -> None:
    checkpoint = tui_chat.open(BASE)
    text = "word " * 195
    ids, limit = checkpoint.encode(text), checkpoint.loaded.context_length
    assert len(ids) > limit
    said = f"the prompt is too long: its first {len(ids) - limit} tokens were left out"
    for given in ((text,), ("--ids", ",".join(map(str, ids)))):
        done = run("next", BASE, *given, "--json")
        assert done.json["prompt_ids"] == ids[-limit:] and said in done.err
    whole = run("next", BASE, "--ids", ",".join(map(str, ids[:limit])), "--json")
    assert whole.json["prompt_ids"] == ids[:limit] and whole.err == ""
    assert "\n1 token before · " in run("next", BASE, "--ids", "5").out


def test_the_score_of_a_text_is_the_sum_of_its_tokens(run: Run) -> None:
    found = run("score", BASE, "The cat sat.", "--json").json
    assert found["logprobs"][0] is None and len(found["logprobs"]) == len(found["ids"])
    known = found["logprobs"][1:]
    assert found["nll"] == pytest.approx(-sum(known))
    assert found["perplexity"] == pytest.approx(2.718281828 ** (found["nll"] / len(known)))
    checkpoint = tui_chat.open(BASE)
    size = sum(len(checkpoint.loaded.tokenizer.token_bytes(i)) for i in found["ids"][1:])
    assert found["bits_per_byte"] == pytest.approx(found["nll"] / 0.69314718056 / size)
    step = checkpoint.next_logits(found["ids"][:-1]).log_softmax(0)
    assert known[-1] == pytest.approx(float(step[found["ids"][-1]]), abs=1e-4)
    text = run("score", BASE, "The cat sat.").out
    assert f"{len(known)} tokens scored" in text


def test_characters_without_an_id_are_named(run: Run) -> None:
    said = "the tokenizer has no id for '€': left out\n"
    for command in ("next", "score"):
        known, done = run(command, CHARS, "Hello "), run(command, CHARS, "Hello €")
        assert (done.out, done.err) == (known.out, known.err + said)
    assert "has no id for any of it" in run("score", CHARS, "€").err


def test_ids_without_a_tokenizer_have_no_bytes(run: Run) -> None:
    assert run("score", IDS_ONLY, "--ids", "1 2 3", "--json").json["bits_per_byte"] is None
    done = run("score", IDS_ONLY, "--ids", "1 2 3")
    assert "perplexity" in done.out and "bits a byte" not in done.out


def test_one_token_alone_cannot_be_scored(run: Run) -> None:
    done = run("score", BASE, "--ids", "5")
    assert done.status == 2 and "only one token" in done.err
    assert "the text is empty" in run("score", BASE, "").err


# ---- inspect, list, paths


def test_inspect_says_what_was_understood_and_why(run: Run) -> None:
    found = run("inspect", CHAT, "--json").json
    for name in (
        "path", "format", "spec", "parameters", "dtype", "run", "step", "losses", "tokenizer",
        "template", "stop_ids", "mode", "warnings", "fingerprint", "inferred", "defaults", "unused",
    ):  # fmt: skip
        assert name in found, name
    assert found["spec"]["n_layer"] == 5 and found["run"] == "demo-chat"
    rows, *notes = run("inspect", CHAT).out.split("\n\n")
    card = dict(line.split(maxsplit=1) for line in rows.splitlines())
    assert [note.split("\n")[0] for note in notes] == ["ignored"]
    assert card["model"].startswith("5 layers · 4 heads · 128 wide · 1.15M parameters")
    assert card["mode"].startswith("chat")
    assert card["fingerprint"] == found["fingerprint"]
    assert "named in the file" in card["tokenizer"]


def test_a_step_of_a_run_is_chosen_by_number(run: Run) -> None:
    steps = [entry["step"] for entry in run("list", BASE, "--json").json[0]["checkpoints"]]
    assert len(steps) >= 2 and steps == sorted(steps)
    assert run("inspect", BASE, "--step", str(steps[0]), "--json").json["step"] == steps[0]
    assert run("inspect", BASE, "--json").json["step"] == steps[-1]
    assert run("inspect", BASE, "--step", "1").status == 3


def test_list_shows_runs_and_what_cannot_be_read(run: Run, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"PK junk")
    found = run("list", str(CHECKPOINTS), str(tmp_path), "--json").json
    names = [one["name"] for one in found]
    assert {"demo-base", "demo-chat"} <= set(names)
    (broken,) = [one for one in found if one["path"] == str(tmp_path)]
    assert broken["checkpoints"][0]["error"]
    text = run("list", str(CHECKPOINTS), str(tmp_path)).out
    assert "demo-base" in text and f"  broken.pt: {broken['checkpoints'][0]['error']}\n" in text
    (tmp_path / "empty").mkdir()
    assert run("list", str(tmp_path / "empty")).out == "No checkpoints here.\n"


def test_a_long_reason_stands_below_the_table_and_leaves_its_columns_alone(
    run: Run, tmp_path: Path
) -> None:
    before = run("list", BASE).out.splitlines()[1:]
    copied = tmp_path / "run"
    shutil.copytree(BASE, copied)
    (copied / "tokens.pt").write_bytes(zipped({"archive/data.pkl": b"\x80\x02}q\x00."}))
    (copied / "a\nb.pt").write_bytes(b"")
    lines = run("list", str(copied)).out.splitlines()[1:]
    table, below = lines[: len(before)], lines[len(before) :]
    assert [line.split() for line in table] == [line.split() for line in before]
    assert max(map(len, table)) == max(map(len, before)) < 120
    assert below[0] == "  a b.pt: it is empty"
    assert below[1].startswith("  tokens.pt: it holds no weights, only ")
    assert len(below) == 2


def zipped(members: dict[str, bytes]) -> bytes:
    """An archive as torch writes it: nothing is compressed."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return packed.getvalue()


def test_a_directory_that_is_not_there_is_not_an_empty_one(run: Run, tmp_path: Path) -> None:
    done = run("list", str(CHECKPOINTS), str(tmp_path / "nowhere"))
    assert (done.status, done.out) == (3, "")
    assert done.err == f"tui-chat: cannot open {tmp_path}/nowhere: no such file or directory.\n"


def test_paths_follow_the_environment(
    run: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TUI_CHAT_TOKENIZERS_DIR", raising=False)
    found = run("paths", "--json").json
    assert found["chats"] == str(home / "data" / "chats.sqlite3")
    assert str(home / "config" / "settings.toml") in run("paths").out
    assert found["tokenizers"] == str(home / "data" / "tokenizers")
    monkeypatch.setenv("TUI_CHAT_TOKENIZERS_DIR", str(home / "ranks"))
    assert run("paths", "--json").json["tokenizers"] == str(home / "ranks")
    assert not (home / "data").exists(), "asking makes nothing"


def test_numbers_are_written_for_people() -> None:
    numbers = (7, 984_312, 999_600, 1_148_032, 124_439_808, 7_000_000_000)
    assert [count(n) for n in numbers] == ["7", "984k", "1M", "1.15M", "124M", "7B"]
    assert [bytes_in_words(n) for n in (0, 999, 2_345_678)] == ["0 B", "999 B", "2.35 MB"]


def test_a_table_is_aligned_by_what_is_drawn() -> None:
    lines = table([["日本", "1"], ["e\u0301\x1b[0m", "22"]], head=("a", "b"), right=(1,)).split(
        "\n"
    )
    assert lines[0] == "a" + " " * 7 + "b"
    assert lines[1] == "日本" + " " * 4 + "1"
    assert "\x1b" not in lines[2] and lines[2].endswith(" 22")


# ---- sessions


@pytest.fixture
def chats(home: Path) -> list[Conversation]:
    made = []
    with Store(Paths.find().database) as store:
        for title in ("older", "newer"):
            chat = Conversation(title=title, system="Be kind." if title == "newer" else "")
            store.save_conversation(ChatMeta.of(chat, checkpoint="/runs/a.pt"))
            store.add_message(chat.id, chat.add("user", f"a question\nof the {title}"))
            receipt = Receipt(checkpoint="demo/100", stop_reason="length")
            store.add_message(chat.id, chat.add("assistant", "an answer\x1b[2J", receipt=receipt))
            made.append(chat)
    return made


def test_sessions_are_listed_newest_first(run: Run, chats: list[Conversation]) -> None:
    found = run("sessions", "list", "--json").json
    assert [row["title"] for row in found] == ["newer", "older"]
    assert found[0]["messages"] == 2 and found[0]["checkpoint"] == "/runs/a.pt"
    lines = run("sessions", "list").out.splitlines()
    assert lines[1].split()[0] == "1" and lines[1].endswith("newer")
    assert len(run("sessions", "list", "--limit", "1", "--json").json) == 1


def test_a_chat_is_shown_by_number_by_id_and_the_newest_by_default(
    run: Run, chats: list[Conversation]
) -> None:
    older = run("sessions", "show", "2").out
    assert older == run("sessions", "show", chats[0].id[:8]).out
    assert "# older" in older and "a question\nof the older" in older
    newest = run("sessions", "show").out
    assert "## system\n\nBe kind." in newest
    assert "## demo/100 (length)\n\nan answer\x1b[2J\n" in newest, "into a pipe go the bytes"
    found = run("sessions", "show", "1", "--json").json
    assert [message["role"] for message in found["messages"]] == ["user", "assistant"]
    assert found["messages"][1]["receipt"]["checkpoint"] == "demo/100"


def test_several_chats_are_deleted_at_once_and_brought_back(
    run: Run, chats: list[Conversation]
) -> None:
    done = run("sessions", "delete", "1", "2")
    assert done.status == 0 and "undelete" in done.err
    assert run("sessions", "list").out == "No chats are saved.\n"
    assert len(run("sessions", "list", "--deleted", "--json").json) == 2
    assert run("sessions", "undelete", chats[0].id[:8]).status == 0
    assert [row["title"] for row in run("sessions", "list", "--json").json] == ["older"]


def test_one_unknown_chat_among_several_changes_nothing(
    run: Run, chats: list[Conversation]
) -> None:
    done = run("sessions", "delete", "1", "zz")
    assert done.status == 3 and "'zz'" in done.err
    assert len(run("sessions", "list", "--json").json) == 2


def test_looking_at_no_chats_makes_no_file(run: Run, home: Path) -> None:
    assert run("sessions", "list", "--json").json == []
    assert run("sessions", "show").status == 3
    assert not (home / "data").exists()


def test_check_names_a_text_that_changed_on_the_disk(run: Run, chats: list[Conversation]) -> None:
    assert run("sessions", "check").status == 0
    with Store(Paths.find().database) as store, store.transaction() as db:
        db.execute("UPDATE messages SET text = 'forged' WHERE role = 'user'")
    done = run("sessions", "check")
    assert done.status == 3 and len(done.out.splitlines()) == 2


# ---- the whole


def test_the_version(run: Run) -> None:
    assert run("--version").out == f"tui-chat {tui_chat.__version__}\n"


def test_without_a_terminal_the_app_does_not_start(run: Run) -> None:
    done = run(stdin=b"")
    assert (done.status, done.out) == (2, "")
    assert "terminal" in done.err and done.err.count("\n") == 1


@pytest.mark.parametrize("name", ["bogus", "no/such/run", "a\x1b[31m\nb", "x" * 5000, "\0", ""])
def test_a_first_word_that_is_neither_command_nor_path_is_said_to_be_neither(
    run: Run, name: str
) -> None:
    done = run(name, stdin=b"")
    assert (done.status, done.out) == (3, "")
    assert done.err.startswith("tui-chat: there is no such file, directory or command: ")
    assert run(name, "--json", stdin=b"") == done, "its options are not looked at"
    assert "`tui-chat --help`" in done.err and done.err.count("\n") == 1
    assert "\x1b" not in done.err and len(done.err) < 400


def test_on_a_terminal_the_app_does_not_start_for_a_mistyped_command() -> None:
    seen = on_a_terminal("lst")
    assert b"there is no such file, directory or command: lst" in seen
    assert b"\x1b" not in seen


def test_a_path_called_like_a_command_is_opened(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("paths").status == 0
    (tmp_path / "paths").mkdir()
    assert "the app needs a terminal" in run("paths", stdin=b"").err


def on_a_terminal(*arguments: str) -> bytes:
    """Everything that a command sends to the terminal it runs on."""
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "tui_chat", *arguments])
    seen = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not piece:
            break
        seen += piece
    os.waitpid(pid, 0)
    os.close(master)
    return seen


def test_on_a_terminal_nothing_stored_steers_it(chats: list[Conversation]) -> None:
    seen = on_a_terminal("sessions", "show", "1")
    assert "an answer␛[2J".encode() in seen
    assert b"\x1b" not in seen


def test_loading_shows_on_a_terminal_and_leaves_only_the_reply() -> None:
    seen = on_a_terminal("ask", CHAT, "hi", "--greedy", "--max-new-tokens", "4").decode()
    assert "starting torch" in seen
    assert "\n" not in seen[: seen.rindex("\x1b[K")], "all on one line, which is wiped"
    reply = seen[seen.rindex("\x1b[K") + 3 :]
    assert reply.strip() and reply.endswith("\r\n") and reply.count("\n") == 1


def test_a_hostile_working_directory_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "PWNED"
    names = ("json", "typing", "torch", "textual", "sqlite3", "tiktoken", "argparse", "dataclasses")
    for name in names:
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write('{name} ')\n")
    done = subprocess.run(
        [sys.executable, "-m", "tui_chat", "inspect", CHAT, "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=60,
    )
    assert not marker.exists(), marker.read_text()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["run"] == "demo-chat"


def test_inspect_loads_neither_torch_nor_a_screen() -> None:
    """So that it answers at once: benchmarks/startup.py measures how soon."""
    code = (
        "import sys\n"
        "from tui_chat.cli.main import main\n"
        f"main(['inspect', {CHAT!r}])\n"
        "heavy = {'torch', 'textual', 'tiktoken', 'tokenizers', 'jinja2', 'rich', 'sqlite3'}\n"
        "print(*heavy & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert "demo-chat" in done.stdout and done.stdout.endswith("\n\n"), done.stderr
