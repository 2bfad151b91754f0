"""The other forms a model could have that its tensors would fit as well: what only the trainer's
code knows, and what was guessed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.model.spec import ModelSpec

Form = Mapping[str, object]
"""Fields of ModelSpec and their other values."""

_HEAD_SIZES = (64, 128, 32, 48, 96, 16, 80)
_THETAS = (10_000.0, 500_000.0, 1_000_000.0, 100_000.0)
_GATED = ("silu", "gelu_tanh", "relu")
_PLAIN = ("gelu_tanh", "relu", "relu2", "silu")


def forms(info: CheckpointInfo) -> Iterator[Form]:
    """The likeliest mistakes first."""
    spec = info.spec
    if spec.family != "decoder":
        return
    if spec.position == "rope":
        yield from _rotary(spec)
    if any("n_head" in note or "number of heads" in note for note in _guesses(info)):
        yield from _heads(spec)
    yield from _activations(spec)
    if spec.position == "rope" and spec.rope_scaling is None and not spec.layer_rope:
        yield from ({"rope_theta": theta} for theta in _THETAS if theta != spec.rope_theta)


def _guesses(info: CheckpointInfo) -> Iterator[str]:
    """What the file did not say."""
    yield from info.inferred
    yield from info.defaults
    yield from info.warnings


def _rotary(spec: ModelSpec) -> Iterator[Form]:
    layout = "half" if spec.rope_layout == "interleaved" else "interleaved"
    yield {"rope_layout": layout}
    yield {"rope_sign": -spec.rope_sign}
    yield {"rope_layout": layout, "rope_sign": -spec.rope_sign}


def _heads(spec: ModelSpec) -> Iterator[Form]:
    if spec.n_kv_head != spec.n_head or spec.n_head * spec.head_dim != spec.n_embd:
        return
    if spec.qk_norm != "none":  # its weights show the size of a head
        return
    for size in _HEAD_SIZES:
        if size != spec.head_dim and spec.n_embd % size == 0 and size <= spec.n_embd:
            heads = spec.n_embd // size
            yield {"n_head": heads, "n_kv_head": heads, "head_dim": size, "rotary_dim": size}


def _activations(spec: ModelSpec) -> Iterator[Form]:
    alike = {"gelu", "gelu_tanh"}  # too close to each other to be told by some hundred tokens
    for other in _GATED if spec.gated else _PLAIN:
        if other != spec.activation and not {other, spec.activation} <= alike:
            yield {"activation": other}
