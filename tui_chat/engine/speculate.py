"""Several tokens of a reply from one run of the model, when somebody guesses them beforehand.

A drafter proposes the ids that may follow the token just chosen. The model runs that token and the
proposal in one call, which for a few rows takes little more than for one, and the reply draws from
the rows one after the other with its own sampler, as it would have done anyway. As soon as it
draws another id than was proposed, the rest is thrown away and the cache cut back. So a proposal
changes how long a reply takes and never what it says, whatever the knobs and whenever they are
turned: no probability is corrected, because none is ever bent.
"""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Literal, NamedTuple

from tui_chat.engine.drafters import Drafter, DraftModel, PromptLookup, check_draft, check_target
from tui_chat.engine.load import LoadedCheckpoint
from tui_chat.engine.pace import Pace
from tui_chat.sampler import Sampler

if TYPE_CHECKING:
    from torch import Tensor

    from tui_chat.engine.engine import Lane

Kind = Literal["lookup", "draft"]

# To look for a proposal costs a model of a million weights some hundredths of a token. Where none
# was found for so many tokens, the next few are passed over, more and more of them.
RESTLESS = 8
LONGEST_REST = 3


class Drafting(NamedTuple):
    """Who drafts for a lane, and what is known of how it goes."""

    kind: Kind
    label: str  # for people: "lookup", or the name of the checkpoint
    drafter: Drafter
    pace: Pace
    by: str = ""  # the lane it is loaded in, "" for one that a program holds by itself


def lookup(target: LoadedCheckpoint) -> Drafting:
    """Drafts from the text so far. Raises UsageError for a model for which nothing can be
    drafted.
    """
    check_target(target)
    drafter = PromptLookup()
    return Drafting("lookup", "lookup", drafter, Pace(drafter.chances))


def draft(source: LoadedCheckpoint, target: LoadedCheckpoint) -> Drafting:
    """Drafts by another checkpoint. Raises UsageError for one that cannot."""
    check_target(target)
    check_draft(source, target)
    drafter = DraftModel(source, target)
    return Drafting("draft", source.info.label, drafter, Pace(drafter.chances, drafter.cost))


class _Ahead(NamedTuple):
    """A proposal that was run: `rows[i]` are the logits after `ids[:i]` of it."""

    by: Drafting
    ids: list[int]
    rows: Tensor  # (len(ids) + 1, offered), on the CPU
    begin: int  # how long the context was before the proposal
    grade: Hashable
    drafting: float  # seconds
    check: float


class Speculation:
    """The next logits of one reply, from a proposal where there is one.

    `context` is the reply's list of ids, the same one from call to call as long as it only grows.
    `drafted` and `accepted` count the ids that were proposed, and those of them that were drawn.
    """

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._ahead: _Ahead | None = None
        self._context: list[int] = []
        self._idle = 0  # tokens behind which nothing was proposed, since something was
        self._rest = 0  # tokens to come at which nothing is looked for
        self.drafted = 0
        self.accepted = 0

    def after(self, context: list[int], sampler: Sampler, most: int) -> Tensor:
        """Logits after the last id of `context`, all others having been run: (offered,) or more, on
        the CPU or the model's device. Up to `most` ids beyond it may be drafted.
        """
        ahead, at = self._ahead, self._foreseen(context, len(context), context[-1])
        if ahead is not None and at:
            if at == len(ahead.ids):
                self._judge(ahead, at)
            return ahead.rows[at]
        self._cut(context, len(context) - 1)
        return self._run(context, sampler, most)

    def settled(self, context: list[int], token: int) -> bool:
        """Whether `token`, drawn after `context`, has yet to be run; the cache then ends with
        `context`.
        """
        if self._foreseen(context, len(context) + 1, token):
            return False
        self._cut(context, len(context))
        return True

    def close(self, context: list[int]) -> None:
        """The reply is over. Proposed ids that it never came to do not count."""
        ahead = self._ahead
        if ahead is not None and context is self._context:
            used = len(context) - ahead.begin
            self._ahead = ahead._replace(ids=ahead.ids[:used])
        self._cut(context, len(context))

    def _foreseen(self, context: list[int], length: int, token: int) -> int:
        """The place in the proposal of a token that is number `length` of the context, from 1; 0
        where it was not proposed.
        """
        ahead = self._ahead
        if ahead is None or context is not self._context:
            return 0
        at = length - ahead.begin
        return at if 0 < at <= len(ahead.ids) and ahead.ids[at - 1] == token else 0

    def _cut(self, context: list[int], length: int) -> None:
        """Throw away what was proposed beyond the first `length` ids of the context."""
        ahead, self._ahead = self._ahead, None
        if ahead is None or context is not self._context:
            return  # the context was read anew meanwhile, and the cache with it
        self._judge(ahead, length - ahead.begin)
        if len(self._lane.cache) > length:
            self._lane.cache.truncate(length)

    def _judge(self, ahead: _Ahead, accepted: int) -> None:
        self._ahead = None
        if not ahead.ids:
            return
        self.drafted += len(ahead.ids)
        self.accepted += accepted
        ahead.by.pace.drafted(ahead.grade, len(ahead.ids), accepted, ahead.drafting, ahead.check)

    def _run(self, context: list[int], sampler: Sampler, most: int) -> Tensor:
        lane, by = self._lane, self._lane.drafting
        model, cache = lane.checkpoint.model, lane.cache
        if by is None or self._rest:
            self._rest = max(0, self._rest - 1)
            return model.forward(context[-1:], cache)
        began = time.perf_counter()
        grade = by.drafter.grade(context) if most > 0 else None
        count = 0 if grade is None else by.pace.count(grade, most)
        ids = by.drafter.propose(context, count, sampler) if count else []
        drafted = time.perf_counter()
        if not ids:
            logits = model.forward(context[-1:], cache)
            if not logits.is_cpu:
                logits = lane.offered(logits)  # fetched, for a device only then is done
            by.pace.stepped(time.perf_counter() - drafted)
            self._idle += 1
            self._rest = min(self._idle // RESTLESS, LONGEST_REST)
            return logits
        self._idle = 0
        rows = model.forward_all([context[-1], *ids], cache)
        rows = rows[:, : lane.checkpoint.offered].cpu()
        if bool(rows.amax().isnan()):
            # Proposed ids may be such as damaged weights have no numbers for, and what is masked
            # is NaN all the same. Without them the reply may never meet it.
            cache.truncate(len(context) - 1)
            return model.forward(context[-1:], cache)
        checked = time.perf_counter()
        self._context = context
        self._ahead = _Ahead(by, ids, rows, len(context), grade, drafted - began, checked - drafted)
        return rows[0]
