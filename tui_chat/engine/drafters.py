"""Who proposes how a reply may go on: the text so far, or another checkpoint.

A proposal decides nothing (speculate.py says why), so a drafter may be wrong, slow or broken: the
reply stays the same.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Mapping
from typing import Protocol

from tui_chat.engine.generate import PREFILL_CHUNK, at_once, reuse
from tui_chat.engine.load import LoadedCheckpoint
from tui_chat.errors import TuiChatError, UsageError
from tui_chat.sampler import Sampler

log = logging.getLogger(__name__)


class Drafter(Protocol):
    """Proposes ids. `chances` and `cost` are what pace.Pace begins with."""

    @property
    def chances(self) -> Mapping[Hashable, float]: ...

    @property
    def cost(self) -> float:
        """Plain steps that an id takes to draft, before that is known."""
        ...

    def grade(self, ids: list[int]) -> Hashable | None:
        """What kind of proposal there would be after `ids`, None if there is none. The list is the
        same one from call to call as long as it only grows.
        """
        ...

    def propose(self, ids: list[int], count: int, sampler: Sampler) -> list[int]:
        """Up to `count` ids that may follow; asked right after `grade`. `sampler` draws as the
        reply's own will.
        """
        ...


class PromptLookup:
    """What followed the last time the text ended as it does now: the most recent place with the
    longest ending in common.
    """

    SHORTEST = 2  # ids that have to agree
    LONGEST = 32  # that are compared
    PLACES = 8  # that are looked at

    chances: Mapping[Hashable, float] = {1: 0.4, 2: 0.5, 3: 0.7, 4: 0.85, 5: 0.95}
    cost = 0.0

    def __init__(self) -> None:
        self._ids: list[int] = []
        self._begin()

    def _begin(self) -> None:
        self._last: dict[int, int] = {}  # the last place where two ids stand, by both of them
        self._before: list[int] = [-1]  # for each place, the one before it with the same two ids
        self._match = -1  # the place that agrees best with the end
        self._length = 0  # of the text, when that was found

    def grade(self, ids: list[int]) -> int | None:
        """The greater, the longer the ending in common."""
        if ids is not self._ids:
            self._ids = ids
            self._begin()
        end = len(ids) - 1
        if end < self.SHORTEST:
            return None
        last, before = self._last, self._before
        for at in range(len(before), end):
            pair = ids[at - 1] << 32 | ids[at]
            before.append(last.get(pair, -1))
            last[pair] = at
        # Where the last proposal was right, its place goes on agreeing.
        carried = self._match + len(ids) - self._length if self._match >= 0 else -1
        best, length = -1, self.SHORTEST - 1
        if 0 < carried < end:
            best, length = self._longer(carried, best, length)
        at, left = last.get(ids[end - 1] << 32 | ids[end], -1), self.PLACES
        while at > 0 and left and length < self.LONGEST:
            # What does not agree as far back as the best one is no longer match.
            if at >= length and ids[at - length] == ids[end - length]:
                best, length = self._longer(at, best, length)
            at, left = before[at], left - 1
        self._match, self._length = best, len(ids)
        return None if best < 0 else length.bit_length() - 1

    def _longer(self, at: int, best: int, length: int) -> tuple[int, int]:
        """The place and its length, if more ids agree there."""
        ids, end = self._ids, len(self._ids) - 1
        most = min(at + 1, self.LONGEST)
        found = 0
        while found < most and ids[at - found] == ids[end - found]:
            found += 1
        return (at, found) if found > length else (best, length)

    def propose(self, ids: list[int], count: int, sampler: Sampler) -> list[int]:
        """Where the place lies so near the end that too little follows it, what follows is taken
        to repeat itself.
        """
        follows = ids[self._match + 1 : self._match + 1 + count]
        while len(follows) < count:
            follows += follows[: count - len(follows)]
        return follows


class DraftModel:
    """A smaller or earlier checkpoint with the same tokenizer. It draws with the dice and the
    knobs of the reply, so that where both models agree both draw the same.
    """

    chances: Mapping[Hashable, float] = {"draft": 0.6}
    BEHIND = 32  # ids it reads on the way to a proposal; more are read at leisure

    def __init__(self, draft: LoadedCheckpoint, target: LoadedCheckpoint) -> None:
        self._model = draft.model
        self._offered = draft.offered
        self._cache = draft.model.new_cache()
        self._begin = 0  # of the ids, the first one in the cache: its context may be shorter
        self._broken = False
        self.cost = min(1.0, draft.model.weight_bytes / max(1, target.model.weight_bytes))

    def grade(self, ids: list[int]) -> str | None:
        return None if self._broken else "draft"

    def propose(self, ids: list[int], count: int, sampler: Sampler) -> list[int]:
        """Nothing as long as there is more to read first, of which each call reads a piece."""
        try:
            return self._propose(ids, count, sampler)
        except (TuiChatError, MemoryError, RuntimeError) as error:
            log.warning("the draft is given up: %s", error)
            self._broken = True
            self._cache = self._model.new_cache()
            return []

    def _propose(self, ids: list[int], count: int, sampler: Sampler) -> list[int]:
        model, cache = self._model, self._cache
        room = model.spec.context_length
        if len(ids) < self._begin or len(ids) - self._begin + count > room:
            # As the window of a chat: to the half at once, so that this is not done at every token.
            self._begin = max(0, len(ids) - room // 2)
        count = min(count, room - (len(ids) - self._begin))
        seen = ids[self._begin :]
        reuse(model, cache, seen)
        while len(seen) - len(cache) > self.BEHIND:
            piece = min(PREFILL_CHUNK, len(seen) - len(cache) - 1)
            model.forward(seen[len(cache) : len(cache) + piece], cache)
            return []
        logits = model.forward(seen[len(cache) :], cache)
        ahead = sampler.ahead()
        drafted: list[int] = []
        while True:
            drafted.append(ahead(logits[: self._offered].cpu()).id)
            if len(drafted) >= count:
                return drafted
            logits = model.forward(drafted[-1:], cache)


def check_target(target: LoadedCheckpoint) -> None:
    """Raise UsageError for a checkpoint whose tokens cannot be checked several at a time."""
    model = target.model
    if not model.incremental:
        raise UsageError(
            "nothing can be drafted for this checkpoint",
            "its architecture computes the whole window anew for every token",
        )
    if at_once(model):
        raise UsageError(
            "nothing can be drafted for this checkpoint",
            "its experts have a capacity, so that tokens read together change one another",
        )


def check_draft(draft: LoadedCheckpoint, target: LoadedCheckpoint) -> None:
    """Raise UsageError for a checkpoint that cannot draft for `target`."""
    name = draft.info.label
    other = "A draft is a smaller or an earlier checkpoint with the same tokenizer"
    if not draft.model.incremental or at_once(draft.model):
        raise UsageError(
            f"{name} cannot draft",
            "its architecture computes the whole window anew for every token",
            other,
        )
    if draft.offered != target.offered:
        raise UsageError(
            f"{name} cannot draft for this checkpoint",
            f"it knows {draft.offered:,} ids, and {target.info.label} {target.offered:,}",
            other,
        )
    ours, theirs = target.tokenizer, draft.tokenizer
    if ours is theirs:
        return
    for token in range(target.offered):
        if ours.token_bytes(token) != theirs.token_bytes(token):
            raise UsageError(
                f"{name} cannot draft for this checkpoint",
                f"id {token} stands for another text in its tokenizer",
                other,
            )
    if dict(ours.special) != dict(theirs.special):
        raise UsageError(
            f"{name} cannot draft for this checkpoint",
            "its tokenizer has other control tokens",
            other,
        )
