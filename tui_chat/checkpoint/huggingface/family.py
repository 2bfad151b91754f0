"""What a family of Hugging Face models is, as data, and the ModelSpec fields that follow for a
config.

A family is a table of tensor names, the ModelSpec fields that never vary in it, the defaults of its
config class and a few choices between rules that several families share. What a rule cannot say is
a short function, `more`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.names import Table
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.rope import Rope, rope, rope_table
from tui_chat.errors import CheckpointError

Spec = dict[str, object]
More = Callable[[Settings, Spec], None]


@dataclass(frozen=True, slots=True)
class Never:
    """A setting that the family has and the decoder has not. `fine` are the values under which it
    changes nothing; with another one the model is refused because it `does` this."""

    key: str
    does: str
    fine: tuple[object, ...] = (None, False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How models of one `model_type` are read.

    `window` says which layers see only `sliding_window` positions: "all", those that `layer_types`
    says ("types"; where it is absent every `pattern`-th sees all), those from `max_window_layers`
    on if `use_sliding_window` ("qwen"). `part` is how much of a head rotary positions turn where
    config.json does not say it, None where the family turns all of it whatever is said.
    `fused` is the matrix that holds q, k and v, grouped by key head ("heads"), in four pieces
    ("pieces"), or one over the other (""). To the tensors that match `ones` 1 is added.
    """

    names: Table
    spec: Mapping[str, object] = field(default_factory=dict)
    defaults: Mapping[str, object] = field(default_factory=dict)
    window: Literal["none", "all", "types", "qwen"] = "none"
    pattern: int = 0
    part: float | None = None
    fused: str = ""
    grouped: Literal["", "heads", "pieces"] = ""
    ones: tuple[str, ...] = ()
    flat: tuple[str, ...] = ()  # experts stacked in a third dimension
    renamed: Mapping[str, str] = field(default_factory=dict)  # parts of names, of some models
    position_offset: int = 0  # rows before that of the first position
    shares_keys: bool = True  # whether several queries may look at one key
    ignored: tuple[str, ...] = ()
    never: tuple[Never, ...] = ()
    more: More | None = None


# Settings that several families have.
ALWAYS_NEVER = (
    Never("is_encoder_decoder", "is an encoder and a decoder"),
    Never("add_cross_attention", "looks at a second text by cross-attention"),
    Never("alibi", "has ALiBi positions"),
    Never("use_bidirectional_attention", "sees what comes after a token"),
    Never("clip_qkv", "clips queries, keys and values", (None, False, 0)),
    Never("qk_layernorm", "norms queries and keys by LayerNorm"),
    Never("attention_sink", "has attention sinks"),
)

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "relu_squared": "relu2",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(slots=True)
class Read:
    """The ModelSpec fields of a config, and what was concluded on the way."""

    spec: Spec
    inferred: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_family(
    family: Family,
    settings: Settings,
    shown: Mapping[str, object],
    overrides: Mapping[str, object],
) -> Read:
    """The spec that `settings` give. `shown` are the sizes that the tensors show, for what
    config.json does not say; `overrides` are the user's, which go first. Raises CheckpointError
    for what the decoder cannot do."""
    for never in (*ALWAYS_NEVER, *family.never):
        value = settings.get(never.key)
        if not any(value is fine or value == fine for fine in never.fine):
            raise CheckpointError(
                f"the model {never.does}, which tui-chat cannot do",
                f"config.json says {never.key} is {str(value)[:40]}",
            )
    read = Read(dict(family.spec))
    spec = read.spec
    _sizes(settings, read, shown, overrides)
    if not family.shares_keys:
        spec["n_kv_head"] = spec["n_head"]
    if "activation" not in spec:
        spec["activation"] = _activation(settings)
    if "norm_eps" not in spec:
        spec["norm_eps"] = settings.number("norm_eps")
    _windows(family, settings, spec)
    if spec.get("position", "rope") == "rope":
        spec["position"] = "rope"
        _rotary(family, settings, read)
    if family.more is not None:
        family.more(settings, spec)
    return read


MAX_LAYERS = 10_000

