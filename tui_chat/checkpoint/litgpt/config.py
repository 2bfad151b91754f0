"""litgpt's model_config.yaml as fields of a ModelSpec, with the names and defaults of every age.

Its code names what a key leaves out by a dataclass; those values are filled in here and said so.
What the spec cannot say is refused by the key's name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from tui_chat.checkpoint.plain import mapping
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import Experts, RopeScaling

# lit-gpt kept its settings in lit_config.json under these names.
_RENAMED = {
    "_norm_class": "norm_class_name",
    "_mlp_class": "mlp_class_name",
    "condense_ratio": "rope_condense_ratio",
}
# Keys that change the arithmetic, and what the code takes where a file has none. None: what it
# stands for follows from others.
_DEFAULTS: dict[str, object] = {
    "block_size": 4096,
    "n_layer": 16,
    "n_head": 32,
    "n_embd": 4096,
    "norm_class_name": "LayerNorm",
    "norm_eps": 1e-5,
    "parallel_residual": True,
    "bias": True,
    "rotary_percentage": 0.25,
    "mlp_class_name": "GptNeoxMLP",
}
# The same, for keys that came later and were off before.
_QUIET: dict[str, object] = {
    "name": "",
    "head_size": None,
    "n_query_groups": None,
    "attn_bias": False,
    "lm_head_bias": False,
    "rope_base": 10000,
    "rope_condense_ratio": 1,
    "rope_adjustments": None,
    "rope_interleave": False,
    "rope_local_base_freq": None,
    "rope_indices": None,
    "gelu_approximate": "none",
    "shared_attention_norm": False,
    "norm_1": True,
    "norm_2": True,
    "norm_qk": False,
    "scale_embeddings": False,
    "attention_scores_scalar": None,
    "attention_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_size": None,
    "sliding_window_indices": None,
    "sliding_window_layer_placing": None,
    "n_expert": 0,
    "n_expert_per_token": 0,
    "n_expert_groups": None,
    "routed_scaling_factor": 1.0,
    "latent_attention": None,
}
# Keys that say nothing which the tensors do not.
_KNOWN = frozenset(
    (
        "hf_config",
        "org",
        "vocab_size",
        "padded_vocab_size",
        "padding_multiple",
        "intermediate_size",
        "moe_intermediate_size",
        "n_shared_expert",
        "n_topk_groups",
        "n_topk_scores_per_group",
        "norm_qk_type",
        "norm_topk_prob",
        "first_k_dense_replace",
        "post_attention_norm",
        "post_mlp_norm",
        "rope_n_elem",
    )
)
_MLPS = ("GptNeoxMLP", "LLaMAMLP", "GemmaMLP", "LLaMAMoE")
_NORMS = {"LayerNorm": "layernorm", "RMSNorm": "rmsnorm", "FusedRMSNorm": "rmsnorm"}


@dataclass(slots=True)
class Settings:
    """What a config says, by litgpt's present names. `defaults` and `unused` collect sentences."""

    said: Mapping[str, object]
    defaults: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Settings:
        said = {_RENAMED.get(key, key): value for key, value in config.items()}
        made = cls(said)
        for key, value in _DEFAULTS.items():
            if key not in said:
                made.defaults.append(f"{key} {value}: the config does not say it")
        known = _KNOWN | _DEFAULTS.keys() | _QUIET.keys()
        made.unused = [f"{key[:60]} in the config" for key in said if key not in known]
        return made

    def get(self, key: str) -> object:
        value = self.said.get(key)
        if value is None and key in _DEFAULTS:
            return _DEFAULTS[key]
        return _QUIET.get(key) if value is None else value

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if not isinstance(value, bool):
            raise _wrong(key, value)
        return value

    def count(self, key: str) -> int:
        """A positive whole number."""
        value = self.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
            raise _wrong(key, value)
        return value

    def number(self, key: str) -> float:
        """A positive number, also as the text that YAML makes of 1e-05."""
        value = self.get(key)
        if isinstance(value, str) and _EXPONENT.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
            raise _wrong(key, value)
        return float(value)

    def maybe(self, key: str) -> float | None:
        return None if self.get(key) is None else self.number(key)

    def word(self, key: str) -> str:
        value = self.get(key)
        if not isinstance(value, str):
            raise _wrong(key, value)
        return value

    def marks(self, key: str, layers: int) -> tuple[bool, ...]:
        """A list of 0 and 1 for the layers; longer lists are cut, no list means all 1."""
        value = self.get(key)
        if value is None:
            return (True,) * layers
        if not isinstance(value, list) or len(value) < layers or not set(value) <= {0, 1}:
            raise _wrong(key, value)
        return tuple(bool(mark) for mark in value[:layers])

    @property
    def name(self) -> str:
        """The model's name, by which litgpt decides a few things."""
        name = self.get("name") or mapping(self.said.get("hf_config")).get("name")
        return name if isinstance(name, str) else ""

    @property
    def norm_is_offset(self) -> bool:
        """Whether RMS norms multiply by 1 + weight."""
        return "Gemma" in self.name and _NORMS[self.word("norm_class_name")] == "rmsnorm"

    @property
    def norm_is_bare(self) -> bool:
        """Whether LayerNorms have no tensors."""
        return "OLMo" in self.name and self.word("norm_class_name") == "LayerNorm"


