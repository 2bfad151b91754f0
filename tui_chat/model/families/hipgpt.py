"""HipGPT as its own program computes it: no causal mask, the whole window for every token, dropout
that is never switched off.

Its window always has `context_length` rows. The ids stand at its end and id 0 before them, so a
token's position changes with each new one and nothing can be kept from call to call. The rows of
its fused qkv product are taken for those of Q, then of K, then of V, three to a token, whatever
they hold. Dropout's hash depends on the place of a number alone: it is the same in every layer and
at every step, and below 185,385 places nothing passes. Where it lets nothing through to the last
row, a layer adds nothing, and what cannot reach that row is not computed. With the option
`dropout` False everything is, as it would be without that call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.errors import CheckpointError
from tui_chat.model.cache import KVCache
from tui_chat.model.constant_dropout import PROBABILITY, passes
from tui_chat.model.layers import times
from tui_chat.model.linear import turned
from tui_chat.model.spec import ModelSpec

_HASHED_AT_ONCE = 2**20
_ROWS_AT_ONCE = 8192  # rows of windows that are scored together


def kept_rows(spec: ModelSpec) -> dict[int, Tensor]:
    """For each row of the window to which dropout lets anything through, its numbers: (n_embd,)
    bool."""
    width = spec.n_embd
    step = max(1, _HASHED_AT_ONCE // width)
    found: dict[int, Tensor] = {}
    for row in range(0, spec.context_length, step):
        last = min(row + step, spec.context_length)
        places = torch.arange(row * width, last * width, dtype=torch.int64)
        marks = torch.as_tensor(passes(places)).view(-1, width)
        for n in marks.any(1).nonzero().flatten().tolist():
            found[row + n] = marks[n].clone()
    return found


class Reach(NamedTuple):
    """Which part of the window one layer works on: it adds to `rows`, and needs the q, k, v of all
    tokens from `tokens` on."""

    tokens: int
    rows: list[int]


class Block(NamedTuple):
    """One layer that adds anything: (weight, bias) of each part, matrices (out, in)."""

    attn_norm: tuple[Tensor, Tensor]
    qkv: tuple[Tensor, Tensor]
    out: tuple[Tensor, Tensor]
    mlp_norm: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]
    down: tuple[Tensor, Tensor]
    tokens: slice  # of x, whose q, k, v are wanted
    queries: slice | Tensor  # of the rows that these make up
    keys: slice
    values: slice
    rows: slice | Tensor  # of x, that the layer adds to
    dropped: Tensor | None  # (rows, n_embd), True where dropout lets nothing through


_PARTS = ("attn_norm", "attn.qkv", "attn.out", "mlp_norm", "mlp.up", "mlp.down")


class HipGPT:
    """Logits of the next token. `weights` (canonical names) is emptied."""

    incremental = False

    def __init__(self, spec: ModelSpec, weights: dict[str, Tensor]) -> None:
        self.spec = spec
        self._embed, self._position = weights.pop("embed.weight"), weights.pop("position.weight")
        self.dtype, self.device = self._embed.dtype, self._embed.device
        tensors = [self._embed, self._position, *weights.values()]
        self.parameters = sum(tensor.numel() for tensor in tensors)
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self._head = turned(weights.pop("head.weight"), None)
        self._marks = kept_rows(spec) if spec.options.get("dropout", True) else None
        reaches, self._first = self._reaches()
        blocks = [self._block(weights, i, reach) for i, reach in enumerate(reaches)]
        self._blocks = [block for block in blocks if block is not None]
        if weights:
            raise CheckpointError(
                "the model cannot be built",
                f"no place for the tensors {', '.join(sorted(weights))}",
            )

    # ---- building

    def _reaches(self) -> tuple[list[Reach | None], int]:
        """What each layer must compute for the last row to be right, None for nothing; and the
        first row that the first of them needs.

        The layer above wants all rows from `first` on. Those of them that dropout lets through
        need their own query, which is a third of what token row // 3 gives, and all keys and
        values, which come from later tokens than any query.
        """
        length = self.spec.context_length
        first = length - 1
        found: list[Reach | None] = []
        for _ in range(self.spec.n_layer):
            wanted = range(first, length)
            rows = [row for row in wanted if self._marks is None or row in self._marks]
            found.append(Reach(rows[0] // 3, rows) if rows else None)
            first = min(first, rows[0] // 3) if rows else first
        return found[::-1], first

    def _block(self, weights: dict[str, Tensor], i: int, reach: Reach | None) -> Block | None:
        names = [f"blocks.{i}.{part}" for part in _PARTS]
        parts = [(weights.pop(f"{name}.weight"), weights.pop(f"{name}.bias")) for name in names]
        if reach is None:
            return None
        length, first, begin = self.spec.context_length, self._first, 3 * reach.tokens
        dropped = None
        if self._marks is not None:
            dropped = ~torch.stack([self._marks[row] for row in reach.rows]).to(self.device)
        attn_norm, qkv, out, mlp_norm, up, down = parts
        return Block(
            attn_norm=attn_norm,
            qkv=qkv,
            out=out,
            mlp_norm=mlp_norm,
            up=up,
            down=down,
            tokens=slice(reach.tokens - first, None),
            queries=self._places(reach.rows, begin),
            keys=slice(length - begin, 2 * length - begin),
            values=slice(2 * length - begin, None),
            rows=self._places(reach.rows, first),
            dropped=dropped,
        )

    def _places(self, rows: list[int], begin: int) -> slice | Tensor:
        """The rows in an array that starts with row `begin`."""
        if rows[-1] - rows[0] == len(rows) - 1:
            return slice(rows[0] - begin, rows[-1] + 1 - begin)
        return torch.tensor(rows, device=self.device) - begin

    # ---- running

    def new_cache(self) -> KVCache:
        return KVCache(self.spec, dtype=self.dtype, device=self.device, incremental=False)

    @torch.inference_mode()
    def forward(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after the last of `ids`, which follow `cache.tokens`, of all of which the window
        shows the last: (vocab_size,) float32. Appends to the cache.
        """
        cache.append(ids)
        return self._logits([cache.tokens])[0]

    @torch.inference_mode()
    def forward_all(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after each of `ids`, with a window for each: (len(ids), vocab_size) float32.
        Appends to the cache.
        """
        length = self.spec.context_length
        start = len(cache)
        cache.append(ids)
        texts = [
            cache.tokens[max(0, end - length) : end] for end in range(start + 1, len(cache) + 1)
        ]
        step = max(1, _ROWS_AT_ONCE // (length - self._first))
        return torch.cat(
            [self._logits(texts[begin : begin + step]) for begin in range(0, len(texts), step)]
        )

    def _logits(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """(texts, vocab_size) after each of the texts."""
        shown = self.spec.context_length - self._first
        windows = [[0] * (shown - len(text)) + list(text[-shown:]) for text in texts]
        x = F.embedding(torch.tensor(windows, device=self.device), self._embed)
        x = x + self._position[self._first :]
        for block in self._blocks:
            self._add(block, x)
        return times(x[:, -1], self._head).float()

    def _add(self, block: Block, x: Tensor) -> None:
        """What one layer adds to x (texts, rows of the window, n_embd), in place."""
        count, _, width = x.shape
        n_head = self.spec.n_head

        def heads(rows: Tensor) -> Tensor:  # (texts, rows, n_embd) -> (texts, n_head, rows, dim)
            return rows.reshape(count, -1, n_head, width // n_head).transpose(1, 2)

        normed = F.layer_norm(x[:, block.tokens], (width,), *block.attn_norm, self._eps)
        flat = F.linear(normed, *block.qkv).view(count, -1, width)
        mixed = F.scaled_dot_product_attention(
            heads(flat[:, block.queries]), heads(flat[:, block.keys]), heads(flat[:, block.values])
        )
        added = F.linear(mixed.transpose(1, 2).flatten(2), *block.out)
        x[:, block.rows] += _dropout(added, block.dropped)
        normed = F.layer_norm(x[:, block.rows], (width,), *block.mlp_norm, self._eps)
        added = F.linear(F.linear(normed, *block.up).relu_(), *block.down)
        x[:, block.rows] += _dropout(added, block.dropped)

    @property
    def _eps(self) -> float:
        return 1e-5 if self.spec.norm_eps is None else self.spec.norm_eps


def _dropout(added: Tensor, dropped: Tensor | None) -> Tensor:
    if dropped is None:
        return added
    return added.div_(1 - PROBABILITY).masked_fill_(dropped, 0.0)
