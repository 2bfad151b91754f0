"""The compiled step against the arithmetic written out in float64, and against torch's step."""

from __future__ import annotations

import fcntl
import gc
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tui_chat.model.decoder import Decoder
from tui_chat.model.linear import Precision, int8, widened
from tui_chat.model.native import ready
from tui_chat.settings import Paths

from .oracle import Oracle
from .tiny import SPECS, weights_of

torch.set_num_threads(1)

TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}
SUITED = sorted(name for name, spec in SPECS.items() if ready.suits(spec))
HELD: tuple[Precision, ...] = ("int8", "float16", "bfloat16")


@pytest.fixture(scope="module", autouse=True)
def _there() -> None:
    ready.start(Paths.find().cache)
    assert ready.wait(300)


def decoder(name: str, precision: Precision = "dense", *, quantised: bool = False) -> Decoder:
    return Decoder(SPECS[name], weights_of(name), precision, quantised_cache=quantised)


def plain(running: Decoder) -> Decoder:
    """The same decoder without the compiled step."""
    other = object.__new__(Decoder)
    other.__dict__.update(running.__dict__, _suits=False, _program=None)
    return other


def test_most_specs_suit_it() -> None:
    assert len(SUITED) >= 0.7 * len(SPECS)


@pytest.mark.parametrize("name", SUITED)
def test_it_computes_what_the_arithmetic_says(name: str) -> None:
    running, oracle = decoder(name), Oracle(SPECS[name], weights_of(name))
    ids = [(7 * n + 3) % running.spec.vocab_size for n in range(40)]
    cache = running.new_cache()
    one_by_one = [running.forward([token], cache) for token in ids[:9]]
    together = running.forward_all(ids[9:20], cache)
    found = torch.cat([torch.stack(one_by_one), together, running.forward_all(ids[20:33], cache)])
    assert running._program is not None
    torch.testing.assert_close(found.double(), oracle(ids[:33]), **TOLERANCE)
    assert cache.tokens == ids[:33]


@pytest.mark.parametrize("name", SUITED)
@pytest.mark.parametrize("precision", HELD)
def test_fewer_bits_are_multiplied_as_torch_does_when_it_widens_them(
    name: str, precision: Precision
) -> None:
    running = decoder(name, precision)
    slow = plain(running)
    fast_cache, slow_cache = running.new_cache(), slow.new_cache()
    for token in (1, 5, 9, 2, 0, 3):
        found, wanted = running.forward([token], fast_cache), slow.forward([token], slow_cache)
        if precision != "int8":
            torch.testing.assert_close(found, wanted, **TOLERANCE)
        torch.testing.assert_close(found, wanted, atol=0.05, rtol=0.05)


@settings(max_examples=80, deadline=None)
@given(data=st.data(), name=st.sampled_from(SUITED), quantised=st.booleans())
def test_any_cutting_gives_the_same(data: st.DataObject, name: str, quantised: bool) -> None:
    running = decoder(name, quantised=quantised)
    slow = plain(running)
    size = running.spec.vocab_size
    ids = data.draw(st.lists(st.integers(0, size - 1), min_size=2, max_size=48))
    cache, other = running.new_cache(), slow.new_cache()
    while len(cache) < len(ids):
        piece = data.draw(st.integers(1, len(ids) - len(cache)))
        part = ids[len(cache) : len(cache) + piece]
        # An int8 cache rounds what differs in the last bit now and then to the next number.
        off = {"atol": 2e-2, "rtol": 2e-2} if quantised else TOLERANCE
        torch.testing.assert_close(
            running.forward_all(part, cache), slow.forward_all(part, other), **off
        )
    kept = data.draw(st.integers(0, len(ids) - 1))
    cache.truncate(kept)
    other.truncate(kept)
    token = data.draw(st.integers(0, size - 1))
    torch.testing.assert_close(running.forward([token], cache), slow.forward([token], other), **off)


