"""Memory for weights in as large pages as the system gives.

A token reads all weights once. In small pages, and where each matrix begins at a place of its own,
memory gives a tenth less. Knows tensors only.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

HUGE = 2 * 2**20  # bytes of a large page
BLOCK = 16 * HUGE
_ALIGNED = 64  # bytes


class Pages:
    """Hands out tensors on the CPU that lie one behind the other. A block of memory is given back
    when the last tensor in it is.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._block: Tensor | None = None  # bytes
        self._at = 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor whose numbers are not set."""
        size = math.prod(shape) * dtype.itemsize
        if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            if self._block is None or self._at + size > len(self._block):
                self._block, self._at = _block(max(BLOCK, size)), 0
            found = self._block[self._at : self._at + size]
            self._at += -(-size // _ALIGNED) * _ALIGNED
        return found.view(dtype).view(tuple(shape))


PAGES = Pages()  # of all checkpoints


def _block(size: int) -> Tensor:
    """At least `size` bytes that begin with a large page."""
    room = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    every = torch.frombuffer(room, dtype=torch.uint8)
    return every[-every.data_ptr() % HUGE :]
