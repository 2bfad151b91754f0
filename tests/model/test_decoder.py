"""The cached path against the uncached one, the one-token step against the piecewise one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tui_chat.errors import CheckpointError
from tui_chat.model.build import build
from tui_chat.model.decoder import Decoder
from tui_chat.model.spec import ModelSpec

from .oracle import Oracle
from .tiny import SMALL, SPECS, random_weights, weights_of

torch.set_num_threads(1)

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
_MODELS: dict[str, Decoder] = {}


def model(name: str) -> Decoder:
    if name not in _MODELS:
        _MODELS[name] = Decoder(SPECS[name], weights_of(name))
    return _MODELS[name]


def uncached(model: Decoder, ids: list[int]) -> Tensor:
    """Logits after every id, in one piece on an empty cache."""
    return model.forward_all(ids, model.new_cache())


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(SPECS)))
def test_any_cutting_of_the_prompt_gives_the_uncached_logits(
    data: st.DataObject, name: str
) -> None:
    running = model(name)
    size = running.spec.vocab_size
    ids = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=48))
    cache = running.new_cache()
    while len(cache) < len(ids):
        piece = data.draw(st.integers(1, len(ids) - len(cache)))
        end = len(cache) + piece
        last = running.forward(ids[len(cache) : end], cache)
        torch.testing.assert_close(last, uncached(running, ids[:end])[-1], **TOLERANCE)
    kept = data.draw(st.integers(0, len(ids) - 1))
    other = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=len(ids) - kept))
    cache.truncate(kept)
    last = running.forward(other, cache)
    torch.testing.assert_close(last, uncached(running, ids[:kept] + other)[-1], **TOLERANCE)
    assert cache.tokens == ids[:kept] + other


@pytest.mark.parametrize("name", sorted(SPECS))
def test_one_by_one_equals_all_at_once(name: str) -> None:
    running = model(name)
    ids = [(7 * n + 3) % running.spec.vocab_size for n in range(48)]
    cache = running.new_cache()
    stepped = torch.stack([running.forward([token], cache) for token in ids])
    torch.testing.assert_close(stepped, uncached(running, ids), **TOLERANCE)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_several_sequences_at_once_get_what_each_gets_alone(name: str) -> None:
    running = model(name)
    starts = [[5], [9, 31, 2, 44, 17, 8, 1], [3] * 20]
    caches = [running.new_cache() for _ in starts]
    for ids, cache in zip(starts, caches, strict=True):
        running.forward(ids, cache)
    for tokens in ([7, 8, 9], [40, 41, 42], [0, 60, 30]):
        found = running.forward_each(tokens, caches)
        for ids, token, row in zip(starts, tokens, found, strict=True):
            ids.append(token)
            torch.testing.assert_close(row, uncached(running, ids)[-1], **TOLERANCE)
    assert [cache.tokens for cache in caches] == starts


@pytest.mark.parametrize("name", sorted(SPECS))
def test_the_logits_are_those_of_the_arithmetic_written_out(name: str) -> None:
    ids = [(11 * n + 5) % SPECS[name].vocab_size for n in range(48)]
    wanted = Oracle(SPECS[name], weights_of(name))(ids)
    torch.testing.assert_close(uncached(model(name), ids).double(), wanted, **TOLERANCE)
    assert wanted.std() > 0.02


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "name", ["gpt", "gqa-qk-norm", "nanochat-like", "partial-rotary-half", "gemma2-like"]
)
def test_sixteen_bits_stay_near_float32(name: str, dtype: torch.dtype) -> None:
    coarse = build(SPECS[name], {key: w.to(dtype) for key, w in weights_of(name).items()})
    ids = [5, 9, 31, 2, 44, 17, 8, 1]
    cache = coarse.new_cache()
    coarse.forward(ids[:5], cache)
    for token in ids[5:]:
        logits = coarse.forward([token], cache)
    assert logits.dtype == torch.float32
    assert (logits - uncached(model(name), ids)[-1]).abs().max() < 0.35


def test_the_head_is_the_embedding_when_the_file_has_none() -> None:
    spec = SPECS["gpt"]
    weights = random_weights(spec, tied=True)
    explicit = dict(weights) | {"head.weight": weights["embed.weight"].clone()}
    ids = [1, 2, 3, 4]
    one, other = build(spec, weights), build(spec, explicit)
    torch.testing.assert_close(uncached(one, ids), uncached(other, ids))
    torch.testing.assert_close(
        one.forward([9], one.new_cache()), other.forward([9], other.new_cache())
    )


def test_a_norm_over_all_heads_is_read_off_the_size_of_its_weight() -> None:
    spec = SPECS["gqa-qk-norm"]
    wide = build(spec, random_weights(spec, bias=False, wide_qk_norm=True))
    ids = [4, 8, 15, 16, 23]
    cache = wide.new_cache()
    wide.forward(ids[:3], cache)
    wide.forward(ids[3:4], cache)
    all_at_once = uncached(wide, ids)[-1]
    torch.testing.assert_close(wide.forward(ids[4:], cache), all_at_once, **TOLERANCE)
    assert (all_at_once - uncached(model("gqa-qk-norm"), ids)[-1]).abs().max() > 0.01


def test_a_window_hides_what_lies_behind_it() -> None:
    spec = ModelSpec(**SMALL, position="none", window=(3, 3))
    narrow = build(spec, random_weights(spec))
    # Two layers of 3 positions reach back 4 tokens; what stands before them makes no difference.
    tail = [10, 11, 12, 13, 14]
    one, other = uncached(narrow, [1, 2, 3, *tail])[-1], uncached(narrow, [50, 51, 52, *tail])[-1]
    torch.testing.assert_close(one, other)
    assert (one - uncached(narrow, [1, 2, 3, 9, *tail[1:]])[-1]).abs().max() > 0.01


def test_an_unknown_family_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match="hyena"):
        build(ModelSpec(**SMALL, family="hyena"), {})


def test_a_missing_tensor_and_one_too_many_are_named() -> None:
    spec = SPECS["gpt"]
    weights = random_weights(spec)
    del weights["blocks.1.mlp.up.weight"]
    with pytest.raises(CheckpointError, match=r"blocks\.1\.mlp\.up\.weight"):
        build(spec, weights)
    with pytest.raises(CheckpointError, match="value_head"):
        build(spec, random_weights(spec) | {"value_head.weight": torch.zeros(1)})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_gpu_gives_the_logits_of_the_cpu(name: str) -> None:
    spec = SPECS[name]
    weights = random_weights(spec, bias=spec.norm == "layernorm")
    there = build(spec, {key: tensor.cuda() for key, tensor in weights.items()})
    ids = [(7 * n + 3) % spec.vocab_size for n in range(40)]
    cache = there.new_cache()
    there.forward(ids[:10], cache)
    there.forward(ids[10:17], cache)
    stepped = torch.stack([there.forward([token], cache) for token in ids[17:]]).cpu()
    torch.testing.assert_close(stepped, uncached(model(name), ids)[17:], atol=2e-3, rtol=2e-3)
