from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import tui_chat
from tui_chat.cli.generate import SEPARATOR

from .conftest import BASE, CHAT, CHECKPOINTS, Run

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--greedy", "--max-new-tokens", "8")


def test_stdout_carries_the_reply_and_nothing_else(run: Run) -> None:
    done = run("ask", CHAT, "hi", *SHORT)
    assert (done.status, done.err) == (0, "")
    checkpoint = tui_chat.open(CHAT)
    ids = checkpoint.prompt_ids([{"role": "user", "content": "hi"}])
    steps = checkpoint.generate(ids, temperature=0.0, max_new_tokens=8)
    text = "".join(step.text for step in steps)
    assert text and done.out == text + "\n"


def test_options_may_stand_anywhere(run: Run) -> None:
    wanted = run("ask", CHAT, "hi", *SHORT).out
    assert run("ask", CHAT, *SHORT, "hi").out == run("ask", *SHORT, CHAT, "hi").out == wanted


def test_the_json_says_how_the_reply_was_made(run: Run) -> None:
    found = run("ask", CHAT, "hi", "--seed", "7", "--max-new-tokens", "5", "--json").json
    assert set(found) == {
        "checkpoint", "mode", "prompt_ids", "samples", "sampling", "dtype", "device", "stats",
    }  # fmt: skip
    assert set(found["checkpoint"]) == {"path", "format", "step", "fingerprint"}
    assert found["mode"] == "chat" and found["sampling"]["seed"] == 7
    (sample,) = found["samples"]
    assert set(sample) == {"ids", "text", "stop_reason", "seed"}
    assert sample["seed"] == 7 and sample["stop_reason"] in ("length", "stop")
    assert 0 < len(sample["ids"]) <= 5
    assert found["stats"]["new_tokens"] == len(sample["ids"])
    assert found["stats"]["prompt_tokens"] == len(found["prompt_ids"])
    assert found["stats"]["tokens_per_second"] > 0


def test_keys_and_values_may_be_kept_in_int8(run: Run) -> None:
    plain = run("ask", BASE, "The", "--raw", *SHORT, "--json").json
    small = run("ask", BASE, "The", "--raw", *SHORT, "--kv-cache", "int8", "--json").json
    assert (plain["dtype"], small["dtype"]) == ("float32", "float32, int8 cache")
    assert small["samples"][0]["text"]
    refused = run("ask", BASE, "The", "--kv-cache", "int4")
    assert refused.status == 2 and "There is int8" in refused.err


def test_the_same_seed_gives_the_same_reply_and_samples_differ_by_seed(run: Run) -> None:
    arguments = ("ask", BASE, "The", "--raw", "--max-new-tokens", "12", "--temperature", "1.5")
    found = run(*arguments, "-n", "3", "--seed", "5", "--json").json["samples"]
    assert [sample["seed"] for sample in found] == [5, 6, 7]
    assert len({sample["text"] for sample in found}) == 3
    assert run(*arguments, "--seed", "6").out == found[1]["text"] + "\n"
    both = run(*arguments, "--seed", "5", "-n", "2").out
    assert both == found[0]["text"] + SEPARATOR + found[1]["text"] + "\n"


def test_a_text_that_ends_its_last_line_itself_gets_no_second_break(run: Run) -> None:
    arguments = ("ask", BASE, "ROMEO:", "--raw", "--seed", "3", "--temperature", "0.8")
    whole = run(*arguments, "--max-new-tokens", "100", "--json").json["samples"][0]
    checkpoint = tui_chat.open(BASE)
    cut = next(n for n in range(1, 100) if checkpoint.decode(whole["ids"][:n]).endswith("\n"))
    assert run(*arguments, "--max-new-tokens", str(cut)).out == checkpoint.decode(
        whole["ids"][:cut]
    )


def test_a_stop_text_ends_the_reply_and_is_not_shown(run: Run) -> None:
    whole = run("ask", BASE, "The", *SHORT, "--json").json["samples"][0]["text"]
    stop = whole[3:5]
    found = run("ask", BASE, "The", *SHORT, "--stop", stop, "--stop", "\\n\\n", "--json").json
    assert found["samples"][0]["text"] == whole[: whole.index(stop)]
    assert found["samples"][0]["stop_reason"] == "stop"
    assert found["sampling"]["stop"] == [stop, "\n\n"]


