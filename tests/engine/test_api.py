"""`tui_chat.open` and what it gives, on tiny checkpoints and on the references of the original
systems.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import tui_chat
from tui_chat.engine.events import Event, Prompt, Started
from tui_chat.errors import CheckpointError, EngineError, UsageError
from tui_chat.sampling import SamplingParams

from .small import GREEDY, LETTERS, alphabet_weights, raw, save_nanogpt

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
REFERENCES = sorted(FIXTURES.glob("S0/*/reference.json")) + sorted(
    FIXTURES.glob("nanogpt/char-bias/reference.json")
)


def test_open_generate_decode(alphabet: str) -> None:
    checkpoint = tui_chat.open(alphabet, device="cpu", dtype="float32", step=None)
    ids = checkpoint.encode("abc")
    steps = list(checkpoint.generate(ids, temperature=0.0, max_new_tokens=4))
    assert [step.text for step in steps] == list("defg")
    assert checkpoint.decode(step.id for step in steps) == "defg"
    assert all(-0.1 < step.logprob <= 0 for step in steps)
    assert checkpoint.info.step == 100


def test_next_logits_are_the_models_own(alphabet: str) -> None:
    checkpoint = tui_chat.open(alphabet)
    logits = checkpoint.next_logits(checkpoint.encode("abc"))
    assert logits.shape == (len(LETTERS),)
    assert int(logits.argmax()) == LETTERS.index("d")
    long = checkpoint.next_logits([1] * 500 + checkpoint.encode("abc"))
    assert int(long.argmax()) == LETTERS.index("d")


def test_a_reply_reports_every_event_and_can_be_cancelled(alphabet: str) -> None:
    checkpoint = tui_chat.open(alphabet)
    seen: list[Event] = []
    finished = checkpoint.reply(raw("abc"), GREEDY, on_event=seen.append)
    assert finished.text == "defghijk"
    assert isinstance(seen[0], Started) and seen[-1] is finished
    stopped = checkpoint.reply(raw("abc"), GREEDY, cancelled=lambda: len(seen) > 0)
    assert stopped.reason == "cancelled"


def test_messages_go_through_the_template(alphabet: str) -> None:
    checkpoint = tui_chat.open(alphabet)
    ids = checkpoint.prompt_ids([{"role": "user", "content": "hello"}])
    assert "hello" in checkpoint.decode(ids)
    with pytest.raises(UsageError, match="needs a role"):
        checkpoint.prompt_ids([{"role": "wizard", "content": "hello"}])


def test_explain_shows_what_the_knobs_leave(alphabet: str) -> None:
    checkpoint = tui_chat.open(alphabet)
    ids = checkpoint.encode("abc")
    _, explained = checkpoint.explain(ids, SamplingParams(top_k=1))
    assert explained.cut_by[LETTERS.index("d")] is None
    assert explained.cut_by[LETTERS.index("e")] == "top_k"


def test_wrong_options_are_named(alphabet: str) -> None:
    with pytest.raises(UsageError, match=r"no option 'temprature'.*device, dtype"):
        tui_chat.open(alphabet, temprature=1)
    with pytest.raises(UsageError, match="bfloat16, float16, float32, int8"):
        tui_chat.open(alphabet, dtype="float12")
    with pytest.raises(UsageError, match="'gpu9'"):
        tui_chat.open(alphabet, device="gpu9")
    with pytest.raises(UsageError, match="no sampling knob 'warmth'"):
        next(tui_chat.open(alphabet).generate([1], warmth=2))
    with pytest.raises(CheckpointError):
        tui_chat.open("/nowhere/at/all.pt")


def test_a_reply_that_fails_raises(tmp_path: Path) -> None:
    weights = alphabet_weights()
    weights["position.weight"][4] = math.nan
    checkpoint = tui_chat.open(save_nanogpt(tmp_path, weights))
    made = []
    with pytest.raises(EngineError, match="holds NaN"):
        for step in checkpoint.generate([0, 1, 2], temperature=0.0):
            made.append(step.text)
    assert made == ["d", "e"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "int8"])
def test_fewer_bits_say_the_same_alphabet(alphabet: str, dtype: str) -> None:
    checkpoint = tui_chat.open(alphabet, dtype=dtype)
    assert checkpoint.loaded.dtype == dtype
    assert checkpoint.reply(raw("abc"), GREEDY).text == "defghijk"


@pytest.fixture(scope="module", params=REFERENCES, ids=lambda path: path.parent.name)
def reference(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    wanted = json.loads(request.param.read_text())
    if (wanted.get("tokenizer") or {}).get("kind") == "tiktoken":
        pytest.skip("needs a rank file")
    return tui_chat.open(str(request.param.parent / wanted["checkpoint"]), device="cpu"), wanted


def test_greedy_ids_are_those_of_the_original_system(reference: tuple[Any, Any]) -> None:
    checkpoint, wanted = reference
    for case in wanted["cases"]:
        prompt = case["prompt_ids"]
        room = wanted["context_length"] - len(prompt)
        greedy = case["greedy_ids"][:room]
        steps = checkpoint.generate(prompt, temperature=0.0, max_new_tokens=max(1, len(greedy)))
        assert [step.id for step in steps][: len(greedy)] == greedy


def test_logits_are_those_of_the_original_system(reference: tuple[Any, Any]) -> None:
    checkpoint, wanted = reference
    for case in wanted["cases"]:
        logits = checkpoint.next_logits(case["prompt_ids"]).tolist()
        assert logits == pytest.approx(case["last_logits"], abs=2e-3, rel=1e-3)


def test_the_knobs_keep_what_the_original_sampler_keeps(reference: tuple[Any, Any]) -> None:
    checkpoint, wanted = reference
    for case in wanted.get("sampling") or []:
        knobs = {name: value for name, value in case["knobs"].items() if value is not None}
        params = SamplingParams(**({"top_k": 0, "top_p": 1.0} | knobs))
        _, explained = checkpoint.explain(case["prompt_ids"], params)
        assert sum(name is None for name in explained.cut_by) == case["n_kept"]
        for token, probability in case["probs"]:
            assert float(explained.kept_probs[token]) == pytest.approx(probability, abs=1e-3)


def test_a_prompt_of_ids_is_answered_without_a_tokenizer(reference: tuple[Any, Any]) -> None:
    checkpoint, wanted = reference
    prompt = Prompt(mode="raw", ids=tuple(wanted["cases"][0]["prompt_ids"]))
    finished = checkpoint.reply(prompt, GREEDY)
    assert finished.text and finished.stats.new_tokens == len(finished.ids)
