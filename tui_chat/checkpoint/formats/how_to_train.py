"""how-to-train-your-gpt: rotary positions, RMS norms, SwiGLU of four times the width, no bias.

Its `config` is an object of the script's own class, read as a record. The code turned queries and
keys in three ways over time under the same names; the rotary table in the file tells the first from
the later two (see `_layout`), and its base is held against what the file stores.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

from tui_chat.checkpoint.description import Description, agree
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.gpt2 import (
    GPT2_END,
    gpt2_tokenizer,
    heads_of_64,
    loss,
    matrix,
    step,
    stripped,
    untied,
    weight_keys,
)
from tui_chat.checkpoint.names import Table, cat, count, optional
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

NAME = "how-to-train-your-gpt"

NAMES: Table = {
    "embed": "token_embedding",
    "blocks.{i}.attn_norm": "layers.{i}.norm1",
    "blocks.{i}.attn.qkv": "layers.{i}.attention.qkv_proj",
    "blocks.{i}.attn.out": "layers.{i}.attention.out_proj",
    "blocks.{i}.mlp_norm": "layers.{i}.norm2",
    "blocks.{i}.mlp.gate_up": cat("layers.{i}.ffn.w1", "layers.{i}.ffn.w2"),
    "blocks.{i}.mlp.down": "layers.{i}.ffn.w3",
    "final_norm": "final_norm",
    "head": optional("lm_head"),
}
IGNORED = ("*.rotary.cos_cached", "*.rotary.sin_cached")

_WORDS = {
    "vocab_size": "vocab_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "n_embd": "d_model",
}
_COS = "layers.{i}.attention.rotary.cos_cached"
_SIN = "layers.{i}.attention.rotary.sin_cached"
THETA = 10000.0
SHORTEST = 128  # the script's max_seq_len; its chapters have 1024


def recognise(source: Source) -> float:
    tensors = stripped(source)[0]
    tell_tale = (
        "token_embedding.weight",
        "layers.0.attention.qkv_proj.weight",
        "layers.0.ffn.w1.weight",
        "layers.0.ffn.w3.weight",
        "final_norm.weight",
    )
    return sum(name in tensors for name in tell_tale) / len(tell_tale)


def describe(source: Source) -> Description:
    tensors, removed = stripped(source)
    notes = Notes(source.config)
    notes.removed(removed)
    notes.tensors(tensors, IGNORED)
    said = mapping(source.root.get("config"))
    rows, width = matrix(tensors, "token_embedding.weight").shape
    shown: dict[str, object] = {
        "vocab_size": rows,
        "n_embd": width,
        "n_layer": count(tensors, "layers.{n}."),
    }
    table = _table(tensors)
    if table is not None and width % table.shape[1] == 0:
        shown["n_head"] = width // table.shape[1]
    agree(shown, said, {ours: word for ours, word in _WORDS.items() if ours not in source.config})
    if "n_head" not in shown:
        said_heads = said.get("num_heads")
        shown["n_head"] = (
            heads_of_64(width, source.config, notes.inferred) if said_heads is None else said_heads
        )
    else:
        notes.inferred.append(f"n_head {shown['n_head']}: from the width of the rotary table")
    notes.shapes({name: shown[name] for name in ("vocab_size", "n_embd", "n_layer")})
    tokenizer = gpt2_tokenizer(rows, notes.warnings, raw_end=True)
    bare = untied(tensors, "lm_head.weight", "token_embedding.weight")
    notes.head("lm_head.weight" not in bare, "lm_head.weight", tensors)
    fixed: dict[str, object] = {"norm_eps": 1e-6, "activation": "silu"}
    notes.fixed(fixed)
    notes.keys(source.root, {*weight_keys(source), "config", "step", "loss"}, "the file")
    notes.keys(said, (*_WORDS.values(), "max_seq_len"), "config")
    return Description(
        format=NAME,
        spec={
            **shown,
            **fixed,
            "context_length": _context(source, said, table, notes),
            "norm": "rmsnorm",
            "position": "rope",
            "rope_theta": _theta(source, tensors, int(str(shown["n_layer"])), notes),
            "rope_layout": _layout(source, table, width, notes),
            "gated": True,
        },
        tensors=bare,
        names=NAMES,
        ignored=IGNORED,
        archives=(source.archive,),
        tokenizer=tokenizer,
        step=step(source, "step"),
        losses=loss(source, "train", "loss"),
        stop_ids=(GPT2_END,) if tokenizer.kind == "tiktoken" else (),
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
    )


def _context(
    source: Source, said: Mapping[str, object], table: TensorRef | None, notes: Notes
) -> object:
    """The trained length: only the config knows it, for the rotary table is longer."""
    length = said.get("max_seq_len")
    if "context_length" in source.config:
        return length
    if length is None:
        notes.defaults.append(
            f"the file does not say max_seq_len: {SHORTEST} is the script's own; give another with "
            "--config context_length=N"
        )
        return SHORTEST
    if table is not None and isinstance(length, int) and length > table.shape[0]:
        notes.inferred.append(
            f"max_seq_len is {length}, but the rotary table ends after {table.shape[0]} positions, "
            "where the context ends as well"
        )
        return table.shape[0]
    return length


# ---- the rotary table: (positions, head_dim), each of the head_dim / 2 angles twice


def _table(tensors: Mapping[str, object], layer: int = 0, name: str = _COS) -> TensorRef | None:
    ref = tensors.get(name.replace("{i}", str(layer)))
    if ref is None:
        return None
    if not isinstance(ref, TensorRef) or len(ref.shape) != 2 or min(ref.shape) < 2:
        raise CheckpointError(
            "the tensors do not fit the format", f"{name.replace('{i}', str(layer))} is no table"
        )
    return ref


def _at(source: Source, table: TensorRef, row: int, column: int) -> float:
    offset = table.offset + row * table.stride[0] + column * table.stride[1]
    number = source.archive.scalar(replace(table, shape=(), stride=(), offset=offset))
    if number is None:
        raise CheckpointError("the rotary table cannot be read", f"it holds {table.dtype}")
    return number


def _interleaved(source: Source, table: TensorRef) -> bool:
    """Whether the second column repeats the first. Of a head of two both layouts are one."""
    if table.shape[1] < 4:
        return True
    row = 1  # every angle of row 0 is 0
    first, second, middle = (_at(source, table, row, c) for c in (0, 1, table.shape[1] // 2))
    return abs(first - second) <= abs(first - middle)


def _layout(source: Source, table: TensorRef | None, width: int, notes: Notes) -> str:
    if "rope_layout" in source.config:
        return "interleaved"
    if table is not None and not _interleaved(source, table):
        notes.inferred.append(
            "rope_layout half: the second half of the rotary table repeats the first, as in files "
            "until 2026-05-10"
        )
        if "embed_scale" not in source.config:
            notes.defaults.append(
                "embeddings are used as they are, as in the script; for a model of the chapters "
                f"from before 2026-05-10, give --config embed_scale={width**0.5:.6g}"
            )
        return "half"
    if table is None:
        notes.warnings.append(
            "there is no rotary table: neighbouring numbers are turned together, as since "
            "2026-06-23; for files from before 2026-05-10, give --config rope_layout=half"
        )
    elif table.shape[1] >= 4:
        notes.inferred.append(
            "the rotary table is that of files since 2026-05-10, and read as since 2026-06-23; "
            "the code between the two dates turned heads in another way, which cannot be told: "
            "for such a file, give --config rope_layout=mismatched"
        )
    return "interleaved"


def _theta(source: Source, tensors: Mapping[str, object], layers: int, notes: Notes) -> float:
    """The base of the angles as the tables have it. Raises CheckpointError where no base gives
    them.
    """
    cos, sin = _table(tensors), _table(tensors, name=_SIN)
    if cos is None or sin is None or cos.shape != sin.shape or cos.shape[1] < 4:
        notes.fixed({"rope_theta": THETA})
        return THETA
    theta = THETA
    if not _fits(source, cos, sin, THETA):
        # The slowest pair after one step has the smallest angle, and the base most exactly.
        half = cos.shape[1] // 2
        column = _column(source, cos, half - 1)
        angle = math.atan2(_at(source, sin, 1, column), _at(source, cos, 1, column))
        theta = angle ** (-half / (half - 1)) if angle > 1e-30 else 0.0
        theta = float(f"{theta:.4g}")
        if not _fits(source, cos, sin, theta):
            raise CheckpointError(
                "the rotary table cannot be used", "no base gives the angles that it holds"
            )
        if "rope_theta" not in source.config:
            notes.inferred.append(
                f"the rotary table has the base {theta:g} where the script has 10000"
            )
    else:
        notes.inferred.append(f"rope_theta {THETA:g}: the rotary table has its angles")
    for layer in range(1, layers):
        cos_too, sin_too = _table(tensors, layer), _table(tensors, layer, _SIN)
        if cos_too is None or sin_too is None:
            continue
        if cos.same_numbers(cos_too) and sin.same_numbers(sin_too):
            continue
        if cos_too.shape != cos.shape or not _fits(source, cos_too, sin_too, theta):
            raise CheckpointError("the rotary tables cannot be used", "layers have different ones")
    return theta


def _column(source: Source, cos: TensorRef, pair: int) -> int:
    return 2 * pair if _interleaved(source, cos) else pair


def _fits(source: Source, cos: TensorRef, sin: TensorRef, theta: float) -> bool:
    """Whether angles of `theta` are in the tables, in a few places."""
    if not 1.0 < theta < 1e12 or cos.shape != sin.shape:
        return False
    half = cos.shape[1] // 2
    # 16 bit numbers near 1 are this coarse; float32 angles of a thousand positions are rounded.
    limit = 1e-3 if cos.dtype in ("float32", "float64") else 1e-2
    for pair in {0, 1, half // 2, half - 1}:
        column = _column(source, cos, pair)
        for row in {1, min(7, cos.shape[0] - 1), cos.shape[0] - 1}:
            angle = row * theta ** (-pair / half)
            off = (
                abs(_at(source, cos, row, column) - math.cos(angle)),
                abs(_at(source, sin, row, column) - math.sin(angle)),
            )
            if not all(distance <= limit for distance in off):  # nor if it is not a number
                return False
    return True
