"""What a decoder is made of, in numbers and names. Knows no tensor, no file, no torch.

The tensors say what is there, the spec says how it is used: a bias exists if the file has one,
the head is tied if the file has none, a norm is weightless if it has no weight. So none of these
is a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal

from tui_chat.errors import CheckpointError

Norm = Literal["layernorm", "rmsnorm"]
Position = Literal["learned", "rope", "none"]
RopeLayout = Literal["half", "interleaved"]
QKNorm = Literal["none", "before_rope", "after_rope"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length (Llama 3 or linear)."""

    kind: Literal["linear", "llama3"]
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer. Sizes are counts; `context_length` is in tokens.

    `norm_eps` None means torch's own default for the dtype. `window[i]` is how many positions
    layer i sees (0: all); an empty tuple means all layers see all. `vocab_size` is the number of
    rows of the embedding. `qk_scale` multiplies queries and keys each (scores are q·k *
    qk_scale² / √head_dim); `qk_norm` is an RMS norm whatever `norm` is. `family` names a file of
    model/families/ where the fields below do not suffice; `options` is for that file alone.
    """

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    context_length: int
    n_kv_head: int = 0  # 0: as many as n_head
    head_dim: int = 0  # 0: n_embd // n_head
    family: str = "decoder"
    norm: Norm = "layernorm"
    norm_eps: float | None = 1e-5
    embed_norm: bool = False
    final_norm: bool = True
    position: Position = "learned"
    rope_theta: float = 10000.0
    rope_layout: RopeLayout = "half"
    rope_sign: Literal[1, -1] = 1
    rope_scaling: RopeScaling | None = None
    qk_norm: QKNorm = "none"
    qk_scale: float = 1.0
    activation: Activation = "gelu"
    gated: bool = False
    attention_output: bool = True  # False: heads are added to the stream without an output matrix
    window: tuple[int, ...] = ()
    logit_softcap: float | None = None
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "n_layer", "n_head", "n_embd", "context_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
                raise CheckpointError(
                    "the model's settings cannot be used",
                    f"{name} is {value!r}, not a positive number",
                )
        if not self.n_kv_head:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if not self.head_dim:
            if self.n_embd % self.n_head:
                raise CheckpointError(
                    "the model's settings cannot be used",
                    f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}",
                    "Give the right one with --config n_head=N",
                )
            object.__setattr__(self, "head_dim", self.n_embd // self.n_head)
        if self.n_kv_head < 1 or self.n_head % self.n_kv_head:
            raise CheckpointError(
                "the model's settings cannot be used",
                f"n_head {self.n_head} is not a multiple of n_kv_head {self.n_kv_head}",
            )
        if self.position == "rope" and self.head_dim % 2:
            raise CheckpointError(
                "the model's settings cannot be used",
                f"rotary positions need an even head_dim, not {self.head_dim}",
            )
        if self.window and len(self.window) != self.n_layer:
            raise CheckpointError(
                "the model's settings cannot be used",
                f"{len(self.window)} attention windows for {self.n_layer} layers",
            )

    def as_dict(self) -> dict[str, object]:
        """Field names and values, for `inspect --json`."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
