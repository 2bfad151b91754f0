"""LoRA adapters: what they change, on which base, and by how much. No torch; nothing is fetched.

An adapter's matrices become `deltas` of the base's tensors (tensors.py), which are added when the
weights are loaded, so that the model that runs has no trace of them.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from tui_chat.checkpoint.archive import Archive
from tui_chat.checkpoint.files import shown_path
from tui_chat.checkpoint.huggingface.family import Family
from tui_chat.checkpoint.huggingface.reading import PREFIXES
from tui_chat.checkpoint.huggingface.shards import file_tensors
from tui_chat.checkpoint.names import Row, strip
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.checkpoint.tensors import WEIGHT_DTYPES, LowRank, TensorRef, shape_text
from tui_chat.errors import CheckpointError

BASE = "base"
"""The setting by which a user names the base: --config base=PATH."""

_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_PART = re.compile(r"(.+)\.lora_(A|B|embedding_A|embedding_B)(?:\.[^.]+)??(\.weight|\.bias)?")
_SAVED = re.compile(r"(.+?)\.modules_to_save\.[^.]+\.(.+)")
# Other ways to adapt a model, by the tensors they leave.
_OTHERS = {
    "lora_magnitude_vector": "DoRA",
    "hada_w1_a": "LoHa",
    "lokr_w1": "LoKr",
    "ia3_l": "IA3",
    "oft_R": "OFT",
    "boft_R": "BOFT",
    "vera_lambda_b": "VeRA",
    "trainable_tokens_delta": "single trained tokens",
    "prompt_embeddings": "a trained prompt",
}
# Ways to begin that change the base itself, so that base and adapter no longer add up.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
_PLAIN = re.compile(r"\^?([\w.\-]{1,200})\$?")


@dataclass(slots=True)
class Adapter:
    """One adapter. `apply` gives the base's tensors with what it adds."""

    base: Source
    archives: tuple[Archive, ...]
    tensors: Mapping[str, TensorRef]
    said: Mapping[str, object]
    remarks: list[str] = field(default_factory=list)

    def apply(self, base: dict[str, object], family: Family) -> dict[str, object]:
        """`base` (names without prefixes) with the adapter's changes. Raises CheckpointError where
        they do not fit."""
        found = dict(base)
        pairs: dict[str, dict[str, TensorRef]] = {}
        saved: dict[str, TensorRef] = {}
        for name, ref in self.tensors.items():
            hit = _PART.fullmatch(name)
            if hit is not None:
                if hit[3] == ".bias":
                    raise _cannot("has biases on its low-rank matrices", name)
                pairs.setdefault(hit[1], {})[hit[2]] = ref
                continue
            whole = _SAVED.fullmatch(name)
            saved[f"{whole[1]}.{whole[2]}" if whole else name.replace(".base_layer.", ".")] = ref
        self._save(found, saved, family)
        for name, parts in sorted(pairs.items()):
            self._add(found, name, parts, family)
        ranks = sorted({part.shape[0] for parts in pairs.values() for part in _downs(parts)})
        what = f"{len(pairs)} matrices are changed" if len(pairs) != 1 else "one matrix is changed"
        if pairs:
            self.remarks.append(f"{what} by rank {', '.join(map(str, ranks[:4]))}")
        if saved:
            names = ", ".join(sorted(saved)[:3])
            more = f" and {len(saved) - 3} more" if len(saved) > 3 else ""
            self.remarks.append(f"in place of the base's own: {names}{more}")
        return found

    def _save(
        self, found: dict[str, object], saved: Mapping[str, TensorRef], family: Family
    ) -> None:
        """Put tensors that were trained in full in place of the base's."""
        embed, head = (_source(family, ours) for ours in ("embed", "head"))
        for name, ref in saved.items():
            old = found.get(name)
            if old is None and name not in (head, embed) and not name.endswith(".bias"):
                raise _cannot("replaces a tensor that its base does not have", name)
            # A vocabulary may have grown; anything else keeps its shape.
            if isinstance(old, TensorRef) and old.shape[1:] != ref.shape[1:]:
                raise _cannot(f"replaces {shape_text(old.shape)} by {shape_text(ref.shape)}", name)
            untied = name == embed and head not in found and head not in saved
            if untied and isinstance(old, TensorRef) and old.shape == ref.shape:
                found[head] = old
                self.remarks.append("the head is the base's embedding: only the other was trained")
            found[name] = ref

    def _add(
        self, found: dict[str, object], name: str, parts: Mapping[str, TensorRef], family: Family
    ) -> None:
        """Add one low-rank change to the tensor it is for."""
        target = f"{name}.weight"
        embed, head = (_source(family, ours) for ours in ("embed", "head"))
        # The base's one table is two as soon as only one of its uses is changed.
        if target in (head, embed) and head not in found and embed in found:
            found[head] = found[embed]
        ref = found.get(target)
        if not isinstance(ref, TensorRef) or len(ref.shape) != 2:
            raise _cannot("changes a matrix that its base does not have", target)
        is_table = "embedding_A" in parts or "embedding_B" in parts
        letters = ("embedding_A", "embedding_B") if is_table else ("A", "B")
        down, up = (parts.get(letter) for letter in letters)
        if down is None or up is None:
            raise _cannot("has only one of two low-rank matrices", name)
        turned = is_table or _is_turned(family, name)
        out, into = ref.shape[::-1] if turned else ref.shape
        fits = (
            len(down.shape) == 2
            and down.shape[1] == into
            and up.shape == (out, down.shape[0])
            and 0 < down.shape[0] <= 65536
        )
        if not fits or not {down.dtype, up.dtype} <= WEIGHT_DTYPES:
            raise _cannot(
                f"has {shape_text(up.shape)} and {shape_text(down.shape)} for a matrix of "
                f"{shape_text(ref.shape)}",
                name,
            )
        scale = self._scale(name, down.shape[0])
        found[target] = replace(ref, deltas=(*ref.deltas, LowRank(down, up, scale, turned)))

    def _scale(self, name: str, rank: int) -> float:
        alpha = _number(self.said, "lora_alpha", 8.0)
        for pattern, value in mapping(self.said.get("alpha_pattern")).items():
            plain = _PLAIN.fullmatch(pattern)
            if plain is None:
                raise _cannot("chooses alpha by a pattern that is no name", pattern)
            suffix = strip({plain[1]: None}, PREFIXES)[0]
            if any(name == end or name.endswith(f".{end}") for end in suffix):
                alpha = _number({"alpha_pattern": value}, "alpha_pattern", alpha)
                break
        return alpha / (math.sqrt(rank) if self.said.get("use_rslora") is True else rank)


