"""The step of a decoder for one token, with every buffer, view and table row made beforehand.

The same layers as Decoder's piece of a prompt, written for a single row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tui_chat.model.cache import KVCache
from tui_chat.model.layers import Norm, gate_of
from tui_chat.model.linear import Linear, Map
from tui_chat.model.parts import MLP, Block, Parts
from tui_chat.model.rotary import KEPT_ROWS, Rotary

Step = Callable[[int, KVCache], Tensor]


class _Layer(NamedTuple):
    attn_norm: Map
    to_qkv: Map
    before: Map | None  # what a parallel MLP does with the normed input before x changes
    turn: Callable[[Tensor | None], None] | None
    angles: int  # which rotary turns it
    add_attention: Map
    after: Callable[[], object]


def one_token(parts: Parts) -> Step:
    """(token, cache) -> logits (vocab_size,) float32; the cache has room, and appends it later."""
    spec, dtype, device = parts.spec, parts.dtype, parts.device
    n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
    width = (n_head + n_kv) * dim

    def buffer(size: int) -> Tensor:
        return torch.zeros(1, size, dtype=dtype, device=device)

    x, qkv = buffer(spec.n_embd), buffer(width + n_kv * dim)
    qk = qkv[:, :width].view(1, n_head + n_kv, dim)
    # One query per key head and sharer: with a single position, grouped attention is plain
    # attention over n_head / n_kv_head queries, and no key is copied.
    q = qkv[:, : n_head * dim].view(1, n_kv, n_head // n_kv, dim)
    kv = qkv[:, n_head * dim :].view(2, 1, n_kv, 1, dim)
    logits = buffer(parts.head.rows)
    to_logits = parts.head.into(logits)
    turns = _rotaries(parts.blocks)
    turn_all = _turn(parts, qk)
    ups: dict[int, Tensor] = {}

    def made(block: Block) -> _Layer:
        before, after = _mlp(parts, block, x, buffer, ups)
        return _Layer(
            attn_norm=block.attn_norm.one,
            to_qkv=block.qkv.into(qkv),
            before=before,
            turn=turn_all(block),
            angles=-1 if block.rotary is None else turns.index(block.rotary),
            add_attention=_adding(x, block.out, block.attn_post),
            after=after,
        )

    layers = [made(block) for block in parts.blocks]
    embed, attend, shape = parts.embed.one, parts.attend, parts.shape_logits
    scale = spec.embed_scale
    positions = None if parts.position is None else _rows(parts.position)
    rows_of = [rotary.at for rotary in turns]
    embed_norm = None if parts.embed_norm is None else parts.embed_norm.one
    final_norm = None if parts.final_norm is None else parts.final_norm.one
    row = x[0]

    def step(token: int, cache: KVCache) -> Tensor:
        here = len(cache)
        spans = cache.spans(1)
        if positions is None:
            row.copy_(embed(token))
            if scale != 1.0:
                row.mul_(scale)
        elif scale != 1.0:
            torch.add(positions[here], embed(token), alpha=scale, out=row)
        else:
            torch.add(embed(token), positions[here], out=row)
        if embed_norm is not None:
            x.copy_(embed_norm(x))
        angles: list[Tensor | None] = [row_at(here) for row_at in rows_of]
        angles.append(None)  # of layers that are not turned
        for span, layer in zip(spans, layers, strict=True):
            norm, to_qkv, before, turn, angle, add_attention, after = layer
            normed = norm(x)
            to_qkv(normed)
            if before is not None:
                before(normed)
            if turn is not None:
                turn(angles[angle])
            keys, values = span.put(kv)
            add_attention(attend(q, keys, values, None, False).view(1, -1))
            after()
        to_logits(x if final_norm is None else final_norm(x))
        found = logits[0].float() if dtype != torch.float32 else logits[0].clone()
        return found if shape is None else shape(found)

    if device.type != "cpu":
        return step

    def without_onednn(token: int, cache: KVCache) -> Tensor:
        # For one row oneDNN costs more than it brings: 5 us for each GELU, half the bandwidth
        # in 16 bits.
        was = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            return step(token, cache)
        finally:
            torch._C._set_mkldnn_enabled(was)

    return without_onednn


def _turn(parts: Parts, qk: Tensor) -> Callable[[Block], Callable[[Tensor | None], None] | None]:
    """How q and k of a layer are normed and turned where they stand, None if they are not."""
    spec = parts.spec
    simple = (
        parts.dtype == torch.float32 and spec.head_dim % 2 == 0 and spec.rope_layout != "mismatched"
    )
    pairs = (
        qk[..., : spec.rotary_dim].view(torch.complex64)
        if simple and spec.position == "rope"
        else None
    )

    def of(block: Block) -> Callable[[Tensor | None], None] | None:
        if block.qk_norm is None and block.rotary is None:
            return None
        if block.qk_norm is None and pairs is not None:
            return pairs.mul_  # type: ignore[return-value]  # a bound method: one call less
        return lambda angles: parts.turn(qk, block, angles)

    return of


def _mlp(
    parts: Parts,
    block: Block,
    x: Tensor,
    buffer: Callable[[int], Tensor],
    ups: dict[int, Tensor],
) -> tuple[Map | None, Callable[[], object]]:
    """What to do with the attention's normed input before x changes, and after attention was
    added."""
    norm, mlp = None if block.mlp_norm is None else block.mlp_norm.one, block.mlp
    parallel = parts.spec.residual == "parallel"
    if not isinstance(mlp, MLP):
        mixed, add = mlp, _adding(x, None, block.mlp_post)
        if not parallel:
            return None, lambda: add(mixed(x if norm is None else norm(x)))
        held = torch.empty_like(x)

        def before(normed: Tensor) -> Tensor:
            return held.copy_(mixed(normed if norm is None else norm(x)))

        return before, lambda: add(held)
    size = mlp.up.rows
    up = ups.setdefault(size, buffer(size))
    to_up, add = mlp.up.into(up), _adding(x, mlp.down, block.mlp_post)
    act = gate_of(parts.spec.activation, up) if parts.spec.gated else mlp.act
    if parallel:
        return (
            to_up if norm is None else lambda normed: to_up(norm(x)),
            lambda: add(act(up)),
        )
    assert norm is not None

    def after() -> None:
        to_up(norm(x))
        add(act(up))

    return None, after


def _adding(x: Tensor, by: Linear | None, post: Norm | None) -> Map:
    """Adds to x what a branch made: through its last matrix, if it has one, and its norm."""
    if by is None:
        return x.add_ if post is None else lambda made: x.add_(post.one(made))
    if post is None:
        return by.onto(x)
    return lambda made: x.add_(post.one(by.many(made)))


def _rotaries(blocks: Sequence[Block]) -> list[Rotary]:
    """The different ways of turning."""
    found: list[Rotary] = []
    for block in blocks:
        if block.rotary is not None and block.rotary not in found:
            found.append(block.rotary)
    return found


def _rows(table: Tensor) -> Sequence[Tensor]:
    """The rows of a table as tensors made beforehand; of a very long one, as they are asked for."""
    return table.unbind(0) if table.shape[0] <= KEPT_ROWS else table  # type: ignore[return-value]
