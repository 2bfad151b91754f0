"""The threads that share a step. They sleep until there is one."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any

Orders = queue.SimpleQueue["tuple[Any, ...] | None"]


class Crew:
    """Runs `work(*what, rank, threads)` in several threads at once, the calling one being rank 0.
    `work` holds no lock of Python's and ends in all threads together.
    """

    def __init__(self, work: Callable[..., None]) -> None:
        self._work = work
        self._orders: list[Orders] = []

    def __call__(self, threads: int, what: tuple[Any, ...]) -> None:
        while len(self._orders) < threads - 1:
            self._hire()
        for rank in range(1, threads):
            self._orders[rank - 1].put((*what, rank, threads))
        self._work(*what, 0, threads)

    def _hire(self) -> None:
        orders: Orders = queue.SimpleQueue()
        work = self._work

        def serve() -> None:
            while (order := orders.get()) is not None:
                work(*order)

        threading.Thread(target=serve, name="step", daemon=True).start()
        weakref.finalize(self, orders.put, None)
        self._orders.append(orders)
