"""Was a checkpoint read right? Measured on text, beside what the file says and beside chance.

A tokenizer of other ids shows in that the order of the tokens makes no difference; what the
tensors do not show (forms.py) in that another form of the model predicts clearly better; a wrong
template in that a turn has no end, or in that the assistant's turns are better known in another.
What was tuned to speak in turns is measured on turns. Some hundred tokens, a few seconds.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.engine.events import LoadOptions
from tui_chat.engine.forms import Form, forms
from tui_chat.engine.generate import score
from tui_chat.engine.load import HELD, choose_device, choose_dtype, describe, read_weights
from tui_chat.engine.measure import CLEARLY, Measure, clearly
from tui_chat.engine.texts import Text, beside, given, passages
from tui_chat.engine.turns import KNOWN, Spoken, speaks_better, spoken, turns, without_id
from tui_chat.errors import TuiChatError
from tui_chat.model.build import Model, build
from tui_chat.templates.base import Template
from tui_chat.templates.open import open_template
from tui_chat.templates.plain import PlainTemplate
from tui_chat.tokenizers.base import Tokenizer
from tui_chat.tokenizers.open import open_tokenizer

TOKENS = 512  # of the text that counts
GLANCE = 192  # of each text and of each form that is only tried
SECONDS = 6.0  # after which no other form is tried any more

Progress = Callable[[str, float], None]


class Sample(NamedTuple):
    """Tokens to measure, and where they come from. `seen`: the model was trained on their kind;
    `counted`: the indices of those that count, where not all do."""

    source: str
    ids: list[int]
    seen: bool
    warnings: list[str]
    counted: frozenset[int] | None = None

    @property
    def counted_ids(self) -> list[int]:
        return [id for at, id in enumerate(self.ids) if self.counted is None or at in self.counted]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """Another form of the model, and how it predicts beside the one that was taken (`nats` a
    token)."""

    settings: dict[str, object]
    nats: float
    bits_per_byte: float
    instead: float  # bits a byte of the one that was taken, on the same tokens
    better: bool  # clearly


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was measured; losses in nats a token. `why_not` says why nothing could be."""

    why_not: str = ""
    text: str = ""  # where it comes from
    tokens: int = 0
    bytes: int = 0
    nats_per_token: float = 0.0
    bits_per_byte: float = 0.0
    chance: float = 0.0  # if each id were as likely as any other
    frequency: float = 0.0  # if each were as likely as it is frequent in this text
    shuffled: float = 0.0  # by the model, the tokens in another order
    tried: tuple[Tried, ...] = ()
    turn_end: float | None = None  # probability of the end of a turn, where the template has it
    warnings: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        names = [name for name in self.__slots__ if name not in ("tried", "warnings")]
        found: dict[str, object] = {name: getattr(self, name) for name in names}
        found["tried"] = [
            {
                "settings": one.settings,
                "nats_per_token": one.nats,
                "bits_per_byte": one.bits_per_byte,
                "instead_of": one.instead,
                "better": one.better,
            }
            for one in self.tried
        ]
        return {**found, "warnings": list(self.warnings)}


def check(
    path: str,
    options: LoadOptions,
    text_path: str = "",
    progress: Progress = lambda stage, done: None,
) -> tuple[CheckpointInfo, Check]:
    """Open `path` and measure it, on the file `text_path` where one is given. Raises
    CheckpointError, UsageError."""
    began = time.perf_counter()
    progress("reading", 0.0)
    info = describe(path, options)
    text = given(text_path) if text_path else None
    tokenizer = open_tokenizer(info.tokenizer, info.spec)
    if info.tokenizer.kind == "none":
        return info, Check(
            why_not="there is no tokenizer, so text cannot be measured; name one with --tokenizer"
        )
    template = open_template(info.template, tokenizer, options.template, text_start=info.text_start)
    device = choose_device(options.device)
    # Packed matrices would have to be packed anew for each form that is tried.
    dtype = choose_dtype("" if options.dtype in HELD else options.dtype, device)[0]
    tensors = read_weights(info, dtype, device, lambda done: progress("loading weights", done))
    progress("measuring", 0.0)
    run = _Run(info, tokenizer, template, tensors, progress)
    if options.template:
        own = describe(path, replace(options, template=""))
        run.own = open_template(own.template, tokenizer, text_start=info.text_start)
        run.named = options.template
    return info, replace(run.check(text), seconds=time.perf_counter() - began)


