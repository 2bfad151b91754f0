"""What is said to CUDA, in which order. On a machine with a GPU the real one as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tui_chat.model.cuda import recorder
from tui_chat.model.cuda.recorder import CudaGraphRecorder, Slot
from tui_chat.model.decoder import Decoder

from .test_cuda_step import Written
from .tiny import SPECS, weights_of

DEVICE = torch.device("cuda", 1)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Cuda:
    """Stands in for torch.cuda and writes down what it is asked."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        said = self.said

        class Graph:
            def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
                said.append(("begin", pool, capture_error_mode))

            def capture_end(self) -> None:
                said.append("end")

            def replay(self) -> None:
                said.append("replay")

        class Event:
            def record(self, stream: Any) -> None:
                said.append(("record", stream))

            def synchronize(self) -> None:
                said.append("synchronize")

        @contextmanager
        def stream(which: Any) -> Iterator[None]:
            said.append(("enter", which))
            try:
                yield
            finally:
                said.append("leave")

        self.names = {
            "CUDAGraph": Graph,
            "Event": Event,
            "stream": stream,
            "Stream": lambda device: f"stream of {device}",
            "current_stream": lambda device: f"current of {device}",
            "graph_pool_handle": lambda: (0, 7),
        }


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cuda]:
    made = Cuda()
    for name, value in made.names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(
        torch._C, "_cuda_clearCublasWorkspaces", lambda: made.said.append("clear"), raising=False
    )
    recorder._place.cache_clear()
    yield made
    recorder._place.cache_clear()


def test_work_is_done_once_then_recorded_in_its_own_stream_then_replayed(cuda: Cuda) -> None:
    run = CudaGraphRecorder(DEVICE).record(lambda: cuda.said.append("work"))
    run()
    began = ("begin", (0, 7), "thread_local")
    entered = ("enter", "stream of cuda:1")
    once = ["work", "clear", entered, began, "work", "end", "leave", "clear"]
    assert cuda.said == once
    run()
    run()
    assert cuda.said == [*once, "replay", "replay"]


def test_all_recorders_of_a_device_share_its_stream(cuda: Cuda) -> None:
    one, other = CudaGraphRecorder(DEVICE), CudaGraphRecorder(DEVICE)
    assert (one._stream, one._pool) == (other._stream, other._pool)
    assert CudaGraphRecorder(torch.device("cuda", 0))._stream != one._stream


def test_a_recording_that_fails_is_ended_and_its_stream_left(cuda: Cuda) -> None:
    made, times = CudaGraphRecorder(DEVICE), 0

    def work() -> None:
        nonlocal times
        times += 1
        if times == 2:
            raise RuntimeError("operation not permitted when stream is capturing\n(somewhere)")

    run = made.record(work)
    run()
    assert cuda.said[-3:] == ["end", "leave", "clear"]
    run()
    assert times == 3
    assert "replay" not in cuda.said
    assert made.remark.endswith("operation not permitted when stream is capturing")
    other = made.record(lambda: cuda.said.append("other"))
    other()
    other()
    assert cuda.said[-2:] == ["other", "other"]  # nothing is recorded after that


def test_a_slot_waits_for_the_stream_of_its_device_before_it_is_read(
    cuda: Cuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    zeros: Callable[..., torch.Tensor] = torch.zeros
    pinned = []

    def unpinned(*size: int, pin_memory: bool, **given: Any) -> torch.Tensor:
        pinned.append(pin_memory)
        return zeros(*size, **given)

    monkeypatch.setattr(torch, "zeros", unpinned)
    slot = Slot(3, 2, pinned=True)
    assert pinned == [True, True]
    slot.wait()
    assert cuda.said == []
    slot.fetch(torch.ones(2, dtype=torch.float64))
    slot.wait()
    slot.wait()
    assert cuda.said == [("record", "current of cpu"), "synchronize"]
    assert slot.found.tolist() == [1, 1]


# ---- with a GPU


@GPU
@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_recorded_step_gives_the_logits_of_the_decoder(name: str) -> None:
    model = Decoder(SPECS[name], {key: one.cuda() for key, one in weights_of(name).items()})
    made = CudaGraphRecorder(model.device)
    written = Written(model, made, [5, 9, 31, 2, 44])
    written.go_on(30)
    written.cut(20, [7, 7, 8])
    written.go_on(10)
    assert made.remark == ""


@GPU
def test_a_recorded_product_outlives_others_of_its_device() -> None:
    weight, x = torch.randn(2, 4096, 4096, device="cuda").bfloat16().unbind(0)
    outs = [torch.zeros_like(x[:1]) for _ in range(6)]
    made = CudaGraphRecorder(weight.device)
    runs = [made.record(lambda out=out: torch.mm(x[:1], weight, out=out)) for out in outs]
    for run in runs:
        run()
    expected = outs[0].clone()
    del run, runs[1:]
    torch.cuda.empty_cache()
    rubbish = [torch.full((2**24,), 7.0, device="cuda") for _ in range(16)]
    outs[0].zero_()
    runs[0]()
    assert torch.equal(outs[0], expected)
    assert len(rubbish) == 16


@GPU
def test_work_that_waits_for_the_gpu_is_called_instead() -> None:
    made, total = CudaGraphRecorder(torch.device("cuda")), torch.zeros(1, device="cuda")

    def work() -> None:
        total.add_(1)
        total.item()

    run = made.record(work)
    for _ in range(4):
        run()
    assert total.item() == 4
    assert "no CUDA graph could be recorded" in made.remark
    assert torch.ones(9, device="cuda").sum().item() == 9  # the device is as it was
