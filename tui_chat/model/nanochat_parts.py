"""What nanochat's family is made of: a layer, its tables, its rotary rows, and the numbers that
stand beside them in a file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tui_chat.model.linear import Linear, Precision
from tui_chat.model.rotary import Rotary
from tui_chat.model.spec import ModelSpec

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


def rows_of(table: Tensor, packed: bool) -> Rows:
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


def rotary(spec: ModelSpec, device: torch.device) -> Rotary:
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


def numbers(tensor: Tensor | None, default: float, count: int) -> list[float]:
    return [default] * count if tensor is None else tensor.flatten().tolist()


def number(tensor: Tensor | None) -> float:
    return 0.0 if tensor is None else float(tensor.reshape(()))


def whole(value: object) -> int:
    return value if isinstance(value, int) else -1


def real(value: object) -> float:
    return float(value) if isinstance(value, (int, float)) else 1.0
