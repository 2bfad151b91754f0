"""How fast a checkpoint is, and how fast this machine would let it be."""

from __future__ import annotations

import contextlib
import math
import mmap
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tui_chat.engine.generate import prefill, use_threads
from tui_chat.engine.load import LoadedCheckpoint
from tui_chat.engine.overlap import QUEUED, Overlap, pipeline_for
from tui_chat.model.build import Model
from tui_chat.model.cache import KVCache
from tui_chat.sampling import SamplingParams

PROMPT = 512  # tokens, where the context has room for twice as many
READ = 3 * 2**26  # bytes read to measure a CPU's memory: far more than its caches hold
COPIED = 2**30  # bytes copied to measure a GPU's


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured of one checkpoint on one device. Rates are tokens a second."""

    dtype: str
    device: str
    threads: int
    weight_bytes: int
    prompt_tokens: int
    first_token_seconds: float  # from the prompt to the first token
    prefill_rate: float
    decode_tokens: int
    decode_rate: float  # behind the prompt
    bandwidth: float  # bytes a second
    limit_rate: float  # tokens a second if reading weights, keys and values were all there is


def measure(
    loaded: LoadedCheckpoint,
    *,
    seconds: float = 1.0,
    told: Callable[[str, float], None] = lambda stage, done: None,
    stopped: Callable[[], bool] = lambda: False,
) -> Speed:
    """Read a prompt and write on greedily, for about `seconds` each. Computes a little beyond that
    where a single prompt or token takes longer."""
    model = loaded.model
    use_threads(loaded.threads)
    told("measuring the memory", 0.0)
    width = read_bandwidth(model.device)
    length = max(1, min(PROMPT, loaded.context_length // 2))
    # Any ids do: what a step costs does not depend on them.
    prompt = [(7 * at) % loaded.offered for at in range(length)]
    firsts: list[float] = []
    began = time.perf_counter()
    while not firsts or (
        time.perf_counter() - began < seconds and len(firsts) < 50 and not stopped()
    ):
        told("reading a prompt", min(1.0, (time.perf_counter() - began) / seconds))
        firsts.append(_first(model, prompt))
    count, rate = _decode(loaded, prompt, seconds, told, stopped)
    first = statistics.median(firsts)
    read = _read_each_token(loaded, length + count // 2)
    return Speed(
        dtype=loaded.dtype,
        device=loaded.device,
        threads=loaded.threads,
        weight_bytes=model.weight_bytes,
        prompt_tokens=length,
        first_token_seconds=first,
        prefill_rate=length / first,
        decode_tokens=count,
        decode_rate=rate,
        bandwidth=width,
        limit_rate=width / read,
    )


def _first(model: Model, prompt: Sequence[int]) -> float:
    """Seconds from a prompt to its next token."""
    began = time.perf_counter()
    cache = model.new_cache()
    for _, logits in prefill(model, cache, prompt):
        if logits is not None:
            int(logits.argmax())
    return time.perf_counter() - began


def _decode(
    loaded: LoadedCheckpoint,
    prompt: Sequence[int],
    seconds: float,
    told: Callable[[str, float], None],
    stopped: Callable[[], bool],
) -> tuple[int, float]:
    """How many tokens were written behind the prompt, and how many a second."""
    model = loaded.model
    cache = model.new_cache()
    following = [logits for _, logits in prefill(model, cache, prompt) if logits is not None]
    room = model.spec.context_length - len(prompt)
    count, spent = 0, 0.0
    write = _writer(loaded, cache, prompt, following[-1])
    while count < max(1, room) and (spent < seconds or count < 2) and not (count and stopped()):
        if not room:  # a context of a single token
            cache.truncate(0)
        began = time.perf_counter()
        write()
        spent += time.perf_counter() - began
        count += 1
        told("writing", min(1.0, spent / seconds))
    return count, count / spent


def _writer(
    loaded: LoadedCheckpoint, cache: KVCache, prompt: Sequence[int], logits: Tensor
) -> Callable[[], None]:
    """Runs the token that is likeliest after `logits`, the next time the one after that, and so on:
    on a GPU as replies do."""
    pipeline, room = pipeline_for(loaded), loaded.context_length - len(prompt)
    params = SamplingParams(temperature=0.0, max_new_tokens=max(1, room))
    ahead = Overlap(pipeline, 0, prompt) if pipeline is not None and room else None
    token = int(logits.argmax())
    if ahead is not None and ahead.choose(logits, cache, params) is None:
        ahead = None

    def write() -> None:
        nonlocal ahead, token
        if ahead is not None and ahead.after(cache, params) is not None:
            made = ahead.choose(QUEUED, cache, params)
            assert made is not None
            token = made.id
            return
        ahead = None
        token = int(loaded.model.forward((token,), cache).argmax())

    return write


def _read_each_token(loaded: LoadedCheckpoint, length: int) -> int:
    """Bytes of weights, keys and values that a token behind `length` others reads."""
    keys_and_values = loaded.model.new_cache().read_bytes(length)
    return int(loaded.model.weight_bytes * _share_read(loaded)) + keys_and_values


def _share_read(loaded: LoadedCheckpoint) -> float:
    """Which part of the weights a token reads: of tables that are looked up next to nothing, of
    experts those that are used."""
    plan, experts = loaded.info.plan, loaded.model.spec.experts
    if plan is None:
        return 1.0
    sizes = {name: math.prod(recipe.shape) for name, recipe in plan.recipes.items()}
    read = dict(sizes)
    read.pop("position.weight", None)
    if "head.weight" in sizes:
        read.pop("embed.weight", None)
    used = 1.0 if experts is None else experts.used / experts.count
    part = sum(size * (used if ".experts." in name else 1.0) for name, size in read.items())
    return part / max(1, sum(sizes.values()))


def read_bandwidth(device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second that weights can be read at: on a CPU by a plain sum over large pages, with
    the threads that are set (loops written by hand, with several streams or with prefetches, read
    no faster); on a GPU half of what a copy moves back and forth. `clock` counts seconds."""
    if device.type == "cpu":
        room = _large_pages(READ)
        numbers = torch.frombuffer(room, dtype=torch.float32).fill_(1.0)
        return READ / min(_times(lambda: numbers.sum(), lambda: None, clock))
    wait = torch.cuda.synchronize if device.type == "cuda" else torch.mps.synchronize
    source = torch.empty(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / min(_times(lambda: target.copy_(source), wait, clock))


def _large_pages(size: int) -> mmap.mmap:
    """Memory in as large pages as the system gives: crossing small ones costs up to a third."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return mmap.mmap(-1, size)
    room = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    return room


def _times(
    run: Callable[[], object], wait: Callable[[], object], clock: Callable[[], float]
) -> list[float]:
    found = []
    for _ in range(7):
        wait()
        began = clock()
        run()
        wait()
        found.append(clock() - began)
    return found
