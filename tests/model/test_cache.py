"""The cache: what it holds, how it grows, how its windows move, what it shares with a new prompt
and with another cache.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tui_chat.model.build import build
from tui_chat.model.cache import KVCache
from tui_chat.model.slab import BACK, SLACK, STEP
from tui_chat.model.spec import ModelSpec

from .tiny import SPECS, random_weights

LONG = ModelSpec(vocab_size=20, n_layer=1, n_head=2, n_embd=8, context_length=1000)
WINDOW = 10
WINDOWS = ModelSpec(
    vocab_size=20,
    n_layer=3,
    n_head=2,
    n_embd=8,
    context_length=5000,
    window=(WINDOW, 0, WINDOW),
)
MOST = WINDOW - 1 + BACK + SLACK  # rows of a layer with that window


def empty(spec: ModelSpec = LONG, **kind: Any) -> KVCache:
    return KVCache(spec, dtype=torch.float32, device=torch.device("cpu"), **kind)


def rows_of(first: int, end: int, layer: int = 0) -> Tensor:
    """Keys and values that tell their position: (2, 1, 2, end - first, 4)."""
    at = torch.arange(first, end, dtype=torch.float32) + 10_000 * layer
    return at[:, None].expand(2, 1, 2, end - first, 4) * torch.tensor([1.0, -1.0]).view(
        2, 1, 1, 1, 1
    )


def fill(cache: KVCache, end: int, piece: int = 1) -> list[tuple[Tensor, Tensor]]:
    """Let the cache take tokens up to `end`; what the last piece may see, by layer."""
    seen: list[tuple[Tensor, Tensor]] = []
    while len(cache) < end:
        first, last = len(cache), min(len(cache) + piece, end)
        cache.reserve(last)
        spans = cache.spans(last - first)
        seen = [span.put(rows_of(first, last, i)) for i, span in enumerate(spans)]
        cache.append(range(first, last))
    return seen


def holds(seen: tuple[Tensor, Tensor], first: int, end: int, layer: int = 0) -> bool:
    wanted = rows_of(first, end, layer)
    return torch.equal(seen[0], wanted[0]) and torch.equal(seen[1], wanted[1])


def test_capacity_grows_in_steps_up_to_the_context_length() -> None:
    cache = empty()
    sizes = []
    for length in (1, STEP, STEP + 1, 600, 1000):
        cache.reserve(length)
        sizes.append(cache.capacity)
    assert sizes == [256, 256, 512, 768, 1000]
    with pytest.raises(ValueError, match="1001 tokens in a context of 1000"):
        cache.reserve(1001)


def test_what_is_not_yet_used_stays_an_eighth_and_a_row_is_seldom_copied() -> None:
    cache = empty(ModelSpec(vocab_size=2, n_layer=1, n_head=1, n_embd=2, context_length=10**6))
    copied, length = 0, 1
    while length < 200_000:
        before = cache.capacity
        cache.reserve(length)
        copied += before
        assert cache.capacity - length < max(STEP, length // 8)
        cache.append([0] * (cache.capacity - len(cache)))
        length = cache.capacity + 1
    assert copied < 9 * length


def test_growing_keeps_what_was_written() -> None:
    cache = empty()
    fill(cache, 3)
    version = cache.version
    cache.reserve(700)
    assert cache.version > version
    assert holds(fill(cache, 4)[0], 0, 4)


def test_the_version_tells_of_every_allocation_and_of_nothing_else() -> None:
    cache = empty(WINDOWS)
    places: list[int] = []
    version = cache.version
    for length in range(1, 2500):
        fill(cache, length)
        now = [layer.data.data_ptr() for layer in cache.layers]
        assert now == places or cache.version != version
        assert now != places or cache.version == version
        places, version = now, cache.version
    assert cache.layers[0].origin > 0


def test_layers_say_where_a_row_is() -> None:
    cache = empty(WINDOWS)
    fill(cache, 2400)
    for i, layer in enumerate(cache.layers):
        assert layer.data.is_contiguous() and layer.scales is None
        row = layer.data[0, 0, 1, 2399 - layer.origin]
        assert row.tolist() == [2399.0 + 10_000 * i] * 4
    assert [layer.origin > 0 for layer in cache.layers] == [True, False, True]


@pytest.mark.parametrize("piece", [1, 7, 256, 2000])
def test_a_layer_with_a_window_gives_what_the_window_shows(piece: int) -> None:
    cache = empty(WINDOWS)
    while len(cache) < 4900:
        first = len(cache)
        near, far, other = fill(cache, min(first + piece, 4900), piece)
        begin = max(0, first - WINDOW + 1)
        assert holds(near, begin, len(cache)) and holds(other, begin, len(cache), 2)
        assert holds(far, 0, len(cache), 1)


def test_a_layer_with_a_window_takes_memory_for_no_more_than_it() -> None:
    spec = ModelSpec(
        vocab_size=9, n_layer=2, n_head=2, n_embd=8, context_length=100_000, window=(10, 2000)
    )
    cache = empty(spec)
    fill(cache, 20_000, 256)
    rows = [layer.data.shape[3] for layer in cache.layers]
    assert rows == [9 + BACK + SLACK, 1999 + BACK + SLACK]
    assert cache.nbytes == cache.cache_bytes(20_000) == cache.cache_bytes(90_000)
    fill(cache, 24_000, 4000)  # a single piece longer than that needs its rows for itself
    assert cache.layers[0].data.shape[3] == 4000 + 9
    fill(cache, 24_300)
    assert [layer.data.shape[3] for layer in cache.layers] == rows


def test_a_cache_goes_back_as_far_as_its_windows_hold() -> None:
    cache = empty(WINDOWS)
    fill(cache, 3000, 256)
    origin = cache.layers[0].origin
    assert origin > 0 and cache.reusable_length(3000) == 3000
    furthest = origin + WINDOW - 1
    assert 3000 - BACK - SLACK <= furthest <= 3000 - BACK
    assert cache.reusable_length(furthest) == furthest
    assert cache.reusable_length(furthest - 1) == 0 and cache.reusable_length(0) == 0
    cache.truncate(furthest)
    assert len(cache) == furthest
    near, far, _ = fill(cache, furthest + 1)
    assert holds(near, furthest - WINDOW + 1, furthest + 1) and holds(far, 0, furthest + 1, 1)
    cache.truncate(furthest - 2)
    assert len(cache) == 0 and [layer.origin for layer in cache.layers] == [0, 0, 0]
    assert holds(fill(cache, 5)[0], 0, 5)


def test_before_a_window_has_moved_a_cache_goes_back_to_anything() -> None:
    cache = empty(WINDOWS)
    fill(cache, MOST)
    assert all(cache.reusable_length(n) == n for n in range(MOST + 1))
    fill(cache, MOST + 1)
    assert cache.reusable_length(3) == 0


def test_common_prefix_counts_the_ids_that_agree() -> None:
    cache = empty()
    cache.append([5, 6, 7, 8])
    assert cache.common_prefix([5, 6, 9]) == 2
    assert cache.common_prefix([5, 6, 7, 8, 9]) == 4
    assert cache.common_prefix([5, 6]) == 2
    assert cache.common_prefix([1]) == 0
    assert cache.common_prefix([]) == 0


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("length", [0, 1, 700, 2300])
def test_a_fork_goes_on_alone(length: int, quantised: bool) -> None:
    cache = empty(WINDOWS, quantised=quantised)
    fill(cache, length, 100)
    other = cache.fork()
    assert other.tokens == cache.tokens and other.quantised == quantised
    held = [layer.data.clone() for layer in cache.layers]
    seen, wanted = fill(other, length + 1), fill(cache, length + 1)
    for one, two in zip(seen, wanted, strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    fill(other, length + 50)
    assert len(cache) == length + 1
    cache.truncate(length)
    for layer, was in zip(cache.layers, held, strict=True):
        rows = length - layer.origin
        assert torch.equal(layer.data[..., :rows, :], was[..., :rows, :])


def test_a_prefix_of_another_cache_is_taken_as_far_as_it_is_there() -> None:
    source, cache = empty(WINDOWS), empty(WINDOWS)
    fill(source, 3000, 256)
    fill(cache, 40)
    assert cache.take_from(source, 2900) == 2900 and len(cache) == 2900
    near, far, _ = fill(cache, 2901)
    assert holds(near, 2901 - WINDOW, 2901) and holds(far, 0, 2901, 1)
    assert cache.take_from(source, 30) == 0 and len(cache) == 0
    assert holds(fill(cache, 3)[1], 0, 3, 1)
    assert cache.take_from(source, 10**6) == 3000


def test_a_model_that_is_computed_anew_keeps_its_ids_alone() -> None:
    cache = empty(WINDOWS, incremental=False)
    cache.append(range(6000))
    assert (cache.layers, cache.nbytes, cache.cache_bytes(100)) == ([], 0, 0)
    other = cache.fork()
    assert other.tokens == cache.tokens and other.take_from(cache, 70) == 70
    cache.truncate(5)
    assert (cache.tokens, len(other)) == ([0, 1, 2, 3, 4], 70)


def test_a_quantised_cache_gives_nearly_what_was_put_there() -> None:
    draw = torch.Generator().manual_seed(1)
    cache = empty(quantised=True)
    kv = torch.randn(2, 1, 2, 300, 4, generator=draw) * torch.logspace(-6, 6, 300)[:, None]
    kv[..., 7, :] = 0
    cache.reserve(300)
    keys, values = cache.spans(300)[0].put(kv)
    largest = kv.abs().amax(-1, keepdim=True)
    assert ((keys - kv[0]).abs() <= largest[0] * 0.501 / 127).all()
    assert ((values - kv[1]).abs() <= largest[1] * 0.501 / 127).all()
    data, scales = cache.layers[0].data, cache.layers[0].scales
    assert data.dtype == torch.int8 and scales is not None and scales.shape == data.shape[:-1]
    assert torch.equal(keys, (data * scales[..., None])[0][..., :300, :])


def test_memory_is_what_keys_and_values_take() -> None:
    spec = SPECS["gqa-qk-norm"]
    model = build(spec, random_weights(spec, bias=False))
    cache = model.new_cache()
    assert cache.nbytes == 0
    model.forward([1, 2, 3], cache)
    assert len(cache.layers) == 2
    assert cache.layers[0].data.shape == (2, 1, 2, 48, 8)  # the context is below the first step
    assert cache.nbytes == cache.cache_bytes(3) == 2 * cache.layers[0].data.numel() * 4


@pytest.mark.parametrize("quantised", [False, True])
def test_the_bytes_of_a_length_are_told_beforehand(quantised: bool) -> None:
    for length in (1, 300, 1500, 5000):
        cache = empty(WINDOWS, quantised=quantised)
        wanted = cache.cache_bytes(length)
        fill(cache, length, 256)
        assert cache.nbytes == wanted
