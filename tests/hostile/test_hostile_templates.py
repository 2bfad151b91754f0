"""Every hostile chat template and tokenizer of the corpus: nothing runs, nothing outlasts its
limits, each gets one clear sentence or works."""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tui_chat.checkpoint.info import TemplateHint, TokenizerHint
from tui_chat.conversation import Turn
from tui_chat.errors import CheckpointError, TuiChatError
from tui_chat.model.spec import ModelSpec
from tui_chat.templates.open import open_template
from tui_chat.tokenizers.base import Tokenizer
from tui_chat.tokenizers.bpe import GPT2_PATTERN, Bpe
from tui_chat.tokenizers.foreign import ForeignBpe
from tui_chat.tokenizers.huggingface import HuggingFace
from tui_chat.tokenizers.open import open_tokenizer

CORPUS = Path(__file__).parent
BYTES = {bytes([n]): n for n in range(256)}
SAID = [Turn("system", "Be brief."), Turn("user", "Hi {{ 7 * 7 }}")]
# More of the kinds that the corpus has a sample of: they must end, however they end.
MORE = {
    "endless-nesting": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "number-grows": "{{ 9 ** 9 ** 9 }}",
    "number-shown": "{{ (10 ** 20000)|string|length }}{{ 2 ** 99999999 }}",
    "list-grows": "{% set n = namespace(l=[1]) %}{% for i in range(60) %}"
    "{% set n.l = n.l + n.l %}{% endfor %}",
    "format-width": "{{ '%999999999d' % 1 }}",
    "format-method": "{{ '{:>999999999}'.format(1) }}",
    "ljust": "{{ 'a'.ljust(1000000000)|length }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "attributes": "{{ messages.__class__.__mro__ }}",
    "frame": "{{ raise_exception.__globals__ }}",
    "environment": "{{ self._TemplateReference__context.environment }}",
    "namespace": "{{ namespace.__init__.__globals__['os'] }}",
    "include": "{% include '/etc/passwd' %}",
    "extends": "{% extends 'x' %}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "wide": "{{ [" + "1," * 200_000 + "]|length }}",
    "mutation": "{% set _ = messages.append(1) %}",
    "exception-text": "{{ raise_exception('a\nb' * 9999) }}",
    "date": "{{ strftime_now('%Y' * 100000)|length }}",
    "tojson": "{% for i in range(3000) %}{{ range(5000)|list|tojson|length }}{% endfor %}",
    "surrogate": "{{ '\\ud800' }}",
    "recursive-loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
}


def lines(name: str) -> list[dict[str, Any]]:
    text = (CORPUS / name).read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def tokenizer() -> Bpe:
    return Bpe("bytes", BYTES, {"<|end|>": 256}, GPT2_PATTERN)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOSTILE_MARKER", str(tmp_path / "PWNED"))
    return tmp_path


def attempt(call: Callable[[], object]) -> tuple[str, str, float, float]:
    """What became of it, the message, seconds of processor time with those of processes that
    ended, and megabytes more than before here."""
    spent = _spent()
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        call()
        outcome, message = "render", ""
    except TuiChatError as error:
        outcome, message = "refuse", str(error)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    return outcome, message, _spent() - spent, grown / 1024


def _spent() -> float:
    own, others = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def render(source: str, tokenizer: Tokenizer) -> str:
    """What the template makes of a conversation, through the app's own door; its note."""
    template = open_template(TemplateHint(name="x", jinja=source), tokenizer)
    assert template is not None
    try:
        found = template.render(SAID)
        assert 256 not in found.ids or "<|end|>" in source
        return found.note
    finally:
        template.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("case", lines("templates.jsonl"), ids=lambda case: case["id"])
def test_a_hostile_template_renders_or_is_refused_as_it_should(
    case: dict[str, Any], work: Path, tokenizer: Bpe
) -> None:
    outcome, message, seconds, grown = attempt(lambda: render(case["template"], tokenizer))
    assert list(work.iterdir()) == []
    # A process that starts takes a quarter of a second of its own.
    assert seconds < case["max_seconds"] + 0.5 and grown < case["max_extra_mb"]
    assert case["expect"] in (outcome, "either"), message
    if outcome == "refuse":
        assert "\n" not in message and len(message) < 500 and "template" in message


@pytest.mark.parametrize("name", MORE)
def test_more_of_the_same_kinds_end_with_a_sentence_or_a_prompt(
    name: str, work: Path, tokenizer: Bpe
) -> None:
    outcome, message, seconds, grown = attempt(lambda: render(MORE[name], tokenizer))
    assert list(work.iterdir()) == [] and seconds < 3 and grown < 200
    if outcome == "refuse":
        assert "\n" not in message and len(message) < 500


def test_a_template_that_ignores_the_user_is_told_of(tokenizer: Bpe) -> None:
    assert "what the user said" in render("always the same", tokenizer)


@pytest.mark.parametrize("case", lines("tokenizers.jsonl"), ids=lambda case: case["id"])
def test_a_hostile_tokenizer_opens_or_is_refused_as_it_should(
    case: dict[str, Any], work: Path
) -> None:
    said = case["text"]
    text = said["repeat"] * said["times"] if isinstance(said, dict) else said
    opened: list[Bpe | HuggingFace] = []

    def call() -> None:
        opened.append(_opened(case, work))
        ids = opened[0].encode(text)
        assert not set(ids) & set(opened[0].special.values())
        assert opened[0].decode(ids) == text.replace("\ud800", "?") or case["expect"] == "either"

    try:
        outcome, message, seconds, _ = attempt(call)
    finally:
        for found in opened:
            if isinstance(found, (HuggingFace, ForeignBpe)):
                found.close()
    assert seconds < case["max_seconds"] + 0.5
    wanted = {"open": "render"}.get(case["expect"], case["expect"])
    assert wanted in (outcome, "either"), message
    if outcome == "refuse":
        assert "\n" not in message and len(message) < 500
    assert {path.name for path in work.iterdir()} <= {"tokenizer.json"}


def _opened(case: dict[str, Any], work: Path) -> Bpe | HuggingFace:
    data = case["data"]
    if case["kind"] == "tokenizer.json":
        path = work / "tokenizer.json"
        path.write_text(json.dumps(data))
        spec = ModelSpec(vocab_size=256, n_layer=1, n_head=1, n_embd=4, context_length=8)
        found = open_tokenizer(TokenizerHint(kind="tokenizer.json", path=str(path)), spec)
        assert isinstance(found, HuggingFace)
        return found
    listed = data["ranks_hex"]
    ranks = BYTES if listed == "bytes256" else {bytes.fromhex(k): v for k, v in listed.items()}
    return ForeignBpe("case", ranks, data["special"], data["pattern"])


def test_deep_and_wide_json_is_refused(work: Path) -> None:
    path = work / "tokenizer.json"
    spec = ModelSpec(vocab_size=256, n_layer=1, n_head=1, n_embd=4, context_length=8)
    hint = TokenizerHint(kind="tokenizer.json", path=str(path))
    for text in ("[" * 200_000, '{"model":' * 50_000, "[[]," * 5_000_000, "\x00" * 100, "", "{"):
        path.write_text(text)
        began = time.monotonic()
        with pytest.raises(CheckpointError) as caught:
            open_tokenizer(hint, spec)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
        assert time.monotonic() - began < 20


def test_no_process_is_left_behind() -> None:
    """What the tests above opened and closed is gone."""
    if not os.path.isdir("/proc"):
        pytest.skip("there is no /proc here")
    mine = f" {os.getpid()} "
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text().rsplit(")", 1)[1]
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            assert mine not in stat[:20] or b"child.py" not in command
