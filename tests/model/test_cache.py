"""The cache: what it holds, how it grows, what it shares with a new prompt."""

from __future__ import annotations

import pytest
import torch

from tui_chat.model.build import build
from tui_chat.model.cache import FIRST_CAPACITY, KVCache
from tui_chat.model.spec import ModelSpec

from .tiny import SPECS, random_weights

LONG = ModelSpec(vocab_size=20, n_layer=1, n_head=2, n_embd=8, context_length=1000)


def empty(spec: ModelSpec = LONG) -> KVCache:
    return KVCache(spec, dtype=torch.float32, device=torch.device("cpu"))


def test_capacity_doubles_up_to_the_context_length() -> None:
    cache = empty()
    sizes = []
    for length in (1, FIRST_CAPACITY, FIRST_CAPACITY + 1, 600, 1000):
        cache.reserve(length)
        sizes.append(cache.capacity)
    assert sizes == [256, 256, 512, 1000, 1000]
    with pytest.raises(ValueError, match="1001 tokens in a context of 1000"):
        cache.reserve(1001)


def test_growing_keeps_what_was_written() -> None:
    cache = empty()
    cache.reserve(3)
    for slot in cache.slots(3):
        slot.copy_(torch.arange(48.0).view(2, 1, 2, 3, 4))
    cache.append([1, 2, 3])
    before = [rows.clone() for rows in cache.rows(3)]
    assert float(before[1].sum()) == sum(range(24, 48))
    cache.reserve(700)
    assert all(torch.equal(a, b) for a, b in zip(before, cache.rows(3), strict=True))


def test_common_prefix_counts_the_ids_that_agree() -> None:
    cache = empty()
    cache.append([5, 6, 7, 8])
    assert cache.common_prefix([5, 6, 9]) == 2
    assert cache.common_prefix([5, 6, 7, 8, 9]) == 4
    assert cache.common_prefix([5, 6]) == 2
    assert cache.common_prefix([1]) == 0
    assert cache.common_prefix([]) == 0


def test_memory_is_what_keys_and_values_take() -> None:
    spec = SPECS["gqa-qk-norm"]
    model = build(spec, random_weights(spec, bias=False))
    cache = model.new_cache()
    assert cache.nbytes == 0
    model.forward([1, 2, 3], cache)
    assert cache.data.shape == (2, 2, 1, 2, 48, 8)  # the whole context is below the first step
    assert cache.nbytes == cache.data.numel() * 4
