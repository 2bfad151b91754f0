"""A CUDA graph's stand-in on a CPU: what a piece of work asks of torch is written down and done
again, operator by operator, on the very same tensors.

Like a graph it knows nothing of the Python between the operators: a number that was computed on
the host, or a tensor made anew for every token, would show as a wrong token. And like the recording
of a graph it refuses whatever has to wait for the device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tui_chat.model.cuda.recorder import Slot, Work

aten = torch.ops.aten

# What a host can only go on from when the device has finished, or what comes from its own memory.
WAITING = {
    aten._local_scalar_dense.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
    aten.lift_fresh.default,
}


class Writer(TorchDispatchMode):
    """Writes down every operator with what it read and what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            raise RuntimeError(f"{func} waits for the device")
        made = func(*args, **(kwargs or {}))
        self.lines.append((func, args, kwargs or {}, made))
        return made


class TapeRecorder:
    """Records with Writer, and counts."""

    def __init__(self) -> None:
        self.remark = ""
        self.recorded = 0
        self.replayed = 0

    def slot(self, size: int, found: int) -> Slot:
        return Slot(size, found, pinned=False)

    def record(self, work: Work) -> Work:
        lines: list[tuple[Any, Any, Any, Any]] = []

        def run() -> None:
            if lines:
                self.replayed += 1
                for line in lines:
                    _again(*line)
                return
            self.recorded += 1
            with Writer() as writer:
                work()
            lines.extend(writer.lines)

        return run


def _again(func: Any, args: Any, kwargs: Any, made: Any) -> None:
    """Do it once more: into the tensors that it made the first time."""
    if func._schema.is_mutable:
        func(*args, **kwargs)
        return
    read = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if _tensor(t)}
    old = [t for t in tree_leaves(made) if _tensor(t)]
    if any(t.untyped_storage().data_ptr() in read for t in old):
        return  # a view, which still shows what is there now
    new = [t for t in tree_leaves(func(*args, **kwargs)) if _tensor(t)]
    for there, here in zip(old, new, strict=True):
        there.copy_(here)


def _tensor(value: object) -> bool:
    return isinstance(value, Tensor)