@pytest.mark.parametrize("name", SUITED)
def test_several_sequences_at_once_get_what_each_gets_alone(name: str) -> None:
    running = decoder(name)
    starts = [[5], [9, 31, 2, 44, 17, 8, 1], [3] * 20, [4, 4], [8] * 6, [1, 2, 3]]
    caches, alone = ([running.new_cache() for _ in starts] for _ in range(2))
    for ids, cache, single in zip(starts, caches, alone, strict=True):
        running.forward(ids, cache)
        running.forward(ids, single)
    for shift in range(3):
        tokens = [(7 * at + shift) % running.spec.vocab_size for at in range(len(starts))]
        rows = running.forward_each(tokens, caches)
        for token, row, single in zip(tokens, rows, alone, strict=True):
            torch.testing.assert_close(row, running.forward([token], single), **TOLERANCE)


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize("name", SUITED)
def test_threads_that_share_a_step_get_what_one_gets(name: str, threads: int) -> None:
    running = decoder(name)
    ids = [(5 * n + 1) % running.spec.vocab_size for n in range(30)]

    def found() -> torch.Tensor:
        cache = running.new_cache()
        rows = [running.forward([token], cache) for token in ids[:12]]
        return torch.cat([torch.stack(rows), running.forward_all(ids[12:], cache)])

    alone = found()
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(found(), alone, **TOLERANCE)
    finally:
        torch.set_num_threads(1)


def test_the_threads_of_a_step_end_with_its_model() -> None:
    before = {one for one in threading.enumerate() if one.name == "step"}
    running = decoder("gpt")
    torch.set_num_threads(3)
    try:
        running.forward([1], running.new_cache())
    finally:
        torch.set_num_threads(1)

    def ours() -> set[threading.Thread]:
        return {one for one in threading.enumerate() if one.name == "step"} - before

    assert len(ours()) == 2
    del running
    gc.collect()
    for helper in ours():
        helper.join(30)
    assert not ours()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_stays_none(bad: float) -> None:
    weights = weights_of("gpt")
    weights["final_norm.weight"][0] = bad
    running = Decoder(SPECS["gpt"], weights)
    logits = running.forward([1], running.new_cache())
    assert running._program is not None
    assert not logits.isfinite().all()


@pytest.mark.parametrize("shape", [(5, 64), (33, 80), (7, 200), (100, 16)])
@pytest.mark.parametrize("threads", [1, 2])
def test_int8_is_rounded_to_a_scale_a_row_as_torch_rounds_it(
    shape: tuple[int, int], threads: int
) -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(shape, generator=draw) * torch.rand(shape, generator=draw)
    held = int8(weight, None)
    assert held.scales is not None
    largest = held.scales.amax(1, keepdim=True)
    wanted = (widened(held.weight, held.scales) / largest).round().to(torch.int8)
    torch.set_num_threads(threads)
    try:
        found = ready.evened(held.weight, held.scales)
    finally:
        torch.set_num_threads(1)
    assert found is not None
    assert (found.int() - wanted.int()).abs().max() <= 1  # a half may fall either way
    assert (found == wanted).float().mean() > 0.99


def test_an_id_that_has_no_row_is_refused() -> None:
    running = decoder("gpt")
    for token in (-1, running.spec.vocab_size):
        with pytest.raises(IndexError):
            running.forward([token], running.new_cache())


@pytest.mark.parametrize(
    "name", ["blocks.1.attn.qkv.weight", "blocks.0.mlp.down.weight", "final_norm.weight"]
)
def test_a_tensor_of_another_size_is_left_to_torch(name: str) -> None:
    """It would be read beyond its end."""
    weights = weights_of("llama-half")
    weights[name] = weights[name][:-1].contiguous()
    running = Decoder(SPECS["llama-half"], weights)
    with pytest.raises(RuntimeError):
        running.forward([1], running.new_cache())
    assert running._program is None


def test_nobody_waits_for_it_and_a_second_start_changes_nothing(tmp_path: Path) -> None:
    before = ready.program()
    ready.start(tmp_path)
    assert ready.program() is before
    assert not list(tmp_path.iterdir())


def test_compiled_code_is_not_kept_where_others_may_write(tmp_path: Path) -> None:
    folder = ready._folder(tmp_path)
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(PermissionError):
        ready._folder(tmp_path)


def test_whoever_comes_while_it_is_compiled_waits_and_compiles_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found: list[bool] = []
        waiting = threading.Thread(
            target=lambda: found.append(ready._compiled_elsewhere(tmp_path)), daemon=True
        )
        waiting.start()
        assert not found
        (tmp_path / "done").touch()
        waiting.join(30)
    assert found == [True]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["done", "lock"]