_EXPONENT = re.compile(r"\d{1,9}(\.\d{0,9})?[eE][+-]?\d{1,3}")


def _wrong(key: str, value: object) -> CheckpointError:
    return CheckpointError("its config cannot be used", f"{key} is {str(value)[:40]!r}")


def _unsupported(what: str) -> CheckpointError:
    return CheckpointError("its architecture cannot be computed", what)


def spec_of(settings: Settings, rows: int) -> dict[str, object]:
    """The fields of the ModelSpec; `rows` is the number of rows of the embedding. Raises
    CheckpointError."""
    mlp, norm = settings.word("mlp_class_name"), settings.word("norm_class_name")
    if mlp not in _MLPS:
        raise _unsupported(
            f"its config asks for the MLP {mlp[:40]!r}; there are {', '.join(_MLPS)}"
        )
    if norm not in _NORMS:
        raise _unsupported(f"its config asks for the norm {norm[:40]!r}")
    if settings.get("latent_attention") is not None:
        raise _unsupported("it has latent attention (latent_attention), which is not known here")
    layers, width, heads = (settings.count(key) for key in ("n_layer", "n_embd", "n_head"))
    head_dim = width // heads if settings.get("head_size") is None else settings.count("head_size")
    before = settings.flag("norm_1"), settings.flag("norm_2")
    parallel, shared = (settings.flag(k) for k in ("parallel_residual", "shared_attention_norm"))
    if before[0] != before[1] and not (shared and before[0]):
        raise _unsupported("only one of norm_1 and norm_2 is on")
    if shared and not parallel:
        raise _unsupported("shared_attention_norm without parallel_residual")
    if settings.flag("norm_qk") and _NORMS[norm] != "rmsnorm":
        raise _unsupported("its queries and keys are normed by LayerNorm (norm_qk)")
    rotary = 0
    if settings.get("rotary_percentage") != 0:
        rotary = int(settings.number("rotary_percentage") * head_dim)
    local = settings.maybe("rope_local_base_freq")
    scaling, grown = _scaling(settings, rotary)
    if local is not None and settings.number("rope_condense_ratio") != 1:
        raise _unsupported("rope_local_base_freq together with rope_condense_ratio")
    scalar = settings.maybe("attention_scores_scalar") or float(head_dim)
    return {
        "vocab_size": rows,
        "n_layer": layers,
        "n_head": heads,
        "n_kv_head": heads
        if settings.get("n_query_groups") is None
        else settings.count("n_query_groups"),
        "head_dim": head_dim,
        "n_embd": width,
        "context_length": settings.count("block_size"),
        "norm": _NORMS[norm],
        "norm_eps": settings.number("norm_eps"),
        "position": "rope" if rotary else "none",
        "rope_theta": settings.number("rope_base"),
        "rope_layout": "interleaved" if settings.flag("rope_interleave") else "half",
        "rope_scaling": scaling,
        "rope_local_theta": local or 10000.0,
        "layer_rope": ()
        if local is None
        else tuple("local" if m else "main" for m in settings.marks("rope_indices", layers)),
        "rotary_dim": rotary,
        "qk_norm": "before_rope" if settings.flag("norm_qk") else "none",
        "attention_scale": grown**2 / math.sqrt(scalar),
        "attention_softcap": settings.maybe("attention_logit_softcapping"),
        "activation": _activation(settings, mlp),
        "gated": mlp != "GptNeoxMLP",
        "experts": _experts(settings) if mlp == "LLaMAMoE" else None,
        "residual": "parallel" if parallel else "serial",
        "pre_norm": before[0],
        "shared_norm": shared,
        "embed_scale": math.sqrt(width) if settings.flag("scale_embeddings") else 1.0,
        "window": _windows(settings, layers),
        "logit_softcap": settings.maybe("final_logit_softcapping"),
    }


