"""From a trainer's tensor names to ours, as data.

A table row is canonical prefix -> source prefix; weight and bias go together. `{i}` stands for the
layer, `{h}` for the head, `{e}` for the expert. `match` holds a file against a table: every tensor
of the file is used or ignored, every tensor the model needs is there, every shape is right.
Otherwise an error lists what is missing, left over or of the wrong shape.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from tui_chat.checkpoint.plain import what
from tui_chat.checkpoint.tensors import WEIGHT_DTYPES, Pieces, TensorRef, shape_text
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec

SUFFIXES = ("weight", "bias")
# What torch's own wrappers put between the parts of a name, wherever they are applied.
WRAPPERS = frozenset(("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
# What torch's AveragedModel (EMA, SWA) keeps beside the weights: of how many steps they are a mean.
BESIDE = ("n_averaged",)


@dataclass(frozen=True, slots=True)
class Row:
    """Where one canonical prefix comes from: `parts` one below the other (dim 0), each turned over
    if `transposed`. With `{e}` the parts of one expert stand together."""

    parts: tuple[str, ...]
    transposed: bool = False
    optional: bool = False
    partial: bool = False  # some layers may have it and others not
    biased: bool = False  # its bias may not be missing; of the others the file decides


Table = Mapping[str, str | Row]


def cat(*parts: str) -> Row:
    """Several source matrices, one below the other."""
    return Row(parts)


def transpose(part: str) -> Row:
    """A source matrix stored [in, out]."""
    return Row((part,), transposed=True)


def optional(row: str | Row) -> Row:
    """A row that a file may leave out."""
    return replace(_row(row), optional=True)


def partial(row: str | Row) -> Row:
    """A row that only some layers have."""
    return replace(_row(row), optional=True, partial=True)


def biased(row: str | Row) -> Row:
    """A row whose bias the model cannot do without."""
    return replace(_row(row), biased=True)


def _row(entry: str | Row) -> Row:
    return Row((entry,)) if isinstance(entry, str) else entry


@dataclass(frozen=True, slots=True)
class Recipe:
    """How one canonical tensor is built: `parts` one below the other, each turned over if
    `transposed`. Where `corners` are given, part k begins at `corners[k]` of the tensor instead,
    and the parts fill it."""

    parts: tuple[TensorRef, ...]
    transposed: bool = False
    corners: tuple[tuple[int, ...], ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        shapes = [part.shape[::-1] if self.transposed else part.shape for part in self.parts]
        if self.corners:
            ends = [
                [begin + size for begin, size in zip(corner, shape, strict=True)]
                for corner, shape in zip(self.corners, shapes, strict=True)
            ]
            return tuple(max(column) for column in zip(*ends, strict=True))
        return (sum(shape[0] for shape in shapes), *shapes[0][1:])

    @classmethod
    def below(cls, sources: Iterable[TensorRef | Pieces], transposed: bool) -> Recipe | None:
        """The sources one below the other, each turned over if `transposed`; None where they do
        not fit so."""
        parts: list[TensorRef] = []
        corners: list[tuple[int, ...]] = []
        tails: set[tuple[int, ...]] = set()
        rows = 0
        for source in sources:
            if isinstance(source, TensorRef):
                source = Pieces(source.shape, (source,), ((0,) * len(source.shape),))
            shape = source.shape[::-1] if transposed else source.shape
            if not shape:
                return None
            for corner in source.corners:
                first, *rest = corner[::-1] if transposed else corner
                corners.append((rows + first, *rest))
            parts += source.parts
            tails.add(shape[1:])
            rows += shape[0]
        if len(tails) != 1:
            return None
        found = cls(tuple(parts), transposed)
        stacked = found.shape[0] == rows and not any(any(corner[1:]) for corner in corners)
        return found if stacked else replace(found, corners=tuple(corners))


@dataclass(slots=True)
class _Match:
    recipes: dict[str, Recipe] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    used: set[str] = field(default_factory=set)


def strip(
    tensors: Mapping[str, object], prefixes: Iterable[str]
) -> tuple[dict[str, object], list[str]]:
    """The tensors without what wrappers put in front of their names, and what was taken away.

    `prefixes` (without the dot) are removed again and again, in any order; the parts that
    torch.compile and FSDP add are removed wherever they stand. Raises CheckpointError when two
    tensors would get the same name.
    """
    leading = frozenset(prefixes) | WRAPPERS
    found: dict[str, object] = {}
    removed: dict[str, None] = {}
    for name, value in tensors.items():
        parts = name.split(".")
        first = 0
        while first < len(parts) - 1 and parts[first] in leading:
            removed[parts[first] + "."] = None
            first += 1
        kept = []
        for part in parts[first:]:
            if part in WRAPPERS:
                removed[part + "."] = None
            else:
                kept.append(part)
        bare = ".".join(kept)
        if bare in found:
            raise CheckpointError(
                "the tensors cannot be told apart", f"two of them are called {bare[:80]!r}"
            )
        found[bare] = value
    return found, list(removed)


def removed_words(removed: list[str]) -> list[str]:
    """The warning that `strip` took something away, if it did."""
    were = "was" if len(removed) == 1 else "were"
    return [f"the tensors' names had {listed(removed)} in them, which {were} removed"] * bool(
        removed
    )


def count(tensors: Iterable[str], pattern: str) -> int:
    """How many different numbers stand in for `{n}` in the names: 1 + the largest, or 0.

    Raises CheckpointError when one is skipped, since then layers are missing.
    """
    matcher = re.compile(re.escape(pattern).replace(re.escape("{n}"), r"(\d{1,5})"))
    seen = {int(found.group(1)) for name in tensors if (found := matcher.match(name))}
    if seen and len(seen) != max(seen) + 1:
        gap = next(n for n in range(max(seen) + 1) if n not in seen)
        raise CheckpointError(
            "layers or heads are missing", f"there is no {pattern.replace('{n}', str(gap))}"
        )
    return len(seen)


def match(
    spec: ModelSpec,
    tensors: Mapping[str, object],
    table: Table,
    ignored: Iterable[str] = (),
) -> dict[str, Recipe]:
    """Canonical name -> how it is built, for everything in `table` that the file has. Raises
    CheckpointError."""
    found = _Match()
    for canonical, entry in table.items():
        row = _row(entry)
        for layer in range(spec.n_layer) if "{i}" in canonical else (0,):
            _match_row(found, tensors, canonical, row, layer, spec)
    _check_whole(found, spec, table)
    _check_shapes(found, spec)
    patterns = (*ignored, *BESIDE)
    left = [
        name
        for name in tensors
        if name not in found.used and not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    if found.missing or found.wrong or left:
        parts = [
            f"{title}: {_listed(names)}"
            for title, names in (
                ("missing", found.missing),
                ("wrong shape", found.wrong),
                ("left over", left),
            )
            if names
        ]
        raise CheckpointError(
            "the tensors do not fit the model's settings",
            "; ".join(parts),
            "If a setting in the file is wrong, give the right one with --config name=value",
        )
    return found.recipes


def _match_row(
    found: _Match,
    tensors: Mapping[str, object],
    canonical: str,
    row: Row,
    layer: int,
    spec: ModelSpec,
) -> None:
    experts = spec.experts.count if spec.experts and "{e}" in "".join(row.parts) else 1
    for suffix in SUFFIXES:
        sources = [
            f"{part}.{suffix}".replace("{i}", str(layer))
            .replace("{e}", str(expert))
            .replace("{h}", str(head))
            for expert in range(experts)
            for part in row.parts
            for head in (range(spec.n_head) if "{h}" in part else (0,))
        ]
        there = [name for name in sources if name in tensors]
        if not there and (row.optional or (suffix == "bias" and not row.biased)):
            continue
        found.used.update(there)
        if len(there) < len(sources):
            found.missing += [name for name in sources if name not in tensors]
            continue
        parts: list[TensorRef | Pieces] = []
        for name in sources:
            value = tensors[name]
            if not isinstance(value, (TensorRef, Pieces)):
                found.wrong.append(f"{name} is {what(value)}, not a tensor")
            elif unusable := _unusable(value):
                found.wrong.append(f"{name} holds {unusable}, which weights cannot be yet")
            else:
                parts.append(value)
        if len(parts) == len(sources):
            recipe = Recipe.below(parts, row.transposed and suffix == "weight")
            if recipe is not None:
                found.recipes[f"{canonical.replace('{i}', str(layer))}.{suffix}"] = recipe
            else:
                found.wrong.append(f"{sources[0]} and the tensors it is joined with")


def _unusable(value: TensorRef | Pieces) -> str:
    """The dtype of a tensor whose numbers cannot be weights, else nothing."""
    for ref in (value,) if isinstance(value, TensorRef) else value.parts:
        if ref.dtype not in WEIGHT_DTYPES and ref.scales is None and not ref.encoding:
            return ref.dtype
    return ""


def _check_whole(found: _Match, spec: ModelSpec, table: Table) -> None:
    """What one layer has, every layer must have; and nothing that a decoder cannot do without may
    be absent."""
    per_layer: dict[str, set[int]] = {}
    for name in found.recipes:
        if name.startswith("blocks."):
            _, layer, rest = name.split(".", 2)
            per_layer.setdefault(rest, set()).add(int(layer))
    for rest, layers in per_layer.items() if not found.missing else ():
        prefix, _, suffix = rest.rpartition(".")
        row = _row(table.get("blocks.{i}." + prefix, "blocks.{i}." + prefix))
        if row.partial:
            continue
        source = row.parts[0]
        for i in sorted(set(range(spec.n_layer)) - layers):
            name = f"{source}.{suffix}"
            found.missing.append(name.replace("{i}", str(i)).replace("{h}", "0"))
    if not found.missing and not found.wrong and spec.family == "decoder":
        found.missing += [name for name in needed(spec, found.recipes) if name not in found.recipes]


def _check_shapes(found: _Match, spec: ModelSpec) -> None:
    for name, recipe in found.recipes.items():
        down = found.recipes.get(
            re.sub(r"(mlp(\.experts|\.shared)?)\.\w+\.\w+$", r"\1.down.weight", name)
        )
        hidden = down.shape[1] if down is not None and len(down.shape) == 2 else 0
        wanted = shapes_of(name, spec, hidden)
        if wanted and recipe.shape not in wanted:
            found.wrong.append(f"{name} is {shape_text(recipe.shape)}, not {shape_text(wanted[0])}")


def needed(spec: ModelSpec, there: Iterable[str] = ()) -> tuple[str, ...]:
    """Canonical names that the decoder cannot do without, whatever else a file has. `there` tells
    which layers have a router and so experts in place of the MLP."""
    names = ["embed.weight"]
    if spec.position == "learned":
        names.append("position.weight")
    routed = frozenset(there)
    up = "gate_up" if spec.gated else "up"
    for i in range(spec.n_layer):
        names.append(f"blocks.{i}.attn.qkv.weight")
        if spec.attention_output:
            names.append(f"blocks.{i}.attn.out.weight")
        mlp = f"blocks.{i}.mlp"
        if f"{mlp}.router.weight" in routed:
            mlp += ".experts"
        names += [f"{mlp}.{up}.weight", f"{mlp}.down.weight"]
    return tuple(names)


def shapes_of(name: str, spec: ModelSpec, hidden: int) -> tuple[tuple[int, ...], ...]:
    """The shapes a canonical tensor may have; `hidden` is the inner width of its MLP. None for
    unknown names."""
    width = spec.n_embd
    query, keys = spec.n_head * spec.head_dim, spec.n_kv_head * spec.head_dim
    experts = spec.experts.count if spec.experts else 0
    matrices = {
        "embed": (spec.vocab_size, width),
        "head": (spec.vocab_size, width),
        "position": (spec.context_length, width),
        "attn.qkv": (query + 2 * keys, width),
        "attn.out": (width, query),
        "mlp.up": (hidden, width),
        "mlp.gate_up": (2 * hidden, width),
        "mlp.down": (width, hidden),
        "mlp.router": (experts, width),
        "mlp.experts.up": (experts * hidden, width),
        "mlp.experts.gate_up": (experts * 2 * hidden, width),
        "mlp.experts.down": (experts * width, hidden),
        "mlp.shared.up": (hidden, width),
        "mlp.shared.gate_up": (2 * hidden, width),
        "mlp.shared.down": (width, hidden),
        "mlp.shared_gate": (1, width),
    }
    norms = {
        "embed_norm": (width,),
        "final_norm": (width,),
        "attn_norm": (width,),
        "mlp_norm": (width,),
        "attn_post_norm": (width,),
        "mlp_post_norm": (width,),
        "attn.q_norm": (spec.head_dim, query),  # over each head, or over all of them
        "attn.k_norm": (spec.head_dim, keys),
    }
    prefix, _, suffix = re.sub(r"^blocks\.\d+\.", "", name).rpartition(".")
    if prefix in norms:
        return tuple((size,) for size in norms[prefix])
    if prefix in matrices:
        return (matrices[prefix] if suffix == "weight" else matrices[prefix][:1],)
    return ()


def _listed(names: list[str]) -> str:
    shown = ", ".join(name[:80] for name in names[:4])
    return shown if len(names) <= 4 else f"{shown} and {len(names) - 4} more"
