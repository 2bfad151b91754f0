"""Ids through a model, in pieces small enough to be interrupted. Knows ids and logits: no text,
no stop rule.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from tui_chat.errors import UsageError
from tui_chat.model.build import Model, ReadsInLayers
from tui_chat.model.cache import KVCache

PREFILL_CHUNK = 256  # tokens; larger pieces are no faster on a CPU
ON_A_GPU = 1024
FEWEST = 16

# Seconds that a stop, or a token of another lane, may wait for a piece of a prompt.
LONGEST = 0.1
PAUSE = 0.03  # no need to look up more often than that
SPEED = 5e10  # operations a second that a piece is made for as long as nothing was measured


class Pieces:
    """How many tokens of a prompt one model reads at a time: as many as make nobody wait for more
    than LONGEST seconds. Smaller pieces read the weights more often: 64 tokens instead of 256 take
    a fifth more time in all.
    """

    def __init__(self, model: Model) -> None:
        on_gpu = model.device.type == "cuda"
        self._most = ON_A_GPU if on_gpu else PREFILL_CHUNK
        self._size = self._most
        if not on_gpu:
            pauses = model.spec.n_layer if isinstance(model, ReadsInLayers) else 1
            self._size = self._whole(LONGEST * SPEED * pauses / (2 * max(1, model.parameters)))

    def _whole(self, count: float) -> int:
        return int(max(FEWEST, min(self._most, count // FEWEST * FEWEST)))

    def next(self) -> int:
        return self._size

    def took(self, count: int, seconds: float) -> None:
        """A piece of `count` tokens made others wait so long. Believed step by step: one piece may
        have been slow for reasons of its own.
        """
        if count == self._size or seconds > LONGEST:
            fits = count * LONGEST / max(seconds, 1e-9)
            self._size = self._whole(max(self._size / 2, min(2 * self._size, fits)))


def use_threads(count: int) -> None:
    """Set torch's threads for the calling thread, when they are not set already."""
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def check_ids(model: Model, ids: Sequence[int]) -> None:
    """Raise UsageError unless every id is a row of the embedding: beyond it a GPU would abort
    the process.
    """
    if not ids:
        raise UsageError(
            "there is nothing to continue", "the prompt has no tokens", "Type some text"
        )
    size = model.spec.vocab_size
    wrong = next((token for token in ids if not 0 <= token < size), None)
    if wrong is not None:
        raise UsageError(
            "the prompt does not fit the model",
            f"token id {wrong} is not between 0 and {size - 1}",
            "Another tokenizer may belong to this checkpoint",
        )


def at_once(model: Model) -> bool:
    """Whether a prompt has to be read in a single call: where experts have a capacity, what a
    position gets depends on the positions it is read with.
    """
    experts = model.spec.experts
    return not model.incremental or (experts is not None and experts.capacity_factor > 0)


def reusable(model: Model, cache: KVCache, ids: Sequence[int]) -> int:
    """How many tokens of `ids` need not be read again because the cache holds them (less than
    all).
    """
    if model.incremental and at_once(model):
        return 0
    # The last id is always run again: its logits are wanted.
    return cache.reusable_length(min(cache.common_prefix(ids), len(ids) - 1))


def reuse(model: Model, cache: KVCache, ids: Sequence[int]) -> None:
    """Cut the cache down to what can be kept of it for `ids`."""
    cache.truncate(reusable(model, cache, ids))


def prefill(
    model: Model,
    cache: KVCache,
    ids: Sequence[int],
    pieces: Pieces | None = None,
    more: Callable[[], object] = lambda: None,
) -> Iterator[tuple[int, Tensor | None]]:
    """Run the ids behind the cache, piece by piece.

    Yields how many are done, whenever others may have their turn; with the last piece also the
    logits that follow, (vocab_size,). `more` is called before each piece, and may bring the cache
    nearer to `ids` by other means.
    """
    whole, pieces = at_once(model), pieces or Pieces(model)
    while len(cache) < len(ids):
        before = len(cache)
        if not whole:
            more()
        done = len(cache)
        if done > before:
            yield done, None
            continue
        count = len(ids) - done if whole else min(pieces.next(), len(ids) - done)
        piece, last = ids[done : done + count], done + count == len(ids)
        began = paused = start = time.perf_counter()
        longest = 0.0
        if count == 1 or whole or not isinstance(model, ReadsInLayers):
            logits: Tensor | None = model.forward(piece, cache)
            longest = time.perf_counter() - start
        else:
            running = model.reading(piece, cache, logits=last)
            while True:
                try:
                    next(running)
                except StopIteration as end:
                    logits = end.value
                    break
                now = time.perf_counter()
                longest, began = max(longest, now - began), now
                if now - paused > PAUSE:
                    yield done, None
                    began = paused = time.perf_counter()
        if model.device.type == "cuda":  # calls return before the work is done
            torch.cuda.synchronize(model.device)
            longest = time.perf_counter() - start
        if not whole:
            pieces.took(count, longest)
        yield done + count, logits if last else None


def score(model: Model, ids: Sequence[int], offered: int) -> Iterator[list[float]]:
    """Log-probability of each id but the first, given those before it, chunk by chunk."""
    cache = model.new_cache()
    chunk = len(ids) if at_once(model) else PREFILL_CHUNK
    for start in range(0, len(ids) - 1, chunk):
        piece = list(ids[start : start + chunk])
        targets = list(ids[start + 1 : start + 1 + len(piece)])
        logits = model.forward_all(piece, cache)[: len(targets), :offered]
        logprobs = logits.log_softmax(-1)
        yield [
            float(logprobs[row, target]) if target < offered else -math.inf
            for row, target in enumerate(targets)
        ]
