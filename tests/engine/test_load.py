"""Where a model runs, in which numbers, on how many threads; and what stays in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from tui_chat.engine import load
from tui_chat.engine.engine import Lane
from tui_chat.engine.events import LoadOptions
from tui_chat.engine.resident import Resident
from tui_chat.errors import UsageError
from tui_chat.model.build import Model

from .small import LETTERS, opened


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """A machine of eight cores; returns the table of seconds a token takes by threads."""
    taken = {1: 1.0, 2: 1.0, 4: 1.0, 8: 1.0}
    now = [1]
    monkeypatch.setattr(load.os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: now.__setitem__(0, count))
    monkeypatch.setattr(load, "_step_time", lambda model: taken[now[0]])
    return taken


def model(parameters: int) -> Model:
    return cast(Model, SimpleNamespace(parameters=parameters, device=torch.device("cpu")))


def test_threads_are_added_while_they_pay(eight_cores: dict[int, float]) -> None:
    eight_cores |= {1: 1.0, 2: 0.55, 4: 0.4, 8: 0.39}
    assert load.choose_threads(model(100_000_000)) == 4


def test_beside_a_busy_neighbour_one_thread_is_kept(eight_cores: dict[int, float]) -> None:
    eight_cores |= {1: 1.0, 2: 6.0, 4: 9.0, 8: 0.1}
    assert load.choose_threads(model(100_000_000)) == 1


def test_a_small_model_has_one_thread_without_measuring(eight_cores: dict[int, float]) -> None:
    eight_cores |= {1: 1.0, 2: 0.1}
    assert load.choose_threads(model(1_000_000)) == 1


def test_device_and_dtype_by_name() -> None:
    cpu = load.choose_device("cpu")
    gpu = torch.device("cuda")
    assert load.choose_dtype("", cpu) == (torch.float32, "dense")
    assert load.choose_dtype("", gpu) == (torch.bfloat16, "dense")
    assert load.choose_dtype("float16", cpu) == (None, "float16")
    assert load.choose_dtype("float16", gpu) == (torch.float16, "dense")
    assert load.choose_dtype("int8", cpu) == (None, "int8")
    with pytest.raises(UsageError, match="int8 is not to be had on cuda"):
        load.choose_dtype("int8", gpu)
    with pytest.raises(UsageError, match="there is no 'tpu' here"):
        load.choose_device("tpu")


def test_stop_ids_come_from_file_template_and_tokenizer(alphabet: str) -> None:
    base = opened(alphabet)
    tokenizer = base.tokenizer
    object.__setattr__(tokenizer, "special", {"<|endoftext|>": 3, "<|user|>": 4})
    template = cast(Any, SimpleNamespace(stop_ids=frozenset({5}), stop_strings=()))
    object.__setattr__(base.info, "stop_ids", (9,))
    whole = load.assemble(base.info, base.model, tokenizer, template)
    assert whole.info.stop_ids == (3, 5, 9)
    assert whole.start_ids == [3]
    assert base.start_ids == [3] and opened(alphabet).start_ids == [LETTERS.index("\n")]


def test_the_least_recently_used_checkpoint_goes_first(alphabet: str) -> None:
    loaded = [opened(alphabet) for _ in range(3)]
    size = loaded[0].model.weight_bytes
    resident = Resident(budget=size)
    for name, checkpoint in zip("abc", loaded, strict=True):
        resident.put((name,), checkpoint, in_use=set())
    resident.trim(in_use=set())
    assert [resident.get((name,)) for name in "abc"] == [None, None, loaded[2]]


def test_what_a_lane_uses_does_not_count_against_the_budget(alphabet: str) -> None:
    one, other = opened(alphabet), opened(alphabet)
    resident = Resident(budget=one.model.weight_bytes)
    resident.put(("a",), one, in_use=set())
    resident.put(("b",), other, in_use={id(one)})
    assert resident.get(("a",)) is one and resident.get(("b",)) is other


def test_resting_lanes_count_and_go_with_their_checkpoint(alphabet: str) -> None:
    one, other = opened(alphabet), opened(alphabet)
    lane = Lane(one, "main")
    lane.cache.reserve(8)
    size = one.model.weight_bytes + lane.cache.nbytes
    resident = Resident(budget=size)
    resident.put(("a",), one, in_use=set())
    resident.rest(lane)
    resident.trim(in_use=set())
    assert resident.wake("other", one) is None
    assert resident.wake("main", one) is lane and resident.wake("main", one) is None
    resident.rest(lane)
    resident.put(("b",), other, in_use=set())
    resident.trim(in_use=set())
    assert resident.get(("a",)) is None and resident.wake("main", one) is None


def test_a_checkpoint_in_use_loses_only_the_lanes_that_rest_in_it(alphabet: str) -> None:
    one = opened(alphabet)
    lane = Lane(one, "second")
    lane.cache.reserve(8)
    resident = Resident(budget=0)
    resident.put(("a",), one, in_use={id(one)})
    resident.rest(lane)
    resident.trim(in_use={id(one)})
    assert resident.get(("a",)) is one and resident.wake("second", one) is None


def test_another_option_is_another_checkpoint(alphabet: str) -> None:
    info = opened(alphabet).info
    assert Resident.key(info, LoadOptions()) == Resident.key(info, LoadOptions())
    assert Resident.key(info, LoadOptions()) != Resident.key(info, LoadOptions(dtype="bfloat16"))