def test_token_ids_go_in_as_they_are(run: Run) -> None:
    found = run("ask", CHAT, "--ids", "1, 2 3", *SHORT, "--json").json
    assert found["prompt_ids"] == [1, 2, 3] and found["mode"] == "raw"


def test_the_prompt_comes_from_standard_input_when_none_is_given(run: Run) -> None:
    given = run("ask", CHAT, "hi", *SHORT, "--json").json
    assert (
        run("ask", CHAT, *SHORT, "--json", stdin=b"hi\n").json["prompt_ids"] == given["prompt_ids"]
    )
    assert (
        run("ask", CHAT, "-", *SHORT, "--json", stdin=b"hi").json["prompt_ids"]
        == given["prompt_ids"]
    )


@pytest.mark.parametrize("command", ["ask", "next"])
def test_a_chat_needs_a_message_where_a_text_may_start_from_nothing(run: Run, command: str) -> None:
    for empty in (
        run(command, CHAT, ""),
        run(command, CHAT, " \n"),
        run(command, CHAT, stdin=b"\n"),
    ):
        assert (empty.status, empty.out) == (2, "")
        assert empty.err == (
            "tui-chat: the prompt is empty. Give a message, or --raw to start from nothing.\n"
        )
    assert run("ask", BASE, "", *SHORT).status == run("ask", CHAT, "", "--raw", *SHORT).status == 0


def test_a_chat_without_a_template_is_remarked(run: Run) -> None:
    done = run("ask", BASE, "hi", "--chat", *SHORT)
    assert done.status == 0
    assert done.err == (
        "tui-chat: demo-base/585 has no chat template: "
        'turns are written as plain "User:" and "Assistant:"\n'
    )
    assert run("ask", BASE, "hi", "--template", "plain", *SHORT).err == ""


def test_a_raw_text_from_standard_input_keeps_its_line_break(run: Run) -> None:
    def ids(text: bytes) -> list[int]:
        found: list[int] = run("ask", BASE, *SHORT, "--json", stdin=text).json["prompt_ids"]
        return found

    assert ids(b"The\n") != ids(b"The")


def test_logprobs_name_the_token_and_the_likeliest(run: Run) -> None:
    found = run("ask", CHAT, "hi", *SHORT, "--logprobs", "3", "--json").json["samples"][0]
    assert [row["id"] for row in found["logprobs"]] == found["ids"]
    for row in found["logprobs"]:
        assert row["top"][0]["id"] == row["id"], "greedy takes the likeliest"
        assert row["top"][0]["logprob"] == pytest.approx(row["logprob"], abs=1e-4)
        assert len(row["top"]) == 3


def test_a_system_prompt_reaches_the_model(run: Run) -> None:
    plain = run("ask", CHAT, "hi", *SHORT, "--json").json
    told = run("ask", CHAT, "hi", "--system", "Be brief.", *SHORT, "--json").json
    assert len(told["prompt_ids"]) > len(plain["prompt_ids"])