class _Run:
    def __init__(
        self,
        info: CheckpointInfo,
        tokenizer: Tokenizer,
        template: Template | None,
        tensors: dict[str, torch.Tensor],
        progress: Progress,
    ) -> None:
        self.info = info
        self.tokenizer = tokenizer
        self.template = template
        self.tensors = tensors
        self.progress = progress
        self.offered = min(tokenizer.vocab_size, info.spec.vocab_size)
        self.model = self.built({})
        self.own: Template | None = None  # the checkpoint's, where the user named another
        self.named = ""
        self.turns = turns(template, tokenizer, info.stop_ids) if template is not None else None

    def built(self, settings: Form) -> Model:
        """The model in another form. The tensors are shared by all."""
        spec = replace(self.info.spec, **settings) if settings else self.info.spec  # type: ignore[arg-type]
        return build(spec, dict(self.tensors))

    def check(self, text: Text | None) -> Check:
        text = text or beside(self.info)
        sample = self.sample(text) if text is not None else self.nearest()
        ids = sample.ids
        if len(ids) < 2:
            return Check(why_not=f"{sample.source} has no two tokens for this tokenizer")
        main = self.measure(self.model, ids, sample.counted)
        mixed = ids.copy()
        random.Random(0).shuffle(mixed)
        shuffled = self.measure(self.model, mixed, sample.counted)
        frequency = _entropy(sample.counted_ids)
        # The turns it was tuned for say more of it than any other text.
        tried = self.try_forms(self.conversation() or sample) if math.isfinite(main.nats) else []
        taken = spoken(self.model, self.turns, self.offered) if self.turns is not None else None
        found = Check(
            text=sample.source,
            tokens=len(main.logprobs),
            bytes=main.size,
            nats_per_token=main.nats,
            bits_per_byte=main.bits_per_byte,
            chance=math.log(self.offered),
            frequency=frequency,
            shuffled=shuffled.nats,
            tried=tuple(tried),
            turn_end=taken.end if taken is not None else None,
        )
        ordered = clearly(main, shuffled)
        warnings = [*judged(found, self.info, seen=sample.seen, ordered=ordered), *sample.warnings]
        warnings += self.templates(taken) if taken is not None else []
        return replace(found, warnings=tuple(warnings))

    # ---- measuring

    def sample(self, text: Text) -> Sample:
        """The beginning of a text."""
        start = len(self.info.text_start)
        some = text.text[: 16 * TOKENS]
        ids = self.tokenizer.encode_raw(some)
        if start and tuple(ids[:start]) == self.info.text_start:
            ids = ids[start:]
        missing = self.tokenizer.missing(some)
        lost = sum(some.count(char) for char in missing) / max(len(some), 1)
        warnings = [
            f"{lost:.0%} of the characters of {text.source} have no id in the tokenizer: it is "
            "probably not the one this model was trained with"
        ] * (lost > 0.02 and text.seen)
        return Sample(text.source, ids[: self.most], text.seen, warnings)

    @property
    def most(self) -> int:
        """How many tokens are measured: fewer where each step computes the whole text again."""
        return TOKENS if self.model.incremental else GLANCE

    def conversation(self) -> Sample | None:
        """The assistant's turns, on which alone most tuning counts a loss."""
        if self.turns is None or self.info.mode != "chat":
            return None
        start = len(self.info.text_start)
        start = start if tuple(self.turns.ids[:start]) == self.info.text_start else 0
        ids = self.turns.ids[start:][: self.most]
        places = [at for text in self.turns.texts for at in text] + self.turns.ends
        counted = frozenset(at - start for at in places if 0 < at - start < len(ids))
        if not counted:
            return None
        return Sample("the assistant's turns of a short conversation", ids, False, [], counted)

    def measure(
        self, model: Model, ids: Sequence[int], counted: frozenset[int] | None = None
    ) -> Measure:
        """In windows of the context length, each with what the model expects at the beginning."""
        start = list(self.info.text_start)
        size = max(2, model.spec.context_length - len(start))
        logprobs: list[float] = []
        bytes_ = 0
        for begin in range(0, len(ids), size):
            window = [*start, *ids[begin : begin + size]]
            skipped = max(len(start), 1)
            if len(window) > skipped:
                found = [one for piece in score(model, window, self.offered) for one in piece]
                for at in range(skipped, len(window)):
                    if counted is None or begin + at - len(start) in counted:
                        logprobs.append(found[at - 1])
                        bytes_ += len(self.tokenizer.token_bytes(window[at]))
        return Measure(logprobs, bytes_)

    def nearest(self) -> Sample:
        """A few turns for what was tuned to speak in turns; else the bundled text that the model
        predicts best: one of its own kind."""
        said = self.conversation()
        if said is not None:
            return said
        samples = [self.sample(text) for text in passages()]
        glances = [self.measure(self.model, one.ids[:GLANCE]) for one in samples]
        losses = [m.bits_per_byte if math.isfinite(m.nats) else math.inf for m in glances]
        return samples[losses.index(min(losses))]

    def try_forms(self, sample: Sample) -> list[Tried]:
        """The other forms the model could have, as far as the time allows."""
        began = time.perf_counter()
        ids, counted = sample.ids[:GLANCE], sample.counted
        main = self.measure(self.model, ids, counted)
        frequency = _entropy(sample.counted_ids)
        found: list[Tried] = []
        for number, settings in enumerate(forms(self.info)):
            if time.perf_counter() - began > SECONDS:
                break
            self.progress("trying other forms", number / 12)
            try:
                other = self.measure(self.built(settings), ids, counted)
            except (TuiChatError, RuntimeError):  # the tensors do not fit that form
                continue
            # Far from what it was trained on, a form is not right for being less wrong: least of
            # all one that makes a small difference.
            small = "activation" in settings or "rope_theta" in settings
            limit = frequency if small else math.log(self.offered)
            found.append(
                Tried(
                    settings=dict(settings),
                    nats=other.nats,
                    bits_per_byte=other.bits_per_byte,
                    instead=main.bits_per_byte,
                    better=self.better(other, main) and other.nats < limit,
                )
            )
        return found

    def better(self, other: Measure, main: Measure) -> bool:
        """Clearly, and not by a few tokens alone."""
        doubted = other.doubted(self.offered), main.doubted(self.offered)
        return other.nats < main.nats and clearly(*doubted, paired=True)

    def templates(self, taken: Spoken) -> Iterable[str]:
        """What speaks against the template."""
        assert self.template is not None and self.turns is not None
        name = self.template.name
        lost = without_id(self.tokenizer, self.turns)
        if self.named and lost and not (taken.end or 0) > KNOWN:
            yield (
                f"the tokenizer has no token {', '.join(lost[:4])}: what the template {name} "
                "writes is spelt out as ordinary text, which the model hardly knows"
            )
        others = {"plain": PlainTemplate(self.tokenizer, self.info.text_start)}
        best: tuple[float, str] | None = None
        candidates = [("", self.own)] if self.own is not None else []
        for said, other in (*candidates, *others.items()):
            if other.name == name:
                continue
            found = turns(other, self.tokenizer, self.info.stop_ids)
            if found is None:
                continue
            words = spoken(self.model, found, self.offered)
            if speaks_better(words, taken, self.offered):
                text = Measure([one for text in words.texts for one in text], 0)
                if best is None or text.doubted(self.offered).nats < best[0]:
                    remedy = "its own: leave out --template" if not said else f"--template {said}"
                    best = text.doubted(self.offered).nats, f"{other.name} ({remedy})"
        if best is not None:
            yield (
                f"the template {name} is probably not the one it was tuned with: the assistant's "
                f"turns are clearly better predicted in {best[1]}"
            )


