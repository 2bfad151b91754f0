"""The compiled step: the next token of one or several sequences, or the next few tokens of one, in
a single call that holds no lock of Python's.

Several threads may run the same call, each doing its share of every matrix (`rank` of `threads`);
they meet at barriers. What a table means is said in tables.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

from tui_chat.model.native.attention import (
    mixed,
    mixed_int8,
    quantise,
    scores_of,
    scores_of_int8,
    softmax,
)
from tui_chat.model.native.kernels import (
    activate,
    compiled,
    look_up,
    multiply,
    normed,
    rms_normed,
    tanh,
    turn,
)
from tui_chat.model.native.tables import (
    AFTER_ROPE,
    ATTENTION,
    ATTENTION_POST,
    BEFORE_ROPE,
    DOWN,
    MLP,
    MLP_POST,
    NO_QK_NORM,
    OUT,
    QKV,
    UP,
)
from tui_chat.model.native.vectors import floats

_SPINS = 4000  # looks at a barrier before the processor is offered to others

_yield: Callable[[], int] = types.ExternalFunction("sched_yield", types.int32())


@intrinsic
def _add(_: Any, address: Any, number: Any) -> Any:
    """(address, number): add to a shared int64 in one piece -> what it was."""

    def code(context: Any, b: Any, signature: Any, args: list[Any]) -> Any:
        place = b.inttoptr(args[0], ir.PointerType(ir.IntType(64)))
        return b.atomic_rmw("add", place, args[1], "seq_cst")

    return types.int64(types.int64, types.int64), code


@intrinsic
def _look(_: Any, address: Any) -> Any:
    """(address) -> a shared int64."""

    def code(context: Any, b: Any, signature: Any, args: list[Any]) -> Any:
        place = b.inttoptr(args[0], ir.PointerType(ir.IntType(64)))
        return b.load_atomic(place, "seq_cst", 8)

    return types.int64(types.int64), code


@compiled
def meet(sync: int, target: int) -> None:
    """Wait until all threads have come here: the shared count then reaches `target`."""
    _add(sync, 1)
    spins = 0
    while _look(sync) < target:
        spins += 1
        if spins > _SPINS:
            _yield()


@compiled
def share(count: int, rank: int, threads: int) -> tuple[int, int]:
    """The part [first, last) of `count` things that is this thread's, in whole cache lines."""
    lines = (count + 15) // 16
    return lines * rank // threads * 16, min(count, lines * (rank + 1) // threads * 16)


@compiled
def _attend(
    model: Any, layer: Any, store: Any, position: int, qkv: int, head: int, scores: int, out: int
) -> None:
    """One head of one row over what its cache holds, the row itself included."""
    dim = model["head_dim"]
    kv = head // (model["n_head"] // model["n_kv_head"])
    window, origin = layer["window"], store["origin"]
    start = max(0, position + 1 - window) if window else 0
    count = position + 1 - start
    at = kv * store["capacity"] + start - origin
    q = qkv + head * dim * 4
    scale, cap = np.float32(model["attention_scale"]), np.float32(model["attention_softcap"])
    if store["key_scales"]:
        keys, values = store["keys"] + at * dim, store["values"] + at * dim
        scores_of_int8(q, keys, store["key_scales"] + 4 * at, count, dim, scale, scores)
        softmax(scores, count, cap)
        mixed_int8(scores, values, store["value_scales"] + 4 * at, count, dim, out)
    else:
        keys, values = store["keys"] + at * dim * 4, store["values"] + at * dim * 4
        scores_of(q, keys, count, dim, scale, scores)
        softmax(scores, count, cap)
        mixed(scores, values, count, dim, out)


@compiled
def _keep(model: Any, store: Any, position: int, qkv: int, kv: int) -> None:
    """Write one head's key and value of a row into its cache."""
    dim, n_head, n_kv = model["head_dim"], model["n_head"], model["n_kv_head"]
    at = kv * store["capacity"] + position - store["origin"]
    key, value = qkv + (n_head + kv) * dim * 4, qkv + (n_head + n_kv + kv) * dim * 4
    if store["key_scales"]:
        quantise(key, dim, store["keys"] + at * dim, store["key_scales"] + 4 * at)
        quantise(value, dim, store["values"] + at * dim, store["value_scales"] + 4 * at)
    else:
        to_keys = carray(floats(store["keys"] + at * dim * 4), dim)
        to_values = carray(floats(store["values"] + at * dim * 4), dim)
        from_key, from_value = carray(floats(key), dim), carray(floats(value), dim)
        for number in range(dim):
            to_keys[number] = from_key[number]
            to_values[number] = from_value[number]


