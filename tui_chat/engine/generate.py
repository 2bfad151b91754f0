"""Ids through a model, in pieces small enough to be interrupted. Knows ids and logits: no text,
no stop rule.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from torch import Tensor

from tui_chat.errors import UsageError
from tui_chat.model.build import Model
from tui_chat.model.cache import KVCache

PREFILL_CHUNK = 256  # tokens; a stop is heard between two chunks


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
    model: Model, cache: KVCache, ids: Sequence[int]
) -> Iterator[tuple[int, Tensor | None]]:
    """Run the ids behind the cache, chunk by chunk.

    Yields how many are done; with the last chunk also the logits that follow, (vocab_size,).
    """
    done = len(cache)
    chunk = len(ids) if at_once(model) else PREFILL_CHUNK
    while done < len(ids):
        logits = model.forward(ids[done : done + chunk], cache)
        done = min(done + chunk, len(ids))
        yield done, logits if done == len(ids) else None


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
