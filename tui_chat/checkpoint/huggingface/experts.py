"""Mixtures of experts: a router chooses a few MLPs for each token."""

from __future__ import annotations

from tui_chat.checkpoint.huggingface.family import Family, More, Spec
from tui_chat.checkpoint.huggingface.kin import granite
from tui_chat.checkpoint.huggingface.llama import (
    ATTENTION,
    BASE,
    ENDS,
    NORMED_HEADS,
    POST_NORMS,
    PRE_NORMS,
    RMS,
)
from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.names import Table, cat, optional, partial
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import Experts

_MLP = "layers.{i}.mlp"
_BLOCK = "layers.{i}.block_sparse_moe"

_FRAME: Table = {**ENDS, **PRE_NORMS, **ATTENTION}
_MIXTRAL: Table = {
    **_FRAME,
    "blocks.{i}.mlp.router": f"{_BLOCK}.gate",
    "blocks.{i}.mlp.experts.gate_up": cat(
        f"{_BLOCK}.experts.{{e}}.w1", f"{_BLOCK}.experts.{{e}}.w3"
    ),
    "blocks.{i}.mlp.experts.down": f"{_BLOCK}.experts.{{e}}.w2",
}
_QWEN: Table = {
    "blocks.{i}.mlp.router": partial(f"{_MLP}.gate"),
    "blocks.{i}.mlp.experts.gate_up": partial(
        cat(f"{_MLP}.experts.{{e}}.gate_proj", f"{_MLP}.experts.{{e}}.up_proj")
    ),
    "blocks.{i}.mlp.experts.down": partial(f"{_MLP}.experts.{{e}}.down_proj"),
    # The layers that have no experts.
    "blocks.{i}.mlp.gate_up": partial(cat(f"{_MLP}.gate_proj", f"{_MLP}.up_proj")),
    "blocks.{i}.mlp.down": partial(f"{_MLP}.down_proj"),
}
_SHARED: Table = {
    "blocks.{i}.mlp.shared.gate_up": partial(
        cat(f"{_MLP}.shared_expert.gate_proj", f"{_MLP}.shared_expert.up_proj")
    ),
    "blocks.{i}.mlp.shared.down": partial(f"{_MLP}.shared_expert.down_proj"),
    "blocks.{i}.mlp.shared_gate": partial(f"{_MLP}.shared_expert_gate"),
}
_GRANITE: Table = {
    **_FRAME,
    "blocks.{i}.mlp.router": f"{_BLOCK}.router.layer",
    "blocks.{i}.mlp.experts.gate_up": f"{_BLOCK}.input_linear",
    "blocks.{i}.mlp.experts.down": f"{_BLOCK}.output_linear",
    "blocks.{i}.mlp.shared.gate_up": optional("layers.{i}.shared_mlp.input_linear"),
    "blocks.{i}.mlp.shared.down": optional("layers.{i}.shared_mlp.output_linear"),
}


def _experts(*, renormalised: bool | None, then: More | None = None) -> More:
    """`renormalised` None: as `norm_topk_prob` says."""

    def more(settings: Settings, spec: Spec) -> None:
        count, used = settings.whole("num_experts"), settings.whole("num_experts_per_tok")
        if not count or not used:
            raise CheckpointError("config.json does not say how many experts there are and act")
        again = settings.flag("norm_topk_prob") if renormalised is None else renormalised
        spec["experts"] = Experts(count=count, used=used, renormalised=again)
        if then is not None:
            then(settings, spec)

    return more


_QWEN_DEFAULTS: Spec = {
    **BASE, "max_position_embeddings": 32768, "sliding_window": 4096, "max_window_layers": 28,
    "norm_topk_prob": False,
}  # fmt: skip


def _every_layer(settings: Settings, spec: Spec) -> None:
    """Qwen 3's mixtures have their window, if any, on every layer."""
    size = settings.whole("sliding_window") if settings.flag("use_sliding_window") else None
    layers = spec["n_layer"]
    if size and isinstance(layers, int):
        spec["window"] = (size,) * layers


FAMILIES: dict[str, Family] = {
    "mixtral": Family(
        names=_MIXTRAL,
        spec=RMS,
        defaults={
            **BASE,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1000000.0,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "max_position_embeddings": 131072,
        },
        window="all",
        more=_experts(renormalised=True),
    ),
    "qwen2_moe": Family(
        names={**_FRAME, **_QWEN, **_SHARED},
        spec=RMS,
        defaults={**_QWEN_DEFAULTS, "num_experts": 60, "num_experts_per_tok": 4},
        window="qwen",
        more=_experts(renormalised=None),
    ),
    "qwen3_moe": Family(
        names={**_FRAME, **NORMED_HEADS, **_QWEN},
        spec={**RMS, "qk_norm": "before_rope"},
        defaults={
            **_QWEN_DEFAULTS,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "num_key_value_heads": 4,
        },
        more=_experts(renormalised=None, then=_every_layer),
    ),
    "olmoe": Family(
        names={**_FRAME, **NORMED_HEADS, **_QWEN},
        spec={**RMS, "qk_norm": "before_rope"},
        defaults={
            **BASE,
            "rms_norm_eps": 1e-5,
            "num_experts": 64,
            "num_experts_per_tok": 8,
            "norm_topk_prob": False,
            "max_position_embeddings": 4096,
        },
        more=_experts(renormalised=None),
    ),
    "flex_olmo": Family(
        names={**ENDS, **POST_NORMS, **ATTENTION, **NORMED_HEADS, **_QWEN},
        spec={**RMS, "qk_norm": "before_rope", "pre_norm": False},
        defaults={
            **BASE,
            "rope_theta": 500000.0,
            "num_experts": 7,
            "num_experts_per_tok": 5,
            "norm_topk_prob": False,
            "max_position_embeddings": 4096,
        },
        more=_experts(renormalised=None),
    ),
    "granitemoe": Family(
        names=_GRANITE,
        spec=RMS,
        defaults={**BASE, "num_local_experts": 8, "num_experts_per_tok": 2},
        flat=("block_sparse_moe.input_linear", "block_sparse_moe.output_linear"),
        more=_experts(renormalised=True, then=granite),
    ),
}
FAMILIES["granitemoeshared"] = FAMILIES["granitemoe"]
