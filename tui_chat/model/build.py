"""From a spec and canonical tensors to a model that runs.

Canonical names: embed, position, embed_norm, blocks.{i}.attn_norm, blocks.{i}.attn.qkv,
.attn.q_norm, .attn.k_norm, .attn.out, blocks.{i}.mlp_norm, .mlp.up or .mlp.gate_up, .mlp.down,
final_norm, head; each `.weight` and, where the file has one, `.bias`. Matrices are (out, in);
qkv is q over k over v; gate_up is the gate over what it lets through.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from tui_chat.errors import CheckpointError, UsageError
from tui_chat.model.cache import KVCache
from tui_chat.model.decoder import Decoder
from tui_chat.model.families.hipgpt import HipGPT
from tui_chat.model.families.nanochat import NanoChat
from tui_chat.model.linear import Precision
from tui_chat.model.spec import ModelSpec


class Model(Protocol):
    """What the engine asks of any architecture: ids in, logits out.

    `incremental` False means that the whole sequence is computed at every call; such a model
    keeps `cache.tokens` up to date all the same.
    """

    spec: ModelSpec
    incremental: bool
    dtype: torch.dtype
    device: torch.device
    parameters: int
    weight_bytes: int

    def new_cache(self) -> KVCache: ...

    def forward(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after the last of `ids` that follow `cache.tokens`: (vocab_size,) float32, on
        the model's device.
        """
        ...

    def forward_all(self, ids: Sequence[int], cache: KVCache) -> Tensor:
        """Logits after each of `ids`: (len(ids), vocab_size) float32."""
        ...


@runtime_checkable
class StepsTogether(Protocol):
    """A model that steps several sequences at once."""

    def forward_each(self, ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Logits after `ids[i]` behind `caches[i]`: (len(ids), vocab_size) float32. Appends to the
        caches, which are different ones.
        """
        ...


@runtime_checkable
class ReadsInLayers(Protocol):
    """A model that can pause while it reads a piece of a prompt."""

    def reading(
        self, ids: Sequence[int], cache: KVCache, *, logits: bool
    ) -> Generator[None, None, Tensor | None]:
        """As `forward`, with a pause after each layer in which other sequences may be run; None
        unless `logits`. Left before its end it has changed nothing.
        """
        ...


FAMILIES: Mapping[str, Callable[..., Model]] = {"hipgpt": HipGPT, "nanochat": NanoChat}


def build(
    spec: ModelSpec,
    weights: dict[str, Tensor],
    precision: Precision = "dense",
    *,
    quantised_cache: bool = False,
) -> Model:
    """The model of `spec.family`. `weights` is emptied. `precision` packs the matrices of a CPU,
    `quantised_cache` makes its caches int8. Raises CheckpointError for what does not fit together,
    UsageError for a precision or cache that is not to be had.
    """
    family = FAMILIES.get(spec.family)
    if spec.family == "hipgpt" and quantised_cache:
        raise UsageError(
            "an int8 cache is not to be had for this model",
            f"its architecture, {spec.family}, computes everything anew for each token",
            "Leave --kv-cache out",
        )
    if spec.family == "hipgpt" and precision != "dense":
        raise UsageError(
            f"{precision} is not to be had for this model",
            f"its architecture, {spec.family}, is computed by a program of its own",
            "Leave --dtype out",
        )
    if family is None and spec.family != "decoder":
        raise CheckpointError(
            "this architecture is not known",
            f"the checkpoint asks for {spec.family!r}",
            "A newer version may know it",
        )
    try:
        if family is HipGPT:
            return family(spec, weights)
        if family is not None:
            return family(spec, weights, precision, quantised_cache=quantised_cache)
        return Decoder(spec, weights, precision, quantised_cache=quantised_cache)
    except KeyError as missing:
        raise CheckpointError(
            "the model cannot be built", f"tensor {missing} is missing"
        ) from missing
