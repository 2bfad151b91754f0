"""A decoder-only transformer, built from a spec and the tensors of a file.

Everything a spec chooses is settled when it is built (parts.py). There are two straight lines
through the same layers: `_many` here for a piece of a prompt, and step.py for the next token of a
reply, which writes into buffers made beforehand because below 30 million parameters the calls cost
more than the arithmetic. Tests hold the second against the first. Knows token ids only: no text, no
file.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tui_chat.errors import CheckpointError
from tui_chat.model.batch import next_tokens
from tui_chat.model.cache import KVCache
from tui_chat.model.layers import mask
from tui_chat.model.linear import Precision
from tui_chat.model.native import ready
from tui_chat.model.parts import Parts, assemble, best_turned
from tui_chat.model.pauses import finished
from tui_chat.model.spec import ModelSpec
from tui_chat.model.step import one_token

if TYPE_CHECKING:
    from tui_chat.model.native.program import Program

log = logging.getLogger(__name__)


class Decoder:
    """Logits of the next token. `weights` (canonical names, see build.py) is emptied: the tensors
    now belong here.

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
        self._precision = precision
        self.parameters = sum(tensor.numel() for tensor in weights.values())
        self.weight_bytes = sum(_held_bytes(tensor, precision) for tensor in weights.values())
        with torch.inference_mode():
            self._parts = assemble(spec, weights, precision, turn=best_turned(spec))
            self._one = one_token(self._parts)
        self.dtype, self.device = self._parts.dtype, self._parts.device
        self._suits = ready.fits(self._parts)
        self._program: Program | None = None
        if weights:
            raise CheckpointError(
                "the model cannot be built",
                f"no place for the tensors {', '.join(sorted(weights)[:4])}",
            )

    @property
    def parts(self) -> Parts:
        """What the model is made of, for a step that is built of it elsewhere."""
        return self._parts

    def new_cache(self) -> KVCache:
        return KVCache(
            self.spec, dtype=self.dtype, device=self.device, quantised=self._quantised_cache
        )

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after the last of `ids`, which follow `cache.tokens`: (vocab_size,) float32.
        Appends to the cache.
        """
        if not cache.tokens:
            self._adopt()
        if (program := self._compiled(len(ids))) is not None:
            cache.reserve(len(cache) + len(ids))
            logits = program.run(ids, (cache,), all_logits=False)[0]
        elif len(ids) == 1:
            cache.reserve(len(cache) + 1)
            logits = self._one(ids[0], cache)
        else:
            logits = self._parts.logits(finished(self._many(ids, cache))[-1:])[0]
        cache.append(ids)
        return logits

    @torch.inference_mode()
    def reading(
        self, ids: Sequence[int], cache: KVCache, *, logits: bool
    ) -> Generator[None, None, Tensor | None]:
        """As `forward`, with a pause after each layer in which other sequences may be run; None
        unless `logits`. Left before its end it has changed nothing.
        """
        self._adopt()
        x = yield from self._many(ids, cache)
        found = self._parts.logits(x[-1:])[0] if logits else None
        cache.append(ids)
        return found

    @torch.inference_mode()
    def forward_all(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after each of `ids`: (len(ids), vocab_size) float32. Appends to the cache."""
        if not cache.tokens:
            self._adopt()
        if (logits := self._exactly(ids, cache)) is not None:
            return logits
        logits = self._parts.logits(finished(self._many(ids, cache)))
        cache.append(ids)
        return logits

    @torch.inference_mode()
    def forward_each(self, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Logits after `ids[i]` behind `caches[i]`: (len(ids), vocab_size) float32. Appends to the
        caches, which are different ones.
        """
        experts = self.spec.experts
        if len(ids) == 1 or (experts is not None and experts.capacity_factor > 0):
            # Those who share a call would take the room of one another's experts.
            return torch.stack([self.forward((i,), c) for i, c in zip(ids, caches, strict=True)])
        for cache in caches:
            cache.reserve(len(cache) + 1)
        if (program := self._compiled(len(ids))) is not None:
            logits = program.run(ids, caches)
        else:
            logits = next_tokens(self._parts, ids, caches)
        for token, cache in zip(ids, caches, strict=True):
            cache.append((token,))
        return logits

    def _exactly(self, ids: Sequence[int], cache: KVCache) -> Tensor | None:
        """What `forward_all` gives, by the compiled step, where that is to be had; it appends."""
        program = self._compiled(min(len(ids), ready.MOST_ROWS))
        # Pieces of a prompt are rounded where that is faster (linear.py), not what is scored.
        rounded = self._precision in ("int8", "bfloat16")
        if program is None or (len(ids) > ready.MOST_ROWS and not rounded):
            return None
        found = []
        for at in range(0, len(ids), ready.MOST_ROWS):
            some = ids[at : at + ready.MOST_ROWS]
            cache.reserve(len(cache) + len(some))
            found.append(program.run(some, (cache,)))
            cache.append(some)
        return found[0] if len(found) == 1 else torch.cat(found)

    def _compiled(self, rows: int) -> Program | None:
        """What computes so few rows without torch, where it has been taken up."""
        return self._program if rows <= ready.MOST_ROWS else None

    def _adopt(self) -> None:
        """Take up the compiled step, if it is there by now. Called where something is read, not
        while a reply is written: the two round differently, and a seed should give one reply.
        """
        if self._program is None and self._suits and (make := ready.program()) is not None:
            try:
                self._program = make(self._parts)
            except ValueError:  # torch then says what is wrong
                log.warning("the compiled step cannot be used", exc_info=True)
                self._suits = False

    def _many(self, ids: Sequence[int], cache: KVCache) -> Generator[None, None, Tensor]:
        """(T, n_embd) after the last layer, for any number of ids; pauses after each layer."""
        parts, spec = self._parts, self.spec
        start, count = len(cache), len(ids)
        end = start + count
        n_head, n_kv, dim = spec.n_head, spec.n_kv_head, spec.head_dim
        cache.reserve(end)
        x = parts.begin(torch.tensor(ids, device=self.device), slice(start, end))
        # On an empty cache torch's own causal mask is right, and faster than one that is added.
        plain = start == 0 and spec.attention_softcap is None
        masks = {
            window: None
            if plain and not 0 < window < end
            else mask(start, end, window, self.dtype, self.device)
            for window in {block.window for block in parts.blocks}
        }
        spans = cache.spans(count)
        for i, block in enumerate(parts.blocks):
            normed = block.attn_norm.many(x)
            heads = block.qkv.many(normed).view(count, n_head + 2 * n_kv, dim)
            angles = None if block.rotary is None else block.rotary.upto(end)[start:end]
            parts.turn(heads[:, : n_head + n_kv], block, angles)
            kv = heads[:, n_head:].view(count, 2, 1, n_kv, dim).permute(1, 2, 3, 0, 4)
            keys, values = spans[i].put(kv)
            mixed = parts.attend(
                heads[:, :n_head].transpose(0, 1)[None],  # (1, n_head, T, head_dim)
                keys,
                values,
                masks[block.window],
                plain and count > 1 and masks[block.window] is None,
            )
            mixed = mixed[0].transpose(0, 1).reshape(count, n_head * dim)
            x = parts.join(block, x, normed, mixed)
            yield
        return x


def _held_bytes(tensor: Tensor, precision: Precision) -> int:
    """Bytes that a tensor of the file takes once it is in place (linear.py says how)."""
    size = tensor.element_size()
    if precision != "dense":
        size = 4 if tensor.dim() != 2 else 2
        if size == 2 and precision == "int8":
            return tensor.numel() + 4 * tensor.shape[0] * -(-tensor.shape[1] // ready.GROUP)
    return tensor.numel() * size