@compiled
def _norm_heads(model: Any, layer: Any, heads: int) -> None:
    """The norms of q and k of one row, in place."""
    dim, n_head, n_kv = model["head_dim"], model["n_head"], model["n_kv_head"]
    weight, eps = layer["qk_weight"], model["qk_eps"]
    if model["qk_whole"]:
        rms_normed(heads, n_head * dim, eps, weight)
        behind = n_head * dim * 4
        rms_normed(heads + behind, n_kv * dim, eps, weight + behind if weight else 0)
    else:
        for head in range(n_head + n_kv):
            behind = head * dim * 4
            rms_normed(heads + behind, dim, eps, weight + behind if weight else 0)


@compiled
def _shape_heads(model: Any, layer: Any, angles: Any, position: int, heads: int) -> None:
    """q and k of one row as attention takes them."""
    n_heads, dim = model["n_head"] + model["n_kv_head"], model["head_dim"]
    turned, rotary = model["rotary_dim"], layer["rotary"]
    if model["qk_norm"] == BEFORE_ROPE:
        _norm_heads(model, layer, heads)
    if rotary >= 0:
        turn(heads, n_heads, dim, turned, angles[rotary] + position * turned * 4)
    if model["qk_norm"] == AFTER_ROPE:
        _norm_heads(model, layer, heads)


@compiled
def _grow(x: int, by: int, stride: int, count: int, first: int, last: int) -> None:
    """x[:, first:last] += by."""
    for row in range(count):
        to, more = carray(floats(x + row * stride), last), carray(floats(by + row * stride), last)
        for at in range(first, last):
            to[at] += more[at]


@compiled
def _begin(
    model: Any, table: Any, norm: Any, token: int, position: int, x: int, other: int
) -> None:
    """What goes into the first layer for one row."""
    size = model["n_embd"]
    made = carray(floats(x), size)
    look_up(table, token, x)
    scale = np.float32(model["embed_scale"])
    if scale != np.float32(1.0):
        for at in range(size):
            made[at] *= scale
    if model["position"]:
        more = carray(floats(model["position"] + position * size * 4), size)
        for at in range(size):
            made[at] += more[at]
    if norm["kind"]:
        normed(norm, x, size, other)
        copied = carray(floats(other), size)
        for at in range(size):
            made[at] = copied[at]


@compiled
def _shape_logits(model: Any, logits: int, first: int, last: int) -> None:
    scale, cap = np.float32(model["logit_scale"]), np.float32(model["logit_softcap"])
    found = carray(floats(logits), last)
    if cap:
        for at in range(first, last):
            found[at] = tanh(found[at] * (scale / cap)) * cap
    elif scale != np.float32(1.0):
        for at in range(first, last):
            found[at] *= scale


