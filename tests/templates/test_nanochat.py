"""nanochat's conversations as ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tui_chat
from tui_chat.checkpoint.info import TemplateHint
from tui_chat.conversation import Role, Turn
from tui_chat.errors import UsageError
from tui_chat.templates.nanochat import NanoChatTemplate
from tui_chat.templates.open import open_template
from tui_chat.tokenizers.bpe import GPT2_PATTERN, Bpe
from tui_chat.tokenizers.nanochat import open_nanochat
from tui_chat.tokenizers.none import IdsOnly

FIXTURE = Path(__file__).parent.parent / "fixtures/nanochat/d4"
REFERENCE: dict[str, Any] = json.loads((FIXTURE / "reference.json").read_text())
CHATS = [case for case in REFERENCE["cases"] if "messages" in case]
TOKENIZER = open_nanochat(str(FIXTURE / "tokenizer/tokenizer.pkl"))
BOS, USER, USER_END, ASSISTANT, ASSISTANT_END = range(503, 508)
CONTROL = frozenset(TOKENIZER.special.values())


def turns(*rows: tuple[Role, str]) -> list[Turn]:
    return [Turn(role, text) for role, text in rows]


def rendered(*rows: tuple[Role, str], open_end: bool = False) -> list[int]:
    return NanoChatTemplate(TOKENIZER).render(turns(*rows), continue_last=open_end).ids


def text(value: str) -> list[int]:
    return TOKENIZER.encode(value)


@pytest.mark.parametrize("case", CHATS, ids=lambda case: case["name"])
def test_a_conversation_has_the_trainers_ids_and_gets_its_reply(case: dict[str, Any]) -> None:
    path = str(FIXTURE / REFERENCE["checkpoint"])
    opened = tui_chat.open(path)
    ids = opened.prompt_ids(case["messages"])
    assert ids == case["prompt_ids"]
    steps = list(opened.generate(ids, temperature=0, max_new_tokens=len(case["greedy_ids"])))
    assert [step.id for step in steps] == case["greedy_ids"]


def test_turns_stand_between_their_tokens_after_one_begin() -> None:
    found = rendered(("user", "hi"), ("assistant", "yes"), ("user", "so"))
    assert found == [
        BOS, USER, *text("hi"), USER_END, ASSISTANT, *text("yes"), ASSISTANT_END,
        USER, *text("so"), USER_END, ASSISTANT,
    ]  # fmt: skip


def test_a_system_prompt_stands_in_the_first_users_turn() -> None:
    found = rendered(("system", "Be brief."), ("user", "hi"))
    assert found == [BOS, USER, *text("Be brief.\n\nhi"), USER_END, ASSISTANT]
    assert rendered(("system", ""), ("user", "hi")) == rendered(("user", "hi"))


def test_a_reply_that_was_cut_short_is_closed_and_one_to_go_on_with_is_not() -> None:
    cut = rendered(("user", "hi"), ("assistant", "half of"), ("user", "go"))
    assert ASSISTANT_END in cut
    assert rendered(("user", "hi"), ("assistant", "half of"))[-1] == ASSISTANT_END
    left_open = rendered(("user", "hi"), ("assistant", "half of"), open_end=True)
    assert left_open == [BOS, USER, *text("hi"), USER_END, ASSISTANT, *text("half of")]
    assert rendered(("user", "hi"), open_end=True) == rendered(("user", "hi"))


def test_each_turn_is_found_where_it_begins() -> None:
    said = turns(("system", "Be."), ("user", "hi"), ("assistant", "yes"), ("user", "so"))
    found = NanoChatTemplate(TOKENIZER).render(said)
    system, user, assistant, last = found.starts
    assert system == 1 and found.ids[user : user + len(text("hi"))] == text("hi")
    assert (found.ids[assistant], found.ids[last]) == (ASSISTANT, USER)
    plain = NanoChatTemplate(TOKENIZER).render(said[1:])
    assert [plain.ids[start] for start in plain.starts] == [USER, ASSISTANT, USER]


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (turns(("assistant", "hi")), "turn 1 is of the role 'assistant', not 'user'"),
        (turns(("user", "a"), ("user", "b")), "turn 2 is of the role 'user', not 'assistant'"),
        (turns(("user", "a"), ("system", "b")), "turn 2 is of the role 'system'"),
        (turns(("system", "a"), ("system", "b")), "turn 2 is of the role 'system'"),
        (turns(("system", "a"), ("assistant", "b")), "turn 2 is of the role 'assistant'"),
        (turns(("system", "a")), "no place for a system prompt alone"),
        ([Turn("tool", "a")], "turn 1 is of the role 'tool'"),  # type: ignore[arg-type]
    ],
)
def test_roles_that_do_not_alternate_are_refused(said: list[Turn], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        NanoChatTemplate(TOKENIZER).render(said)


SPELLED = st.lists(
    st.sampled_from([*TOKENIZER.special, "a", " ", "\n", "<|", "|>"]), max_size=6
).map("".join)


@given(st.lists(SPELLED, min_size=1, max_size=5), SPELLED)
@settings(max_examples=100, deadline=None)
def test_no_text_forges_a_control_token(texts: list[str], system: str) -> None:
    roles: list[Role] = ["user", "assistant"]
    said = [Turn("system", system)] + [
        Turn(roles[n % 2], content) for n, content in enumerate(texts)
    ]
    found = NanoChatTemplate(TOKENIZER).render(said).ids
    wanted = 1 + 2 * len(texts) + len(texts) % 2
    assert sum(token in CONTROL for token in found) == wanted


def test_a_tokenizer_without_its_tokens_is_refused_and_ids_alone_have_no_template() -> None:
    other = Bpe("bytes", {bytes([n]): n for n in range(256)}, {"<|bos|>": 256}, GPT2_PATTERN)
    with pytest.raises(UsageError, match=r"bytes has no <\|user_start\|>"):
        open_template(TemplateHint(name="nanochat"), other)
    assert open_template(TemplateHint(name="nanochat"), IdsOnly(9)) is None
    found = open_template(TemplateHint(), TOKENIZER, "nanochat")
    assert found is not None and found.stop_ids == {BOS, ASSISTANT_END}
