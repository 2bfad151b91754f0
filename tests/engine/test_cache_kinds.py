"""Lanes over caches that do not keep everything: layers with a window, keys and values in int8."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import tui_chat
from tui_chat.engine.api import Checkpoint
from tui_chat.engine.events import Prompt
from tui_chat.errors import UsageError
from tui_chat.model import slab
from tui_chat.sampling import SamplingParams

from .small import Ran

FIXTURES = Path(__file__).parent.parent / "fixtures"
WINDOWS = ["hf-mistral/v4-sliding", "hf-gemma3/v5-text"]
LONG = tuple((7 * n + 3) % 90 for n in range(100))


@pytest.fixture(autouse=True)
def little_is_kept() -> Iterator[None]:
    """A window of 16 positions then moves often in a context of 256."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BACK", 12), ("SLACK", 8), ("STEP", 16)):
            patch.setattr(slab, name, value)
        yield


def opened(name: str, **options: str) -> Checkpoint:
    return tui_chat.open(str(FIXTURES / name), device="cpu", **options)


def reply(checkpoint: Checkpoint, ids: tuple[int, ...], count: int = 10) -> Ran:
    params = SamplingParams(temperature=0.0, max_new_tokens=count)
    return Ran(checkpoint.lane.reply(Prompt(mode="raw", ids=ids), params))


@pytest.mark.parametrize("name", WINDOWS)
def test_the_next_turn_and_a_retry_reuse_a_cache_whose_windows_have_moved(name: str) -> None:
    checkpoint = opened(name)
    first = reply(checkpoint, LONG)
    layers = checkpoint.lane.cache.layers
    assert max(layer.origin for layer in layers) > 0
    more = (*LONG, *first.finished.ids, 5, 6, 7)
    second = reply(checkpoint, more)
    assert second.started.reused_tokens == len(LONG) + 9  # the last token was never read
    assert second.finished.ids == reply(opened(name), more).finished.ids
    again = reply(checkpoint, more)
    assert again.started.reused_tokens == len(more) - 1
    assert again.finished.ids == second.finished.ids


@pytest.mark.parametrize("name", WINDOWS)
def test_an_edit_behind_what_the_windows_hold_is_read_anew_and_right(name: str) -> None:
    checkpoint = opened(name)
    reply(checkpoint, LONG, 60)
    edited = (*LONG[:50], 4, *LONG[51:])
    ran = reply(checkpoint, edited)
    assert ran.started.reused_tokens == 0
    assert ran.finished.ids == reply(opened(name), edited).finished.ids


def test_memory_is_told_beforehand_with_windows_and_int8() -> None:
    plain = opened("hf-gemma3/v5-text").loaded
    small = opened("hf-gemma3/v5-text", kv_cache="int8").loaded
    assert (plain.dtype, small.dtype) == ("float32", "float32, int8 cache")
    row = 2 * plain.model.spec.n_kv_head
    near = 15 + 12 + 8  # rows of each of the three layers with a window
    assert plain.cache_bytes(256) == (256 + 3 * near) * row * 16 * 4
    assert small.cache_bytes(256) == (256 + 3 * near) * row * (16 + 4)
    assert plain.cache_bytes(10**6) == plain.cache_bytes(256)
    assert plain.cache_bytes_per_token == -(-plain.cache_bytes(256) // 256)


@pytest.mark.parametrize("name", [*WINDOWS, "nanogpt/char-bias/out-shakespeare-char"])
def test_a_reply_with_an_int8_cache_is_that_of_reading_all_at_once(name: str) -> None:
    checkpoint = opened(name, kv_cache="int8")
    ids = tuple(token % checkpoint.loaded.offered for token in LONG[:40])
    made = reply(checkpoint, ids).finished.ids
    assert checkpoint.lane.cache.quantised
    model = checkpoint.loaded.model
    whole = model.forward_all([*ids, *made], model.new_cache())
    offered = checkpoint.loaded.offered
    assert tuple(whole[len(ids) - 1 : -1, :offered].argmax(-1).tolist()) == made


def test_what_cannot_be_is_refused_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="the cache cannot be kept in 'int4'") as unknown:
        opened(WINDOWS[0], kv_cache="int4")
    assert unknown.value.remedy == "There is int8"
    with pytest.raises(UsageError, match="an int8 cache is not to be had") as hipgpt:
        opened("S3/tiny_fallback/checkpoints/tiny", kv_cache="int8")
    assert hipgpt.value.remedy == "Leave --kv-cache out"
