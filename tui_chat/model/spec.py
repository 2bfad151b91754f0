"""What a decoder is made of, in numbers and names. Knows no tensor, no file, no torch.

The tensors say what is there, the spec says how it is used: a bias exists if the file has one,
the head is tied if the file has none, a norm is weightless if it has no weight, a branch is normed
on its way out if there is a tensor for it, a layer is a mixture of experts if it has a router. So
none of these is a field.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from tui_chat.errors import CheckpointError

Norm = Literal["layernorm", "rmsnorm"]
Position = Literal["learned", "rope", "none"]
RopeLayout = Literal["half", "interleaved", "mismatched"]
LayerRope = Literal["main", "local", "none"]
QKNorm = Literal["none", "before_rope", "after_rope"]
Activation = Literal["gelu", "gelu_tanh", "relu", "relu2", "silu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary frequencies are stretched beyond the trained length.

    `linear` divides all by `factor`; `llama3` blends by wavelength between `low_freq_factor` and
    `high_freq_factor`; `yarn` blends by a ramp between `beta_fast` and `beta_slow` turns, whose
    ends are rounded to whole pairs if `truncate`; `longrope` divides pair i by `short_factors[i]`
    while the context length is at most `original_context_length`, else by `long_factors[i]`.
    `attention_factor` multiplies cos and sin.
    """

    kind: Literal["linear", "llama3", "yarn", "longrope"]
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_length: int = 8192
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Experts:
    """A mixture of experts in place of the MLP, in the layers that have a router.

    The router's scores are a softmax over all experts or each a sigmoid; the `used` best experts
    get them as weights, made to sum to 1 if `renormalised`. `capacity_factor` > 0: in one call an
    expert takes at most ceil(tokens * used / count * factor) tokens for each rank of choice.
    """

    count: int
    used: int
    router: Literal["softmax", "sigmoid"] = "softmax"
    renormalised: bool = True
    capacity_factor: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder-only transformer. Sizes are counts; `context_length` is in tokens.

    `norm_eps` None means torch's own default for the dtype. `window[i]` is how many positions
    layer i sees (0: all); an empty tuple means all layers see all. `vocab_size` is the number of
    rows of the embedding. `family` names a file of model/families/ where the fields below do not
    suffice; `options` is for that file alone.

    Rotary positions turn the first `rotary_dim` numbers of a head: j with its neighbour
    (interleaved), or with j + rotary_dim / 2 (half); "mismatched" turns halves by the angles of
    neighbours, as a trainer did by mistake for some weeks. `layer_rope[i]` says by which
    frequencies layer i does: those of `rope_theta` and `rope_scaling`, those of `rope_local_theta`
    without scaling, or not at all (an empty tuple: all main). Attention scores are q·k *
    `attention_scale` (None: 1/√head_dim) * qk_scale², softcapped by `attention_softcap`; `qk_norm`
    is an RMS norm whatever `norm` is. With `residual` parallel, attention and MLP see the same x,
    through one norm if `shared_norm`. Without `pre_norm` a branch sees x itself. `residual_scale`
    multiplies what a branch adds, `embed_scale` the embedding (not the positions), `logit_scale`
    the logits before their softcap.
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
    rope_local_theta: float = 10000.0
    layer_rope: tuple[LayerRope, ...] = ()
    rotary_dim: int = 0  # 0: head_dim
    qk_norm: QKNorm = "none"
    qk_norm_eps: float | None = None  # None: norm_eps
    qk_scale: float = 1.0
    attention_scale: float | None = None
    attention_softcap: float | None = None
    activation: Activation = "gelu"
    gated: bool = False
    experts: Experts | None = None
    attention_output: bool = True  # False: heads are added to the stream without an output matrix
    residual: Literal["serial", "parallel"] = "serial"
    pre_norm: bool = True
    shared_norm: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
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
        if not self.rotary_dim:
            object.__setattr__(self, "rotary_dim", self.head_dim)
        if self.position == "rope" and (self.rotary_dim % 2 or self.rotary_dim > self.head_dim):
            raise CheckpointError(
                "the model's settings cannot be used",
                f"rotary positions need an even number of each head's {self.head_dim} numbers, not "
                f"{self.rotary_dim}",
            )
        for name, what in (("window", "attention windows"), ("layer_rope", "rotary choices")):
            each = getattr(self, name)
            if each and len(each) != self.n_layer:
                raise CheckpointError(
                    "the model's settings cannot be used",
                    f"{len(each)} {what} for {self.n_layer} layers",
                )
        if self.experts is not None and not 0 < self.experts.used <= self.experts.count:
            raise CheckpointError(
                "the model's settings cannot be used",
                f"{self.experts.used} of {self.experts.count} experts cannot be used",
            )

    def as_dict(self) -> dict[str, object]:
        """Field names and values, for `inspect --json`."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        for name in ("rope_scaling", "experts"):
            if found[name] is not None:
                found[name] = asdict(found[name])
        return found