@njit(nogil=True, cache=True, error_model="numpy")
def run(
    models: Any,  # (1,) MODEL
    layers: Any,  # (n_layer,) LAYER
    matrices: Any,  # (n_layer, 4) MATRIX
    norms: Any,  # (n_layer, 4) NORM
    ends: Any,  # (2,) MATRIX: embedding, head
    end_norms: Any,  # (2,) NORM: of the embedding, the final one
    stores: Any,  # (caches, n_layer) STORE
    rows: Any,  # (count,) ROW
    angles: Any,  # (tables,) int64: where the rotary tables stand
    places: Any,  # (6,) int64: room for x, normed, qkv, mixed, branch, up
    room: int,  # rows that a thread's part of `normed` holds
    scores: int,  # float32, `longest` for each thread
    longest: int,
    logits: int,  # (count - wanted, vocab_size) float32
    wanted: int,  # the first row whose logits are wanted
    sync: int,  # an int64 that counts who came to a barrier
    met: int,  # what it is at the start
    rank: int,
    threads: int,
) -> None:
    """Run one token in each row and add it to its cache. Rows of the same cache follow one
    another."""
    model, count = models[0], rows.shape[0]
    size, n_head, n_kv, dim = (
        model["n_embd"],
        model["n_head"],
        model["n_kv_head"],
        model["head_dim"],
    )
    wide, inner = (n_head + 2 * n_kv) * dim, model["inner"]
    gated = model["gated"]
    x, qkv, heads, branch, up = places[0], places[2], places[3], places[4], places[5]
    x_stride, qkv_stride, heads_stride, up_stride = size * 4, wide * 4, n_head * dim * 4, inner * 4
    mine = places[1] + rank * 2 * room * x_stride  # the norms of the rows, by this thread
    other = mine + room * x_stride
    my_scores = scores + rank * longest * 4
    first_x, last_x = share(size, rank, threads)
    first_wide, last_wide = share(wide, rank, threads)
    parallel = model["parallel"]

    if rank == 0:
        for row in range(count):
            one = rows[row]
            at = x + row * x_stride
            _begin(model, ends[0], end_norms[0], one["token"], one["position"], at, mine)
    if threads > 1:
        met += threads
        meet(sync, met)

    for number in range(layers.shape[0]):
        layer = layers[number]
        for row in range(count):
            at = row * x_stride
            normed(norms[number, ATTENTION], x + at, size, mine + at)
        by = matrices[number, QKV]
        multiply(by, mine, x_stride, count, qkv, qkv_stride, first_wide, last_wide)
        if threads > 1:
            met += threads
            meet(sync, met)

        for row in range(rank, count, threads):
            one = rows[row]
            store = stores[one["cache"], number]
            at = qkv + row * qkv_stride
            if model["qk_norm"] != NO_QK_NORM or layer["rotary"] >= 0:
                _shape_heads(model, layer, angles, one["position"], at)
            for kv in range(n_kv):
                _keep(model, store, one["position"], at, kv)
        if threads > 1:
            met += threads
            meet(sync, met)

        for task in range(count * n_head * rank // threads, count * n_head * (rank + 1) // threads):
            row, head = task // n_head, task % n_head
            one = rows[row]
            _attend(
                model,
                layer,
                stores[one["cache"], number],
                one["position"],
                qkv + row * qkv_stride,
                head,
                my_scores,
                heads + row * heads_stride + head * dim * 4,
            )
        if threads > 1:
            met += threads
            meet(sync, met)

        by = matrices[number, OUT]
        added = heads
        if by["weight"]:
            added = branch
            multiply(by, heads, heads_stride, count, branch, x_stride, first_x, last_x)
        if norms[number, ATTENTION_POST]["kind"]:
            if threads > 1:
                met += threads
                meet(sync, met)
            for row in range(count):
                at = row * x_stride
                normed(norms[number, ATTENTION_POST], added + at, size, other + at)
            added = other
        if not parallel:
            _grow(x, added, x_stride, count, first_x, last_x)
            if threads > 1:
                met += threads
                meet(sync, met)

        taken = mine
        if not layer["shared_norm"]:
            for row in range(count):
                at = row * x_stride
                normed(norms[number, MLP], x + at, size, taken + at)
        by = matrices[number, UP]
        half = by["rows"] // 2 if gated else by["rows"]
        first, last = share(half, rank, threads)
        multiply(by, taken, x_stride, count, up, up_stride, first, last)
        if gated:
            multiply(by, taken, x_stride, count, up, up_stride, half + first, half + last)
        for row in range(count):
            at = up + row * up_stride
            activate(model["activation"], at, first, last)
            if gated:
                opened, let = carray(floats(at), last), carray(floats(at + half * 4), last)
                for column in range(first, last):
                    opened[column] *= let[column]
        if threads > 1:
            met += threads
            meet(sync, met)
        if parallel:  # only now have all read x
            _grow(x, added, x_stride, count, first_x, last_x)

        by = matrices[number, DOWN]
        multiply(by, up, up_stride, count, branch, x_stride, first_x, last_x)
        added = branch
        if norms[number, MLP_POST]["kind"]:
            if threads > 1:
                met += threads
                meet(sync, met)
            for row in range(count):
                at = row * x_stride
                normed(norms[number, MLP_POST], branch + at, size, other + at)
            added = other
        _grow(x, added, x_stride, count, first_x, last_x)
        if threads > 1:
            met += threads
            meet(sync, met)

    for row in range(wanted, count):
        at = row * x_stride
        normed(end_norms[1], x + at, size, mine + at)
    vocab = ends[1]["rows"]
    first, last = share(vocab, rank, threads)
    multiply(
        ends[1],
        mine + wanted * x_stride,
        x_stride,
        count - wanted,
        logits,
        vocab * 4,
        first,
        last,
    )
    for row in range(count - wanted):
        _shape_logits(model, logits + row * vocab * 4, first, last)
    if threads > 1:
        met += threads
        meet(sync, met)
