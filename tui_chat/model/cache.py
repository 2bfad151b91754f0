"""Keys and values of the tokens a model has already seen, and which tokens those are.

Because the cache knows its token ids, whoever holds one can ask how much of a new prompt it
already covers. All index sums are here; the model asks for the places to write to and the rows
to read.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tui_chat.model.spec import ModelSpec

FIRST_CAPACITY = 256


class KVCache:
    """One sequence's keys and values, `(n_layer, 2, 1, n_kv_head, capacity, head_dim)`.

    Capacity doubles as the sequence grows, up to the context length. For a model that is not
    incremental only `tokens` is kept and nothing is allocated.
    """

    def __init__(
        self, spec: ModelSpec, *, dtype: torch.dtype, device: torch.device, incremental: bool = True
    ) -> None:
        self.tokens: list[int] = []
        self.context_length = spec.context_length
        self._shape = (spec.n_layer, 2, 1, spec.n_kv_head, spec.head_dim)
        self._incremental = incremental
        self._dtype, self._device = dtype, device
        self.data = self._allocate(0)  # rows from len(self) on hold nothing of use

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def capacity(self) -> int:
        return self.data.shape[4]

    @property
    def nbytes(self) -> int:
        return self.data.numel() * self.data.element_size()

    def _allocate(self, capacity: int) -> Tensor:
        *outer, dim = self._shape
        shape = (*outer, capacity, dim)
        return torch.empty(shape, dtype=self._dtype, device=self._device)

    def reserve(self, length: int) -> None:
        """Make room for `length` tokens in all, keeping what is there."""
        if length > self.context_length:
            raise ValueError(f"{length} tokens in a context of {self.context_length}")
        if length <= self.capacity or not self._incremental:
            return
        capacity = min(self.context_length, max(length, 2 * self.capacity, FIRST_CAPACITY))
        grown = self._allocate(capacity)
        grown[..., : len(self), :] = self.data[..., : len(self), :]
        self.data = grown

    def slots(self, count: int) -> tuple[Tensor, ...]:
        """Where each layer writes the keys and values of the next `count` tokens: (2, 1,
        n_kv_head, count, head_dim).
        """
        return self.data.narrow(4, len(self), count).unbind(0)

    def rows(self, end: int) -> tuple[Tensor, ...]:
        """Keys and values of positions [0, end), two for each layer: (1, n_kv_head, end,
        head_dim).
        """
        return self.data.narrow(4, 0, end).flatten(0, 1).unbind(0)

    def append(self, ids: Sequence[int]) -> None:
        """Count `ids` as seen: their keys and values have been written."""
        self.tokens.extend(ids)

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        del self.tokens[length:]

    def common_prefix(self, ids: Sequence[int]) -> int:
        """How many ids from the start the cache already holds."""
        limit = min(len(ids), len(self.tokens))
        if list(ids[:limit]) == self.tokens[:limit]:
            return limit
        return next(n for n in range(limit) if ids[n] != self.tokens[n])
