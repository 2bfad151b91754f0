"""The next token of several sequences at once: their rows go through each matrix together.

Where a model is large, a step costs what reading its weights costs, and that is paid once for all.
Attention is each sequence's own, over its own cache, so that sequences of any length go together.
The same layers as in step.py and Decoder, written for one row of each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tui_chat.model.cache import KVCache
from tui_chat.model.parts import Parts
from tui_chat.model.slab import Span


def next_tokens(parts: Parts, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
    """Logits after one more token in each sequence: (B, vocab_size) float32.

    The caches are those of `parts`; each has room, and appends its token later.
    """
    spec = parts.spec
    n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
    heres = [len(cache) for cache in caches]
    places = torch.tensor(heres, device=parts.device)
    x = parts.begin(torch.tensor(tokens, device=parts.device), places)
    spans = [cache.spans(1) for cache in caches]
    angles: dict[int, Tensor] = {}  # layers share tables
    for at, block in enumerate(parts.blocks):
        normed = block.attn_norm.many(x)
        heads = block.qkv.many(normed).view(len(caches), n_head + 2 * n_kv, dim)
        rotary = block.rotary
        if rotary is not None and id(rotary) not in angles:
            angles[id(rotary)] = rotary.upto(max(heres) + 1)[places]
        turned = None if rotary is None else angles[id(rotary)]
        parts.turn(heads[:, : n_head + n_kv], block, turned)
        mixed = torch.cat(
            [_attend(parts, row, of[at]) for row, of in zip(heads, spans, strict=True)]
        )
        x = parts.join(block, x, normed, mixed)
    return parts.logits(x)


def _attend(parts: Parts, heads: Tensor, span: Span) -> Tensor:
    """One sequence's attention in one layer: heads (n_head + 2 n_kv_head, head_dim), of which keys
    and values go to its cache first -> (1, n_head * head_dim).
    """
    spec = parts.spec
    n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
    keys, values = span.put(heads[n_head:].view(2, 1, n_kv, 1, dim))
    q = heads[:n_head].view(1, n_kv, n_head // n_kv, dim)
    return parts.attend(q, keys, values, None, False).reshape(1, -1)
