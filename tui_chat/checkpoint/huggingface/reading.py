"""From a config and tensors to what a Description needs: the one place where both are held against
each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from tui_chat.checkpoint.huggingface.family import Family, Read, Spec, read_family, whole
from tui_chat.checkpoint.huggingface.fused import prepared, tied
from tui_chat.checkpoint.huggingface.refused import check_not_quantised
from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.huggingface.table import family_of, text_part
from tui_chat.checkpoint.names import Row, Table, count, removed_words, strip
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

PREFIXES = (
    "model", "transformer", "language_model", "text_model", "module", "base_model", "gpt_neox",
    "decoder", "biogpt",
)  # fmt: skip
# What Hugging Face itself puts in front of names; anything else is worth a word.
_USUAL = frozenset(f"{name}." for name in PREFIXES if name != "module")
# Parts of a model that text does not need, and buffers that are computed.
_BESIDE = {
    "a vision tower": (
        "vision_tower.*", "vision_model.*", "visual.*", "multi_modal_projector.*", "connector.*",
        "embed_vision.*", "vision_embed_tokens.*", "mm_projector.*",
    ),
    "an audio tower": ("audio_tower.*", "embed_audio.*", "audio_*"),
    "a head for classes or values": ("score.*", "v_head.*", "value_head.*", "classifier.*"),
    "layers that predict further tokens": ("mtp.*", "mtp_*"),
    "": ("*.rotary_emb.inv_freq", "rotary_emb.inv_freq", "*.position_ids"),
}  # fmt: skip

Change = Callable[[dict[str, object], Family], dict[str, object]]


@dataclass(slots=True)
class Model:
    """What was understood of one model."""

    model_type: str
    spec: Spec
    tensors: dict[str, object]
    names: Table
    ignored: tuple[str, ...]
    inferred: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def read_model(
    config: Mapping[str, object],
    tensors: Mapping[str, object],
    overrides: Mapping[str, object],
    change: Change | None = None,
) -> Model:
    """The model that `config` and `tensors` describe. `change` is what an adapter does to the
    tensors under their own names, without prefixes. Raises CheckpointError."""
    bare, removed = strip(tensors, PREFIXES)
    said, left = text_part(config)
    model_type, family, warnings = family_of(said, bare)
    check_not_quantised(config, bare)
    if change is not None:
        bare = change(bare, family)
    settings = Settings(said, family.defaults)
    shown = _shown(family, bare)
    read = read_family(family, settings, shown, overrides)
    model = Model(
        model_type, read.spec, bare, family.names, family.ignored, unused=left, warnings=warnings
    )
    model.inferred += removed_words([prefix for prefix in removed if prefix not in _USUAL])
    explicit = "tie_word_embeddings" in config or "tie_word_embeddings" in said
    one = said.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    _fit(model, read, family, shown, overrides)
    model.tensors = prepared(family, model.tensors, model.spec)
    model.tensors, about, wrong = tied(family, model.tensors, said=one, explicit=explicit)
    model.inferred += [*read.inferred, *about]
    model.warnings += [*read.warnings, *wrong]
    model.defaults += settings.default_words(model_type)
    model.unused += settings.unused_words() + _beside(model)
    return model


def _shown(family: Family, tensors: Mapping[str, object]) -> Spec:
    """The sizes that the tensors themselves show."""
    found: Spec = {}
    embed = tensors.get(f"{_first(family, 'embed')}.weight")
    if not isinstance(embed, TensorRef):
        embed = tensors.get(f"{_first(family, 'head')}.weight")
    if isinstance(embed, TensorRef) and len(embed.shape) == 2:
        found["vocab_size"], found["n_embd"] = embed.shape
    out = _first(family, "blocks.{i}.attn.out")
    stem = out.split("{i}")[0]
    layers = count(tensors, f"{stem}{{n}}.")
    if layers:
        found["n_layer"] = layers
    position = tensors.get(f"{_first(family, 'position')}.weight")
    if isinstance(position, TensorRef) and len(position.shape) == 2:
        found["context_length"] = position.shape[0] - family.position_offset
    q, k = (_of_attention(family, tensors, letter) for letter in "qk")
    if q and k:
        found["q"], found["k"] = q, k
    norm = tensors.get(f"{_first(family, 'blocks.{i}.attn.q_norm').replace('{i}', '0')}.weight")
    if isinstance(norm, TensorRef) and len(norm.shape) == 1 and norm.shape[0] != q:
        found["head_dim"] = norm.shape[0]
    return found


def _of_attention(family: Family, tensors: Mapping[str, object], letter: str) -> int:
    """Rows of the matrix that makes queries or keys, 0 where there is no matrix for them alone."""
    row = family.names.get("blocks.{i}.attn.qkv")
    parts = row.parts if isinstance(row, Row) else ()
    for name in parts:
        ref = tensors.get(f"{name.replace('{i}', '0')}.weight")
        if re.search(rf"\b{letter}_proj$", name) and isinstance(ref, TensorRef) and ref.shape:
            return ref.shape[0]
    return 0


def _first(family: Family, ours: str) -> str:
    row = family.names.get(ours, "")
    return row.parts[0] if isinstance(row, Row) else row


def _fit(
    model: Model, read: Read, family: Family, shown: Spec, overrides: Mapping[str, object]
) -> None:
    """Where the tensors show another size than config.json says, they are right, unless something
    may be missing."""
    spec = read.spec
    for ours in ("vocab_size", "context_length"):
        real, value = shown.get(ours), spec.get(ours)
        if real is None or ours in overrides:
            continue
        if value not in (None, real):
            model.warnings.append(
                f"config.json says {ours} is {value}, the tensors {real}, which is right"
            )
        spec[ours] = real
    if not spec.get("context_length"):
        spec["context_length"] = 2048
        model.inferred.append("context_length 2048: nothing says it")
    layers = shown.get("n_layer")
    said = whole(spec, "n_layer")
    if isinstance(layers, int) and layers > said and "n_layer" not in overrides:
        extra = [
            name
            for name in model.tensors
            if (hit := re.match(r"(?:layers|h)\.(\d{1,5})\.", name)) and int(hit[1]) >= said
        ]
        # Layers beyond the last are heads for tokens further on, where the family has such.
        if any(".eh_proj" in name or ".shared_head" in name for name in extra):
            model.ignored += tuple(extra)
            model.unused.append(f"{len(extra)} tensors of layers that predict further tokens")
    width = shown.get("n_embd")
    if width is not None and width != whole(spec, "n_embd") and "n_embd" not in overrides:
        raise CheckpointError(
            "the tensors do not fit config.json",
            f"it says hidden_size is {spec['n_embd']}, the embedding is {width} wide",
            f"If config.json is of another model, open it with --config n_embd={width}",
        )


def _beside(model: Model) -> list[str]:
    """What is in the files and not needed for text. Adds it to what is ignored."""
    found: list[str] = []
    for what, patterns in _BESIDE.items():
        there = [
            name
            for name in model.tensors
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]
        if not there:
            continue
        model.ignored += tuple(patterns)
        if what:
            found.append(f"{what}: {len(there)} tensors, of which {there[0][:60]} is one")
        if what.startswith("a head for classes") and "lm_head.weight" not in model.tensors:
            model.warnings.append(
                "this is a classifier or a reward model: no head for words was trained with it, so "
                "its text is a curiosity"
            )
    return found
