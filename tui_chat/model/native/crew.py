"""The threads that share a step. They sleep until there is one."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

Orders = queue.SimpleQueue["tuple[Any, ...] | None"]


class Crew:
    """Runs `work(*what, sync, met, rank, threads)` in several threads at once, the calling one
    being rank 0. `work` holds no lock of Python's and ends in all threads together, at a barrier:
    `sync` is the address of an int64 that counts who came to one, `met` what it is at the start.
    Callers wait for each other.
    """

    def __init__(self, work: Callable[..., None]) -> None:
        self._work = work
        self._orders: list[Orders] = []
        self._lock = threading.Lock()
        self._sync = np.zeros(1, np.int64)
        self._where = self._sync.ctypes.data

    def __call__(self, threads: int, what: tuple[Any, ...]) -> None:
        if threads == 1:
            self._work(*what, self._where, 0, 0, 1)
            return
        with self._lock:
            while len(self._orders) < threads - 1:
                self._hire()
            met = int(self._sync[0])
            for rank in range(1, threads):
                self._orders[rank - 1].put((*what, self._where, met, rank, threads))
            self._work(*what, self._where, met, 0, threads)

    def _hire(self) -> None:
        orders: Orders = queue.SimpleQueue()
        work, sync = self._work, self._sync

        def serve() -> None:
            # Whoever leaves a barrier last still looks at the count: it must not be gone by then.
            kept = sync
            while (order := orders.get()) is not None:
                work(*order)
            del kept

        threading.Thread(target=serve, name="step", daemon=True).start()
        weakref.finalize(self, orders.put, None)
        self._orders.append(orders)
