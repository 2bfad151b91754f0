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


def reuse(model: Model, cache: KVCache, ids: Sequence[int]) -> int:
    """Cut the cache down to what it shares with `ids`; returns how many tokens that is (less
    than all).
    """
    # The last id is always run again: its logits are wanted.
    shared = min(cache.common_prefix(ids), len(ids) - 1)
    cache.truncate(shared)
    return shared


def prefill(
    model: Model, cache: KVCache, ids: Sequence[int]
) -> Iterator[tuple[int, Tensor | None]]:
    """Run the ids behind the cache, chunk by chunk.

    Yields how many are done; with the last chunk also the logits that follow, (vocab_size,).
    """
    done = len(cache)
    chunk = PREFILL_CHUNK if model.incremental else len(ids)
    while done < len(ids):
        logits = model.forward(ids[done : done + chunk], cache)
        done = min(done + chunk, len(ids))
        yield done, logits if done == len(ids) else None


def score(model: Model, ids: Sequence[int], offered: int) -> Iterator[list[float]]:
    """Log-probability of each id but the first, given those before it, chunk by chunk."""
    cache = model.new_cache()
    chunk = PREFILL_CHUNK if model.incremental else len(ids)
    for start in range(0, len(ids) - 1, chunk):
        piece = list(ids[start : start + chunk])
        targets = list(ids[start + 1 : start + 1 + len(piece)])
        logits = model.forward_all(piece, cache)[: len(targets), :offered]
        logprobs = logits.log_softmax(-1)
        yield [
            float(logprobs[row, target]) if target < offered else -math.inf
            for row, target in enumerate(targets)
        ]