_SIZES = {
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "head_dim": "head_dim",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def _sizes(
    settings: Settings, read: Read, shown: Mapping[str, object], overrides: Mapping[str, object]
) -> None:
    spec = read.spec
    for ours, word in _SIZES.items():
        given = overrides.get(ours)
        if isinstance(given, int) and not isinstance(given, bool):
            spec[ours] = given
        elif value := settings.said_whole(word):
            spec[ours] = value
        elif value == 0 and ours not in ("n_kv_head", "head_dim"):
            raise CheckpointError(f"config.json says {word} is 0")
        elif ours in shown:
            spec[ours] = shown[ours]
            read.inferred.append(f"{ours} {shown[ours]}: from the tensors")
    queries, keys = whole(shown, "q"), whole(shown, "k")
    if not spec.get("n_head") and queries and spec.get("head_dim"):
        spec["n_head"] = queries // whole(spec, "head_dim")
        read.inferred.append(f"n_head {spec['n_head']}: {spec['head_dim']} numbers a head")
    if not spec.get("n_head") and settings.said:
        spec["n_head"] = settings.whole("num_attention_heads")
    for ours in ("n_embd", "n_layer", "n_head"):
        if not spec.get(ours):
            raise CheckpointError(
                f"nothing says {ours} ({_SIZES[ours]} in config.json)",
                "",
                f"Give it with --config {ours}=N",
            )
    if whole(spec, "n_layer") > MAX_LAYERS:
        raise CheckpointError(f"config.json says num_hidden_layers is {spec['n_layer']}")
    heads, default = whole(spec, "n_head"), settings.get("head_dim")
    if not spec.get("head_dim"):
        # The tensors know better than a default: a class's own may be for its usual size only.
        plain = queries // heads if queries else whole(spec, "n_embd") // heads
        spec["head_dim"] = default if isinstance(default, int) and not queries else plain
    if not spec.get("n_kv_head"):
        spec["n_kv_head"] = max(keys // max(whole(spec, "head_dim"), 1), 1) if keys else heads
        if keys and spec["n_kv_head"] != heads:
            read.inferred.append(f"n_kv_head {spec['n_kv_head']}: from the tensors")
    if not spec.get("context_length"):
        spec["context_length"] = settings.whole("max_position_embeddings") or 0


def whole(spec: Mapping[str, object], name: str) -> int:
    """A count that is already in the spec, 0 where it is not."""
    value = spec.get(name)
    return value if isinstance(value, int) else 0


def _activation(settings: Settings) -> str:
    said = settings.get("hidden_activation")
    found = ACTIVATIONS.get(str(said))
    if found is None:
        raise CheckpointError(
            f"the model's activation is {str(said)[:40]}, which tui-chat cannot do",
            "",
            f"There are {', '.join(sorted(set(ACTIVATIONS.values())))}",
        )
    return found


# ---- which layers see how far, and by which frequencies


def _windows(family: Family, settings: Settings, spec: Spec) -> None:
    layers = whole(spec, "n_layer")
    size = settings.whole("sliding_window") if family.window != "none" else None
    if family.window == "all" and size:
        spec["window"] = (size,) * layers
    if family.window == "qwen":
        on = settings.flag("use_sliding_window")
        first = settings.whole("max_window_layers")
        types = settings.texts("layer_types", layers)
        if on and size:
            sliding = [name == "sliding_attention" for name in types] or [
                i >= (layers if first is None else first) for i in range(layers)
            ]
            spec["window"] = tuple(size if slides else 0 for slides in sliding)
    if family.window == "types":
        types = layer_types(family, settings, layers)
        if size and "sliding_attention" in types:
            spec["window"] = tuple(size if name == "sliding_attention" else 0 for name in types)


def layer_types(family: Family, settings: Settings, layers: int) -> tuple[str, ...]:
    """What each layer is: "full_attention" or "sliding_attention". Raises CheckpointError for
    others."""
    said = settings.texts("layer_types", layers)
    pattern = settings.get("sliding_window_pattern") or settings.get("_sliding_window_pattern")
    if not said:
        every = pattern if isinstance(pattern, int) and pattern > 0 else family.pattern
        said = tuple(
            "full_attention" if not every or (i + 1) % every == 0 else "sliding_attention"
            for i in range(layers)
        )
    for name in said:
        if name not in ("full_attention", "sliding_attention"):
            raise CheckpointError(
                f"the model has layers of {name[:40]}, which tui-chat cannot do",
                "config.json says so in layer_types",
            )
    return said


def _rotary(family: Family, settings: Settings, read: Read) -> None:
    spec = read.spec
    theta = settings.defaults.get("rope_theta", 10000.0)
    head_dim, context = whole(spec, "head_dim"), whole(spec, "context_length")

    def made(table: Mapping[str, object]) -> Rope:
        return rope(
            table,
            theta=theta if isinstance(theta, float) else 10000.0,
            part=family.part or 1.0,
            head_dim=head_dim,
            context_length=context or 2048,
        )

    main = made(rope_table(settings.said, "full_attention"))
    if not main.said:
        settings.taken["rope_theta"] = main.theta
    spec.update(rope_theta=main.theta, rope_scaling=main.scaling)
    if main.context_length:
        spec["context_length"] = main.context_length
    read.inferred += main.remarks
    if family.part is not None or main.scaling is not None:
        spec["rotary_dim"] = int(head_dim * main.part)
    if not main.theta > 0 or not math.isfinite(main.theta):
        raise CheckpointError(f"config.json says rope_theta is {main.theta:g}, which cannot be")
    if spec.get("layer_rope") == "types":
        _local(family, settings, spec, made, main)


def _local(
    family: Family,
    settings: Settings,
    spec: Spec,
    made: Callable[[Mapping[str, object]], Rope],
    main: Rope,
) -> None:
    """Layers with a window turn by frequencies of their own, unscaled."""
    layers = whole(spec, "n_layer")
    types = layer_types(family, settings, layers)
    table = mapping(mapping(settings.said.get("rope_parameters")).get("sliding_attention"))
    if table.get("rope_theta") is None:
        own = settings.number("rope_local_base_freq")  # the older dialect
        table = {**table, "rope_theta": own or main.theta}
    local = made(table)
    if local.scaling is not None:
        raise CheckpointError(
            "the model scales the rotary positions of its sliding layers, which tui-chat cannot do"
        )
    spec["layer_rope"] = tuple("local" if name == "sliding_attention" else "main" for name in types)
    spec["rope_local_theta"] = local.theta


def turned_where_sliding(family_pattern: int) -> More:
    """Layers that see everything have no positions at all (Cohere 2, EXAONE 4)."""

    def more(settings: Settings, spec: Spec) -> None:
        window = spec.get("window")
        if isinstance(window, tuple) and any(window):
            spec["layer_rope"] = tuple("main" if size else "none" for size in window)
        elif family_pattern and settings.get("sliding_window"):
            spec["layer_rope"] = ("none",) * whole(spec, "n_layer")

    return more
