"""GGUF: one file with settings, tokenizer and weights, as llama.cpp runs it.

What is packed (Q4_K and its like) is unpacked while it loads and computed with as floats; llama.cpp
also rounds the activations, so its text may differ.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

from tui_chat.checkpoint.archive import Archive, read_archive
from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.gguf.architectures import ARCHITECTURES, Architecture
from tui_chat.checkpoint.gguf.keys import Keys
from tui_chat.checkpoint.gguf.reader import numbers_of
from tui_chat.checkpoint.gguf.tensors import IGNORED, arranged, names_of
from tui_chat.checkpoint.gguf.text import describe_text
from tui_chat.checkpoint.gpt2 import matrix
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.names import count
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.quantised import check_readable
from tui_chat.checkpoint.rope import rope
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import Experts, RopeScaling

NAME = "GGUF"

_PIECE = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf$")


def recognise(source: Source) -> float:
    return 1.0 if not source.is_dir and source.archive.kind == "gguf" else 0.0


def describe(source: Source) -> Description:
    archives = _pieces(source)
    keys = Keys.of(mapping(mapping(archives[0].root)["keys"]))
    form = _architecture(keys)
    tensors: dict[str, object] = {}
    for archive in archives:
        tensors |= mapping(mapping(archive.root)["tensors"])
    for packed in {ref.encoding for ref in tensors.values() if isinstance(ref, TensorRef)} - {""}:
        check_readable(packed)
    embed = matrix(tensors, "token_embd.weight")
    found = Description(
        format=NAME,
        spec={},
        tensors=tensors,
        names={},
        ignored=IGNORED,
        archives=tuple(archives),
        tokenizer=TokenizerHint(kind="none", source="none in the file", vocab_size=embed.shape[0]),
        description=keys.text("general.name"),
    )
    found.spec = _spec(keys, form, tensors, embed, found.inferred)
    found.tensors = arranged(tensors)
    found.names = names_of(form, found.tensors, shared=found.spec.get("shared_norm") is True)
    if "output.weight" not in tensors:
        found.inferred.append("tied output: there is no output.weight")
    if any(isinstance(ref, TensorRef) and (ref.encoding or ref.scales) for ref in tensors.values()):
        found.warnings.append(
            "its weights are packed and computed with as the floats they stand for; llama.cpp "
            "rounds the activations too, so its text may differ"
        )
    describe_text(keys, archives[0].path, embed.shape[0], found)
    found.defaults += keys.defaults
    found.unused += keys.unread()
    return found


def _pieces(source: Source) -> list[Archive]:
    """The file, or all files of a model that was split. Raises CheckpointError."""
    first = source.archive
    said = Keys.of(mapping(mapping(first.root)["keys"]))
    several = said.whole("split.count", 1)
    if several == 1:
        return [first]
    name = _PIECE.match(os.path.basename(source.path))
    if name is None or int(name.group(3)) != several or several > 4096:
        raise CheckpointError(
            f"it is one of {several} files of a model",
            "the others are found by the name NAME-00001-of-00002.gguf, which it does not have",
        )
    found: list[Archive] = []
    for n in range(1, several + 1):
        piece = f"{name.group(1)}-{n:05d}-of-{several:05d}.gguf"
        path = source.near(piece)
        if not path:
            raise CheckpointError(
                f"it is one of {several} files of a model", f"{shown_name(piece)} is not beside it"
            )
        found.append(first if path == source.path else read_archive(path))
        if found[-1].kind != "gguf":
            raise CheckpointError(f"{shown_name(piece)} is no GGUF file")
    return found


def _architecture(keys: Keys) -> Architecture:
    if keys.text("general.type") not in ("", "model"):
        raise CheckpointError(
            f"it is no model but of the kind {keys.text('general.type')[:40]!r}",
            "",
            "Open the model it belongs to",
        )
    name = keys.architecture
    if name not in ARCHITECTURES:
        raise CheckpointError(
            f"the architecture {name[:40]!r} cannot be computed" if name else
            "the file does not say its architecture",
            "",
            f"There are {', '.join(sorted(ARCHITECTURES))}",
        )  # fmt: skip
    for key, what in (
        ("attention.clamp_kqv", "clamped queries, keys and values"),
        ("attention.max_alibi_bias", "ALiBi positions"),
        ("attention.temperature_scale", "an attention temperature"),
        ("attention.temperature_length", "an attention temperature"),
        ("rope.scaling.yarn_log_multiplier", "a YaRN log multiplier"),
        ("expert_group_used_count", "experts chosen by groups"),
        ("attention.shared_kv_layers", "layers that share keys"),
    ):
        if keys.number(key, 0.0):
            raise CheckpointError("its architecture cannot be computed", f"it has {what} ({key})")
    if keys.number("attention.causal", 1.0) == 0:
        raise CheckpointError("its attention is not causal", "it is a model that embeds texts")
    return ARCHITECTURES[name]


# ---- the spec


def _spec(
    keys: Keys,
    form: Architecture,
    tensors: Mapping[str, object],
    embed: TensorRef,
    inferred: list[str],
) -> dict[str, object]:
    keys.defaults_of(form.defaults)
    layers, width, heads = (
        keys.count(word) for word in ("block_count", "embedding_length", "attention.head_count")
    )
    kv_heads = keys.count("attention.head_count_kv", heads)
    there = count(tensors, "blk.{n}.")
    if there != layers:
        raise CheckpointError(
            "the file contradicts itself", f"it says {layers} layers and has {there}"
        )
    dim = keys.count("attention.key_length", width // heads)
    if keys.count("attention.value_length", dim) != dim:
        raise CheckpointError(
            "its architecture cannot be computed",
            "its values are of another width than its keys (attention.value_length)",
        )
    context = keys.count("context_length")
    eps = "layer_norm_rms_epsilon" if form.norm == "rmsnorm" else "layer_norm_epsilon"
    windows = _windows(keys, form, layers)
    found: dict[str, object] = {
        "vocab_size": embed.shape[0],
        "n_layer": layers,
        "n_head": heads,
        "n_kv_head": kv_heads,
        "head_dim": dim,
        "n_embd": width,
        "context_length": context,
        "norm": form.norm,
        "norm_eps": keys.number(f"attention.{eps}", 1e-5),
        "position": "rope" if form.rope else "learned",
        "activation": form.activation,
        "gated": form.gated,
        "residual": "parallel" if form.parallel else "serial",
        "pre_norm": form.pre_norm,
        "qk_norm": "before_rope" if "blk.0.attn_q_norm.weight" in tensors else "none",
        "attention_scale": _scale(keys, form, layers, width / heads, dim),
        "attention_softcap": keys.number("attn_logit_softcapping", 0.0) or None,
        "logit_softcap": keys.number("final_logit_softcapping", 0.0) or None,
        "embed_scale": keys.number("embedding_scale", 0.0)
        or (math.sqrt(width) if form.embed_scaled else 1.0),
        "residual_scale": keys.number("residual_scale", 0.0) or 1.0,
        "window": windows,
    }
    if found["qk_norm"] != "none" and form.norm != "rmsnorm":
        raise CheckpointError(
            "its architecture cannot be computed", "its queries and keys are normed by LayerNorm"
        )
    if logit := keys.number("logit_scale", 0.0):
        found["logit_scale"] = logit if form.logit_scale == "times" else 1 / logit
    if "blk.0.ffn_norm.weight" not in tensors and form.parallel:
        found["shared_norm"] = "blk.0.attn_norm_2.weight" not in tensors
    _parallel(keys, tensors, found)
    if experts := keys.whole("expert_count", 0):
        found["experts"] = _experts(keys, form, experts)
    if form.rope:
        found |= _rope(keys, form, tensors, (dim, layers, context, windows), inferred)
    inferred.append(
        f"{keys.architecture}: {form.rope + ' rotary pairs' if form.rope else 'learned positions'}"
        f", {form.norm}, {form.activation}{', gated' if form.gated else ''}, as llama.cpp computes "
        "this architecture"
    )
    return found


def _parallel(keys: Keys, tensors: Mapping[str, object], found: dict[str, object]) -> None:
    """Architectures of which some models are parallel and others are not."""
    if keys.architecture == "gptneox" and keys.number("use_parallel_residual", 1.0):
        found["residual"] = "parallel"
    if keys.architecture == "stablelm" and "blk.0.ffn_norm.weight" not in tensors:
        found["residual"], found["shared_norm"] = "parallel", True


def _scale(keys: Keys, form: Architecture, layers: int, share: float, dim: int) -> float | None:
    said = keys.number("attention.scale", 0.0)
    if said:
        return said
    # The largest of Gemma 2 and 3 divide by the root of another width, which the file leaves open.
    if (keys.architecture, layers) in (("gemma2", 46), ("gemma3", 62)):
        return 1 / math.sqrt(share)
    return None


def _windows(keys: Keys, form: Architecture, layers: int) -> tuple[int, ...]:
    size = keys.whole("attention.sliding_window", 0)
    if not size:
        return ()
    said = keys.get("attention.sliding_window_pattern")
    if isinstance(said, list) and len(said) == layers:
        return tuple(size if mark else 0 for mark in said)
    every = said if isinstance(said, int) and said > 0 else form.window_every
    return tuple(size if not every or n % every < every - 1 else 0 for n in range(layers))


def _experts(keys: Keys, form: Architecture, experts: int) -> Experts:
    if keys.number("expert_weights_scale", 1.0) not in (0.0, 1.0):
        raise CheckpointError(
            "its architecture cannot be computed", "its experts are scaled (expert_weights_scale)"
        )
    gating = keys.whole("expert_gating_func", 0)
    if gating > 2:
        raise CheckpointError(
            "its architecture cannot be computed", f"its router is of the kind {gating}"
        )
    normed = keys.get("expert_weights_norm")
    return Experts(
        count=experts,
        used=keys.count("expert_used_count"),
        router="sigmoid" if gating == 2 else "softmax",
        renormalised=normed if isinstance(normed, bool) else form.renormalised,
    )


def _rope(
    keys: Keys,
    form: Architecture,
    tensors: Mapping[str, object],
    sizes: tuple[int, int, int, tuple[int, ...]],
    inferred: list[str],
) -> dict[str, object]:
    dim, layers, context, windows = sizes
    rotary = keys.count("rope.dimension_count", dim)
    kind = keys.text("rope.scaling.type") or "none"
    linear = keys.number("rope.scale_linear", 0.0)
    table: dict[str, object] = {
        "rope_type": "linear" if kind == "none" and linear not in (0.0, 1.0) else kind,
        "factor": keys.number("rope.scaling.factor", linear or 1.0),
        "original_max_position_embeddings": keys.whole(
            "rope.scaling.original_context_length", context
        ),
    }
    attention = keys.number("rope.scaling.attn_factor", 0.0)
    if kind == "yarn":
        for word in ("beta_fast", "beta_slow"):
            table[word] = keys.number(f"rope.scaling.yarn_{word}", 0.0)
    if kind == "longrope" or "rope_factors_long.weight" in _short(tensors):
        table |= {
            "rope_type": "longrope",
            "attention_factor": attention or None,
            "short_factor": _factors(tensors, "rope_factors_short.weight"),
            "long_factor": _factors(tensors, "rope_factors_long.weight"),
        }
    made = rope(
        table,
        theta=keys.number("rope.freq_base", 10000.0),
        head_dim=rotary,
        context_length=context,
    )
    inferred += made.remarks
    scaling = made.scaling
    if freqs := _factors(tensors, "rope_freqs.weight"):
        if len(freqs) * 2 != rotary:
            raise CheckpointError(
                "the file contradicts itself",
                f"rope_freqs.weight has {len(freqs)} numbers for {rotary // 2} rotary pairs",
            )
        by = scaling.factor if scaling is not None and scaling.kind == "linear" else 1.0
        each = tuple(value * by for value in freqs)
        scaling = RopeScaling(kind="longrope", short_factors=each, long_factors=each)
    found: dict[str, object] = {
        "rope_theta": made.theta,
        "rope_layout": form.rope,
        "rope_scaling": scaling,
        "rotary_dim": rotary,
        "context_length": made.context_length or context,
    }
    local = keys.number("rope.freq_base_swa", form.local_theta)
    if local and windows:
        found["rope_local_theta"] = local
        found["layer_rope"] = tuple("local" if window else "main" for window in windows)
    elif windows and not form.global_rope:
        found["layer_rope"] = tuple("main" if window else "none" for window in windows)
    elif form.unturned:
        found["layer_rope"] = tuple(
            "main" if (n + 1) % form.unturned else "none" for n in range(layers)
        )
    return found


def _short(tensors: Mapping[str, object]) -> frozenset[str]:
    """Names of the tensors that stand before the layers, or the same in the first layer."""
    return frozenset(name.removeprefix("blk.0.") for name in tensors)


def _factors(tensors: Mapping[str, object], name: str) -> list[float]:
    ref = tensors.get(name, tensors.get(f"blk.0.{name}"))
    return list(numbers_of(ref)) if isinstance(ref, TensorRef) else []
