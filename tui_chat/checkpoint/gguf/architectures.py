"""What GGUF's architectures compute, as data, after llama.cpp, which defines them.

A file names its architecture and says sizes; the layout of the rotary pairs, the activation, which
norms stand where and which layers see only a window follow from the name alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from tui_chat.model.spec import Activation, Norm


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """`rope` is the layout of the rotary pairs, "" for learned positions.

    Of `window_every` layers the last sees all, the others the window; 0: all layers see the window,
    if there is one. Those that see the window turn by `local_theta`, if that is set. `global_rope`
    False: the layers that see all do not turn. Every `unturned`-th layer does not turn. `defaults`
    are keys, without the architecture in front, that a file may leave out. `logit_scale`
    multiplies the logits or divides them. `bare_norms`: norms have no weights.
    """

    norm: Norm = "rmsnorm"
    rope: Literal["half", "interleaved", ""] = "half"
    activation: Activation = "silu"
    gated: bool = True
    parallel: bool = False
    pre_norm: bool = True
    bare_norms: bool = False
    embed_scaled: bool = False  # by the root of its width
    window_every: int = 0
    local_theta: float = 0.0
    global_rope: bool = True
    unturned: int = 0
    renormalised: bool = True
    logit_scale: Literal["times", "over"] = "over"
    defaults: Mapping[str, float] = field(default_factory=dict)


_LLAMA = Architecture(rope="interleaved")
_QWEN = Architecture()
_GPT2 = Architecture(norm="layernorm", rope="", activation="gelu_tanh", gated=False)
_GEMMA = Architecture(activation="gelu_tanh", embed_scaled=True)
_COMMAND = Architecture(norm="layernorm", rope="interleaved", parallel=True, logit_scale="times")

ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral3": _LLAMA,
    "internlm2": _LLAMA,
    "xverse": _LLAMA,
    "ernie4_5": _LLAMA,
    "arcee": Architecture(rope="interleaved", activation="relu2", gated=False),
    "smollm3": Architecture(rope="interleaved", unturned=4),
    "granite": _LLAMA,
    "granitemoe": _LLAMA,
    "olmo": Architecture(norm="layernorm", rope="interleaved", bare_norms=True),
    "command-r": _COMMAND,
    "cohere2": Architecture(
        norm="layernorm",
        rope="interleaved",
        parallel=True,
        logit_scale="times",
        window_every=4,
        global_rope=False,
    ),
    "qwen2": _QWEN,
    "qwen3": _QWEN,
    "qwen2moe": Architecture(renormalised=False),
    "qwen3moe": _QWEN,
    "olmoe": Architecture(renormalised=False),
    "olmo2": Architecture(pre_norm=False, window_every=4),
    "exaone": _QWEN,
    "phi2": Architecture(norm="layernorm", activation="gelu_tanh", gated=False, parallel=True),
    "phi3": _QWEN,
    "gemma": _GEMMA,
    "gemma2": Architecture(
        activation="gelu_tanh",
        embed_scaled=True,
        window_every=2,
        defaults={
            "attention.sliding_window": 4096,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "gemma3": Architecture(
        activation="gelu_tanh",
        embed_scaled=True,
        window_every=6,
        local_theta=10000.0,
        defaults={"rope.freq_base": 1000000.0},
    ),
    "gpt2": _GPT2,
    "starcoder": _GPT2,
    "starcoder2": Architecture(norm="layernorm", activation="gelu_tanh", gated=False),
    "gptneox": Architecture(norm="layernorm", activation="gelu", gated=False),
    "falcon": Architecture(norm="layernorm", activation="gelu", gated=False, parallel=True),
    "stablelm": Architecture(norm="layernorm"),
    "nemotron": Architecture(norm="layernorm", activation="relu2", gated=False),
}
"""Name in `general.architecture` -> what it computes."""