def read_adapter(source: Source) -> Adapter:
    """The adapter in the directory `source`, with its base. Raises CheckpointError, which says how
    to name the base where it is not found."""
    said = mapping(read_json(os.path.join(source.folder, "adapter_config.json")))
    kind = str(said.get("peft_type") or "LORA")
    if kind != "LORA":
        raise CheckpointError(
            f"the adapter is of the kind {kind[:40]}, which tui-chat cannot add to its base",
            "adapter_config.json says so",
            "Merge it with the base and save the whole model",
        )
    if said.get("use_dora") is True:
        raise _cannot("is a DoRA, which also changes the length of columns", "use_dora is true")
    for key in ("layer_replication", "use_qalora", "alora_invocation_tokens", "megatron_config"):
        if said.get(key):
            raise _cannot("needs what tui-chat cannot do", key)
    begun = str(said.get("init_lora_weights")).lower()
    if begun.startswith(_CHANGES_BASE):
        raise _cannot("was begun by changing its base", f"init_lora_weights is {begun[:40]}")
    name = next((name for name in _FILES if name in source.files), "")
    if not name:
        raise CheckpointError(
            "the adapter has no weights", f"neither {_FILES[0]} nor {_FILES[1]} is there"
        )
    archive = source.open(name)
    tensors: dict[str, TensorRef] = {}
    for key, ref in strip(file_tensors(archive), PREFIXES)[0].items():
        other = next((word for word in _OTHERS if word in key), "")
        if other:
            raise _cannot(f"is of the kind {_OTHERS[other]}, not a plain LoRA", key)
        if isinstance(ref, TensorRef) and ".original_module." not in key:
            tensors[key] = ref
    if not tensors:
        raise CheckpointError("the adapter has no weights", f"{name} holds no tensors")
    base, how = _base(source, said)
    return Adapter(base, (archive,), tensors, said, [how])


# ---- the base


