"""A short conversation in a chat template: which of its tokens are the assistant's, and whether
the model knows them better in another template."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from tui_chat.conversation import Turn
from tui_chat.engine.generate import score
from tui_chat.engine.measure import Measure, clearly
from tui_chat.engine.questions import spelled
from tui_chat.errors import TuiChatError
from tui_chat.model.build import Model
from tui_chat.templates.base import Template
from tui_chat.tokenizers.base import Tokenizer

CONVERSATION = (
    Turn("user", "Hello! Who are you?"),
    Turn("assistant", "Hello! I am a language model. How can I help you?"),
    Turn("user", "What is the capital of France?"),
    Turn("assistant", "The capital of France is Paris."),
    Turn("user", "Thank you!"),
    Turn("assistant", "You are welcome!"),
    Turn("user", "How are you today?"),
    Turn("assistant", "I am fine, thank you."),
    Turn("user", "What is 2 + 2?"),
    Turn("assistant", "2 + 2 = 4."),
    Turn("user", "Goodbye!"),
)
KNOWN = 0.5  # probability of a turn's end from which on the model knows the template

# What templates write for a control token; a tokenizer that has none spells it letter by letter.
_CONTROL = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>")


class Turns(NamedTuple):
    """The conversation as `ids`. `texts`: for each turn of the assistant, where in `ids` the
    tokens of its text are; `ends`: where such a turn ends with a stop id."""

    ids: list[int]
    texts: list[range]
    ends: list[int]


class Spoken(NamedTuple):
    """How a model predicts the assistant's turns: the log-probabilities of each text, and the
    probability of the end after it (geometric mean; None where the template marks none)."""

    texts: list[list[float]]
    end: float | None


def turns(template: Template, tokenizer: Tokenizer, stop_ids: Iterable[int]) -> Turns | None:
    """None where the template does not take the conversation."""
    try:
        rendered = template.render(CONVERSATION)
    except TuiChatError:
        return None
    ids = rendered.ids
    stops = {*template.stop_ids, *stop_ids}
    bounds = [*rendered.starts, len(ids)]
    texts, ends = [], []
    for number, turn in enumerate(CONVERSATION):
        if turn.role == "assistant" and number + 1 < len(bounds):
            begin, end = bounds[number], min(bounds[number + 1] + 1, len(ids))
            texts.append(_place(ids, begin, end, tokenizer.encode(turn.text)))
            ends += [at for at in range(max(begin + 1, 1), end) if ids[at] in stops][:1]
    return Turns(ids, texts, ends)


def _place(ids: Sequence[int], begin: int, end: int, text: Sequence[int]) -> range:
    """Where a text is between `begin` and `end`. Its first and its last token may be joined with
    what stands before and after it."""
    for last in (len(text), len(text) - 1):
        inner = list(text[1:last])
        for at in range(begin + 1, end - len(inner) + 1):
            if inner and list(ids[at : at + len(inner)]) == inner:
                return range(max(at - 1, 1), at + len(inner))
    return range(0)


def spoken(model: Model, found: Turns, offered: int) -> Spoken:
    """The conversation as the model predicts it, as far as its context reaches."""
    ids = found.ids[: model.spec.context_length]
    logprobs = [one for piece in score(model, ids, offered) for one in piece]
    ends = [logprobs[at - 1] for at in found.ends if at < len(ids)]
    end = math.exp(math.fsum(ends) / len(ends)) if ends else None
    return Spoken([[logprobs[at - 1] for at in text if at < len(ids)] for text in found.texts], end)


def speaks_better(other: Spoken, taken: Spoken, offered: int) -> bool:
    """Whether the assistant's words, or the ends of its turns, are clearly better known in another
    template. In one whose ends the model knows it was tuned."""
    if (taken.end or 0) > KNOWN:
        return False
    better: list[float] = []
    worse: list[float] = []
    for one, two in zip(other.texts, taken.texts, strict=False):
        shared = min(len(one), len(two))
        better += one[:shared]
        worse += two[:shared]
    measures = [Measure(some, 0).doubted(offered) for some in (better, worse)]
    if not better or not measures[0].nats < math.log(offered):
        return False
    knows_end = (other.end or 0) > KNOWN and (taken.end or 0) < 0.1
    return clearly(*measures, paired=True) or (knows_end and not clearly(*measures[::-1]))


def without_id(tokenizer: Tokenizer, found: Turns) -> list[str]:
    """The control tokens that a template writes and the tokenizer does not have."""
    text = "".join("\0" if control else piece for piece, control in spelled(tokenizer, found.ids))
    return list(dict.fromkeys(_CONTROL.findall(text)))
