"""The controller between conversation, worker and store, with a worker that says what the test
wants.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

from tui_chat.checkpoint.info import CheckpointInfo, TemplateHint, TokenizerHint
from tui_chat.conversation import Conversation, Message, Receipt
from tui_chat.engine import events as ev
from tui_chat.errors import EngineError
from tui_chat.model.spec import ModelSpec
from tui_chat.sampling import SamplingParams
from tui_chat.sessions.records import ChatMeta
from tui_chat.tui.chat import Chat

SPEC = ModelSpec(vocab_size=64, n_layer=1, n_head=1, n_embd=8, context_length=32)


def loaded(name: str = "run", mode: str = "chat") -> ev.Loaded:
    info = CheckpointInfo(
        path=f"/{name}.pt",
        format="x",
        spec=SPEC,
        parameters=1,
        dtype="float32",
        run=name,
        step=7,
        mode=mode,  # type: ignore[arg-type]
        tokenizer=TokenizerHint(kind="none"),
        template=TemplateHint(name="demo"),
        fingerprint=f"f-{name}",
    )
    return ev.Loaded(
        lane="main",
        info=info,
        device="cpu",
        dtype="float32",
        context_length=32,
        vocab_size=64,
        weight_bytes=1,
        cache_bytes_per_token=1,
        seconds=0.1,
    )


class Disk:
    """A store whose writes are done when the test says so."""

    def __init__(self) -> None:
        self.said: list[tuple[Any, ...]] = []
        self.open: list[Future[Any]] = []
        self.hold = False

    def _future(self) -> Future[Any]:
        future: Future[Any] = Future()
        if self.hold:
            self.open.append(future)
        else:
            future.set_result(None)
        return future

    def release(self) -> None:
        for future in self.open:
            future.set_result(None)
        self.open = []

    def save_conversation(self, meta: ChatMeta) -> Future[Any]:
        self.said.append(("chat", meta.id))
        return self._future()

    def add_message(
        self, conversation: str, message: Message, *, finished: bool = True
    ) -> Future[Any]:
        self.said.append(("message", message.role, message.text, finished))
        return self._future()

    def reopen_reply(self, message_id: str) -> Future[Any]:
        self.said.append(("reopened",))
        return self._future()

    def update_reply(
        self, message_id: str, text: str, receipt: Receipt | None, finished: bool
    ) -> Future[Any]:
        self.said.append(("reply", text, finished))
        return self._future()


class View:
    def __init__(self) -> None:
        self.text = ""
        self.finished: list[Message] = []
        self.sentences: list[str] = []
        self.redrawn = 0
        self.returned = ""

    def conversation_changed(self) -> None:
        self.redrawn += 1

    def message_added(self, message: Message) -> None: ...
    def text_added(self, message_id: str, text: str) -> None:
        self.text += text

    def message_changed(self, message: Message) -> None:
        self.finished.append(message)

    def give_back(self, text: str) -> None:
        self.returned = text

    def say(self, text: str, *, error: bool = False) -> None:
        self.sentences.append(text)


class Bench:
    def __init__(self) -> None:
        self.sent: list[ev.Request] = []
        self.disk = Disk()
        self.view = View()
        here: Callable[[Callable[[], None]], None] = lambda call: call()  # noqa: E731
        self.chat = Chat(self.view, self.sent.append, self.disk, in_screen=here)
        self.chat.handle(loaded())

    @property
    def asked(self) -> list[ev.Generate]:
        return [request for request in self.sent if isinstance(request, ev.Generate)]

    def start(self, **more: Any) -> str:
        request = self.asked[-1].request_id
        self.chat.handle(
            ev.Started(
                request_id=request,
                lane="main",
                seed=5,
                prompt_ids=(1, 2, 3),
                reused_tokens=0,
                **more,
            )
        )
        return request

    def step(self, request: str, *pieces: str) -> None:
        for piece in pieces:
            self.chat.handle(
                ev.Stepped(request_id=request, text=piece, steps=(ev.Step(1, piece, -1.0),))
            )

    def finish(self, request: str, text: str, reason: str = "stop") -> None:
        stats = ev.Stats(
            prompt_tokens=3, reused_tokens=0, prefill_seconds=0.1, new_tokens=2, decode_seconds=0.1
        )
        self.chat.handle(
            ev.Finished(
                request_id=request, lane="main", reason=reason, text=text, ids=(), stats=stats
            )  # type: ignore[arg-type]
        )

    def reply(self, text: str) -> None:
        request = self.start()
        self.step(request, text)
        self.finish(request, text)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def texts(conversation: Conversation) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in conversation.path()]


def test_a_prompt_is_on_disk_before_the_model_sees_it(bench: Bench) -> None:
    bench.disk.hold = True
    bench.chat.submit("Hello")
    assert ("message", "user", "Hello", True) in bench.disk.said
    assert not bench.asked
    bench.disk.release()
    assert [turn.text for turn in bench.asked[0].prompt.turns] == ["Hello"]


def test_a_reply_is_shown_as_finished_only_once_it_is_on_disk(bench: Bench) -> None:
    bench.chat.submit("Hello")
    request = bench.start()
    bench.step(request, "Hi", " you")
    assert bench.view.text == "Hi you"
    bench.disk.hold = True
    bench.finish(request, "Hi you")
    assert not bench.view.finished
    bench.disk.release()
    receipt = bench.view.finished[0].receipt
    assert receipt is not None
    assert (receipt.checkpoint, receipt.seed, receipt.stop_reason) == ("run/7", 5, "stop")
    assert bench.disk.said[-1] == ("reply", "Hi you", True)


def test_the_second_turn_sends_the_whole_conversation_and_the_system_prompt_first(
    bench: Bench,
) -> None:
    bench.chat.set_system("Be brief.")
    bench.chat.submit("Hello")
    bench.reply("Hi")
    bench.chat.submit("And now?")
    assert [(t.role, t.text) for t in bench.asked[-1].prompt.turns] == [
        ("system", "Be brief."),
        ("user", "Hello"),
        ("assistant", "Hi"),
        ("user", "And now?"),
    ]


def test_retry_adds_a_sibling_and_keeps_the_first_reply(bench: Bench) -> None:
    bench.chat.submit("Hello")
    bench.reply("one")
    bench.chat.retry()
    bench.reply("two")
    assert texts(bench.chat.conversation) == [("user", "Hello"), ("assistant", "two")]
    versions = bench.chat.conversation.siblings(bench.chat.conversation.path()[-1].id)
    assert [bench.chat.conversation[version].text for version in versions] == ["one", "two"]


def test_retry_with_a_locked_seed_takes_the_next_one(bench: Bench) -> None:
    bench.chat.set_params(SamplingParams(seed=41))
    bench.chat.submit("Hello")
    assert bench.asked[-1].params.seed == 41
    bench.reply("one")
    bench.chat.retry()
    assert bench.asked[-1].params.seed == 42
    assert bench.chat.params.seed == 41


def test_a_knob_turned_while_a_reply_runs_is_sent_and_remembered_with_its_place(
    bench: Bench,
) -> None:
    bench.chat.submit("Hello")
    request = bench.start()
    bench.step(request, "a", "b")
    bench.chat.set_params(bench.chat.params.with_(temperature=1.5))
    bench.chat.set_params(bench.chat.params.with_(temperature=2.0, top_k=5))
    assert [r.params.temperature for r in bench.sent if isinstance(r, ev.SetSampling)] == [1.5, 2.0]
    bench.step(request, "c")
    bench.finish(request, "abc")
    receipt = bench.view.finished[0].receipt
    assert receipt is not None
    assert receipt.sampling_changes == ((2, {"temperature": 2.0, "top_k": 5}),)


def test_stop_keeps_what_was_shown(bench: Bench) -> None:
    bench.chat.submit("Hello")
    request = bench.start()
    bench.step(request, "half a")
    assert bench.chat.stop()
    assert bench.sent[-1] == ev.Stop(request_id=request)
    bench.finish(request, "half a", "cancelled")
    assert texts(bench.chat.conversation)[-1] == ("assistant", "half a")
    assert not bench.chat.stop()


def test_a_failure_keeps_the_text_and_says_one_sentence(bench: Bench) -> None:
    bench.chat.submit("Hello")
    request = bench.start()
    bench.step(request, "so far")
    bench.chat.handle(
        ev.Failed(lane="main", request_id=request, error=EngineError("NaN in the output"))
    )
    assert bench.view.sentences == ["NaN in the output."]
    assert bench.disk.said[-1] == ("reply", "so far", True)
    assert bench.chat.submit("Again")


def test_a_prompt_given_while_the_checkpoint_loads_is_asked_when_it_is_there(bench: Bench) -> None:
    bench.chat.load("/other.pt")
    bench.chat.submit("Hello")
    assert not bench.asked
    assert bench.chat.waiting
    bench.chat.handle(loaded("other"))
    assert len(bench.asked) == 1
    bench.reply("Hi")
    receipt = bench.chat.conversation.path()[-1].receipt
    assert receipt is not None
    assert receipt.checkpoint == "other/7"


def test_a_failed_load_leaves_the_conversation_and_the_prompt(bench: Bench) -> None:
    bench.chat.load("/gone.pt")
    bench.chat.submit("Hello")
    bench.chat.handle(ev.LoadFailed(lane="main", path="/gone.pt", error=EngineError("it is gone")))
    assert bench.view.sentences == ["it is gone."]
    assert texts(bench.chat.conversation) == [("user", "Hello")]
    bench.chat.retry()
    assert len(bench.asked) == 1


def test_opening_another_chat_while_a_reply_runs_keeps_that_reply_in_its_own_chat(
    bench: Bench,
) -> None:
    bench.chat.submit("Hello")
    request = bench.start()
    first = bench.chat.conversation
    bench.step(request, "some")
    bench.chat.open(Conversation())
    bench.step(request, " more")
    bench.finish(request, "some more", "cancelled")
    assert texts(first)[-1] == ("assistant", "some more")
    assert not len(bench.chat.conversation)
    assert bench.view.text == "some"


def test_raw_mode_sends_one_text_and_an_empty_prompt_goes_on(bench: Bench) -> None:
    bench.chat.set_mode("raw")
    bench.chat.submit("Once upon")
    bench.reply(" a time")
    assert bench.chat.submit("")
    assert bench.asked[-1].prompt.text == "Once upon a time"
    bench.reply(" there was")
    assert bench.chat.conversation.raw_text() == "Once upon a time there was"


def test_continue_goes_on_with_the_last_reply_in_its_own_message(bench: Bench) -> None:
    bench.chat.submit("Hello")
    bench.reply("one")
    bench.chat.continue_reply()
    assert bench.asked[-1].prompt.continue_last
    request = bench.start()
    bench.step(request, " two")
    bench.finish(request, " two")
    assert texts(bench.chat.conversation) == [("user", "Hello"), ("assistant", "one two")]


def test_the_window_is_told_by_the_message_at_which_it_begins(bench: Bench) -> None:
    bench.chat.set_system("s")
    bench.chat.submit("one")
    bench.reply("two")
    bench.chat.submit("three")
    path = bench.chat.conversation.path()
    bench.start(first_turn=3, dropped_tokens=9)
    assert bench.chat.window == path[2].id


def test_a_reply_stopped_before_its_first_word_is_not_sent(bench: Bench) -> None:
    bench.chat.submit("one")
    request = bench.start()
    bench.finish(request, "", "cancelled")
    bench.chat.submit("two")
    assert [turn.text for turn in bench.asked[-1].prompt.turns] == ["one", "two"]


def test_stop_before_the_prompt_is_on_disk_asks_nothing(bench: Bench) -> None:
    bench.disk.hold = True
    bench.chat.submit("Hello")
    assert bench.chat.stop()
    bench.disk.release()
    assert not bench.asked
    bench.disk.hold = False
    assert bench.chat.submit("Again")


def test_a_prompt_that_waits_is_asked_of_the_checkpoint_opened_then(bench: Bench) -> None:
    bench.chat.loaded = None
    bench.chat.submit("Hello")
    bench.chat.load("/other.pt")
    bench.chat.handle(loaded("other"))
    assert [turn.text for turn in bench.asked[-1].prompt.turns] == ["Hello"]


def test_the_end_of_a_load_that_was_replaced_changes_nothing(bench: Bench) -> None:
    bench.chat.load("/one.pt")
    bench.chat.load("/two.pt")
    bench.chat.submit("Hello")
    gone = EngineError("cancelled")
    bench.chat.handle(ev.LoadFailed(lane="main", path="/one.pt", error=gone, cancelled=True))
    assert bench.chat.loading is not None
    bench.chat.handle(loaded("two"))
    assert len(bench.asked) == 1


@pytest.mark.parametrize("lane", ["", "main"])
def test_a_stumble_of_the_worker_leaves_nothing_running(bench: Bench, lane: str) -> None:
    bench.chat.submit("Hello")
    request = bench.start()
    bench.step(request, "so far")
    bench.chat.load("/other.pt")
    bench.chat.handle(ev.Failed(lane=lane, request_id="", error=EngineError("it stumbled")))
    assert bench.chat.reply is None
    assert bench.chat.loading is None
    assert bench.view.sentences[-1] == "it stumbled."
    assert texts(bench.chat.conversation)[-1] == ("assistant", "so far")
    assert bench.chat.submit("Again")


def test_a_prompt_that_cannot_begin_goes_back_to_where_it_was_written(bench: Bench) -> None:
    bench.chat.submit("one")
    bench.reply("two")
    bench.chat.submit("far too long")
    request = bench.asked[-1].request_id
    error = EngineError("the message is too long")
    bench.chat.handle(ev.Failed(lane="main", request_id=request, error=error))
    assert bench.view.returned == "far too long"
    assert texts(bench.chat.conversation) == [("user", "one"), ("assistant", "two")]


def test_a_retry_that_fails_leaves_the_reply_there_was(bench: Bench) -> None:
    bench.chat.submit("one")
    bench.reply("two")
    bench.chat.retry()
    request = bench.asked[-1].request_id
    bench.chat.handle(ev.Failed(lane="main", request_id=request, error=EngineError("no")))
    assert texts(bench.chat.conversation) == [("user", "one"), ("assistant", "two")]


def test_going_on_keeps_what_made_the_first_part_in_the_receipt(bench: Bench) -> None:
    bench.chat.submit("one")
    bench.reply("two")
    first = bench.chat.conversation.path()[-1].receipt
    bench.chat.continue_reply()
    assert ("reopened",) not in bench.disk.said
    request = bench.start()
    assert bench.disk.said[-1] == ("reopened",)
    bench.finish(request, "")
    assert bench.chat.conversation.path()[-1].receipt == first
    bench.chat.continue_reply()
    request = bench.start()
    bench.step(request, " more")
    bench.finish(request, " more")
    receipt = bench.chat.conversation.path()[-1].receipt
    assert first is not None and receipt is not None
    assert (receipt.seed, receipt.new_tokens) == (first.seed, 4)
    assert receipt.sampling_changes == ((2, {"seed": 5}),)


def test_any_reply_can_be_retried_where_it_stands(bench: Bench) -> None:
    bench.chat.submit("one")
    bench.reply("first")
    target = bench.chat.conversation.path()[-1].id
    bench.chat.submit("two")
    bench.reply("second")
    bench.chat.retry(target)
    assert [turn.text for turn in bench.asked[-1].prompt.turns] == ["one"]
    bench.reply("another first")
    assert texts(bench.chat.conversation) == [("user", "one"), ("assistant", "another first")]


def test_a_new_chat_is_in_the_mode_chosen_by_hand_until_another_checkpoint_comes(
    bench: Bench,
) -> None:
    bench.chat.set_mode("raw")
    bench.chat.submit("text")
    bench.reply(" more")
    bench.chat.new()
    assert bench.chat.conversation.mode == "raw"
    bench.chat.load("/other.pt")
    bench.chat.handle(loaded("other", mode="chat"))
    assert bench.chat.conversation.mode == "chat"