def _activation(settings: Settings, mlp: str) -> str:
    if mlp in ("LLaMAMLP", "LLaMAMoE"):
        return "silu"
    kind = settings.word("gelu_approximate")
    if kind not in ("none", "tanh"):
        raise _wrong("gelu_approximate", kind)
    return "gelu_tanh" if kind == "tanh" else "gelu"


def _experts(settings: Settings) -> Experts:
    """The best logits, then a softmax of those: the same as a softmax of all, made to sum to 1."""
    if settings.get("n_expert_groups"):
        raise _unsupported("its experts are chosen by groups (n_expert_groups)")
    if settings.number("routed_scaling_factor") != 1:
        raise _unsupported("its experts are scaled (routed_scaling_factor)")
    return Experts(count=settings.count("n_expert"), used=settings.count("n_expert_per_token"))


def _windows(settings: Settings, layers: int) -> tuple[int, ...]:
    if settings.get("sliding_window_size") is None:
        return ()
    size = settings.count("sliding_window_size")
    placing = settings.get("sliding_window_layer_placing")
    if settings.get("sliding_window_indices") is None and placing is not None:
        step = {"all": 1, "interleaved": 2}.get(placing) if isinstance(placing, str) else placing
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise _wrong("sliding_window_layer_placing", placing)
        return tuple(size if n % step == 0 else 0 for n in range(layers))
    return tuple(size if m else 0 for m in settings.marks("sliding_window_indices", layers))


def _scaling(settings: Settings, rotary: int) -> tuple[RopeScaling | None, float]:
    """The rotary scaling, and what queries and keys are each multiplied by before their product."""
    condensed = settings.number("rope_condense_ratio")
    said = Settings(mapping(settings.get("rope_adjustments")))
    plain = RopeScaling(kind="linear", factor=condensed) if condensed != 1 else None
    if said.said.get("factor") is None:
        return plain, 1.0
    factor = said.number("factor")
    grown = _grown(factor, said.maybe("mscale_all_dim"))
    llama3 = said.said.keys() & {"low_freq_factor", "high_freq_factor"}
    yarn = said.said.keys() & {"beta_fast", "beta_slow"}
    if not (llama3 or yarn):
        return RopeScaling(kind="linear", factor=factor * condensed), grown
    original = said.count("original_max_seq_len")
    if llama3 and not yarn and condensed == 1:
        low, high = said.number("low_freq_factor"), said.number("high_freq_factor")
        if low == high:
            raise _wrong("rope_adjustments", "low_freq_factor and high_freq_factor are equal")
        return RopeScaling(
            kind="llama3",
            factor=factor,
            low_freq_factor=low,
            high_freq_factor=high,
            original_context_length=original,
        ), grown
    if llama3:
        raise _unsupported("rope_adjustments of two kinds")
    factors = _yarn(settings, said, rotary, factor, original)
    every = tuple(value * condensed for value in factors)
    return RopeScaling(
        kind="longrope",
        factor=factor,
        original_context_length=original,
        attention_factor=_yarn_attention(said, factor),
        short_factors=every,
        long_factors=every,
    ), grown


def _yarn(
    settings: Settings, said: Settings, rotary: int, factor: float, original: int
) -> tuple[float, ...]:
    """What the frequency of each pair is divided by. litgpt's blend runs the other way round than
    YaRN's: the fast pairs are stretched and the slow ones kept, and so its models were trained."""
    base = settings.number("rope_base")

    def pair(turns: float) -> float:
        return rotary * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(math.floor(pair(said.number("beta_fast"))), 0)
    high: float = min(math.ceil(pair(said.number("beta_slow"))), rotary // 2 - 1)
    high += 0.001 if low == high else 0.0
    ramps = (min(max((n - low) / (high - low), 0.0), 1.0) for n in range(rotary // 2))
    return tuple(1 / ((1 - ramp) / factor + ramp) for ramp in ramps)


def _yarn_attention(said: Settings, factor: float) -> float:
    """What litgpt multiplies cosines and sines by."""
    scale, over = said.maybe("mscale"), said.maybe("mscale_all_dim")
    if scale and over:
        return _grown(factor, scale) / _grown(factor, over)
    return _grown(factor, scale or over)


def _grown(factor: float, by: float | None) -> float:
    return 0.1 * by * math.log(factor) + 1.0 if by and factor > 1 else 1.0


__all__ = ["Settings", "spec_of"]