def _base(source: Source, said: Mapping[str, object]) -> tuple[Source, str]:
    """The base model and how it was found."""
    config = {key: value for key, value in source.config.items() if key != BASE}
    given = source.config.get(BASE)
    named = said.get("base_model_name_or_path")
    name = given if isinstance(given, str) and given else named
    if not isinstance(name, str) or not name:
        raise CheckpointError(
            "the adapter does not name its base model",
            "base_model_name_or_path is empty",
            "Name it with --config base=PATH",
        )
    if given:
        places: Iterator[str] = iter([os.path.abspath(os.path.expanduser(name))])
    else:
        places = _places(source.folder, name)
    for path in places:
        try:
            itself = os.path.realpath(path) == os.path.realpath(source.folder)
        except (OSError, ValueError):  # no name of a file can be so
            continue
        if itself:
            continue
        if os.path.isfile(os.path.join(path, "config.json")):
            base = Source(path, config=config)
            how = "given by the user" if given else f"adapter_config.json names {name[:80]}"
            return base, f"the base is {shown_path(path)}: {how}"
        if given and os.path.isfile(path):
            return Source(path, config=config), f"the base is {shown_path(path)}: given by the user"
    raise CheckpointError(
        f"the adapter's base model {name[:120]!r} is not here",
        "it was looked for beside the adapter and among the models that were downloaded before",
        "Name its directory with --config base=PATH",
    )


def _places(folder: str, name: str) -> Iterator[str]:
    """Where a base of that name may lie, likeliest first."""
    if os.path.isabs(name):
        yield name
    last = os.path.basename(os.path.normpath(name))
    if not os.path.isabs(name):
        yield os.path.normpath(os.path.join(folder, name))
        yield os.path.abspath(name)
    above = folder
    for _ in range(3):
        above = os.path.dirname(above)
        if not os.path.isabs(name):
            yield os.path.normpath(os.path.join(above, name))
        yield os.path.join(above, last)
    if re.fullmatch(r"[\w.\-]+(/[\w.\-]+)?", name):
        for cache in _caches():
            yield from _snapshots(os.path.join(cache, "models--" + name.replace("/", "--")))


def _caches() -> Iterator[str]:
    for variable, inside in (
        ("HF_HUB_CACHE", ""),
        ("HUGGINGFACE_HUB_CACHE", ""),
        ("HF_HOME", "hub"),
        ("XDG_CACHE_HOME", "huggingface/hub"),
    ):
        if value := os.environ.get(variable):
            yield os.path.join(os.path.expanduser(value), inside)
    yield os.path.expanduser("~/.cache/huggingface/hub")


def _snapshots(repository: str) -> Iterator[str]:
    """The revision that `main` is, then the others, newest first."""
    inside = os.path.join(repository, "snapshots")
    try:
        with open(os.path.join(repository, "refs", "main"), encoding="ascii") as file:
            revision = file.read(200).strip()
        if re.fullmatch(r"[0-9a-f]{7,64}", revision):
            yield os.path.join(inside, revision)
    except (OSError, ValueError):
        pass
    try:
        with os.scandir(inside) as entries:
            found = [(entry.stat().st_mtime, entry.path) for entry in entries if entry.is_dir()]
    except OSError:
        return
    for _, path in sorted(found, reverse=True)[:100]:
        yield path


# ---- words and numbers


def _source(family: Family, ours: str) -> str:
    row = family.names.get(ours)
    part = row.parts[0] if isinstance(row, Row) else row
    return f"{part}.weight" if part else ""


def _is_turned(family: Family, name: str) -> bool:
    """Whether the base keeps this matrix [in, out], as GPT-2 does. The adapter's own
    fan_in_fan_out says the same, and is often wrong."""
    pattern = re.sub(r"\.\d+\.", ".{i}.", name, count=1)
    return any(
        isinstance(row, Row) and row.transposed and pattern in row.parts
        for row in family.names.values()
    )


def _downs(parts: Mapping[str, TensorRef]) -> Iterator[TensorRef]:
    for letter in ("A", "embedding_A"):
        if letter in parts:
            yield parts[letter]


def _number(said: Mapping[str, object], key: str, default: float) -> float:
    value = said.get(key, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e6:
        raise CheckpointError(f"adapter_config.json says {key} is {str(value)[:40]}")
    return float(value)


def _cannot(does: str, name: str) -> CheckpointError:
    return CheckpointError(
        f"the adapter {does}", name[:120], "Merge it with its base and save the whole model"
    )
