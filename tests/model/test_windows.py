"""Layers that see a window, with caches whose rows move up often: any way of reading, taking back
and writing again gives the logits of the arithmetic written out, which has no cache.

What a layer keeps beyond its window is a few rows here, so that 48 positions move them many times.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tui_chat.engine.generate import reusable, reuse
from tui_chat.model import slab
from tui_chat.model.cache import KVCache
from tui_chat.model.decoder import Decoder
from tui_chat.model.pauses import finished
from tui_chat.model.spec import ModelSpec

from .oracle import Oracle
from .tiny import ROPE, SMALL, random_weights

torch.set_num_threads(1)

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
THREE = SMALL | {"n_layer": 3}

SPECS: dict[str, ModelSpec] = {
    "one width": ModelSpec(**SMALL, **ROPE, window=(5, 5)),
    "itself alone": ModelSpec(**SMALL, window=(1, 1)),
    "itself alone, then all": ModelSpec(**SMALL, **ROPE, n_kv_head=2, window=(1, 0)),
    "mixed": ModelSpec(**THREE, **ROPE, n_kv_head=2, window=(3, 0, 11)),
    "alternating": ModelSpec(**THREE, position="none", window=(6, 2, 6)),
    "softcapped": ModelSpec(**SMALL, **ROPE, attention_softcap=2.0, window=(4, 9)),
    "as wide as the context": ModelSpec(**SMALL, window=(48, 4)),
    "far wider": ModelSpec(**SMALL, window=(4, 10**9)),
}
_MODELS = {name: Decoder(spec, random_weights(spec)) for name, spec in SPECS.items()}
_ORACLES = {name: Oracle(spec, random_weights(spec)) for name, spec in SPECS.items()}

Ids = list[int]


@pytest.fixture(autouse=True, params=[(0, 1, 1), (3, 2, 4)], ids=["no slack", "little"])
def little_is_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("BACK", "SLACK", "STEP"), request.param, strict=True):
            patch.setattr(slab, name, value)
        yield


def written_out(name: str, ids: Ids) -> Tensor:
    return _ORACLES[name](ids).float()


def ids_of(data: st.DataObject, least: int, most: int) -> Ids:
    return data.draw(st.lists(st.integers(0, 60), min_size=least, max_size=most))


def read(model: Decoder, cache: KVCache, ids: Ids, data: st.DataObject) -> Tensor:
    """Bring the cache to `ids` in any pieces, through any of the ways in; the last logits."""
    other = model.new_cache()
    last = torch.empty(0)
    while len(cache) < len(ids):
        end = data.draw(st.integers(len(cache) + 1, len(ids)))
        piece = ids[len(cache) : end]
        way = data.draw(st.sampled_from(["forward", "forward_all", "forward_each", "reading"]))
        if way == "forward_each" and len(other) < 48:
            last = model.forward_each([piece[0], 7], [cache, other])[0]
        elif way == "forward_all":
            last = model.forward_all(piece, cache)[-1]
        elif way == "reading":
            left = model.reading(piece, cache, logits=True)
            next(left)
            left.close()  # as when a reply is stopped: nothing has been read
            found = finished(model.reading(piece, cache, logits=True))
            assert found is not None
            last = found
        else:
            last = model.forward(piece, cache)
    return last


@settings(max_examples=25, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SPECS)))
def test_any_way_of_reading_and_going_back_gives_the_written_out_logits(
    data: st.DataObject, name: str
) -> None:
    model = _MODELS[name]
    cache = model.new_cache()
    ids = ids_of(data, 1, 48)
    torch.testing.assert_close(
        read(model, cache, ids, data), written_out(name, ids)[-1], **TOLERANCE
    )
    for _ in range(2):
        kept = data.draw(st.integers(0, len(ids) - 1))
        ids = ids[:kept] + ids_of(data, 1, 48 - kept)
        count = reusable(model, cache, ids)
        reuse(model, cache, ids)
        assert len(cache) == count and cache.tokens == ids[:count]
        if data.draw(st.booleans()):
            cache = cache.fork()
        last = read(model, cache, ids, data)
        torch.testing.assert_close(last, written_out(name, ids)[-1], **TOLERANCE)
        assert cache.tokens == ids


@pytest.mark.parametrize("piece", [1, 2, 13, 48])
@pytest.mark.parametrize("name", sorted(SPECS))
def test_each_piece_gives_the_written_out_logits(name: str, piece: int) -> None:
    ids = [(11 * n + 5) % 61 for n in range(48)]
    model = _MODELS[name]
    cache = model.new_cache()
    rows = [model.forward_all(ids[at : at + piece], cache) for at in range(0, 48, piece)]
    wanted = written_out(name, ids)
    torch.testing.assert_close(torch.cat(rows), wanted, **TOLERANCE)
    cache.truncate(0)
    stepped = torch.stack([model.forward([token], cache) for token in ids])
    torch.testing.assert_close(stepped, wanted, **TOLERANCE)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_prefix_is_taken_from_another_cache(name: str) -> None:
    model = _MODELS[name]
    ids = [(7 * n + 2) % 61 for n in range(40)]
    source = model.new_cache()
    model.forward(ids, source)
    for length in range(41):
        cache = model.new_cache()
        taken = cache.take_from(source, length)
        assert taken == source.reusable_length(length) and taken in (0, length)
        more = [*ids[taken:length], 9]
        found = model.forward(more, cache)
        torch.testing.assert_close(found, written_out(name, [*ids[:length], 9])[-1], **TOLERANCE)


def test_layers_with_a_window_have_moved_on() -> None:
    """Or the tests above would say nothing."""
    model = _MODELS["mixed"]
    cache = model.new_cache()
    for token in range(48):
        model.forward([token], cache)
    near, far, wide = cache.layers
    assert near.origin > wide.origin > far.origin == 0
    assert near.data.shape[3] == 2 + slab.BACK + slab.SLACK < far.data.shape[3] == 48


@pytest.mark.parametrize("name", ["one width", "mixed"])
def test_a_quantised_window_is_the_same_in_any_pieces(name: str) -> None:
    model = Decoder(SPECS[name], random_weights(SPECS[name]), quantised_cache=True)
    ids = [(11 * n + 5) % 61 for n in range(48)]
    whole = model.forward_all(ids, model.new_cache())
    assert (whole - written_out(name, ids)).abs().max() < 0.5
    cache = model.new_cache()
    rows = [model.forward_all(ids[:20], cache)]
    rows += [model.forward([token], cache)[None] for token in ids[20:]]
    # A number between two that can be kept may be rounded either way.
    assert (torch.cat(rows) - whole).norm() / whole.norm() < 3e-3


def test_real_sizes_move_their_rows_too() -> None:
    spec = replace(SPECS["mixed"], context_length=2500, window=(3, 0, 500))
    with pytest.MonkeyPatch.context() as patch:
        for key, value in (("BACK", 768), ("SLACK", 256), ("STEP", 256)):
            patch.setattr(slab, key, value)
        model = Decoder(spec, random_weights(spec))
        ids = [(n * n + 5) % 61 for n in range(2500)]
        whole = model.forward_all(ids, model.new_cache())
        cache = model.new_cache()
        for start in range(0, 1536, 256):
            last = model.forward(ids[start : start + 256], cache)
        torch.testing.assert_close(last, whole[1535], **TOLERANCE)
        for n in range(1536, 2500):
            last = model.forward([ids[n]], cache)
        torch.testing.assert_close(last, whole[-1], **TOLERANCE)
        assert [layer.origin > 0 for layer in cache.layers] == [True, False, True]
        cache.truncate(1900)
        assert len(cache) == 1900
        torch.testing.assert_close(model.forward(ids[1900:1905], cache), whole[1904], **TOLERANCE)
