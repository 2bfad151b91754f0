"""What the lanes of one checkpoint share of what they have read: keys and values are copied, at the
speed of memory, where another cache holds them already.

Two places are looked at: the caches of the other lanes, and the branches that were put aside when
a lane went back in its conversation. A branch is only the end of a cache, from where it was cut
on; whoever comes back to it holds the beginning still, or finds it in another branch. Knows ids
and rows: no text. Loads no torch by being imported.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tui_chat.engine.memory import SMALL, available_memory

if TYPE_CHECKING:
    from torch import Tensor

    from tui_chat.engine.engine import Lane
    from tui_chat.model.cache import KVCache

LEAST = 16  # tokens that are worth keeping: reading so few costs about as much as writing two
SHARE = 16  # branches take at most this part of the memory that is free
CONTEXTS = 2  # and no more than so many full contexts


class Rows(Protocol):
    """One layer's keys and values from position `origin` on, as in KVCache."""

    @property
    def data(self) -> Tensor: ...
    @property
    def scales(self) -> Tensor | None: ...
    @property
    def origin(self) -> int: ...


class Held(Protocol):
    """A cache, or the end of one: what `layers` hold of the keys and values of `tokens`."""

    @property
    def tokens(self) -> list[int]: ...
    @property
    def layers(self) -> Sequence[Rows]: ...


class _Kept(NamedTuple):
    data: Tensor
    scales: Tensor | None
    origin: int


class Branch:
    """The rows of a cache from position `start` on, kept when the cache is cut there."""

    def __init__(self, cache: KVCache, start: int) -> None:
        self.tokens = list(cache.tokens)
        self.start = start
        self.layers = [_kept(layer, start, len(self.tokens)) for layer in cache.layers]
        self.nbytes = sum(
            kept.data.nbytes + (0 if kept.scales is None else kept.scales.nbytes)
            for kept in self.layers
        )

    def covers(self, other: Branch) -> bool:
        """Whether it holds all that `other` holds."""
        size = len(other.tokens)
        return self.start <= other.start and self.tokens[:size] == other.tokens


class Prefixes:
    """What is held of a checkpoint's lanes and branches."""

    def __init__(self) -> None:
        self._lanes: weakref.WeakSet[Lane] = weakref.WeakSet()
        self._branches: list[Branch] = []  # the one used last at the end

    @property
    def nbytes(self) -> int:
        """Bytes of the branches; caches belong to their lanes."""
        return sum(branch.nbytes for branch in self._branches)

    def join(self, lane: Lane) -> None:
        """Let other lanes take what this one has read, as long as it lives."""
        self._lanes.add(lane)

    def clear(self) -> None:
        """Forget the branches."""
        self._branches.clear()

    def put_aside(self, cache: KVCache, start: int, budget: int | None = None) -> None:
        """Keep what the cache holds from `start` on, which it is about to forget. `budget`: bytes
        that all branches may take.
        """
        if len(cache) - start < LEAST or not cache.layers:
            return
        size = _bytes_from(cache, start)
        if budget is None:
            budget = CONTEXTS * cache.cache_bytes(cache.context_length)
            if self.nbytes + size > SMALL:
                free = available_memory(cache.layers[0].data.device)
                budget = min(budget, max(SMALL, free // SHARE))
        if size > budget:
            return
        made = Branch(cache, start)
        known = next((branch for branch in self._branches if branch.covers(made)), made)
        self._branches = [b for b in self._branches if b is not known and not made.covers(b)]
        self._branches.append(known)
        while self.nbytes > budget:
            del self._branches[0]

    def extend(self, cache: KVCache, ids: Sequence[int]) -> int:
        """Bring a cache, which holds the first of `ids`, as near to all of them but the last as
        copying can. Returns how many tokens it gained.
        """
        import torch

        with torch.inference_mode():  # as the cache was made and filled
            return self._extend(cache, ids)

    def _extend(self, cache: KVCache, ids: Sequence[int]) -> int:
        before = len(cache)
        while (source := self._furthest(cache, ids)) is not None:
            held, end = source
            if isinstance(held, Branch):
                self._branches.remove(held)
                self._branches.append(held)
            if _begin(held) <= len(cache):
                _copy(held, cache, end)
            elif cache.take_from(held, end) != end:  # type: ignore[arg-type]  # a whole cache
                break
        return len(cache) - before

    def _furthest(self, cache: KVCache, ids: Sequence[int]) -> tuple[Held, int] | None:
        """Who holds most of `ids` beyond what the cache does, and up to where."""
        best: tuple[Held, int] | None = None
        here, limit = len(cache), len(ids) - 1
        if here >= limit:
            return None
        held: list[Held] = [*self._branches, *(lane.cache for lane in self._lanes)]
        for one in held:
            tokens = one.tokens
            if one is cache or len(tokens) <= here or tokens[here] != ids[here]:
                continue
            end = common(tokens, ids, limit)
            if end > (here if best is None else best[1]) and _reaches(one, here, end):
                best = one, end
        return best


def common(tokens: Sequence[int], ids: Sequence[int], limit: int) -> int:
    """How many of the first `limit` ids two sequences share."""
    limit = min(limit, len(tokens), len(ids))
    if list(tokens[:limit]) == list(ids[:limit]):
        return limit
    return next(at for at in range(limit) if tokens[at] != ids[at])


def _begin(held: Held) -> int:
    """The position from which on all layers hold rows."""
    return max((layer.origin for layer in held.layers), default=0)


def _reaches(held: Held, here: int, end: int) -> bool:
    """Whether it can bring a cache of length `here` to `end`."""
    if _begin(held) <= here:
        return True
    return not isinstance(held, Branch) and held.reusable_length(end) == end  # type: ignore[attr-defined]


def _bytes_from(cache: KVCache, start: int) -> int:
    """What the rows from `start` on take."""
    return sum(
        2
        * layer.data.shape[2]
        * (len(cache) - max(start, layer.origin))
        * (layer.data.shape[4] * layer.data.element_size() + (0 if layer.scales is None else 4))
        for layer in cache.layers
    )


def _kept(layer: Rows, start: int, end: int) -> _Kept:
    first, scales = max(start, layer.origin), layer.scales
    at, count = first - layer.origin, end - first
    return _Kept(
        layer.data.narrow(3, at, count).clone(),
        None if scales is None else scales.narrow(3, at, count).clone(),
        first,
    )


def _copy(held: Held, cache: KVCache, end: int) -> None:
    """Give the cache the rows from its length up to `end`."""
    start = len(cache)
    cache.reserve(end)
    for mine, theirs in zip(cache.layers, held.layers, strict=True):
        for to, of in ((mine.data, theirs.data), (mine.scales, theirs.scales)):
            if to is not None and of is not None:
                rows = of.narrow(3, start - theirs.origin, end - start)
                to.narrow(3, start - mine.origin, end - start).copy_(rows)
    cache.append(held.tokens[start:end])
