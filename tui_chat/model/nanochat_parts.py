"""From nanochat's tensors to the parts of its model, in the form in which they run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tui_chat.model.layers import Attention, Map, Norm, attention, norm, shaped_logits
from tui_chat.model.linear import DOWN_MAKERS, MAKERS, Linear, Precision, turned
from tui_chat.model.rotary import Rotary, paired
from tui_chat.model.spec import ModelSpec

# The hash of a pair of ids, which the training code took from modded-nanogpt.
OF_THIS, OF_THE_ONE_BEFORE = 36313, 27191
_ROWS_AT_ONCE = 4096  # of the embedding, so that norming it needs little memory beside

Rows = Callable[[int | Tensor], Tensor]  # of a table, by one id or several


class Layer(NamedTuple):
    keep: float  # of the stream
    first: float  # of the stream as it began
    pair: float  # of the embedding of the last two ids
    qkv: Linear  # q, k, v, and where there are value embeddings an even count of gates
    out: Linear
    up: Linear
    down: Linear
    window: int  # 0: all
    values: Rows | None  # (n_kv_head, head_dim) for each id


class Parts(NamedTuple):
    """A whole model."""

    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    embed: Rows  # normed
    smear: Tensor | None  # (vocab_size,)
    pairs: Rows | None  # of the last two ids
    last_pair: int  # where an id has none before it
    norm: Norm
    rotary: Rotary
    attend: Attention
    value_gate: float
    layers: list[Layer]
    backout: float  # of the stream after layer `middle`
    middle: int
    head: Linear
    shape: Map | None  # what happens to the logits


def assemble(spec: ModelSpec, weights: dict[str, Tensor], precision: Precision) -> Parts:
    """The parts of a model. `weights` is emptied: the tensors now belong to the parts."""
    take, packed = weights.pop, precision != "dense"
    embed, head = take("embed.weight"), take("head.weight", None)
    dtype, device = torch.float32 if packed else embed.dtype, embed.device
    make = MAKERS[precision] if packed else turned
    output = make(embed.clone() if head is None else head, None)
    del head  # it may have been laid out anew
    gate, strength = take("smear_gate.weight", None), take("smear_lambda.weight", None)
    # How much of the embedding before an id takes on: of the id alone, hence a table.
    smear: Tensor | None = None
    if gate is not None and strength is not None:
        smear = torch.empty(embed.shape[0], dtype=dtype, device=device)
    # The embedding is only ever looked at normed, so it is kept so.
    kept = torch.empty_like(embed, dtype=torch.float16) if packed else embed
    for begin in range(0, embed.shape[0], _ROWS_AT_ONCE):
        places = slice(begin, begin + _ROWS_AT_ONCE)
        rows = F.rms_norm(embed[places].to(dtype), (spec.n_embd,), None, spec.norm_eps)
        kept[places] = rows
        if gate is not None and strength is not None and smear is not None:
            seen, weight = rows[:, : gate.shape[1]], gate[0].to(dtype)
            smear[places] = float(strength.reshape(())) * torch.sigmoid(seen @ weight)
    pair_rows = take("bigram_embed.weight", None)
    keeps = _numbers(take("resid_lambdas.weight", None), 1.0, spec.n_layer)
    firsts = _numbers(take("x0_lambdas.weight", None), 0.0, spec.n_layer)
    pairs = _numbers(take("bigram_lambdas.weight", None), 0.0, spec.n_layer)
    return Parts(
        spec=spec,
        dtype=dtype,
        device=device,
        embed=_rows_of(kept, packed),
        smear=smear,
        pairs=None if pair_rows is None else _rows_of(pair_rows, packed),
        last_pair=0 if pair_rows is None else pair_rows.shape[0] - 1,
        norm=norm(spec, torch.empty(0, dtype=dtype, device=device), None, None),
        rotary=_rotary(spec, device),
        attend=attention(spec),
        value_gate=_real(spec.options.get("value_gate")),
        layers=[
            _layer(spec, weights, i, precision, keeps[i], firsts[i], pairs[i])
            for i in range(spec.n_layer)
        ],
        backout=_number(take("backout_lambda.weight", None)),
        middle=_whole(spec.options.get("backout_layer")),
        head=output,
        shape=shaped_logits(spec),
    )


def _layer(
    spec: ModelSpec,
    weights: dict[str, Tensor],
    i: int,
    precision: Precision,
    keep: float,
    first: float,
    pair: float,
) -> Layer:
    take = weights.pop
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
        values=None if values is None else _rows_of(values, precision != "dense"),
    )


def _rows_of(table: Tensor, packed: bool) -> Rows:
    """The rows of a table; of one beside packed matrices as float32, though kept in 16 bits."""
    if not packed:
        return table.__getitem__
    largest = torch.finfo(torch.float16).max
    kept = table if table.element_size() == 2 else table.clamp(-largest, largest).half()
    return lambda ids: kept[ids].float()


def held_bytes(name: str, tensor: Tensor, precision: Precision) -> int:
    """Bytes that a tensor of the file takes once it is in place."""
    size = tensor.element_size()
    if precision != "dense":
        table = "embed" in name
        size = 2 if table or precision != "int8" else 1
    return tensor.numel() * size


def _rotary(spec: ModelSpec, device: torch.device) -> Rotary:
    """The rows in the arithmetic of the training code, float32, so that its roundings to bfloat16
    are met.
    """
    channels = torch.arange(0, spec.head_dim, 2, dtype=torch.float32)
    frequency = 1.0 / (spec.rope_theta ** (channels / spec.head_dim))

    def made(positions: Tensor) -> Tensor:
        angle = torch.outer(positions.float(), frequency)
        parts = torch.stack([angle.cos(), spec.rope_sign * angle.sin()], dim=-1)
        if spec.options.get("bfloat16_angles"):
            parts = parts.bfloat16().float()
        return torch.view_as_complex(parts)

    return Rotary(made, spec.context_length, device)


def _numbers(tensor: Tensor | None, default: float, count: int) -> list[float]:
    return [default] * count if tensor is None else tensor.flatten().tolist()


def _number(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.reshape(()))


def _whole(value: object) -> int:
    return value if isinstance(value, int) else -1


def _real(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 1.0
