"""The next token's logits with every address and shape fixed: what changes from token to token (its
id, its position, the rows of the cache it goes to) is read from tensors.

The same layers as in decoder.py. Attention runs over a fixed number of rows of the cache, behind a
mask made from the position on the device. Nothing here asks the device for a number. Knows no text
and no sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tui_chat.model.cache import KVCache
from tui_chat.model.linear import Linear, Matrix
from tui_chat.model.parts import MLP, Block, Parts
from tui_chat.model.rotary import Rotary

FIRST_BUCKET = 256
DOUBLING_UPTO = 4096


def bucket(length: int) -> int:
    """The number of rows that attention runs over when `length` of them count.

    Doubling at first, where recording anew costs more than reading rows in vain, then two to a
    doubling: at most a third of what is read of a long cache is read in vain.
    """
    size = FIRST_BUCKET
    while size < length:
        between = size + size // 2
        if size >= DOUBLING_UPTO and between >= length:
            return between
        size *= 2
    return size


Turn = Callable[[Parts, Tensor, Block, "Tensor | None"], None]


class Stages(NamedTuple):
    """What lies between one attention and the next. No shape in it depends on the cache, so that
    what is compiled of it holds for every length and every lane.

    x is (1, n_embd) and may be written over, `normed` what of it went into a layer, `heads` (1,
    n_head + 2 n_kv_head, head_dim), `mixed` (1, n_head * head_dim) what attention made of them,
    `angles` (1, 1, n, 2) the row of a rotary table as pairs of numbers.
    """

    # (parts, block, token (1,), its position (1,), angles) -> x, normed, heads
    begin: Callable[[Parts, Block, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]]
    # (parts, block, the next block, x, normed, mixed, its angles) -> x, normed, heads
    middle: Callable[
        [Parts, Block, Block, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor]
    ]
    # (parts, block, x, normed, mixed) -> logits (vocab_size,) float32
    end: Callable[[Parts, Block, Tensor, Tensor, Tensor], Tensor]


def stages(turn: Turn) -> Stages:
    """`turn` norms and rotates q and k, (1, n_head + n_kv_head, head_dim), in place."""

    def before(
        parts: Parts, block: Block, x: Tensor, angles: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        spec = parts.spec
        normed = block.attn_norm.many(x)
        heads = block.qkv.many(normed).view(1, spec.n_head + 2 * spec.n_kv_head, spec.head_dim)
        turn(parts, heads[:, : spec.n_head + spec.n_kv_head], block, angles)
        return normed, heads

    def begin(
        parts: Parts, block: Block, token: Tensor, place: Tensor, angles: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = parts.begin(token, place)
        return x, *before(parts, block, x, angles)

    def middle(
        parts: Parts,
        block: Block,
        following: Block,
        x: Tensor,
        normed: Tensor,
        mixed: Tensor,
        angles: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = _after(parts, block, x, normed, mixed)
        return x, *before(parts, following, x, angles)

    def end(parts: Parts, block: Block, x: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
        return parts.logits(_after(parts, block, x, normed, mixed))[0]

    return Stages(begin, middle, end)


def turn_at_once(parts: Parts, qk: Tensor, block: Block, angles: Tensor | None) -> None:
    """By one multiplication of complex numbers."""
    parts.turn(qk, block, None if angles is None else torch.view_as_complex(angles))


def turn_by_numbers(parts: Parts, qk: Tensor, block: Block, angles: Tensor | None) -> None:
    """By sums of products, which a compiler makes one kernel of: it knows no complex numbers."""
    if angles is None or parts.spec.rope_layout == "mismatched":
        turn_at_once(parts, qk, block, angles)
        return
    if block.qk_norm is not None and parts.spec.qk_norm == "before_rope":
        block.qk_norm(qk)
    turned = qk[..., : 2 * angles.shape[2]]
    left, right = turned.float().view(*turned.shape[:2], -1, 2).unbind(-1)
    cos, sin = angles.unbind(-1)
    made = torch.stack([left * cos - right * sin, left * sin + right * cos], -1)
    turned.copy_(made.view(turned.shape))
    if block.qk_norm is not None and parts.spec.qk_norm == "after_rope":
        block.qk_norm(qk)


PLAIN = stages(turn_at_once)


def _after(parts: Parts, block: Block, x: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
    """Parts.join, with the last product of a branch added as it is made where nothing comes
    between: two calls less in a layer.
    """
    mlp = block.mlp
    if (
        parts.spec.residual != "serial"
        or block.out is None
        or block.attn_post is not None
        or block.mlp_post is not None
        or block.mlp_norm is None
        or not isinstance(mlp, MLP)
    ):
        return parts.join(block, x, normed, mixed)
    x = _added(x, mixed, block.out)
    return _added(x, mlp.act(mlp.up.many(block.mlp_norm.many(x))), mlp.down)


def _added(x: Tensor, made: Tensor, by: Linear) -> Tensor:
    """x with the product added in place, by operators of torch alone."""
    if not isinstance(by, Matrix):
        return x.add_(by.many(made))
    x.addmm_(made, by.weight)
    return x if by.bias is None else x.add_(by.bias)


class Inputs(NamedTuple):
    """What a step reads and writes beside the cache: `token` (1,) int64, `place` (1,) int64, its
    position; `rows`: for each window the row of the cache that its keys and values go to, (1,)
    int64; `logits` (vocab_size,) float32.
    """

    token: Tensor
    place: Tensor
    rows: dict[int, Tensor]
    logits: Tensor


def windows(parts: Parts) -> dict[int, int]:
    """The different windows of the layers (0: all positions), and the first layer of each: layers
    that see equally far begin at the same position in a cache.
    """
    found: dict[int, int] = {}
    for i, block in enumerate(parts.blocks):
        found.setdefault(block.window, i)
    return found


def fixed_step(
    parts: Parts, stages: Stages, cache: KVCache, inputs: Inputs, size: int
) -> Callable[[], None]:
    """The step over the first `size` rows of the cache, as long as `cache.version` stays.

    Rows behind the one it writes are read and then masked: they must hold numbers, not NaN.
    """
    spec, blocks, attend = parts.spec, parts.blocks, parts.attend
    n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
    stores = [layer.data for layer in cache.layers]
    seen = [store[..., : min(size, store.shape[3]), :] for store in stores]
    kinds = [(block.window, rows.shape[3]) for block, rows in zip(blocks, seen, strict=True)]
    numbers = {kind: torch.arange(kind[1], device=parts.device) for kind in kinds}
    # The table of an unlimited context grows; this one reaches as far as this step does.
    tables = _tables(blocks, min(size, spec.context_length))
    token, place, rows, logits = inputs

    def hidden(window: int, number: Tensor) -> Tensor:
        row = rows[window]
        outside = number > row
        if window:
            outside |= number <= row - window
        mask = torch.zeros(1, len(number), dtype=parts.dtype, device=parts.device)
        return mask.masked_fill_(outside, -torch.inf)

    def step() -> None:
        turned = {
            id(rotary): torch.view_as_real(table.index_select(0, place)) for rotary, table in tables
        }
        angles = [None if block.rotary is None else turned[id(block.rotary)] for block in blocks]
        masks = {kind: hidden(kind[0], number) for kind, number in numbers.items()}
        x, normed, heads = stages.begin(parts, blocks[0], token, place, angles[0])
        for i, block in enumerate(blocks):
            kv = heads[:, n_head:].view(2, 1, n_kv, 1, dim)
            stores[i].index_copy_(3, rows[block.window], kv)
            q = heads[:, :n_head].view(1, n_kv, n_head // n_kv, dim)
            mask = masks[kinds[i]]
            mixed = attend(q, seen[i][0], seen[i][1], mask, False).reshape(1, -1)
            if i + 1 < len(blocks):
                following = blocks[i + 1]
                x, normed, heads = stages.middle(
                    parts, block, following, x, normed, mixed, angles[i + 1]
                )
        logits.copy_(stages.end(parts, blocks[-1], x, normed, mixed))

    return step


def _tables(blocks: Sequence[Block], length: int) -> list[tuple[Rotary, Tensor]]:
    found = {id(block.rotary): block.rotary for block in blocks if block.rotary is not None}
    return [(rotary, rotary.upto(length)) for rotary in found.values()]
