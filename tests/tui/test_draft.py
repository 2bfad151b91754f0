"""Who drafts for a chat: chosen, loaded in a lane of its own, refused, let go, and shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from textual.app import App

from tui_chat.checkpoint import catalog
from tui_chat.engine import events as ev
from tui_chat.errors import CheckpointError, UsageError
from tui_chat.tui.draft import LOOKUP, Draft
from tui_chat.tui.lines import ended
from tui_chat.tui.screens.picker import CheckpointPicker
from tui_chat.tui.widgets.conversation_view import CHAT_VARIABLES

from .host import screen_rows

FIXTURES = Path(__file__).parent.parent / "fixtures/nanogpt"
INFO = catalog.describe(str(FIXTURES / "char-bias"))
OPTIONS = ev.LoadOptions(device="cpu", dtype="int8", template="plain")


class Talk:
    """A draft, what it sent and what it told."""

    def __init__(self) -> None:
        self.sent: list[ev.Request] = []
        self.told: list[str] = []
        self.draft = Draft("main", self.sent.append, lambda text, error: self.told.append(text))

    def taken(self) -> list[ev.Request]:
        sent, self.sent[:] = list(self.sent), []
        return sent

    def loaded(self, path: str = "/runs/early.pt") -> None:
        self.draft.handle(
            ev.Loaded(
                lane="main/draft",
                info=replace(INFO, path=path),
                device="cpu",
                dtype="float32",
                context_length=64,
                vocab_size=65,
                weight_bytes=1,
                cache_bytes_per_token=1,
                seconds=0.1,
            )
        )

    def drafting(self) -> Talk:
        """With a checkpoint that drafts."""
        self.draft.target_loaded()
        self.draft.choose("early.pt", options=OPTIONS)
        self.loaded()
        self.draft.handle(ev.DraftSet(lane="main", kind="draft", label="early/100"))
        self.taken()
        return self


SET = ev.SetDraft(lane="main", by="main/draft")


def test_a_checkpoint_is_loaded_as_the_chats_own_and_then_drafts() -> None:
    talk = Talk()
    talk.draft.target_loaded()
    talk.draft.choose("early.pt", options=OPTIONS)
    options = ev.LoadOptions(device="cpu", dtype="int8")
    assert talk.taken() == [ev.Load(lane="main/draft", path="early.pt", options=options)]
    assert talk.draft.label == "loading the draft early.pt"
    talk.loaded()
    assert talk.taken() == [SET]
    assert talk.draft.handle(ev.DraftSet(lane="main", kind="draft", label="early/100"))
    assert talk.draft.label == "draft: early/100"
    assert talk.told == ["The draft is early/100; /draft off ends it."]
    assert talk.draft.path == "/runs/early.pt"


def test_what_is_chosen_before_the_checkpoint_is_there_waits_for_it() -> None:
    talk = Talk()
    talk.draft.choose(lookup=True, options=OPTIONS)
    assert talk.taken() == []
    talk.draft.target_loaded()
    assert talk.taken() == [ev.SetDraft(lane="main", lookup=True)]
    talk = Talk()
    talk.draft.choose("early.pt", options=OPTIONS)
    talk.taken()
    talk.loaded()
    assert talk.taken() == []
    talk.draft.target_loaded()
    assert talk.taken() == [SET]


def test_another_checkpoint_keeps_its_draft_without_a_word() -> None:
    talk = Talk().drafting()
    talk.told.clear()
    talk.draft.target_loaded()
    assert talk.taken() == [SET]
    talk.draft.handle(ev.DraftSet(lane="main", kind="draft", label="early/100"))
    assert talk.told == []


def test_what_does_not_fit_is_said_and_unloaded() -> None:
    talk = Talk().drafting()
    talk.draft.target_loaded()
    talk.taken()
    error = UsageError("early/100 cannot draft", "it knows 3 ids")
    talk.draft.handle(ev.DraftSet(lane="main", error=error))
    assert talk.told[-1] == "No draft: early/100 cannot draft: it knows 3 ids."
    assert talk.taken() == [ev.Unload(lane="main/draft")]
    assert (talk.draft.active, talk.draft.label) == (False, "")


def test_letting_it_go_frees_it() -> None:
    talk = Talk().drafting()
    talk.draft.choose(options=OPTIONS)
    assert talk.taken() == [ev.SetDraft(lane="main"), ev.Unload(lane="main/draft")]
    talk.draft.handle(ev.DraftSet(lane="main"))
    assert talk.told[-1] == "Nobody drafts." and talk.draft.label == ""


def test_letting_it_go_while_it_loads_gives_up_loading() -> None:
    talk = Talk()
    talk.draft.target_loaded()
    talk.draft.choose("early.pt", options=OPTIONS)
    talk.taken()
    talk.draft.choose(options=OPTIONS)
    assert talk.taken() == [ev.CancelLoad(lane="main/draft"), ev.SetDraft(lane="main")]
    talk.loaded()  # it was too late
    assert talk.taken() == [ev.Unload(lane="main/draft")]
    assert talk.draft.label == ""


MISSING = CheckpointError("cannot open other.pt", "no such file")


def test_a_checkpoint_that_does_not_load_changes_nothing() -> None:
    talk = Talk().drafting()
    talk.draft.choose("other.pt", options=OPTIONS)
    talk.taken()
    assert talk.draft.handle(ev.LoadFailed(lane="main/draft", path="other.pt", error=MISSING))
    said = "No draft: cannot open other.pt: no such file. The draft stays as it was."
    assert talk.told[-1] == said
    assert talk.taken() == [SET]
    talk.draft.handle(ev.DraftSet(lane="main", kind="draft", label="early/100"))
    assert talk.told[-1] == said, "it must stay to be read"
    assert (talk.draft.path, talk.draft.label) == ("/runs/early.pt", "draft: early/100")


def test_a_wrong_path_leaves_lookup_as_it_was() -> None:
    talk = Talk()
    talk.draft.target_loaded()
    talk.draft.choose(lookup=True, options=OPTIONS)
    talk.draft.handle(ev.DraftSet(lane="main", kind="lookup"))
    talk.draft.choose("other.pt", options=OPTIONS)
    talk.draft.handle(ev.LoadFailed(lane="main/draft", path="other.pt", error=MISSING))
    assert talk.draft.lookup and talk.draft.path == "" and talk.draft.label == "lookup"


def test_with_nobody_before_a_wrong_path_leaves_nobody_and_its_reason_on_the_screen() -> None:
    talk = Talk()
    talk.draft.target_loaded()
    talk.draft.choose("other.pt", options=OPTIONS)
    talk.draft.handle(ev.LoadFailed(lane="main/draft", path="other.pt", error=MISSING))
    talk.draft.handle(ev.DraftSet(lane="main"))
    assert talk.told == ["No draft: cannot open other.pt: no such file."]
    assert not talk.draft.active


@pytest.mark.parametrize("lookup", [True, False])
def test_one_that_cannot_draft_gives_way_to_who_drafted_before(lookup: bool) -> None:
    talk = Talk() if lookup else Talk().drafting()
    if lookup:
        talk.draft.target_loaded()
        talk.draft.choose(lookup=True, options=OPTIONS)
        talk.draft.handle(ev.DraftSet(lane="main", kind="lookup"))
    talk.draft.choose("foreign.pt", options=OPTIONS)
    talk.loaded("/runs/foreign.pt")
    talk.taken()
    error = UsageError("foreign cannot draft", "it knows 61 ids")
    talk.draft.handle(ev.DraftSet(lane="main", error=error))
    if lookup:
        wanted = [ev.SetDraft(lane="main", lookup=True), ev.Unload(lane="main/draft")]
        assert talk.taken() == wanted
    else:
        (load,) = talk.taken()
        assert isinstance(load, ev.Load) and load.path == "/runs/early.pt"
        talk.loaded()
        assert talk.taken() == [SET]
    assert talk.told[-1].endswith("it knows 61 ids. The draft stays as it was.")


def test_events_of_others_are_left_to_them() -> None:
    talk = Talk()
    error = CheckpointError("no", "no")
    assert not talk.draft.handle(ev.LoadFailed(lane="main", path="x", error=error))
    assert not talk.draft.handle(ev.DraftSet(lane="other"))


@pytest.mark.parametrize(("drafted", "words"), [(0, ""), (40, " · draft 75%")])
def test_the_end_of_a_reply_says_how_often_a_draft_was_right(drafted: int, words: str) -> None:
    stats = ev.Stats(
        prompt_tokens=9, new_tokens=50, drafted_tokens=drafted, accepted_tokens=drafted * 3 // 4
    )
    finished = ev.Finished(
        request_id="r", lane="main", reason="length", text="", ids=(), stats=stats
    )
    assert ended(finished) == f"cut at max new · 50 tok{words} · prompt 9, 0 reused · first 0.00 s"


# ---- the picker


class Bare(App[None]):
    def get_theme_variable_defaults(self) -> dict[str, str]:
        return CHAT_VARIABLES


@pytest.mark.parametrize("key", ["f7", "f8", "enter"])
async def test_the_picker_names_a_draft_and_stays_closed(key: str) -> None:
    app, answers = Bare(), list[Any]()
    entry = next(iter(catalog.scan((str(FIXTURES / "char-bias"),)))).checkpoints[0]
    picker = CheckpointPicker(
        lambda: catalog.scan((str(FIXTURES / "char-bias"),)),
        lambda path: INFO,
        current=entry.path,
        draft="/elsewhere",
        on_draft=lambda answer: answers.append(("draft", answer)),
    )
    async with app.run_test(size=(80, 24)) as pilot:
        app.push_screen(picker, lambda answer: answers.append(answer))
        for _ in range(200):
            await pilot.pause(0.01)
            text = "\n".join(screen_rows(app))
            if "● " in text:
                break
        assert "Enter opens · F5 all about it · F7 drafts · F8 lookup · Esc closes" in text
        await pilot.press(key)
        await pilot.pause()
    expected = {"f7": [("draft", entry.path), None], "f8": [("draft", LOOKUP), None]}
    assert answers == expected.get(key, [entry.path])
