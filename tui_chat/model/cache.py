"""Keys and values of the tokens a model has already seen, and which tokens those are.

Because the cache knows its token ids, whoever holds one can ask how much of a new prompt it
already covers. All index sums are here; a model asks for each layer's span, puts the keys and
values of new tokens there and gets those that their queries may see.

Layers that see only a window of positions keep little more than that window: their rows move up
now and then, and `origin` says which position is the first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tui_chat.model.slab import Layer, Slab, Span
from tui_chat.model.spec import ModelSpec

SLAB_BYTES = 64 * 2**20  # of a whole context; larger ones grow one by one, to need less at once


class KVCache:
    """One sequence's keys and values. For a model that is not incremental only `tokens` is kept
    and nothing is allocated.

    `layers[i].data` is (2, 1, n_kv_head, capacity, head_dim), keys over values, whose first row
    is the position `layers[i].origin`. `quantised`: int8, to be multiplied by `layers[i].scales`
    (2, 1, n_kv_head, capacity) float32. `version` changes whenever any of these was allocated anew,
    and `origin` when rows have moved.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        dtype: torch.dtype,
        device: torch.device,
        incremental: bool = True,
        quantised: bool = False,
    ) -> None:
        self.tokens: list[int] = []
        self.version = 0
        self.context_length = spec.context_length
        self.quantised = quantised
        self._slabs: list[Slab] = []
        self._places: dict[int, Layer] = {}
        self._kind = (spec, dtype, device, incremental)
        if incremental:
            self._make(spec, dtype, device)
        self.layers = [self._places[i] for i in range(len(self._places))]
        order = [i for slab in self._slabs for i in slab.numbers]
        # A span's place among all slabs' spans, by the number of its layer; None: in order anyway.
        self._order = None if order == sorted(order) else [order.index(i) for i in sorted(order)]

    def _make(self, spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> None:
        alike: dict[int, list[int]] = {}
        for i in range(spec.n_layer):
            window = spec.window[i] if spec.window else 0
            alike.setdefault(0 if window >= spec.context_length else window, []).append(i)
        for window, numbers in alike.items():

            def slab(some: list[int], window: int = window) -> Slab:
                return Slab(
                    some,
                    window,
                    spec.context_length,
                    (spec.n_kv_head, spec.head_dim),
                    dtype=dtype,
                    device=device,
                    quantised=self.quantised,
                )

            each = slab(numbers[:1]).bytes_for(spec.context_length)
            count = max(1, SLAB_BYTES // each)
            for begin in range(0, len(numbers), count):
                made = slab(numbers[begin : begin + count])
                self._slabs.append(made)
                self._places |= {i: Layer(made, at) for at, i in enumerate(made.numbers)}

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def capacity(self) -> int:
        """How many tokens there is room for before anything is allocated or moved."""
        return min((slab.origin + slab.capacity for slab in self._slabs), default=0)

    @property
    def nbytes(self) -> int:
        return sum(slab.nbytes for slab in self._slabs)

    def cache_bytes(self, tokens: int) -> int:
        """The bytes that so many tokens take, up to the context length."""
        return sum(slab.bytes_for(min(tokens, self.context_length)) for slab in self._slabs)

    def read_bytes(self, tokens: int) -> int:
        """How many of its bytes a token behind so many others reads."""
        return sum(slab.seen_bytes(tokens) for slab in self._slabs)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all, keeping what is there."""
        if length > self.context_length:
            raise ValueError(f"{length} tokens in a context of {self.context_length}")
        for slab in self._slabs:
            if length > slab.origin + slab.capacity and slab.reserve(len(self.tokens), length):
                self.version += 1

    def spans(self, count: int) -> Sequence[Span]:
        """For each layer where the keys and values of the next `count` tokens go, and what they may
        see. There must be room.
        """
        start = len(self.tokens)
        if len(self._slabs) == 1:
            return self._slabs[0].spans(start, start + count)
        found = [span for slab in self._slabs for span in slab.spans(start, start + count)]
        return found if self._order is None else [found[at] for at in self._order]

    def append(self, ids: Sequence[int]) -> None:
        """Count `ids` as seen: their keys and values have been written."""
        self.tokens.extend(ids)

    def reusable_length(self, length: int) -> int:
        """How many of the first `length` tokens the cache can go on from: all of them, or none
        where a window has left behind what the next token would see. `length` is at most len(self).
        """
        held = all(slab.reaches(length) for slab in self._slabs)
        return length if held else 0

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on; everything, where `reusable_length` says
        so.
        """
        length = self.reusable_length(length) if length < len(self.tokens) else len(self.tokens)
        del self.tokens[length:]
        if not length:
            for slab in self._slabs:
                slab.origin = 0

    def common_prefix(self, ids: Sequence[int]) -> int:
        """How many ids from the start the cache already holds."""
        limit = min(len(ids), len(self.tokens))
        if list(ids[:limit]) == self.tokens[:limit]:
            return limit
        return next(n for n in range(limit) if ids[n] != self.tokens[n])

    def fork(self) -> KVCache:
        """Another cache that holds the same."""
        spec, dtype, device, incremental = self._kind
        made = KVCache(
            spec, dtype=dtype, device=device, incremental=incremental, quantised=self.quantised
        )
        made.take_from(self, len(self))
        return made

    def take_from(self, other: KVCache, length: int) -> int:
        """Hold the first `length` tokens of another cache of the same model and kind, and nothing
        else. Returns how many these are: none, where `other.reusable_length` says so.
        """
        length = other.reusable_length(min(length, len(other)))
        self.truncate(0)
        for mine, theirs in zip(self._slabs, other._slabs, strict=True):
            if mine.take_from(theirs, length):
                self.version += 1
        self.tokens[:] = other.tokens[:length]
        return length
