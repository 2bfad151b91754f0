"""KempnerForge's experts: stacked ones taken apart, the router's bias under torch's word."""

from __future__ import annotations

from collections.abc import Mapping

from tui_chat.checkpoint.dcp import turned
from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.tensors import Pieces, TensorRef
from tui_chat.errors import CheckpointError

_STACKED = {"gate_w": "gate_proj", "up_w": "up_proj", "down_w": "down_proj"}


def one_by_one(tensors: Mapping[str, object]) -> dict[str, object]:
    """The tensors with stacked experts taken apart, and the router's bias under torch's word."""
    found: dict[str, object] = {}
    for name, value in tensors.items():
        stem, _, last = name.rpartition(".")
        if last == "expert_bias":
            found[f"{stem}.gate.bias"] = value
        elif last in _STACKED and isinstance(value, (TensorRef, Pieces)) and value.shape:
            for expert in range(value.shape[0]):
                try:
                    one = turned(value, expert)
                except Damaged as error:
                    raise CheckpointError("its experts cannot be read", str(error)) from None
                found[f"{stem}.experts.{expert}.{_STACKED[last]}.weight"] = one
        else:
            found[name] = value
    return found
