"""Tensors as a family's table wants them: fused matrices cut, experts stacked flat, 1 added to
norms, rows for padding left out, the head tied or not.

Nothing is read; what changes is where the numbers of a tensor are looked up.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase

from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.huggingface.family import Family, Spec, whole
from tui_chat.checkpoint.tensors import LowRank, TensorRef, part, shape_text
from tui_chat.errors import CheckpointError

Tensors = dict[str, object]


def prepared(family: Family, tensors: Mapping[str, object], spec: Spec) -> Tensors:
    """The tensors under the names of `family.names`. Raises CheckpointError for a matrix that
    cannot be cut as the settings say."""
    found = {_renamed(name, family.renamed): ref for name, ref in tensors.items()}
    try:
        if family.grouped:
            found = _cut(found, family.fused, _pieces(family, spec))
        for name, ref in list(found.items()):
            if not isinstance(ref, TensorRef):
                continue
            if any(name.endswith((f"{flat}.weight", flat)) for flat in family.flat):
                found[name] = _flat(ref)
            elif any(fnmatchcase(name, pattern) for pattern in family.ones):
                found[name] = replace(ref, plus=ref.plus + 1.0)
            elif family.position_offset and name == f"{family.names['position']}.weight":
                found[name] = _without_first(ref, family.position_offset)
    except Damaged as error:
        raise CheckpointError("the tensors do not fit the model's settings", str(error)) from None
    return found


def _without_first(ref: TensorRef, rows: int) -> TensorRef:
    """OPT and BioGPT keep rows for padding before the first position."""
    if len(ref.shape) != 2 or ref.shape[0] <= rows:
        raise Damaged(f"the positions are {shape_text(ref.shape)}")
    count, width = ref.shape
    return part(ref, (count - rows, width), offset=rows * width)


def _renamed(name: str, renamed: Mapping[str, str]) -> str:
    return ".".join(renamed.get(word, word) for word in name.split(".")) if renamed else name


# ---- fused queries, keys and values

Pieces = tuple[int, dict[str, tuple[int, int]]]
"""How many groups the rows are in, and of each group where each part begins and how many rows it
has."""


def _pieces(family: Family, spec: Spec) -> Pieces:
    heads, keys, dim = (whole(spec, name) for name in ("n_head", "n_kv_head", "head_dim"))
    if family.grouped == "pieces":  # CodeGen was trained on four machines, each with q, v, k
        rows = heads * dim // 4
        return 4, {"q": (0, rows), "v": (rows, rows), "k": (2 * rows, rows)}
    queries = heads // max(keys, 1) * dim
    return keys, {"q": (0, queries), "k": (queries, dim), "v": (queries + dim, dim)}


def _cut(tensors: Tensors, fused: str, pieces: Pieces) -> Tensors:
    groups, parts = pieces
    period = sum(rows for _, rows in parts.values())
    pattern = re.compile(rf"(.*{re.escape(fused)})\.(weight|bias)")
    found: Tensors = {}
    for name, ref in tensors.items():
        hit = pattern.fullmatch(name)
        if hit is None or not isinstance(ref, TensorRef) or not ref.shape:
            found[name] = ref
            continue
        if ref.shape[0] != groups * period:
            raise Damaged(f"{name[:80]} has {ref.shape[0]} rows, not {groups} groups of {period}")
        for letter, (first, rows) in parts.items():
            found[f"{hit[1]}.{letter}.{hit[2]}"] = _rows(ref, groups, period, first, rows)
    return found


def _rows(ref: TensorRef, groups: int, period: int, first: int, rows: int) -> TensorRef:
    """`rows` rows from row `first` on of each of `groups` groups of `period` rows, one group below
    the other. What an adapter adds is cut likewise."""
    width = ref.shape[1] if len(ref.shape) == 2 else 1
    shape = (groups * rows, *ref.shape[1:])
    cut = part(
        replace(ref, deltas=()),
        shape,
        offset=first * width,
        grid=(groups, rows * width),
        stride=(period * width, 1),
    )
    deltas = tuple(
        LowRank(delta.down, _rows(delta.up, groups, period, first, rows), delta.scale)
        for delta in ref.deltas
        if not delta.transposed
    )
    if len(deltas) != len(ref.deltas):
        raise Damaged("an adapter changes a fused matrix the other way round")
    return replace(cut, deltas=deltas)


def _flat(ref: TensorRef) -> TensorRef:
    """Experts stacked in a third dimension, one below the other."""
    if len(ref.shape) != 3:
        return ref
    experts, rows, width = ref.shape
    return part(ref, (experts * rows, width))


# ---- the head


def tied(
    family: Family, tensors: Tensors, *, said: object, explicit: bool
) -> tuple[Tensors, list[str], list[str]]:
    """The tensors with the head as it is used; what was concluded, and warnings.

    The head that is there is used. If there is none the embedding is, and the other way round;
    where config.json says that they are two, that is a warning.
    """
    names = {"head": family.names.get("head"), "embed": family.names.get("embed")}
    head, embed = (_source(row) for row in (names["head"], names["embed"]))
    inferred: list[str] = []
    warnings: list[str] = []
    output, table = tensors.get(head), tensors.get(embed)
    if table is None and isinstance(output, TensorRef):
        tensors = {**tensors, embed: output}
        del tensors[head]
        inferred.append(f"the embedding is {head}: there is no {embed}")
        return tensors, inferred, warnings
    if isinstance(output, TensorRef) and isinstance(table, TensorRef):
        if output.shape != table.shape and said is True:
            warnings.append(
                f"{head} is {shape_text(output.shape)} and {embed} {shape_text(table.shape)}, "
                "though config.json says that they are one"
            )
        elif output.same_numbers(table):
            tensors = {name: ref for name, ref in tensors.items() if name != head}
            inferred.append(f"the head is the embedding: {head} has the same numbers")
        elif said is True and explicit:
            inferred.append(f"{head} is used: it is there, though config.json says it is tied")
    elif output is None and isinstance(table, TensorRef):
        inferred.append(f"the head is the embedding: there is no {head}")
        if said is False:
            warnings.append(
                f"there is no {head} and config.json says it is not tied: the embedding stands in "
                "for it, which is wrong if the head was trained"
            )
    return tensors, inferred, warnings


def _source(row: object) -> str:
    """The name of the weight that a table row with one part reads."""
    parts = getattr(row, "parts", (row,))
    return f"{parts[0]}.weight" if parts and parts[0] else ""
