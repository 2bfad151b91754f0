"""The stages of a step compiled by torch while one already talks.

Compiling takes from seconds to minutes and happens in a thread of its own. What it gives computes
the same, but rounds elsewhere, so that the same seed may say something else: it is taken up between
two replies, and only after its logits were found to be those of the plain stages. Whatever goes
wrong leaves the plain stages in use.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from tui_chat.model.cache import KVCache
from tui_chat.model.cuda.step import (
    FIRST_BUCKET,
    PLAIN,
    Inputs,
    Stages,
    fixed_step,
    stages,
    turn_by_numbers,
    windows,
)
from tui_chat.model.parts import Parts

log = logging.getLogger(__name__)

Compile = Callable[[Callable[..., Any]], Callable[..., Any]]

# Of the largest logit. 16 bits round to a two-hundred-and-fiftieth, layer after layer.
TOLERANCE = 0.05

_compiling: set[threading.Thread] = set()  # while there is one, nobody may forbid it


def by_torch(function: Callable[..., Any]) -> Callable[..., Any]:
    """For these very shapes, and all of it or not at all."""
    return torch.compile(function, fullgraph=True, dynamic=False)


class Compilation:
    """Compiles the stages of one model for all its lanes. `ready` is None until they may be used;
    `remark` says what became of it.
    """

    def __init__(
        self,
        parts: Parts,
        new_cache: Callable[[], KVCache],
        threads: int = 1,
        compiler: Compile = by_torch,
    ) -> None:
        """Begin. `threads` are torch's in the thread that will use the result."""
        self.ready: Stages | None = None
        self.remark = ""
        self._parts, self._new_cache, self._threads = parts, new_cache, threads
        self._compiler = compiler
        self._thread = threading.Thread(target=self._run, name="compile", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Whether it is over, after at most so many seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        began = time.perf_counter()
        _compiling.add(self._thread)
        try:
            torch.set_num_threads(self._threads)  # what is compiled asks for the same number
            with torch.inference_mode(), _own_stream(self._parts.device):
                self.ready = self._compiled()
        except Exception as error:  # of a compiler: there is no end to what that may be
            what = str(error).strip().splitlines() or [type(error).__name__]
            self.remark = f"the model could not be compiled: {what[0][:200]}"
            log.warning(self.remark, exc_info=error)
        else:
            seconds = time.perf_counter() - began
            self.remark = f"compiled in {seconds:.0f} s, and in use"
            log.info("compiled in %.1f s", seconds)
        finally:
            _compiling.discard(self._thread)

    def _compiled(self) -> Stages:
        made = Stages(*(self._compiler(_afresh(one)) for one in stages(turn_by_numbers)))
        wanted, found = self._logits(PLAIN), self._logits(made)
        off = float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))
        if not off < TOLERANCE:
            raise RuntimeError(f"its logits are off by {off:.1%}")
        return made

    def _logits(self, by: Stages) -> Tensor:
        """Of one token, computed twice: the second call shows that the first left nothing open."""
        parts, device = self._parts, self._parts.device
        cache = self._new_cache()
        cache.reserve(1)
        for layer in cache.layers:
            layer.data.zero_()

        def zero() -> Tensor:
            return torch.zeros(1, dtype=torch.int64, device=device)

        logits = torch.zeros(parts.spec.vocab_size, dtype=torch.float32, device=device)
        inputs = Inputs(zero(), zero(), {window: zero() for window in windows(parts)}, logits)
        step = fixed_step(parts, by, cache, inputs, FIRST_BUCKET)
        step()
        step()
        return logits


def without_compiling() -> contextlib.AbstractContextManager[object]:
    """In which nothing is compiled anew: what does not fit the call runs as it is written."""
    if _compiling:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance(
        "eager_on_recompile"
    )
    return stance


def _afresh(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function for torch to keep apart: it stops compiling one that it has compiled for
    many models.
    """
    assert isinstance(function, types.FunctionType)
    code = function.__code__.replace(co_name=f"{function.__name__}_{id(function):x}")
    return types.FunctionType(
        code, function.__globals__, function.__name__, None, function.__closure__
    )


@contextlib.contextmanager
def _own_stream(device: torch.device) -> Iterator[None]:
    """So that tokens under way need not wait for a kernel that is being tried out."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()
