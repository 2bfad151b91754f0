"""Rotary positions as config files say them: the base, the scaling, how much of a head turns.

Hugging Face has two dialects (`rope_theta` and `rope_scaling` until version 4, `rope_parameters`
since version 5, there also one table for each kind of layer); what is in the tables has the same
words. Reading one dialect as the other loses the base without a word, so both are looked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from tui_chat.checkpoint.plain import mapping
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import RopeScaling


@dataclass(frozen=True, slots=True)
class Rope:
    """One kind of rotary position. `part` is how much of a head turns, from 0 to 1. `said` is false
    where the base is the default. `context_length` is set where only that many positions have
    these frequencies; `remarks` say what was concluded.
    """

    theta: float
    scaling: RopeScaling | None = None
    part: float = 1.0
    said: bool = True
    context_length: int = 0
    remarks: tuple[str, ...] = field(default=())


def rope_table(config: Mapping[str, object], layer: str = "") -> dict[str, object]:
    """What a config says of its rotary positions, in the words of `rope_parameters`, whichever
    dialect it speaks. `layer` chooses among tables by layer type."""
    new = mapping(config.get("rope_parameters"))
    if any(isinstance(value, dict) for value in new.values()):
        new = mapping(new.get(layer))
    table: dict[str, object] = {**mapping(config.get("rope_scaling")), **new}
    for ours, words in _BESIDE.items():
        for word in words:
            if table.get(ours) is None and config.get(word) is not None:
                table[ours] = config[word]
    # Phi-3 keeps this one beside the table, and its own code looks there first.
    if config.get("original_max_position_embeddings") is not None:
        table["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return table


# What may stand beside the table, under names of several ages.
_BESIDE = {
    "rope_theta": ("rope_theta", "rotary_emb_base"),
    "partial_rotary_factor": ("partial_rotary_factor", "rotary_pct", "rope_pct"),
}
ROPE_WORDS = frozenset(
    (
        "rope_parameters",
        "rope_scaling",
        "original_max_position_embeddings",
        *(word for words in _BESIDE.values() for word in words),
    )
)
"""The keys of a config that are about rotary positions and read here."""


def rope(
    table: Mapping[str, object],
    *,
    theta: float,
    part: float = 1.0,
    head_dim: int,
    context_length: int,
) -> Rope:
    """The rotary positions that `table` (see `rope_table`) describes; `theta` and `part` are what
    its own code takes where it says nothing. Raises CheckpointError for kinds that are not known.
    """
    said = table.get("rope_theta") is not None
    base = _number(table, "rope_theta", theta)
    share = _number(table, "partial_rotary_factor", part)
    kind = str(table.get("rope_type") or table.get("type") or "default")
    made = Rope(base, None, share, said)
    if kind in ("default", "none", "mrope"):
        # "mrope" gives text the same position in each of its three parts, which is plain rope.
        return made
    factor = _number(table, "factor", 0.0)
    original = int(_number(table, "original_max_position_embeddings", context_length))
    if original < 1:
        raise CheckpointError("its rope scaling says original_max_position_embeddings is 0")
    if kind == "linear":
        return Rope(base, RopeScaling(kind="linear", factor=_positive(factor)), share, said)
    if kind == "dynamic":
        return _dynamic(table, made, int(head_dim * share))
    if kind == "llama3":
        scaling = RopeScaling(
            kind="llama3",
            factor=_positive(factor),
            low_freq_factor=_number(table, "low_freq_factor", 1.0),
            high_freq_factor=_number(table, "high_freq_factor", 4.0),
            original_context_length=original,
        )
        if scaling.high_freq_factor == scaling.low_freq_factor:
            raise CheckpointError("its rope_scaling has equal low_freq_factor and high_freq_factor")
        return Rope(base, scaling, share, said)
    if kind == "yarn" and base <= 1:
        raise CheckpointError(f"its rope_theta is {base:g}, which YaRN cannot stretch")
    if kind == "yarn":
        return Rope(base, _yarn(table, factor, original, context_length), share, said)
    if kind in ("longrope", "su"):
        return _longrope(table, made, factor, original, context_length, int(head_dim * share))
    raise CheckpointError(
        f"its rotary positions are scaled by {kind[:40]!r}",
        "",
        "default, linear, dynamic, llama3, yarn and longrope can be read",
    )


def yarn_attention_factor(factor: float, mscale: float = 1.0, over: float = 0.0) -> float:
    """What YaRN multiplies cos and sin by where a config does not say it."""

    def grown(by: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * by * math.log(factor) + 1.0

    return grown(mscale) / grown(over) if mscale and over else grown(1.0)


def _yarn(
    table: Mapping[str, object], factor: float, original: int, context_length: int
) -> RopeScaling:
    by = _positive(factor) if table.get("factor") is not None else context_length / original
    attention = _number(table, "attention_factor", 0.0) or yarn_attention_factor(
        by, _number(table, "mscale", 0.0), _number(table, "mscale_all_dim", 0.0)
    )
    return RopeScaling(
        kind="yarn",
        factor=by,
        original_context_length=original,
        beta_fast=_number(table, "beta_fast", 0.0) or 32.0,
        beta_slow=_number(table, "beta_slow", 0.0) or 1.0,
        truncate=table.get("truncate") is not False,
        attention_factor=attention,
    )


def _dynamic(table: Mapping[str, object], plain: Rope, rotary_dim: int) -> Rope:
    """Its base grows once a text is longer than the context, which is the most that is ever
    computed here; with `alpha` (HunYuan) it has grown from the start."""
    alpha = _number(table, "alpha", 0.0)
    if alpha and rotary_dim > 2:
        theta = plain.theta * alpha ** (rotary_dim / (rotary_dim - 2))
        return Rope(theta, None, plain.part, plain.said)
    remark = "dynamic rope scaling starts beyond the context length, so it changes nothing here"
    return Rope(plain.theta, None, plain.part, plain.said, remarks=(remark,))


def _longrope(
    table: Mapping[str, object],
    plain: Rope,
    factor: float,
    original: int,
    context_length: int,
    rotary_dim: int,
) -> Rope:
    """Two lists of factors. Its own code takes the short ones while the text is short and the long
    ones for all of it once it is longer, which no cache survives: here the shorter context is the
    context, and the longer one is for who asks for it."""
    short, long = (_factors(table, name, rotary_dim) for name in ("short_factor", "long_factor"))
    by = factor or context_length / original
    attention = _number(table, "attention_factor", 0.0) or (
        math.sqrt(1 + math.log(by) / math.log(original)) if by > 1 and original > 1 else 1.0
    )
    scaling = RopeScaling(
        kind="longrope",
        factor=_positive(by),
        original_context_length=original,
        attention_factor=attention,
        short_factors=short,
        long_factors=long,
    )
    if context_length <= original:
        return Rope(plain.theta, scaling, plain.part, plain.said)
    remark = (
        f"context_length {original}: up to there its short rope factors hold; "
        f"--config context_length={context_length} takes the long ones for every text"
    )
    return Rope(plain.theta, scaling, plain.part, plain.said, original, (remark,))


def _factors(table: Mapping[str, object], name: str, rotary_dim: int) -> tuple[float, ...]:
    value = table.get(name)
    numbers = value if isinstance(value, list) else []
    found = tuple(
        float(item)
        for item in numbers
        if isinstance(item, (int, float)) and not isinstance(item, bool) and 0 < item < 1e9
    )
    if len(found) != len(numbers) or len(found) != rotary_dim // 2:
        raise CheckpointError(
            f"its rope scaling has no {name} for each of {rotary_dim // 2} rotary pairs"
        )
    return found


def _number(table: Mapping[str, object], word: str, default: float) -> float:
    value = table.get(word)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        raise CheckpointError(f"its {word} is {str(value)[:40]}, which cannot be")
    return float(value)


def _positive(factor: float) -> float:
    if factor > 0:
        return factor
    raise CheckpointError("its rope scaling does not say its factor")


__all__ = ["ROPE_WORDS", "Rope", "rope", "rope_table", "yarn_attention_factor"]
