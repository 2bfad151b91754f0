"""nanochat: a decoder whose stream is mixed with its own beginning, and whose values know the ids.

What Decoder cannot say, each part of it there when its tensors are: the previous token's embedding
smeared into each token's, every layer's input a sum of the stream and the first stream, embeddings
of the ids added to the values of some layers, the middle of the stream taken away at the end, and
for one day of January 2026 an embedding of pairs of ids. The previous token comes from the ids in
the cache, so a cache can be reused, cut and filled in pieces like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.errors import CheckpointError
from tui_chat.model.cache import KVCache
from tui_chat.model.layers import ACTIVATIONS, mask
from tui_chat.model.linear import Precision
from tui_chat.model.nanochat_parts import OF_THE_ONE_BEFORE, OF_THIS, assemble, held_bytes
from tui_chat.model.nanochat_step import Step
from tui_chat.model.pauses import finished
from tui_chat.model.rotary import rotate
from tui_chat.model.spec import ModelSpec


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
            self._parts = assemble(spec, weights, precision)
            self._one = Step(self._parts)
        self.dtype, self.device = self._parts.dtype, self._parts.device
        if weights:
            raise CheckpointError(
                "the model cannot be built",
                f"no place for the tensors {', '.join(sorted(weights)[:4])}",
            )

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
        logits = self._parts.head.many(self._parts.norm.many(x)).float()
        return logits if self._parts.shape is None else self._parts.shape(logits)

    @torch.inference_mode()
    def forward_each(self, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Logits after `ids[i]` behind `caches[i]`: (len(ids), vocab_size) float32. Appends to the
        caches, which are different ones.
        """
        spec, count = self.spec, len(ids)
        n_kv, dim = spec.n_kv_head, spec.head_dim
        for cache in caches:
            cache.reserve(len(cache) + 1)
        heres = [len(cache) for cache in caches]
        spans = [cache.spans(1) for cache in caches]

        def attend(i: int, q: Tensor, kv: Tensor) -> Tensor:
            mixed = []
            for row, of in enumerate(spans):
                keys, values = of[i].put(kv[:, :, :, row : row + 1])
                own = q[row].view(1, n_kv, -1, dim)
                mixed.append(self._parts.attend(own, keys, values, None, False).reshape(1, -1))
            return torch.cat(mixed)

        before = [(cache.tokens or (0,))[-1] for cache in caches]
        x = finished(
            self._layers_of(
                torch.tensor(ids, device=self.device),
                torch.tensor(before, device=self.device),
                [row for row in range(count) if not heres[row]],
                self._parts.rotary.upto(max(heres) + 1)[torch.tensor(heres, device=self.device)],
                attend,
            )
        )
        for token, cache in zip(ids, caches, strict=True):
            cache.append((token,))
        return self._logits(x)

    def _many(self, ids: Sequence[int], cache: KVCache) -> Generator[None, None, Tensor]:
        """(T, n_embd) after the last layer, for any number of ids; pauses after each layer."""
        spec = self.spec
        start, count = len(cache), len(ids)
        end = start + count
        cache.reserve(end)
        masks = {
            window: None
            if start == 0 and not 0 < window < end
            else mask(start, end, window, self.dtype, self.device)
            for window in {layer.window for layer in self._parts.layers}
        }
        spans = cache.spans(count)

        def attend(i: int, q: Tensor, kv: Tensor) -> Tensor:
            keys, values = spans[i].put(kv)
            hidden = masks[self._parts.layers[i].window]
            causal = start == 0 and count > 1 and hidden is None
            mixed = self._parts.attend(q.transpose(0, 1)[None], keys, values, hidden, causal)
            return mixed[0].transpose(0, 1).reshape(count, spec.n_head * spec.head_dim)

        before = [*(cache.tokens[-1:] or ids[:1]), *ids[:-1]]
        return (
            yield from self._layers_of(
                torch.tensor(ids, device=self.device),
                torch.tensor(before, device=self.device),
                [] if start else [0],
                self._parts.rotary.upto(end)[start:end],
                attend,
            )
        )

    def _layers_of(
        self,
        here: Tensor,
        before: Tensor,
        beginning: list[int],
        angles: Tensor,
        attend: Callable[[int, Tensor, Tensor], Tensor],
    ) -> Generator[None, None, Tensor]:
        """(T, n_embd) after the last layer: of ids and those before each, (T,), of which those
        numbered in `beginning` have none. `attend`: layer, q (T, n_head, head_dim), keys over
        values (2, 1, n_kv_head, T, head_dim) -> (T, n_head * head_dim).
        """
        spec, count = self.spec, len(here)
        n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
        heads, width = n_head + n_kv, (n_head + 2 * n_kv) * dim
        x = self._parts.embed(here)
        if self._parts.smear is not None:
            smear = self._parts.smear[here]
            smear[beginning] = 0
            x = x + smear[:, None] * self._parts.embed(before)
        first, middle, pairs = x, x, self._pairs_of(here, before, beginning)
        for i, layer in enumerate(self._parts.layers):
            if layer.keep != 1 or layer.first:
                x = layer.keep * x + layer.first * first
            if pairs is not None:
                x = x + layer.pair * pairs
            made = layer.qkv.many(self._parts.norm.many(x))
            qkv = made[:, :width].view(count, -1, dim)
            qk = rotate(qkv[:, :heads], angles)
            qk = F.rms_norm(qk, (dim,), None, spec.norm_eps)
            value = qkv[:, heads:]
            if layer.values is not None:
                opened = torch.sigmoid(made[:, width : width + n_kv])[:, :, None]
                value = value + self._parts.value_gate * opened * layer.values(here)
            kv = torch.stack([qk[:, n_head:], value]).transpose(1, 2)[:, None]
            x = x + layer.out.many(attend(i, qk[:, :n_head], kv))
            up = layer.up.many(self._parts.norm.many(x))
            x = x + layer.down.many(ACTIVATIONS[spec.activation](up))
            if i == self._parts.middle:
                middle = x
            yield
        return x - self._parts.backout * middle if self._parts.backout else x

    def _pairs_of(self, here: Tensor, before: Tensor, beginning: list[int]) -> Tensor | None:
        """(T, n_embd): the embedding of each id with the one before; the first id of all has the
        last row.
        """
        if self._parts.pairs is None:
            return None
        last = self._parts.last_pair
        place = torch.bitwise_xor(OF_THIS * here, OF_THE_ONE_BEFORE * before) % last
        place[beginning] = last
        return self._parts.pairs(place)
