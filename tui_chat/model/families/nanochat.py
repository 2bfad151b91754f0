"""nanochat: a decoder whose stream is mixed with its own beginning, and whose values know the ids.

What Decoder cannot say, each part of it there when its tensors are: the previous token's embedding
smeared into each token's, every layer's input a sum of the stream and the first stream, embeddings
of the ids added to the values of some layers, the middle of the stream taken away at the end, and
for one day of January 2026 an embedding of pairs of ids. The previous token comes from the ids in
the cache, so a cache can be reused, cut and filled in pieces like any other.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.errors import CheckpointError
from tui_chat.model.cache import KVCache
from tui_chat.model.layers import ACTIVATIONS, attention, mask, norm, shaped_logits
from tui_chat.model.linear import DOWN_MAKERS, MAKERS, Precision, turned
from tui_chat.model.nanochat_parts import (
    Layer,
    held_bytes,
    number,
    numbers,
    real,
    rotary,
    rows_of,
    whole,
)
from tui_chat.model.pauses import finished
from tui_chat.model.rotary import paired, rotate
from tui_chat.model.spec import ModelSpec

# The hash of a pair of ids, which the training code took from modded-nanogpt.
_OF_THIS, _OF_THE_ONE_BEFORE = 36313, 27191
_ROWS_AT_ONCE = 4096  # of the embedding, so that norming it needs little memory beside


class NanoChat:
    """Logits of the next token. `weights` (canonical names, see the format) is emptied.

    Reads of `spec.options`: value_gate (the largest factor of a value embedding), backout_layer
    (after which the stream is remembered), bfloat16_angles (older code kept cos and sin so).
    Not for two threads at once: the one-token step has buffers of its own.
    """

    incremental = True

    def __init__(
        self,
        spec: ModelSpec,
        weights: dict[str, Tensor],
        precision: Precision = "dense",
        *,
        quantised_cache: bool = False,
    ) -> None:
        self.spec = spec
        self._quantised_cache = quantised_cache
        self.parameters = sum(tensor.numel() for tensor in weights.values())
        self.weight_bytes = sum(held_bytes(*item, precision) for item in weights.items())
        with torch.inference_mode():
            self._build(weights, precision)
        if weights:
            raise CheckpointError(
                "the model cannot be built",
                f"no place for the tensors {', '.join(sorted(weights)[:4])}",
            )

    # ---- building

    def _build(self, weights: dict[str, Tensor], precision: Precision) -> None:
        spec, take = self.spec, weights.pop
        packed = precision != "dense"
        embed, head = take("embed.weight"), take("head.weight", None)
        self.dtype = torch.float32 if packed else embed.dtype
        self.device = embed.device
        make = MAKERS[precision] if packed else turned
        self._head = make(embed.clone() if head is None else head, None)
        del head  # it may have been laid out anew
        gate, strength = take("smear_gate.weight", None), take("smear_lambda.weight", None)
        # How much of the embedding before an id takes on: of the id alone, hence a table.
        self._smear: Tensor | None = None
        if gate is not None and strength is not None:
            self._smear = torch.empty(embed.shape[0], dtype=self.dtype, device=self.device)
        # The embedding is only ever looked at normed, so it is kept so.
        kept = torch.empty_like(embed, dtype=torch.float16) if packed else embed
        for begin in range(0, embed.shape[0], _ROWS_AT_ONCE):
            places = slice(begin, begin + _ROWS_AT_ONCE)
            rows = embed[places].to(self.dtype)
            rows = F.rms_norm(rows, (spec.n_embd,), None, spec.norm_eps)
            kept[places] = rows
            if gate is not None and strength is not None and self._smear is not None:
                seen, weight = rows[:, : gate.shape[1]], gate[0].to(self.dtype)
                self._smear[places] = float(strength.reshape(())) * torch.sigmoid(seen @ weight)
        self._embed = rows_of(kept, packed)
        self._norm = norm(spec, torch.empty(0, dtype=self.dtype, device=self.device), None, None)
        self._attend = attention(spec)
        self._shape = shaped_logits(spec)
        self._rotary = rotary(spec, self.device)
        self._backout = number(take("backout_lambda.weight", None))
        self._middle = whole(spec.options.get("backout_layer"))
        self._value_gate = real(spec.options.get("value_gate"))
        pair_rows = take("bigram_embed.weight", None)
        self._last_pair = 0 if pair_rows is None else pair_rows.shape[0] - 1
        self._pairs = None if pair_rows is None else rows_of(pair_rows, packed)
        keeps = numbers(take("resid_lambdas.weight", None), 1.0, spec.n_layer)
        firsts = numbers(take("x0_lambdas.weight", None), 0.0, spec.n_layer)
        pairs = numbers(take("bigram_lambdas.weight", None), 0.0, spec.n_layer)
        self._layers = [
            self._layer(weights, i, precision, keeps[i], firsts[i], pairs[i])
            for i in range(spec.n_layer)
        ]
        self._one = _Step(self)

    def _layer(
        self,
        weights: dict[str, Tensor],
        i: int,
        precision: Precision,
        keep: float,
        first: float,
        pair: float,
    ) -> Layer:
        spec, take = self.spec, weights.pop
        make, make_down = MAKERS[precision], DOWN_MAKERS[precision]
        if precision == "dense":
            make = make_down = turned
        at = f"blocks.{i}"
        rows = take(f"{at}.attn.qkv.weight")
        heads = spec.n_head + spec.n_kv_head
        parts = [paired(spec, rows[: heads * spec.head_dim], heads), rows[heads * spec.head_dim :]]
        values = take(f"{at}.attn.value_embed.weight", None)
        gate = take(f"{at}.attn.value_gate.weight", None)
        if values is not None and gate is not None:
            # A gate sees the first numbers of what q, k and v see: with zeros for the others it is
            # one of their rows. An even number of rows keeps rotary pairs on even places.
            wide = rows.new_zeros(gate.shape[0] + gate.shape[0] % 2, spec.n_embd)
            wide[: gate.shape[0], : gate.shape[1]] = gate
            parts.append(wide)
            values = values.view(-1, spec.n_kv_head, spec.head_dim)
        return Layer(
            keep=keep,
            first=first,
            pair=pair,
            qkv=make(torch.cat(parts), None),
            out=make(take(f"{at}.attn.out.weight"), None),
            up=make(take(f"{at}.mlp.up.weight"), None),
            down=make_down(take(f"{at}.mlp.down.weight"), None),
            window=spec.window[i] if spec.window else 0,
            values=None if values is None else rows_of(values, precision != "dense"),
        )

    # ---- running

    def new_cache(self) -> KVCache:
        return KVCache(
            self.spec, dtype=self.dtype, device=self.device, quantised=self._quantised_cache
        )

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after the last of `ids`, which follow `cache.tokens`: (vocab_size,) float32.
        Appends to the cache.
        """
        if len(ids) == 1:
            cache.reserve(len(cache) + 1)
            logits = self._one(ids[0], cache)
        else:
            logits = self._logits(finished(self._many(ids, cache))[-1:])[0]
        cache.append(ids)
        return logits

    @torch.inference_mode()
    def reading(
        self, ids: Sequence[int], cache: KVCache, *, logits: bool
    ) -> Generator[None, None, Tensor | None]:
        """As `forward`, with a pause after each layer in which other sequences may be run; None
        unless `logits`. Left before its end it has changed nothing.
        """
        x = yield from self._many(ids, cache)
        found = self._logits(x[-1:])[0] if logits else None
        cache.append(ids)
        return found

    @torch.inference_mode()
    def forward_all(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after each of `ids`: (len(ids), vocab_size) float32. Appends to the cache."""
        logits = self._logits(finished(self._many(ids, cache)))
        cache.append(ids)
        return logits

    def _logits(self, x: Tensor) -> Tensor:
        logits = self._head.many(self._norm.many(x)).float()
        return logits if self._shape is None else self._shape(logits)

    def _many(self, ids: Sequence[int], cache: KVCache) -> Generator[None, None, Tensor]:
        """(T, n_embd) after the last layer, for any number of ids; pauses after each layer."""
        spec = self.spec
        start, count = len(cache), len(ids)
        end = start + count
        n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
        heads, width = n_head + n_kv, (n_head + 2 * n_kv) * dim
        cache.reserve(end)
        here = torch.tensor(ids, device=self.device)
        before = torch.tensor([*(cache.tokens[-1:] or ids[:1]), *ids[:-1]], device=self.device)
        x = self._embed(here)
        if self._smear is not None:
            smear = self._smear[here]
            if start == 0:
                smear[0] = 0
            x = x + smear[:, None] * self._embed(before)
        first, middle, pairs = x, x, self._pairs_of(here, before, start)
        angles = self._rotary.upto(end)[start:end]
        masks = {
            window: None
            if start == 0 and not 0 < window < end
            else mask(start, end, window, self.dtype, self.device)
            for window in {layer.window for layer in self._layers}
        }
        spans = cache.spans(count)
        for i, layer in enumerate(self._layers):
            if layer.keep != 1 or layer.first:
                x = layer.keep * x + layer.first * first
            if pairs is not None:
                x = x + layer.pair * pairs
            made = layer.qkv.many(self._norm.many(x))
            qkv = made[:, :width].view(count, -1, dim)
            qk = rotate(qkv[:, :heads], angles)
            qk = F.rms_norm(qk, (dim,), None, spec.norm_eps)
            value = qkv[:, heads:]
            if layer.values is not None:
                opened = torch.sigmoid(made[:, width : width + n_kv])[:, :, None]
                value = value + self._value_gate * opened * layer.values(here)
            kv = torch.stack([qk[:, n_head:], value]).transpose(1, 2)[:, None]
            keys, values = spans[i].put(kv)
            mixed = self._attend(
                qk[:, :n_head].transpose(0, 1)[None],  # (1, n_head, T, head_dim)
                keys,
                values,
                masks[layer.window],
                start == 0 and count > 1 and masks[layer.window] is None,
            )
            x = x + layer.out.many(mixed[0].transpose(0, 1).reshape(count, n_head * dim))
            up = layer.up.many(self._norm.many(x))
            x = x + layer.down.many(ACTIVATIONS[spec.activation](up))
            if i == self._middle:
                middle = x
            yield
        return x - self._backout * middle if self._backout else x

    def _pairs_of(self, here: Tensor, before: Tensor, start: int) -> Tensor | None:
        """(T, n_embd): the embedding of each id with the one before; the first id of all has the
        last row.
        """
        if self._pairs is None:
            return None
        last = self._last_pair
        place = torch.bitwise_xor(_OF_THIS * here, _OF_THE_ONE_BEFORE * before) % last
        if start == 0:
            place[0] = last
        return self._pairs(place)


class _Step:
    """The same layers for one token, with buffers and views made beforehand."""

    def __init__(self, model: NanoChat) -> None:
        spec = model.spec
        n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
        self.model = model
        self.x = self._buffer(spec.n_embd)
        self.middle = self._buffer(spec.n_embd)
        # All layers' shares of the first stream, made in one product.
        self.shares = torch.tensor(
            [[layer.first] for layer in model._layers], dtype=model.dtype, device=model.device
        )
        self.pair_shares = torch.tensor(
            [layer.pair for layer in model._layers], dtype=model.dtype, device=model.device
        )
        self.added = self._buffer(spec.n_layer * spec.n_embd).view(spec.n_layer, spec.n_embd)
        self.added_to = self.added.unsqueeze(1).unbind(0)
        self.plain = all(layer.first == 0 and layer.keep == 1 for layer in model._layers)
        gates = n_kv + n_kv % 2
        whole = (n_head + 2 * n_kv) * dim
        self.made = self._buffer(whole + gates)
        self.to_qkv = [layer.qkv.into(self.made[:, : layer.qkv.rows]) for layer in model._layers]
        qk = self.made[:, : (n_head + n_kv) * dim].view(1, n_head + n_kv, dim)
        self.qk = qk
        self.pairs = qk.view(torch.complex64) if model.dtype == torch.float32 else None
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
        self.to_up = [layer.up.into(self._buffer(layer.up.rows)) for layer in model._layers]
        self.add_attention = [layer.out.onto(self.x) for layer in model._layers]
        self.add_mlp = [layer.down.onto(self.x) for layer in model._layers]
        self.smear = None if model._smear is None else model._smear.tolist()
        self.logits = self._buffer(model._head.rows)
        self.to_logits = model._head.into(self.logits)

    def _buffer(self, size: int) -> Tensor:
        return torch.zeros(1, size, dtype=self.model.dtype, device=self.model.device)

    def __call__(self, token: int, cache: KVCache) -> Tensor:
        if self.model.device.type != "cpu":
            return self._run(token, cache)
        # For one row oneDNN costs more than it brings.
        was = torch._C._get_mkldnn_enabled()
        torch._C._set_mkldnn_enabled(False)
        try:
            return self._run(token, cache)
        finally:
            torch._C._set_mkldnn_enabled(was)

    def _run(self, token: int, cache: KVCache) -> Tensor:
        model, x, here = self.model, self.x, len(cache)
        embed, normed, act = model._embed, model._norm.one, ACTIVATIONS[model.spec.activation]
        dim, eps = (model.spec.head_dim,), model.spec.norm_eps
        spans = cache.spans(1)
        if self.smear is not None and here:
            torch.add(embed(token), embed(cache.tokens[-1]), alpha=self.smear[token], out=x[0])
        else:
            x[0].copy_(embed(token))
        plain = self.plain
        if not plain:
            torch.mul(self.shares, x, out=self.added)
        if model._pairs is not None:
            plain = False
            self._add_pairs(token, cache)
        angles = model._rotary.at(here)
        for i, layer in enumerate(model._layers):
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
                    value=model._value_gate,
                    out=self.value_made,
                )
            keys, values = spans[i].put(self.kv)
            self.add_attention[i](model._attend(self.q, keys, values, None, False).view(1, -1))
            self.add_mlp[i](act(self.to_up[i](normed(x))))
            if i == model._middle and model._backout:
                self.middle.copy_(x)
        if model._backout:
            x.sub_(self.middle, alpha=model._backout)
        self.to_logits(normed(x))
        logits = self.logits[0].to(torch.float32, copy=True)
        return logits if model._shape is None else model._shape(logits)

    def _add_pairs(self, token: int, cache: KVCache) -> None:
        """The shares of the embedding of the last two ids, on top of those of the first stream."""
        table = self.model._pairs
        assert table is not None
        place = last = self.model._last_pair
        if cache.tokens:
            place = (_OF_THIS * token ^ _OF_THE_ONE_BEFORE * cache.tokens[-1]) % last
        if self.plain:
            self.added.zero_()
        self.added.addr_(self.pair_shares, table(place))
