"""nanochat's step for one token, with buffers and views made beforehand.

The same layers as NanoChat's piece of a prompt, written for a single row.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.model.cache import KVCache
from tui_chat.model.layers import ACTIVATIONS
from tui_chat.model.nanochat_parts import OF_THE_ONE_BEFORE, OF_THIS, Parts
from tui_chat.model.rotary import rotate


class Step:
    """(token, cache) -> logits (vocab_size,) float32; the cache has room, and appends it later."""

    def __init__(self, parts: Parts) -> None:
        spec = parts.spec
        n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
        self.parts = parts
        self.x = self._buffer(spec.n_embd)
        self.middle = self._buffer(spec.n_embd)
        # All layers' shares of the first stream, made in one product.
        self.shares = torch.tensor(
            [[layer.first] for layer in parts.layers], dtype=parts.dtype, device=parts.device
        )
        self.pair_shares = torch.tensor(
            [layer.pair for layer in parts.layers], dtype=parts.dtype, device=parts.device
        )
        self.added = self._buffer(spec.n_layer * spec.n_embd).view(spec.n_layer, spec.n_embd)
        self.added_to = self.added.unsqueeze(1).unbind(0)
        self.plain = all(layer.first == 0 and layer.keep == 1 for layer in parts.layers)
        gates = n_kv + n_kv % 2
        whole = (n_head + 2 * n_kv) * dim
        self.made = self._buffer(whole + gates)
        self.to_qkv = [layer.qkv.into(self.made[:, : layer.qkv.rows]) for layer in parts.layers]
        qk = self.made[:, : (n_head + n_kv) * dim].view(1, n_head + n_kv, dim)
        self.qk = qk
        self.pairs = qk.view(torch.complex64) if parts.dtype == torch.float32 else None
        whole_heads = n_head + 2 * n_kv
        self.heads = self._buffer(whole).view(1, whole_heads, dim)  # q, k, v as they are used
        self.normed = self.heads[:, : n_head + n_kv]
        # One query per key head and sharer: with a single position, grouped attention is plain
        # attention over n_head / n_kv_head queries, and no key is copied.
        self.q = self.normed[:, :n_head].view(1, n_kv, n_head // n_kv, dim)
        self.kv = self.heads[:, n_head:].view(2, 1, n_kv, 1, dim)
        self.value_made = self.heads[0, n_head + n_kv :]
        self.value = self.made[0, (n_head + n_kv) * dim : whole].view(n_kv, dim)
        self.gate = self.made[0, whole : whole + n_kv].view(n_kv, 1)
        self.to_up = [layer.up.into(self._buffer(layer.up.rows)) for layer in parts.layers]
        self.add_attention = [layer.out.onto(self.x) for layer in parts.layers]
        self.add_mlp = [layer.down.onto(self.x) for layer in parts.layers]
        self.smear = None if parts.smear is None else parts.smear.tolist()
        self.logits = self._buffer(parts.head.rows)
        self.to_logits = parts.head.into(self.logits)

    def _buffer(self, size: int) -> Tensor:
        return torch.zeros(1, size, dtype=self.parts.dtype, device=self.parts.device)

    def __call__(self, token: int, cache: KVCache) -> Tensor:
        if self.parts.device.type != "cpu":
            return self._run(token, cache)
        # For one row oneDNN costs more than it brings.
        was = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            return self._run(token, cache)
        finally:
            torch._C._set_mkldnn_enabled(was)

    def _run(self, token: int, cache: KVCache) -> Tensor:
        parts, x, here = self.parts, self.x, len(cache)
        embed, normed, act = parts.embed, parts.norm.one, ACTIVATIONS[parts.spec.activation]
        dim, eps = (parts.spec.head_dim,), parts.spec.norm_eps
        spans = cache.spans(1)
        if self.smear is not None and here:
            torch.add(embed(token), embed(cache.tokens[-1]), alpha=self.smear[token], out=x[0])
        else:
            x[0].copy_(embed(token))
        plain = self.plain
        if not plain:
            torch.mul(self.shares, x, out=self.added)
        if parts.pairs is not None:
            plain = False
            self._add_pairs(token, cache)
        angles = parts.rotary.at(here)
        for i, layer in enumerate(parts.layers):
            if not plain:
                torch.add(self.added_to[i], x, alpha=layer.keep, out=x)
            self.to_qkv[i](normed(x))
            if self.pairs is not None:
                self.pairs.mul_(angles)
            else:
                rotate(self.qk, angles)
            self.normed.copy_(F.rms_norm(self.qk, dim, None, eps))
            if layer.values is None:
                self.value_made.copy_(self.value)
            else:
                torch.addcmul(
                    self.value,
                    layer.values(token),
                    self.gate.sigmoid_(),
                    value=parts.value_gate,
                    out=self.value_made,
                )
            keys, values = spans[i].put(self.kv)
            self.add_attention[i](parts.attend(self.q, keys, values, None, False).view(1, -1))
            self.add_mlp[i](act(self.to_up[i](normed(x))))
            if i == parts.middle and parts.backout:
                self.middle.copy_(x)
        if parts.backout:
            x.sub_(self.middle, alpha=parts.backout)
        self.to_logits(normed(x))
        logits = self.logits[0].to(torch.float32, copy=True)
        return logits if parts.shape is None else parts.shape(logits)

    def _add_pairs(self, token: int, cache: KVCache) -> None:
        """The shares of the embedding of the last two ids, on top of those of the first stream."""
        table = self.parts.pairs
        assert table is not None
        place = last = self.parts.last_pair
        if cache.tokens:
            place = (OF_THIS * token ^ OF_THE_ONE_BEFORE * cache.tokens[-1]) % last
        if self.plain:
            self.added.zero_()
        self.added.addr_(self.pair_shares, table(place))