def test_a_preset_is_turned_by_single_knobs(run: Run, home: Path) -> None:
    (home / "config").mkdir()
    (home / "config" / "settings.toml").write_text("[presets.mine]\ntop_k = 3\nmin_p = 0.1\n")
    arguments = ("ask", CHAT, "hi", "--max-new-tokens", "1", "--json", "--preset")
    found = run(*arguments, "mine", "--top-k", "4").json["sampling"]
    assert (found["top_k"], found["min_p"], found["max_new_tokens"]) == (4, 0.1, 1)
    assert run(*arguments, "nanogpt").json["sampling"]["top_k"] == 200


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ask",), "PATH"),
        (("ask", CHAT, "hi", "--warmth", "3"), "--warmth"),
        (("ask", CHAT, "hi", "--temperature", "hot"), "--temperature takes a number, not 'hot'."),
        (("ask", CHAT, "hi", "--top-k", "1.5"), "--top-k takes a whole number, not '1.5'."),
        (("ask", CHAT, "hi", "-n", "x"), "-n takes a whole number, not 'x'."),
        (("ask", CHAT, "hi", "--seed", "-1"), "between 0 and 2147483647: -1 does not."),
        (("ask", CHAT, "hi", "--config", "family=x"), "no model setting 'family'"),
        (("ask", CHAT, "hi", "--logprobs", "-1", "--json"), "-1 is none"),
        (("ask", "", "hi"), "PATH is empty."),
        (("list", ""), "DIR is empty."),
        (("ask", CHAT, "hi", "--temperature", "-1"), "between 0 and 5"),
        (("ask", CHAT, "hi", "--greedy", "--temperature", "1"), "--greedy"),
        (("ask", CHAT, "hi", "--preset", "nobody"), "nanoGPT"),
        (("ask", CHAT, "hi", "--ids", "1"), "--ids"),
        (("ask", CHAT, "--ids", "one"), "'one'"),
        (("ask", CHAT, "hi", "--config", "n_head"), "KEY=VALUE"),
        (("ask", CHAT, "hi", "-n", "0"), "-n"),
        (("ask", CHAT, "hi", "--logprobs", "1"), "--json"),
        (("ask", BASE, "hi", "--system", "x"), "--chat"),
        (("ask", CHAT, "hi", "--raw", "--system", "x"), "--raw asks for none. Leave out one"),
        (("ask", CHAT, "hi", "--chat", "--raw"), "--raw"),
        (("sessions",), "ACTION"),
        (("next", CHAT, "hi", "--top", "-1"), "--top"),
    ],
)
def test_wrong_usage_is_one_sentence_and_status_2(
    run: Run, arguments: tuple[str, ...], words: str
) -> None:
    done = run(*arguments)
    assert done.status == 2
    assert done.out == ""
    assert words in done.err and done.err.startswith("tui-chat: ")
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("command", ["ask", "next", "score", "inspect"])
def test_a_checkpoint_that_cannot_be_opened_is_status_3(
    run: Run, command: str, tmp_path: Path
) -> None:
    (tmp_path / "a\x1b[31mb.pt").write_bytes(b"junk")
    for path in (tmp_path / "nowhere.pt", tmp_path / "a\x1b[31mb.pt", tmp_path):
        done = run(command, str(path), *(() if command == "inspect" else ("hi",)))
        assert (done.status, done.out) == (3, "")
        assert done.err.count("\n") == 1 and "\x1b" not in done.err
    assert "Traceback" in run(command, "nowhere.pt", "--debug").err


def start(*arguments: str, **keywords: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "tui_chat", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "COLUMNS": "80"},
        **keywords,  # type: ignore[call-overload]
    )


LONG = ("--max-new-tokens", "100000", "--temperature", "2", "--raw")


def test_ctrl_c_keeps_what_was_made_and_ends_with_status_4() -> None:
    process = start("ask", BASE, "The", *LONG)
    assert process.stdout is not None and process.stderr is not None
    first = process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert process.returncode == 4
    assert len(first) == 20, "the reply streams into a pipe"
    assert b"Traceback" not in errors
    (first + rest).decode()


def test_a_reader_that_has_enough_ends_the_program_quietly() -> None:
    process = start("ask", BASE, "The", *LONG)
    assert process.stdout is not None and process.stderr is not None
    assert process.stdout.read(20)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == -signal.SIGPIPE
    assert errors == b""


def test_a_draft_and_lookup_change_nothing_that_is_said(run: Run) -> None:
    arguments = ("ask", BASE, "The king, the king, the", "--raw", "--seed", "3", "--json")
    plain = run(*arguments).json
    assert plain["stats"]["drafted_tokens"] == plain["stats"]["accepted_tokens"] == 0
    early = str(CHECKPOINTS / "demo-base" / "step_000263.safetensors")
    for option in (("--lookup",), ("--draft", early)):
        done = run(*arguments, *option)
        assert done.json["samples"] == plain["samples"]
        stats = done.json["stats"]
        assert 0 <= stats["accepted_tokens"] <= stats["drafted_tokens"] > 0
        assert re.fullmatch(
            r"draft: \d+ of \d+ tokens were proposed rightly; \d+% of what was proposed was "
            r"right\n",
            done.err,
        )


def test_a_checkpoint_that_cannot_draft_is_refused_in_a_sentence(run: Run) -> None:
    tiny = Path(__file__).parents[1] / "fixtures/S3/tiny_fallback/checkpoints/tiny"
    done = run("ask", BASE, "The", "--draft", str(tiny))
    assert (done.status, done.out) == (2, "")
    assert done.err.startswith("tui-chat: tiny/2 cannot draft: its architecture computes the whole")
    assert run("ask", BASE, "The", "--draft", BASE, "--lookup").status == 2
    assert run("ask", str(tiny), "The", "--lookup").status == 2