def _entropy(ids: Sequence[int]) -> float:
    """Nats a token, if each were as likely as it is frequent here."""
    return -sum(n * math.log(n / len(ids)) for n in Counter(ids).values()) / max(len(ids), 1)


# ---- the verdict


def judged(found: Check, info: CheckpointInfo, *, seen: bool, ordered: bool) -> Iterable[str]:
    """What looks wrong, one sentence each. `seen`: the text is of the kind it was trained on;
    `ordered`: the order of the tokens helps it."""
    if not math.isfinite(found.nats_per_token):
        yield "the model's logits are not finite: its weights are damaged, or it was read wrong"
        return
    best = min((one for one in found.tried if one.better), key=lambda one: one.nats, default=None)
    if best is not None:
        yield _other_form(best)
    elif not ordered:
        yield (
            "the order of the tokens makes no difference to it: the tokenizer is probably not the "
            "one it was trained with (--tokenizer names another), or it is hardly trained"
        )
    elif found.nats_per_token > found.chance:
        yield (
            f"{found.nats_per_token:.2f} nats a token are worse than chance ({found.chance:.2f}): "
            "it was trained on quite another kind of text, or something was read wrong"
        )
    elif found.nats_per_token > found.frequency + CLEARLY:
        yield (
            f"{found.nats_per_token:.2f} nats a token are worse than counting how frequent each "
            f"token is ({found.frequency:.2f}): it was trained on another kind of text, or too "
            "little, or something was read wrong"
        )
    elif seen and info.mode == "raw":
        yield from _beside_stored(found, info)
    # What is hardly trained says nothing of its template either.
    wrong_end = found.turn_end is not None and found.turn_end < 0.01
    if wrong_end and info.mode == "chat" and (ordered or best is not None):
        yield (
            f"where the template {info.template.name} ends a turn, the model expects no end "
            f"(probability {found.turn_end:.1g}): it was probably tuned with another template, or "
            "not at all (--template names another)"
        )


def _beside_stored(found: Check, info: CheckpointInfo) -> Iterable[str]:
    """On text of its kind: beside what the file says."""
    nats = found.nats_per_token
    stored = next((info.losses[name] for name in ("val", "train") if name in info.losses), None)
    if stored is not None and nats > 1.25 * stored + 0.5:
        yield (
            f"{nats:.2f} nats a token are many beside the stored loss {stored:.2f}: if this is "
            "text of the kind it was trained on, something was read wrong"
        )


def _other_form(best: Tried) -> str:
    said = " ".join(f"--config {name}={value}" for name, value in best.settings.items())
    return (
        f"{_subject(best.settings)}: {best.bits_per_byte:.2f} instead of {best.instead:.2f} bits a "
        f"byte; open it with {said}"
    )


def _subject(settings: Form) -> str:
    if "rope_layout" in settings or "rope_sign" in settings:
        kind = str(settings.get("rope_layout", ""))
        turned = " and turned the other way" if "rope_sign" in settings else ""
        return f"positions look {kind}{turned}" if kind else "positions look turned the other way"
    name, value = next(iter(settings.items()))
    return f"{name} looks like {value}"
