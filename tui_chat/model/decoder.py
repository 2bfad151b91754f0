"""A decoder-only transformer, built from a spec and the tensors of a file.

Everything a spec chooses is settled when it is built. There are two straight lines through the
same layers: `_many` for a piece of a prompt, and `_one` for the next token of a reply, which
writes into buffers made beforehand because below 30 million parameters the calls cost more than
the arithmetic. Tests hold the second against the first. Knows token ids only: no text, no file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.errors import CheckpointError
from tui_chat.model.cache import KVCache
from tui_chat.model.layers import (
    ACTIVATIONS,
    Map,
    Matrix,
    Norm,
    gate,
    gate_of,
    into,
    mask,
    matrix,
    norm,
    paired,
    qk_norm,
    rotary_rows,
    rotate,
    softcap,
    times,
)
from tui_chat.model.spec import ModelSpec


class Block(NamedTuple):
    """One layer, ready to run."""

    attn_norm: Norm
    qkv: Matrix  # (n_embd, (n_head + 2 n_kv_head) * head_dim), rotary pairs side by side
    qk_norm: Map | None
    out: Matrix | None
    mlp_norm: Norm
    up: Matrix
    act: Map
    down: Matrix
    window: int


class Decoder:
    """Logits of the next token. `weights` (canonical names, see build.py) is emptied: the tensors
    now belong here.

    Not for two threads at once: the one-token step has buffers of its own.
    """

    incremental = True

    def __init__(self, spec: ModelSpec, weights: dict[str, Tensor]) -> None:
        self.spec = spec
        sample = weights["embed.weight"]
        self._like = torch.empty(0, dtype=sample.dtype, device=sample.device)
        self.dtype, self.device = sample.dtype, sample.device
        self.parameters = sum(tensor.numel() for tensor in weights.values())
        self.weight_bytes = sum(
            tensor.numel() * tensor.element_size() for tensor in weights.values()
        )
        self._scale = spec.qk_scale**2 / math.sqrt(spec.head_dim)
        self._cap = softcap(spec.logit_softcap)
        self._rotary = rotary_rows(spec, self.device) if spec.position == "rope" else None
        self._position = weights.pop("position.weight", None)
        with torch.inference_mode():
            self._embed_norm = self._norm(weights, "embed_norm", present=spec.embed_norm)
            self._blocks = [self._block(weights, i) for i in range(spec.n_layer)]
            self._final_norm = self._norm(weights, "final_norm", present=spec.final_norm)
            embed, head = weights.pop("embed.weight"), weights.pop("head.weight", None)
            tied = head is None or head.data_ptr() == embed.data_ptr()
            self._head = matrix(
                embed if head is None or tied else head, weights.pop("head.bias", None)
            )
            # A tied table is kept once, in the layout of the head; looking up a column of it costs
            # nothing beside.
            self._embed = self._head.weight.t() if tied else embed
            self._one = self._one_token()
        if weights:
            raise CheckpointError(
                "the model cannot be built",
                f"no place for the tensors {', '.join(sorted(weights))}",
            )

    # ---- building

    def _norm(self, weights: dict[str, Tensor], name: str, *, present: bool = True) -> Norm | None:
        weight, bias = weights.pop(f"{name}.weight", None), weights.pop(f"{name}.bias", None)
        return norm(self.spec, self._like, weight, bias) if present else None

    def _block(self, weights: dict[str, Tensor], i: int) -> Block:
        spec, take = self.spec, weights.pop
        at = f"blocks.{i}"

        def linear(name: str) -> Matrix:
            return matrix(take(f"{at}.{name}.weight"), take(f"{at}.{name}.bias", None))

        attn_norm = self._norm(weights, f"{at}.attn_norm")
        mlp_norm = self._norm(weights, f"{at}.mlp_norm")
        assert attn_norm is not None and mlp_norm is not None
        qkv_weight, qkv_bias = take(f"{at}.attn.qkv.weight"), take(f"{at}.attn.qkv.bias", None)
        qkv = matrix(
            self._ordered(qkv_weight), None if qkv_bias is None else self._ordered(qkv_bias)
        )
        norms = None
        if spec.qk_norm != "none":
            norms = qk_norm(
                spec, take(f"{at}.attn.q_norm.weight", None), take(f"{at}.attn.k_norm.weight", None)
            )
        return Block(
            attn_norm=attn_norm,
            qkv=qkv,
            qk_norm=norms,
            out=linear("attn.out") if spec.attention_output else None,
            mlp_norm=mlp_norm,
            up=linear("mlp.gate_up" if spec.gated else "mlp.up"),
            act=gate(spec.activation) if spec.gated else ACTIVATIONS[spec.activation],
            down=linear("mlp.down"),
            window=spec.window[i] if spec.window else 0,
        )

    def _ordered(self, rows: Tensor) -> Tensor:
        """The fused rows with those of q and k in rotary order."""
        spec = self.spec
        if spec.position != "rope" or spec.rope_layout == "interleaved":
            return rows
        heads = spec.n_head + spec.n_kv_head
        cut = heads * spec.head_dim
        return torch.cat([paired(spec, rows[:cut], heads), rows[cut:]])

    # ---- running

    def new_cache(self) -> KVCache:
        return KVCache(self.spec, dtype=self.dtype, device=self.device)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after the last of `ids`, which follow `cache.tokens`: (vocab_size,) float32.
        Appends to the cache.
        """
        if len(ids) == 1:
            cache.reserve(len(cache) + 1)
            logits = self._one(ids[0], cache)
        else:
            logits = self._logits(self._many(ids, cache)[-1:])[0]
        cache.append(ids)
        return logits

    @torch.inference_mode()
    def forward_all(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after each of `ids`: (len(ids), vocab_size) float32. Appends to the cache."""
        logits = self._logits(self._many(ids, cache))
        cache.append(ids)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        if self._final_norm is not None:
            x = self._final_norm.many(x)
        logits = times(x, self._head).float()
        return logits if self._cap is None else self._cap(logits)

    def _many(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """(T, n_embd) after the last layer, for any number of ids."""
        spec = self.spec
        start, count = len(cache), len(ids)
        end = start + count
        n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
        cache.reserve(end)
        x = F.embedding(torch.tensor(ids, device=self.device), self._embed)
        if self._position is not None:
            x = x + self._position[start:end]
        if self._embed_norm is not None:
            x = self._embed_norm.many(x)
        angles = None if self._rotary is None else self._rotary[start:end]
        # On an empty cache torch's own causal mask is right, and faster than one that is added.
        masks = {
            window: None
            if start == 0 and not window
            else mask(start, end, window, self.dtype, self.device)
            for window in {block.window for block in self._blocks}
        }
        slots, rows = cache.slots(count), cache.rows(end)
        for i, block in enumerate(self._blocks):
            heads = times(block.attn_norm.many(x), block.qkv).view(count, n_head + 2 * n_kv, dim)
            self._turn(heads[:, : n_head + n_kv], block.qk_norm, angles)
            slots[i].copy_(heads[:, n_head:].view(count, 2, 1, n_kv, dim).permute(1, 2, 3, 0, 4))
            mixed = F.scaled_dot_product_attention(
                heads[:, :n_head].transpose(0, 1)[None],  # (1, n_head, T, head_dim)
                rows[2 * i],
                rows[2 * i + 1],
                attn_mask=masks[block.window],
                is_causal=start == 0 and count > 1 and not block.window,
                scale=self._scale,
                enable_gqa=n_kv != n_head,
            )
            mixed = mixed[0].transpose(0, 1).reshape(count, n_head * dim)
            x = x + (mixed if block.out is None else times(mixed, block.out))
            x = x + times(block.act(times(block.mlp_norm.many(x), block.up)), block.down)
        return x

    def _turn(self, qk: Tensor, normed: Map | None, angles: Tensor | None) -> None:
        """Norm and rotate q and k in place, in the order of the spec. (T, n_head + n_kv_head,
        head_dim).
        """
        if normed is not None and self.spec.qk_norm == "before_rope":
            normed(qk)
        if angles is not None:
            rotate(qk, angles)
        if normed is not None and self.spec.qk_norm == "after_rope":
            normed(qk)

    def _one_token(self) -> Callable[[int, KVCache], Tensor]:
        """The step for a single id, with every buffer, view and table row made beforehand."""
        spec, dtype, device = self.spec, self.dtype, self.device
        n_head, n_kv, dim, scale = spec.n_head, spec.n_kv_head, spec.head_dim, self._scale
        width = (n_head + n_kv) * dim

        def buffer(size: int) -> Tensor:
            return torch.zeros(1, size, dtype=dtype, device=device)

        x, qkv = buffer(spec.n_embd), buffer(width + n_kv * dim)
        qk = qkv[:, :width].view(1, n_head + n_kv, dim)
        # One query per key head and sharer: with a single position, grouped attention is plain
        # attention over n_head / n_kv_head queries, and no key is copied.
        q = qkv[:, : n_head * dim].view(1, n_kv, n_head // n_kv, dim)
        kv = qkv[:, n_head * dim :].view(2, 1, n_kv, 1, dim)
        up = buffer(self._blocks[0].up.weight.shape[1])
        logits = buffer(self._head.weight.shape[1])
        to_logits = into(self._head, logits)
        layers = [
            (
                block.attn_norm.one,
                into(block.qkv, qkv),
                block.qk_norm,
                *((None, None) if block.out is None else block.out),
                block.window,
                block.mlp_norm.one,
                into(block.up, up),
                gate_of(spec.activation, up) if spec.gated else block.act,
                block.down.weight,
                block.down.bias,
            )
            for block in self._blocks
        ]
        embed, turn, cap = self._embed, self._turn, self._cap
        positions = None if self._position is None else _rows(self._position)
        angles = None if self._rotary is None else _rows(self._rotary)
        embed_norm = None if self._embed_norm is None else self._embed_norm.one
        final_norm = None if self._final_norm is None else self._final_norm.one
        turned = spec.qk_norm != "none" or (angles is not None and dtype != torch.float32)
        pairs = None if turned or angles is None else qk.view(torch.complex64)
        attend = F.scaled_dot_product_attention
        row = x[0]

        def step(token: int, cache: KVCache) -> Tensor:
            here = len(cache)
            slots, rows = cache.slots(1), cache.rows(here + 1)
            if positions is None:
                row.copy_(embed[token])
            else:
                torch.add(embed[token], positions[here], out=row)
            if embed_norm is not None:
                x.copy_(embed_norm(x))
            angle = None if angles is None else angles[here]
            for at, layer in enumerate(layers):
                attn_norm, to_qkv, normed, out, out_bias, window = layer[:6]
                mlp_norm, to_up, act, down, down_bias = layer[6:]
                to_qkv(attn_norm(x))
                if pairs is not None and angle is not None:
                    pairs.mul_(angle)
                elif turned:
                    turn(qk, normed, angle)
                slots[at].copy_(kv)
                keys, values = rows[2 * at], rows[2 * at + 1]
                if window and window <= here:
                    keys = keys.narrow(2, here + 1 - window, window)
                    values = values.narrow(2, here + 1 - window, window)
                mixed = attend(q, keys, values, scale=scale).view(1, -1)
                if out is None:
                    x.add_(mixed)
                else:
                    x.addmm_(mixed, out)
                    if out_bias is not None:
                        x.add_(out_bias)
                to_up(mlp_norm(x))
                x.addmm_(act(up), down)
                if down_bias is not None:
                    x.add_(down_bias)
            to_logits(x if final_norm is None else final_norm(x))
            out_logits = logits[0].float() if dtype != torch.float32 else logits[0].clone()
            return out_logits if cap is None else cap(out_logits)

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


def _rows(table: Tensor) -> Sequence[Tensor]:
    """The rows of a table as tensors made beforehand; of a very long one, as they are asked for."""
    return table.unbind(0) if table.shape[0] <= 16384 else table  # type: ignore[return-value]
