"""A decoder's parts as the tables that the compiled step reads, and running it.

Keeps the tensors whose addresses it hands out. It uses as many threads as torch does. Not for two
callers at once: the rows of activations are its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from tui_chat.model.cache import KVCache
from tui_chat.model.layers import UNNORMED, Norm, attention_scale
from tui_chat.model.linear import DenseTable, Held, HeldTable, Linear, Matrix, Table
from tui_chat.model.native import tables
from tui_chat.model.native.crew import Crew
from tui_chat.model.native.ready import GROUP, MOST_ROWS
from tui_chat.model.native.rows import KINDS, evened, row_product
from tui_chat.model.native.step import run
from tui_chat.model.parts import MLP, Block, Parts, assemble
from tui_chat.model.rotary import Rotary
from tui_chat.model.spec import ModelSpec

_ACTIVATIONS = {
    "gelu": tables.GELU,
    "gelu_tanh": tables.GELU_TANH,
    "relu": tables.RELU,
    "relu2": tables.RELU2,
    "silu": tables.SILU,
}
_QK_NORMS = {
    "none": tables.NO_QK_NORM,
    "before_rope": tables.BEFORE_ROPE,
    "after_rope": tables.AFTER_ROPE,
}


class Program:
    """The compiled step of one decoder, for up to MOST_ROWS rows."""

    def __init__(self, parts: Parts) -> None:
        """`parts` are such that ready.fits() says so. Raises ValueError where a tensor has not the
        size that the spec says: the step would read beyond it.
        """
        self._parts = parts
        self._held: list[Tensor] = []  # made here, and addressed
        count = parts.spec.n_layer
        turning = [block.rotary for block in parts.blocks if block.rotary is not None]
        self._rotaries: list[Rotary] = list(dict.fromkeys(turning))
        self._angles = np.zeros(max(1, len(self._rotaries)), np.int64)
        self._turning: list[Tensor] = []
        self._reach = 0  # positions that the rotary tables are known to hold
        self._matrices = np.zeros((count, 4), tables.MATRIX)
        self._norms = np.zeros((count, 4), tables.NORM)
        self._layers = np.zeros(count, tables.LAYER)
        for at, block in enumerate(parts.blocks):
            self._layer(at, block)
        self._ends = np.zeros(2, tables.MATRIX)
        self._table(self._ends[0], parts.embed)
        self._ids = int(self._ends[0]["rows"])
        self._matrix(self._ends[1], parts.head)
        self._end_norms = np.zeros(2, tables.NORM)
        self._norm(self._end_norms[0], parts.embed_norm)
        self._norm(self._end_norms[1], parts.final_norm)
        self._model = self._described()
        self._check()
        self._stores: WeakKeyDictionary[KVCache, tuple[int, Any]] = WeakKeyDictionary()
        self._windowed = any(block.window for block in parts.blocks)
        self._rows = np.zeros(MOST_ROWS, tables.ROW)
        self._longest = 0
        self._crew = Crew(run)
        self._rows_room, self._threads = 0, 0
        self._places = np.zeros(6, np.int64)
        self._room = torch.empty(0)
        self._scores = torch.empty(0)
        self._vocab = parts.head.rows
        self._make_room(1)

    # ---- running

    def run(
        self, ids: Sequence[int], caches: Sequence[KVCache], *, all_logits: bool = True
    ) -> Tensor:
        """Logits after each of `ids`, or only after the last: (T, vocab_size) float32.

        With one cache, ids that follow it, else one id behind each of them. Every cache has room;
        the tokens are appended later.
        """
        count, rows = len(ids), self._rows
        same = len(caches) == 1
        longest = 0
        for at, token in enumerate(ids):
            if not 0 <= token < self._ids:
                raise IndexError(f"token id {token} is not between 0 and {self._ids - 1}")
            position = len(caches[0]) + at if same else len(caches[at])
            rows[at] = (token, position, 0 if same else at)
            longest = max(longest, position + 1)
        threads = torch.get_num_threads()
        if count > self._rows_room or longest > self._longest or threads > self._threads:
            self._make_room(count, longest, threads)
        if longest > self._reach:
            self._turn_upto(longest)
        stores = self._store(caches[0])[None] if same else np.stack([*map(self._store, caches)])
        wanted = 0 if all_logits else count - 1
        logits = torch.empty(count - wanted, self._vocab)
        what = (
            self._model,
            self._layers,
            self._matrices,
            self._norms,
            self._ends,
            self._end_norms,
            stores,
            rows[:count],
            self._angles,
            self._places,
            self._rows_room,
            self._scores.data_ptr(),
            self._longest,
            logits.data_ptr(),
            wanted,
        )
        self._crew(threads, what)
        return logits

    def _store(self, cache: KVCache) -> Any:
        """Where a cache stands: (n_layer,) STORE."""
        known = self._stores.get(cache)
        if known is None or known[0] != cache.version:
            made = np.zeros(len(cache.layers), tables.STORE)
            for one, layer in zip(made, cache.layers, strict=True):
                data, scales = layer.data, layer.scales
                one["keys"], one["values"] = data[0].data_ptr(), data[1].data_ptr()
                one["capacity"] = data.shape[3]
                if scales is not None:
                    one["key_scales"] = scales[0].data_ptr()
                    one["value_scales"] = scales[1].data_ptr()
            known = cache.version, made
            self._stores[cache] = known
        if self._windowed:
            for one, layer in zip(known[1], cache.layers, strict=True):
                one["origin"] = layer.origin
        return known[1]

    def _make_room(self, count: int, longest: int = 256, threads: int = 1) -> None:
        """For the activations of `count` rows, and for attention over `longest` positions in each
        thread.
        """
        spec = self._parts.spec
        self._rows_room = count = max(count, self._rows_room)
        self._longest = max(self._longest, -(-longest // 256) * 256)
        self._threads = threads = max(threads, self._threads)
        self._scores = torch.empty(threads * self._longest)
        size, inner = spec.n_embd, int(self._model[0]["inner"])
        wide = (spec.n_head + 2 * spec.n_kv_head) * spec.head_dim
        heads = spec.n_head * spec.head_dim
        sizes = [count * each for each in (size, 2 * threads * size, wide, heads, size, inner)]
        starts = np.cumsum([0, *(-(-each // 16) * 16 for each in sizes)])
        self._room = torch.zeros(int(starts[-1]) + 16)
        start = -(-self._room.data_ptr() // 64) * 64
        self._places[:] = start + 4 * starts[:-1]

    def _turn_upto(self, end: int) -> None:
        reach = self._parts.spec.context_length
        self._turning = [rotary.upto(end) for rotary in self._rotaries]
        for at, table in enumerate(self._turning):
            self._angles[at] = table.data_ptr()
            reach = min(reach, len(table))
        self._reach = reach

    # ---- the tables

    def _check(self) -> None:
        """That every matrix has the size that the step takes it to have."""
        spec = self._parts.spec
        size, heads = spec.n_embd, spec.n_head * spec.head_dim
        wide = heads + 2 * spec.n_kv_head * spec.head_dim
        for row in self._matrices:
            inner = int(row[tables.UP]["rows"]) // (2 if spec.gated else 1)
            found = [(int(one["rows"]), int(one["columns"])) for one in row]
            wanted = [(wide, size), (size, heads), (found[tables.UP][0], size), (size, inner)]
            if not row[tables.OUT]["weight"]:
                found[tables.OUT] = (heads, heads)
                wanted[tables.OUT] = (size, size)
            if found != wanted:
                raise ValueError(f"matrices of {found} where the spec says {wanted}")
        if any(int(one["columns"]) != size for one in self._ends):
            raise ValueError("the embedding or the head is of another width")

    def _address(self, tensor: Tensor | None, count: int) -> int:
        """Of a float32 copy of `count` numbers, or of the tensor itself where it is one; 0 for
        none.
        """
        if tensor is None:
            return 0
        if tensor.numel() < count:
            raise ValueError(f"{tensor.numel()} numbers where {count} are used")
        lying = tensor.float().contiguous()
        self._held.append(lying)
        return lying.data_ptr()

    def _described(self) -> Any:
        parts, spec = self._parts, self._parts.spec
        made = np.zeros(1, tables.MODEL)
        one = made[0]
        for name in ("n_embd", "n_head", "n_kv_head", "head_dim", "rotary_dim", "gated"):
            one[name] = getattr(spec, name)
        one["inner"] = max(int(rows) for rows in self._matrices[:, tables.UP]["rows"])
        one["activation"] = _ACTIVATIONS[spec.activation]
        one["parallel"] = spec.residual == "parallel"
        one["qk_norm"] = _QK_NORMS[spec.qk_norm]
        for block in parts.blocks:
            if block.qk_norm is not None:
                eps = block.qk_norm.eps
                one["qk_whole"] = block.qk_norm.whole
                one["qk_eps"] = torch.finfo(torch.float32).eps if eps is None else eps
        one["position"] = self._address(parts.position, spec.context_length * spec.n_embd)
        one["embed_scale"] = spec.embed_scale
        one["attention_scale"] = attention_scale(spec)
        one["attention_softcap"] = spec.attention_softcap or 0.0
        one["logit_scale"] = spec.logit_scale
        one["logit_softcap"] = spec.logit_softcap or 0.0
        return made

    def _layer(self, at: int, block: Block) -> None:
        mlp = block.mlp
        assert isinstance(mlp, MLP)
        matrices, norms, layer = self._matrices[at], self._norms[at], self._layers[at]
        self._matrix(matrices[tables.QKV], block.qkv)
        self._matrix(matrices[tables.OUT], block.out)
        self._matrix(matrices[tables.UP], mlp.up)
        self._matrix(matrices[tables.DOWN], mlp.down)
        self._norm(norms[tables.ATTENTION], block.attn_norm)
        self._norm(norms[tables.ATTENTION_POST], block.attn_post)
        self._norm(norms[tables.MLP], block.mlp_norm)
        self._norm(norms[tables.MLP_POST], block.mlp_post)
        layer["window"] = block.window
        layer["rotary"] = -1 if block.rotary is None else self._rotaries.index(block.rotary)
        layer["shared_norm"] = block.mlp_norm is None
        if block.qk_norm is not None:
            spec = self._parts.spec
            heads = (spec.n_head + spec.n_kv_head) * spec.head_dim
            layer["qk_weight"] = self._address(block.qk_norm.weight, heads)

    def _norm(self, to: Any, norm: Norm | None) -> None:
        if norm is None or norm is UNNORMED:
            return
        layer_norm = self._parts.spec.norm == "layernorm"
        to["kind"] = tables.LAYER_NORM if layer_norm else tables.RMS_NORM
        size = self._parts.spec.n_embd
        to["weight"] = self._address(norm.weight, size)
        to["bias"] = self._address(norm.bias, size)
        to["eps"] = norm.eps

    def _matrix(self, to: Any, linear: Linear | None) -> None:
        if linear is None:
            return
        if isinstance(linear, Matrix):
            lying, scales, bias = linear.weight.t(), None, linear.bias
        else:
            assert isinstance(linear, Held)
            lying, scales, bias = linear.weight, linear.scales, linear.bias
        self._rows_of(to, lying, scales)
        to["bias"] = self._address(bias, lying.shape[0])

    def _table(self, to: Any, table: Table) -> None:
        assert isinstance(table, (DenseTable, HeldTable))
        self._rows_of(to, table.rows, table.scales if isinstance(table, HeldTable) else None)

    def _rows_of(self, to: Any, rows: Tensor, scales: Tensor | None) -> None:
        if not rows.is_contiguous():
            rows = rows.contiguous()
            self._held.append(rows)
        to["weight"], to["kind"] = rows.data_ptr(), KINDS[rows.dtype]
        to["rows"], to["columns"] = rows.shape
        to["scales"] = self._address(scales, rows.shape[0] * -(-rows.shape[1] // GROUP))


def try_out() -> None:
    """Run the step once on the smallest of models, which compiles or loads all of it."""
    spec = ModelSpec(vocab_size=4, n_layer=1, n_head=1, n_embd=16, context_length=4)
    shapes = {
        "embed.weight": (4, 16),
        "position.weight": (4, 16),
        "blocks.0.attn.qkv.weight": (48, 16),
        "blocks.0.attn.out.weight": (16, 16),
        "blocks.0.mlp.up.weight": (16, 16),
        "blocks.0.mlp.down.weight": (16, 16),
    }
    weights = {name: torch.zeros(shape) for name, shape in shapes.items()}
    for name in ("blocks.0.attn_norm", "blocks.0.mlp_norm", "final_norm"):
        weights[f"{name}.weight"] = torch.ones(16)
    with torch.inference_mode():
        cache = KVCache(spec, dtype=torch.float32, device=torch.device("cpu"))
        cache.reserve(1)
        logits = Program(assemble(spec, weights)).run((0,), (cache,))
        evened(torch.ones(2, 80, dtype=torch.int8), torch.ones(2, 2))
        one = row_product(torch.ones(2, 16), None)(torch.ones(1, 16))
    if logits.abs().max() > 1e-6 or float((one - 16).abs().max()) > 1e-6:
        raise RuntimeError("the compiled step computes nonsense")
