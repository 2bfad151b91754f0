"""HipGPT's dropout: a hash of the place of a number and of nothing else, so a constant mask.

In integers alone, so that whole numbers and tensors of them go through the same lines. No torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    Places = TypeVar("Places", int, Tensor)

PROBABILITY = 0.1
_BLOCK = 256  # threads of a block of its kernel: the hash takes the number of the block too
_WORD = 0xFFFFFFFF  # its arithmetic has 32 bits
# The hash becomes a float32, is divided by 2^32 and compared with float32(0.1). Up to here it
# rounds to less.
_HIGHEST_DROPPED = 429_496_720


def passes(place: Places) -> bool | Tensor:
    """Whether the number at `place` (row * n_embd + column, an int or int64 tensor) gets through;
    what does is divided by 1 - PROBABILITY."""
    mixed = (place * (place // _BLOCK) + 1) & _WORD
    mixed ^= mixed >> 2
    mixed = (mixed ^ (mixed << 1)) & _WORD
    first = place + 1
    mixed = (mixed ^ first ^ (first << 4)) & _WORD
    return ((mixed + 1) & _WORD) > _HIGHEST_DROPPED
