"""How many ids are worth drafting at a time: decided by what drafts have cost and brought so far.

All times are counted in plain steps, one token run by itself, so that they hold while the context
grows. A draft that does not pay is a loss, and losses are kept account of: they may take a small
share of the steps and no more, whatever the text, the model and the machine. Knows no model and no
ids.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Mapping

COUNTS = (1, 3, 7, 15)
"""How many ids are drafted at a time: with the token before them 2, 4, 8 or 16 rows."""

SHARE = 0.01  # of the steps that may be lost on drafts that did not pay
SAVED = 8.0  # steps that drafts have saved and may lose again
PATIENCE = 2.0  # steps that may be lost before drafts have to show that they pay
WORTH = 1.02  # how many times as fast as plain a draft must promise to be
AGAIN = 64  # calls with a draft, after which a plain one is timed anew
FADING = 0.9  # what each draft leaves of the weight of those before it
FIRST_PLAIN = 2  # steps to time before anything is drafted
ENOUGH = 16  # tokens of a reply whose speed counts
ONCE_IN = 8  # replies, the kind that was slower is tried again


class Pace:
    """What is known of drafting for one checkpoint by one drafter.

    `drafting` is what an id costs to draft before that is known. A grade is a kind of place at
    which something can be proposed; `chances` says what share of ids is right there before that is
    known.
    """

    def __init__(self, chances: Mapping[Hashable, float], drafting: float = 0.0) -> None:
        self._plain: deque[float] = deque(maxlen=9)  # seconds
        self._checks: dict[int, deque[float]] = {}  # by the number of ids, steps that a call took
        self._first: set[int] = set()  # of which one call was made: it is slow and tells nothing
        self._drafting: deque[float] = deque([drafting], maxlen=5)  # steps for an id
        self._chances = dict(chances)
        self._right: dict[Hashable, float] = {}
        self._wrong: dict[Hashable, float] = {}
        self._replies: dict[bool, float] = {}  # seconds a token, of drafted and other replies
        self._asked = 0
        self._plans: dict[tuple[Hashable, int], tuple[int, bool]] = {}  # until a draft tells more
        self._since_plain = 0
        self._lost = 0.0  # steps, of those that are not yet made up for

    # ---- what has happened

    def stepped(self, seconds: float) -> None:
        """A token was run by itself."""
        self._plain.append(seconds)
        self._since_plain = 0
        self._lost = max(min(self._lost, 0.0), self._lost - SHARE)

    def drafted(
        self, grade: Hashable, count: int, accepted: int, drafting: float, check: float
    ) -> None:
        """`count` ids were drafted in `drafting` seconds and run in `check` seconds, and the first
        `accepted` of them were right.
        """
        self._since_plain += 1
        self._plans.clear()
        right, wrong = self._right.get(grade, 0.0), self._wrong.get(grade, 0.0)
        self._right[grade] = right * FADING + accepted
        self._wrong[grade] = wrong * FADING + (accepted < count)
        size, step = _size(count), _usual(self._plain)
        if size in self._first:
            self._checks.setdefault(size, deque(maxlen=5)).append(check / step)
            self._drafting.append(drafting / step / count)
        self._first.add(size)
        brought = accepted + 1
        # One that took far longer than others of its size was kept waiting by another program.
        taken = min((drafting + check) / step, 2 * self._cost(size))
        self._lost = max(-SAVED, self._lost + taken - brought - SHARE * brought)

    def replied(self, drafted: bool, tokens: int, seconds: float) -> None:
        """A reply was written with drafts, or in the other way that `take_reply` chooses from."""
        if tokens >= ENOUGH:
            before = self._replies.get(drafted, seconds / tokens)
            self._replies[drafted] = (before + seconds / tokens) / 2

    # ---- what to do

    def take_reply(self) -> bool:
        """Whether to draft the next reply at all, where others are not written step by step but in
        a faster way, as on a GPU: by how fast both kinds were.
        """
        if len(self._replies) < 2:
            return True not in self._replies
        self._asked += 1
        faster = self._replies[True] < self._replies[False]
        return faster != (self._asked % ONCE_IN == 0)

    def chance(self, grade: Hashable) -> float:
        """The share of ids that is right where such a draft is made."""
        right, wrong = self._right.get(grade, 0.0), self._wrong.get(grade, 0.0)
        return (right + 2 * self._chances.get(grade, 0.5)) / (right + wrong + 2)

    def count(self, grade: Hashable, most: int) -> int:
        """How many ids to draft, at most `most`; 0 to run the next token by itself."""
        if len(self._plain) < FIRST_PLAIN or self._since_plain >= AGAIN or self._lost > PATIENCE:
            return 0
        # Asked at every token, of which a small model makes thousands a second.
        key = (grade, _below(most))
        found = self._plans.get(key)
        if found is None:
            found = self._plans[key] = self._plan(grade, most)
        best, pays = found
        # What does not promise to pay is tried again once earlier losses are made up for.
        return best if pays or self._lost <= 0.0 else 0

    def _plan(self, grade: Hashable, most: int) -> tuple[int, bool]:
        """What promises the most tokens a second, and whether that is more than plain steps."""
        chance = min(self.chance(grade), 0.999)
        best, fastest = 0, 0.0
        for count in COUNTS:
            if count <= most:
                brought = (1 - chance ** (count + 1)) / (1 - chance)
                faster = brought / self._cost(count)
                if faster > fastest:
                    best, fastest = count, faster
        return best, fastest > WORTH

    def _cost(self, count: int) -> float:
        """Steps that it takes to draft and check `count` ids."""
        check = 1 + 0.03 * count  # of large models, which read their weights once for all rows
        for size, known in self._checks.items():
            if size == count:
                check = _usual(known)
                break
            if size < count:
                check = max(check, _usual(known))
        return check + count * _usual(self._drafting)


def _usual(values: Collection[float]) -> float:
    """Rather one of the lower ones: what is far above was kept waiting by other programs."""
    return sorted(values)[len(values) // 4]


def _below(most: int) -> int:
    """How many of `COUNTS` are at most so many."""
    return len(COUNTS) if most >= COUNTS[-1] else sum(count <= most for count in COUNTS)


def _size(count: int) -> int:
    """The number that such a draft is counted as: the next larger one of `COUNTS`."""
    return next((size for size in COUNTS if size >= count), COUNTS[-1])
