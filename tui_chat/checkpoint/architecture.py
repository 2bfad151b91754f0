"""What a model is made of, in words: a few short lines for `inspect` and the app's card."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.checkpoint.words import listed
from tui_chat.model.spec import Experts, ModelSpec, RopeScaling

_ACTIVATIONS = {
    "gelu": "GELU",
    "gelu_tanh": "GELU (tanh form)",
    "relu": "ReLU",
    "relu2": "ReLU²",
    "silu": "SiLU",
}
_GATED = {"silu": "SwiGLU", "gelu": "GeGLU", "gelu_tanh": "GeGLU (tanh form)", "relu": "ReGLU"}


def shape_in_words(spec: ModelSpec) -> str:
    """ "4 layers · 4 heads · 128 wide"; grouped key and value heads are said."""
    heads = f"{spec.n_head} heads"
    if spec.n_kv_head != spec.n_head:
        heads += f" ({spec.n_kv_head} for keys and values)"
    layers = "1 layer" if spec.n_layer == 1 else f"{spec.n_layer} layers"
    return f"{layers} · {heads} · {spec.n_embd} wide"


def architecture(info: CheckpointInfo) -> list[tuple[str, str]]:
    """Label and words, one row for each part of the model."""
    spec, there = info.spec, _Tensors(info)
    rows = [
        ("positions", _joined(_positions(spec))),
        ("attention", _joined(_attention(spec, there))),
        ("MLP", _joined(_mlp(spec, there))),
        ("norms", _joined(_norms(spec, there))),
        ("head", _joined(_head(spec, there))),
    ]
    if spec.family != "decoder":
        rows.insert(0, ("family", _family(spec)))
    return [row for row in rows if row[1]]


class _Tensors:
    """Which canonical tensors there are; the spec says nothing of what the tensors say."""

    def __init__(self, info: CheckpointInfo) -> None:
        self.recipes = info.plan.recipes if info.plan is not None else {}

    def __contains__(self, name: str) -> bool:
        return name in self.recipes or any(
            key.startswith("blocks.") and key.endswith(f".{name}") for key in self.recipes
        )

    def columns(self, name: str) -> int:
        """The second size of a matrix of the first layer that has one, 0 if none has."""
        for key, recipe in self.recipes.items():
            if key.startswith("blocks.") and key.endswith(f".{name}.weight"):
                return recipe.shape[1] if len(recipe.shape) == 2 else 0
        return 0


def _family(spec: ModelSpec) -> str:
    settings = [f"{name} {value}" for name, value in spec.options.items() if _is_plain(value)]
    return _joined([f"{spec.family}, with layers of its own", *settings[:6]])


def _is_plain(value: object) -> bool:
    return isinstance(value, (int, float, str)) and len(str(value)) <= 24


def _positions(spec: ModelSpec) -> Iterable[str]:
    if spec.position == "learned":
        yield f"learned, {spec.context_length:,} of them"
        return
    if spec.position == "none":
        yield "none"
        return
    layout = {
        "half": "halves turned together",
        "interleaved": "neighbours turned together",
        "mismatched": "halves turned by the angles of neighbours",
    }
    yield f"rotary, base {spec.rope_theta:,.6g}"
    yield layout[spec.rope_layout] + ("" if spec.rope_sign == 1 else ", backwards")
    if spec.rotary_dim != spec.head_dim:
        yield f"{spec.rotary_dim} of {spec.head_dim} numbers of a head"
    if spec.rope_scaling is not None:
        yield _scaling(spec.rope_scaling)
    for kind, words in (
        ("local", f"base {spec.rope_local_theta:,.6g}"),
        ("none", "no positions"),
    ):
        layers = [i for i, choice in enumerate(spec.layer_rope) if choice == kind]
        if layers:
            yield f"{words} in {_layers(layers, spec.n_layer)}"


def _scaling(scaling: RopeScaling) -> str:
    if scaling.kind == "longrope":
        return f"LongRoPE beyond {scaling.original_context_length:,} tokens"
    how = {"linear": "evenly", "llama3": "as in Llama 3.1", "yarn": "by YaRN"}[scaling.kind]
    return f"stretched {scaling.factor:g} times {how}"


def _layers(which: list[int], total: int) -> str:
    """ "all layers", "layer 3", "every 4th layer", "12 layers"."""
    if len(which) == total:
        return "all layers"
    if len(which) == 1:
        return f"layer {which[0] + 1}"
    steps = {after - before for before, after in pairwise(which)}
    if len(steps) == 1 and (step := steps.pop()) > 1 and which[0] < step:
        return "every other layer" if step == 2 else f"every {step}th layer"
    return f"{len(which)} of {total} layers"


def _attention(spec: ModelSpec, there: _Tensors) -> Iterable[str]:
    heads = f"{spec.n_head} heads of {spec.head_dim}"
    if spec.n_kv_head == 1 < spec.n_head:
        heads += ", one for keys and values"
    elif spec.n_kv_head != spec.n_head:
        heads += f", {spec.n_kv_head} for keys and values"
    yield heads
    if spec.qk_norm != "none":
        yield f"queries and keys normed {spec.qk_norm.replace('_rope', '')} they are turned"
    if spec.qk_scale != 1.0:
        yield f"times {spec.qk_scale:g} each"
    usual = spec.head_dim**-0.5
    if spec.attention_scale is not None and abs(spec.attention_scale / usual - 1) > 1e-6:
        yield f"scores times {spec.attention_scale:.4g}"
    if spec.attention_softcap is not None:
        yield f"scores capped at {spec.attention_softcap:g}"
    windows = sorted({size for size in spec.window if size})
    if windows:
        in_window = [i for i, size in enumerate(spec.window) if size]
        words = listed([f"{size:,}" for size in windows])
        yield f"a window of {words} in {_layers(in_window, spec.n_layer)}"
    if not spec.attention_output:
        yield "no output matrix"
    if "attn.qkv.bias" in there:
        yield (
            "biases"
            if "attn.out.bias" in there or not spec.attention_output
            else ("biases on queries, keys and values")
        )


def _mlp(spec: ModelSpec, there: _Tensors) -> Iterable[str]:
    if spec.gated:
        kind = _GATED.get(spec.activation, f"gated {_ACTIVATIONS[spec.activation]}")
    else:
        kind = _ACTIVATIONS[spec.activation]
    width = there.columns("mlp.down")
    if spec.experts is None:
        yield f"{kind}, {width:,} wide" if width else kind
        if "mlp.down.bias" in there:
            yield "biases"
        return
    yield _experts(spec.experts)
    inner = there.columns("mlp.experts.down")
    yield f"{kind}, {inner:,} wide each" if inner else kind
    shared = there.columns("mlp.shared.down")
    if shared:
        gate = ", gated" if "mlp.shared_gate.weight" in there else ""
        yield f"one for all, {shared:,} wide{gate}"
    if width:
        yield f"some layers have none, and are {width:,} wide"


def _experts(experts: Experts) -> str:
    found = f"{experts.used} of {experts.count} experts by {experts.router}"
    if experts.capacity_factor > 0:
        found += f", capacity {experts.capacity_factor:g}"
    return found


def _norms(spec: ModelSpec, there: _Tensors) -> Iterable[str]:
    kind = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[spec.norm]
    eps = "torch's own eps" if spec.norm_eps is None else f"eps {spec.norm_eps:g}"
    yield f"{kind}, {eps}"
    after = "attn_post_norm.weight" in there or "mlp_post_norm.weight" in there
    if after:
        yield "before and after each branch" if spec.pre_norm else "after each branch"
    if spec.residual == "parallel":
        shared = " behind one norm" if spec.shared_norm else ""
        yield f"attention and MLP side by side{shared}"
    if spec.embed_norm:
        yield "one after the embedding"
    if not spec.final_norm:
        yield "none at the end"
    if there.recipes and spec.pre_norm and "attn_norm.weight" not in there:
        yield "without weights"
    elif "attn_norm.bias" in there:
        yield "biases"


def _head(spec: ModelSpec, there: _Tensors) -> Iterable[str]:
    if there.recipes:
        own = "head.weight" in there.recipes
        yield "a matrix of its own" if own else "tied to the embedding"
    if "head.bias" in there.recipes:
        yield "bias"
    if spec.embed_scale != 1.0:
        yield f"embedding times {spec.embed_scale:.4g}"
    if spec.residual_scale != 1.0:
        yield f"each branch times {spec.residual_scale:.4g}"
    if spec.logit_scale != 1.0:
        yield f"logits times {spec.logit_scale:.4g}"
    if spec.logit_softcap is not None:
        yield f"logits capped at {spec.logit_softcap:g}"


def _joined(parts: Iterable[str]) -> str:
    return " · ".join(parts)
