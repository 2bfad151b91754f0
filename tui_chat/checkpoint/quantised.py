"""Tensors whose numbers are packed in blocks that no stride can walk through, such as GGUF's Q4_K.

The `gguf` package unpacks them; it is optional, and only imported when such a tensor is read. What
a block holds and how long it is are known here without it, so a file is checked before it is
needed.
"""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING

from tui_chat.errors import CheckpointError

if TYPE_CHECKING:
    import torch

BLOCKS = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "IQ2_XXS": (256, 66),
    "IQ2_XS": (256, 74),
    "IQ3_XXS": (256, 98),
    "IQ1_S": (256, 50),
    "IQ4_NL": (32, 18),
    "IQ3_S": (256, 110),
    "IQ2_S": (256, 82),
    "IQ4_XS": (256, 136),
    "IQ1_M": (256, 56),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
    "MXFP4": (32, 17),
}
"""Numbers in a block, and bytes it takes."""

_EXTRA = "pip install 'tui-chat[gguf]'"


def check_readable(encoding: str) -> None:
    """Raises CheckpointError where the package that unpacks `encoding` is not installed."""
    if importlib.util.find_spec("gguf") is None:
        raise CheckpointError(
            f"its weights are of the type {encoding}",
            "F32, F16, BF16 and Q8_0 are read without help, the others with the gguf package",
            f"Install it with {_EXTRA}",
        )


def decoded(encoding: str, raw: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """The numbers in `raw` (bytes of whole rows, uint8): `shape`, float32. Raises CheckpointError.

    All but the last of `shape` count rows; a row is a whole number of blocks.
    """
    import torch

    check_readable(encoding)
    import gguf
    from gguf.quants import dequantize

    block, size = BLOCKS[encoding]
    rows = raw.reshape(-1, shape[-1] // block * size)
    try:
        numbers = dequantize(rows.numpy(), gguf.GGMLQuantizationType[encoding])
    except (KeyError, NotImplementedError, ValueError) as error:
        raise CheckpointError(
            f"its weights of the type {encoding} cannot be unpacked",
            str(error)[:120],
            f"A newer gguf package may know it: {_EXTRA} --upgrade",
        ) from None
    return torch.from_numpy(numbers).float().reshape(shape)
