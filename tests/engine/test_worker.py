"""The real worker thread on real files: loading, streaming, stopping, several lanes, faults."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from torch import Tensor

from tui_chat.conversation import Turn
from tui_chat.engine.blame import wrapped
from tui_chat.engine.events import (
    CancelLoad,
    Counted,
    CountTokens,
    Event,
    Failed,
    Finished,
    Generate,
    Load,
    Loaded,
    LoadFailed,
    LoadOptions,
    LoadProgress,
    Prompt,
    PromptShown,
    Request,
    SetSampling,
    ShowPrompt,
    Started,
    Stepped,
    Stop,
    Unload,
    Unloaded,
)
from tui_chat.engine.worker import Worker
from tui_chat.errors import EngineError
from tui_chat.model.cache import KVCache
from tui_chat.model.decoder import Decoder
from tui_chat.sampling import SamplingParams

from .small import GREEDY, LETTERS, chat, raw

LONG = GREEDY.with_(max_new_tokens=3000)
CPU = LoadOptions(device="cpu")
T = TypeVar("T")


class Driver:
    """A worker, what it emitted, and waiting for conditions. `react` runs in the worker's
    thread.
    """

    def __init__(self, **options: int) -> None:
        self.events: list[Event] = []
        self.react: Callable[[Event], None] = lambda event: None
        self._changed = threading.Condition()
        self.worker = Worker(self._emit, **options)

    def _emit(self, event: Event) -> None:
        self.react(event)
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def send(self, *requests: Request) -> None:
        for request in requests:
            self.worker.send(request)

    def until(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, timeout=30), self.events[-5:]

    def of(self, kind: type[T], lane: str | None = None) -> list[T]:
        return [
            event
            for event in self.events
            if isinstance(event, kind) and (lane is None or getattr(event, "lane", lane) == lane)
        ]

    def open(self, lane: str, path: str) -> Loaded:
        before = len(self.of(Loaded, lane))
        self.send(Load(lane=lane, path=path, options=CPU))
        self.until(lambda: len(self.of(Loaded, lane)) > before or self.of(LoadFailed, lane))
        return self.of(Loaded, lane)[-1]

    def finished(self, request_id: str) -> Finished:
        def found() -> list[Finished]:
            return [event for event in self.of(Finished) if event.request_id == request_id]

        self.until(found)
        return found()[0]


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    driver.worker.start()
    yield driver
    assert driver.worker.close(timeout=20)


def ask(
    text: str, params: SamplingParams = GREEDY, *, lane: str = "a", request_id: str = "r"
) -> Generate:
    return Generate(lane=lane, request_id=request_id, prompt=raw(text), params=params)


def test_importing_the_worker_loads_no_torch() -> None:
    code = "import sys, tui_chat.engine.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_checkpoint_loads_and_a_reply_streams(driver: Driver, alphabet: str) -> None:
    loaded = driver.open("a", alphabet)
    assert (loaded.device, loaded.dtype, loaded.context_length) == ("cpu", "float32", 64)
    assert loaded.vocab_size == len(LETTERS)
    assert loaded.cache_bytes_per_token == 2 * 40 * 4
    stages = [event.stage for event in driver.of(LoadProgress)]
    assert list(dict.fromkeys(stages)) == [
        "starting torch",
        "reading",
        "loading weights",
        "tokenizer",
        "warming up",
    ]
    driver.send(ask("abc"))
    assert driver.finished("r").text == "defghijk"
    own = driver.events[driver.events.index(loaded) + 1 :]
    assert isinstance(own[0], Started)
    assert "".join(event.text for event in driver.of(Stepped)) == "defghijk"
    assert driver.finished("r").stats.tokens_per_second > 0


def test_a_stop_is_heard_within_one_token(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.text == "f":
            driver.send(Stop(request_id="r"))

    driver.react = stop
    driver.send(ask("abc", LONG))
    finished = driver.finished("r")
    assert (finished.reason, finished.text) == ("cancelled", "def")


def test_a_knob_acts_at_the_next_token(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)

    def turn(event: Event) -> None:
        if isinstance(event, Stepped) and event.text == "f":
            driver.send(SetSampling(lane="a", params=LONG.with_(stop=["g"])))

    driver.react = turn
    driver.send(ask("abc", LONG))
    assert driver.finished("r").text == "def"


def test_two_lanes_advance_in_turn(driver: Driver, alphabet: str, noise: str) -> None:
    driver.open("a", alphabet)
    driver.open("b", noise)
    few = LONG.with_(max_new_tokens=400)
    driver.send(ask("abc", few), ask("abc", few, lane="b", request_id="q"))
    driver.finished("r")
    driver.finished("q")
    order = [e.request_id for e in driver.events if isinstance(e, Stepped | Finished)]
    turns = sum(one != other for one, other in pairwise(order))
    assert turns > 4  # neither waited for the other to end


def test_lanes_of_one_checkpoint_write_in_step_and_say_what_each_says_alone(
    driver: Driver, alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With different lengths, one that is stopped and one whose window moves while they write."""
    for lane in "abc":
        driver.open(lane, alphabet)
    batches: list[int] = []
    together = Decoder.forward_each

    def counted(model: Decoder, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        batches.append(len(ids))
        return together(model, ids, caches)

    monkeypatch.setattr(Decoder, "forward_each", counted)

    def stop(event: Event) -> None:
        if isinstance(event, Stepped) and event.request_id == "b" and event.text == "z":
            driver.send(Stop(request_id="b"))

    driver.react = stop
    driver.send(
        *(
            ask(text, LONG.with_(max_new_tokens=count), lane=lane, request_id=lane)
            for lane, text, count in (("a", "abc", 9), ("b", "mno", 3000), ("c", "xyz", 200))
        )
    )
    texts = {lane: driver.finished(lane).text for lane in "abc"}
    assert texts["a"] == "defghijkl"
    assert texts["b"] in ("pqrstuvwxyz", "pqrstuvwxyz.")  # a stop is heard after at most a token
    assert texts["c"] == (LETTERS * 10)[26:226]
    assert max(batches) == 3 and batches.count(3) >= 5 and 2 in batches


def test_a_new_question_in_a_lane_ends_the_running_reply(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    driver.send(ask("abc", LONG))
    driver.until(lambda: driver.of(Stepped))
    driver.send(ask("xyz", request_id="q"))
    assert driver.finished("r").reason == "cancelled"
    assert driver.finished("q").text.startswith(".:\n")


def test_the_newest_count_is_answered_while_a_reply_runs(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    counts = [
        CountTokens(lane="a", request_id="draft", prompt=raw("x" * n + "Ä")) for n in range(1, 40)
    ]

    def count(event: Event) -> None:
        if isinstance(event, Stepped) and event.text == "d":
            driver.react = lambda event: None
            driver.send(*counts)

    driver.react = count
    driver.send(ask("abc", LONG))
    driver.until(lambda: driver.of(Counted))
    assert not driver.of(Finished)
    driver.send(Stop(request_id="r"))
    driver.finished("r")
    (answer,) = driver.of(Counted)
    assert (answer.tokens, answer.missing) == (39, "Ä")


def test_a_file_that_is_not_there_fails_with_a_sentence(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    driver.send(Load(lane="a", path="/nowhere/ckpt.pt"))
    driver.until(lambda: driver.of(LoadFailed))
    failed = driver.of(LoadFailed)[0]
    assert "ckpt.pt: no such file" in str(failed.error) and not failed.cancelled
    driver.send(ask("abc"))  # the lane keeps what it had
    assert driver.finished("r").text == "defghijk"


def test_asking_an_empty_lane_fails_with_a_sentence(driver: Driver) -> None:
    driver.send(ask("abc"))
    driver.until(lambda: driver.of(Failed))
    assert "no checkpoint" in str(driver.of(Failed)[0].error)


def test_loading_can_be_cancelled(alphabet: str, noise: str) -> None:
    driver = Driver()
    driver.send(
        Load(lane="a", path=alphabet, options=CPU), CancelLoad(lane="a"), ask("abc", request_id="q")
    )
    driver.worker.start()
    driver.until(lambda: driver.of(Failed))
    (failed,) = driver.of(LoadFailed)
    assert failed.cancelled
    assert not driver.of(Loaded)
    assert driver.worker.close(timeout=20)


def test_a_newer_load_for_the_lane_takes_the_place_of_an_older(alphabet: str, noise: str) -> None:
    driver = Driver()
    driver.send(Load(lane="a", path=noise, options=CPU), Load(lane="a", path=alphabet, options=CPU))
    driver.worker.start()
    driver.until(lambda: driver.of(Loaded))
    assert driver.of(Loaded)[0].info.path == alphabet
    assert driver.of(LoadFailed)[0].cancelled
    assert driver.worker.close(timeout=20)


def test_a_question_that_waits_for_its_checkpoint_can_be_stopped(alphabet: str) -> None:
    driver = Driver()
    driver.send(Load(lane="a", path=alphabet, options=CPU), ask("abc"), ask("xyz", request_id="q"))
    driver.send(Stop(request_id="r"))
    driver.worker.start()
    finished = driver.finished("r")
    assert (finished.reason, finished.ids) == ("cancelled", ())
    assert driver.finished("q").text.startswith(".:")
    assert driver.worker.close(timeout=20)


def test_another_lane_goes_on_while_a_checkpoint_loads(
    driver: Driver, alphabet: str, noise: str
) -> None:
    driver.open("a", alphabet)
    driver.send(ask("abc", LONG))
    driver.until(lambda: driver.of(Stepped))
    driver.open("b", noise)
    end = driver.events.index(driver.of(Loaded, "b")[0])
    begin = driver.events.index(driver.of(LoadProgress, "b")[0])
    assert any(isinstance(event, Stepped) for event in driver.events[begin:end])
    driver.send(Stop(request_id="r"))
    text = driver.finished("r").text
    assert text == (LETTERS * 100)[3 : 3 + len(text)]


def test_loading_into_a_lane_ends_its_reply(driver: Driver, alphabet: str, noise: str) -> None:
    driver.open("a", alphabet)
    driver.send(ask("abc", LONG))
    driver.until(lambda: driver.of(Stepped))
    driver.open("a", noise)
    assert driver.finished("r").reason == "cancelled"
    driver.send(ask("abc", request_id="q"))
    driver.finished("q")
    assert driver.of(Started)[-1].reused_tokens == 0


def test_switching_back_reads_nothing_again(driver: Driver, alphabet: str, noise: str) -> None:
    driver.open("a", alphabet)
    driver.open("a", noise)
    before = len(driver.events)
    driver.open("a", alphabet)
    stages = {e.stage for e in driver.events[before:] if isinstance(e, LoadProgress)}
    assert "loading weights" not in stages
    driver.send(ask("abc"))
    assert driver.finished("r").text == "defghijk"


def test_a_lane_goes_on_with_its_cache_when_its_checkpoint_comes_back(
    driver: Driver, alphabet: str, noise: str
) -> None:
    driver.open("a", alphabet)
    driver.send(ask("abcdefghijklm"))
    driver.finished("r")
    driver.open("a", noise)
    driver.send(ask("abcdefghijklm", request_id="q"))
    driver.finished("q")
    driver.open("a", alphabet)
    driver.send(ask("abcdefghijklmno", request_id="s"))
    assert driver.finished("s").text.startswith("pq")
    reused = {event.request_id: event.reused_tokens for event in driver.of(Started)}
    assert reused == {"r": 0, "q": 0, "s": 14}


def test_no_budget_keeps_no_idle_checkpoint(alphabet: str, noise: str) -> None:
    driver = Driver(memory_budget=0)
    driver.worker.start()
    driver.open("a", alphabet)
    driver.open("a", noise)
    before = len(driver.events)
    driver.open("a", alphabet)
    stages = {e.stage for e in driver.events[before:] if isinstance(e, LoadProgress)}
    assert "loading weights" in stages
    assert driver.worker.close(timeout=20)


def test_unloading_frees_the_lane(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    driver.send(Unload(lane="a"), ask("abc"))
    driver.until(lambda: driver.of(Failed))
    assert driver.of(Unloaded)


def test_a_prompt_is_shown_with_its_control_tokens_apart(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    tokenizer = driver.worker._lanes["a"].checkpoint.tokenizer
    object.__setattr__(tokenizer, "special", {"<|end|>": 3})
    question = ShowPrompt(lane="a", request_id="p", prompt=Prompt(mode="raw", ids=(0, 1, 3, 2, 28)))
    driver.send(question)
    driver.until(lambda: driver.of(PromptShown))
    told = driver.of(PromptShown)[0]
    assert (told.tokens, told.pieces) == (5, (("ab", False), ("<|end|>", True), ("c\n", False)))


def test_why_a_prompt_cannot_be_shown_is_told(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    turns = (Turn(role=cast(Any, "judge"), text="order"),)
    driver.send(ShowPrompt(lane="a", request_id="p", prompt=Prompt(mode="chat", turns=turns)))
    driver.until(lambda: driver.of(PromptShown))
    assert "no role 'judge'" in driver.of(PromptShown)[0].why


class Panic(BaseException):
    """What a tokenizer written in Rust raises: no Exception."""


@pytest.mark.parametrize("error", [Panic("index out of bounds"), ValueError("of no use")])
def test_whatever_breaks_in_a_reply_is_told_and_the_thread_lives(
    driver: Driver, alphabet: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:

    driver.open("a", alphabet)
    forward = Decoder.forward

    def breaking(self: Decoder, *args: object) -> object:
        raise error

    monkeypatch.setattr(Decoder, "forward", breaking)
    driver.send(ask("abc"))
    driver.until(lambda: driver.of(Failed))
    assert type(error).__name__ in str(driver.of(Failed)[0].error)
    monkeypatch.setattr(Decoder, "forward", forward)
    driver.send(ask("abc", request_id="q"))
    assert driver.finished("q").text == "defghijk"


def test_whatever_breaks_in_loading_is_told(
    driver: Driver, alphabet: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tui_chat.engine import load

    def breaking(*args: object) -> object:
        raise Panic("no such piece")

    driver.open("a", alphabet)
    monkeypatch.setattr(load, "open_tokenizer", breaking)
    driver.send(Load(lane="b", path=alphabet, options=LoadOptions(device="cpu", dtype="float16")))
    driver.until(lambda: driver.of(LoadFailed))
    assert "no such piece" in str(driver.of(LoadFailed)[0].error)


def test_a_listener_that_breaks_does_not_break_the_thread(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)

    def breaking(event: Event) -> None:
        if isinstance(event, Started):
            raise RuntimeError("the screen is gone")

    driver.react = breaking
    driver.send(ask("abc"))
    assert driver.finished("r").text == "defghijk"


def test_chat_works_without_a_template_of_its_own(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    prompt = Prompt(turns=(Turn("user", "hello"),))
    driver.send(Generate(lane="a", request_id="r", prompt=prompt, params=GREEDY))
    driver.finished("r")
    assert driver.of(Started)[0].prompt_ids


def test_closing_in_the_middle_of_a_reply_ends_it(alphabet: str, tmp_path: Path) -> None:
    driver = Driver()
    driver.worker.start()
    driver.open("a", alphabet)
    driver.send(ask("abc", LONG))
    driver.until(lambda: driver.of(Stepped))
    assert driver.worker.close(timeout=20)
    assert driver.finished("r").reason == "cancelled"


def test_unknown_exceptions_become_one_sentence() -> None:
    error = wrapped(KeyError("x"))
    assert isinstance(error, EngineError)
    assert (
        str(error)
        == "something went wrong that should not: KeyError: 'x'. The log has the details."
    )


def test_prompts_of_a_conversation_count_their_template(driver: Driver, alphabet: str) -> None:
    driver.open("a", alphabet)
    driver.send(CountTokens(lane="a", request_id="c", prompt=chat("hello")))
    driver.until(lambda: driver.of(Counted))
    assert driver.of(Counted)[0].tokens > len("hello")
