"""What runs a fixed piece of work again and again: recorded once as a CUDA graph, or simply called.

The only module that speaks to CUDA itself. Everything else here is plain tensor work, which tests
run on a CPU with `EagerRecorder` in place of the graphs. Knows no model.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

log = logging.getLogger(__name__)

Work = Callable[[], None]  # reads and writes tensors that always stand in the same place


class Recorder(Protocol):
    """Makes work that is done over and over cheap to start."""

    remark: str  # why it does less than it could, "" if it does not

    def record(self, work: Work) -> Work:
        """What does the same as `work`, on the same tensors, from now on."""
        ...

    def slot(self, size: int, found: int) -> Slot:
        """One of the places through which host and device talk."""
        ...


class Slot:
    """Numbers on their way to the device and back. It belongs to one token from `send` to `wait`.

    `sent` (size,) int64 and `found` (found,) float64 are the host's ends. `send` waits until what
    was sent before has arrived: the host may only then write over it.
    """

    def __init__(self, size: int, found: int, *, pinned: bool) -> None:
        self.sent = torch.zeros(size, dtype=torch.int64, pin_memory=pinned)
        self.found = torch.zeros(found, dtype=torch.float64, pin_memory=pinned)
        # Only from memory that is pinned does a copy run beside the host.
        self._arrived = torch.cuda.Event() if pinned else None  # type: ignore[no-untyped-call]
        self._under_way = False

    def send(self, to: Tensor) -> None:
        """Start copying `sent` to the device."""
        to.copy_(self.sent, non_blocking=True)

    def fetch(self, result: Tensor) -> None:
        """Start copying to `found` what the work queued so far will have made."""
        self.found.copy_(result, non_blocking=True)
        self._under_way = True
        if self._arrived is not None:
            self._arrived.record(torch.cuda.current_stream(result.device))

    def wait(self) -> None:
        """Until nothing is under way. The interpreter's lock is free meanwhile."""
        if self._under_way and self._arrived is not None:
            self._arrived.synchronize()
        self._under_way = False


class EagerRecorder:
    """Calls the work itself: on a CPU, and on a GPU that cannot be recorded."""

    def __init__(self, remark: str = "") -> None:
        self.remark = remark

    def record(self, work: Work) -> Work:
        return work

    def slot(self, size: int, found: int) -> Slot:
        return Slot(size, found, pinned=False)


class Recording:
    """Work that is recorded, and then only replayed. Subclasses say how."""

    def __init__(self) -> None:
        self.remark = ""
        self._able = True

    def record(self, work: Work) -> Work:
        """The first run is not recorded but done, for kernels and workspaces are loaded in it;
        recording follows while the device computes.
        """
        replay: Work | None = None

        def run() -> None:
            nonlocal replay
            if replay is not None:
                replay()
                return
            work()
            replay = self._recorded(work)

        return run

    def _recorded(self, work: Work) -> Work:
        if not self._able:
            return work
        try:
            return self._captured(work)
        except RuntimeError as error:  # of CUDA, of its memory, of an operator that cannot
            self._able = False
            what = str(error).strip().splitlines() or [type(error).__name__]
            self.remark = f"no CUDA graph could be recorded: {what[0][:200]}"
            log.warning("%s; each operator is started by itself", self.remark, exc_info=error)
            return work

    def _captured(self, work: Work) -> Work:
        """Does not run the work. Raises RuntimeError where it cannot be recorded."""
        raise NotImplementedError


@functools.cache
def _place(device: torch.device) -> tuple[torch.cuda.Stream, Any]:
    """The stream in which all that is for a device is recorded, and the pool."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream, torch.cuda.graph_pool_handle()


class CudaGraphRecorder(Recording):
    """Records work as CUDA graphs that share one pool of memory.

    They may share it because they run one after the other in one stream, and because nothing that
    is allocated while recording is looked at after a run: results lie in tensors made before.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self._stream, self._pool = _place(device)

    def _captured(self, work: Work) -> Work:
        # Not `with torch.cuda.graph(...)`: that waits for the device and empties the allocator
        # before, which takes longer than the recording, and where recording fails it leaves its
        # stream current. "thread_local": another thread may compile for the same GPU meanwhile.
        graph = torch.cuda.CUDAGraph()
        # A workspace of cuBLAS belongs to a stream, and in newer torch goes with any graph that
        # was recorded there, though others still use it (pytorch issue 193402). Taken while
        # recording and given back at once, it lies in the pool, which stays.
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    work()
                finally:
                    graph.capture_end()
        finally:
            torch._C._cuda_clearCublasWorkspaces()
        return graph.replay

    def slot(self, size: int, found: int) -> Slot:
        return Slot(size, found, pinned=True)
