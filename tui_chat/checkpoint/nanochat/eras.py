"""What nanochat's code did in which months, where its files do not say, and the tensors that tell.

From the log and the history of the project: lambdas and windows came on 11 January 2026, value
embeddings on the 17th, sharper attention and a longer rotary base on 9 March, smear and backout on
the 14th. No format of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tui_chat.checkpoint.tensors import TensorRef, contiguous, part, shape_text
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError

PATTERN = "window_pattern"


class Era(NamedTuple):
    """What the code of some months did and the file does not say."""

    months: str
    rope_theta: float
    qk_scale: float
    value_gate: float  # the largest factor of a value embedding
    short: int  # a short window is this part of the trained length
    rounded: bool  # to 128 upwards
    bfloat16_angles: bool
    softcap_note: str = ""

    def notes(self, why: str) -> list[str]:
        """What is concluded from `why` it is this code, in sentences."""
        found = [
            f"the code {self.months}, since it has {why}: rotary base {self.rope_theta:,.0f}, "
            f"queries and keys times {self.qk_scale:g}"
        ]
        if self.softcap_note:
            found.append(self.softcap_note)
        if self.bfloat16_angles:
            found.append("cos and sin rounded to bfloat16, as its code kept them")
        return found


FIRST = Era("of October 2025 to January 2026", 1e4, 1.0, 2.0, 2, False, True)
LAMBDAS = Era("of January 2026", 1e4, 1.0, 2.0, 2, False, True)
VALUES = Era(
    "of January to March 2026", 1e4, 1.0, 2.0, 2, False, True,
    "its softcap was 20 from 2 to 9 March 2026: if the model is of that week, give "
    "--config logit_softcap=20",
)  # fmt: skip
SHARPER = Era("of 9 to 14 March 2026", 1e5, 1.15, 3.0, 3, True, False)
SMEAR = Era("from 14 March 2026 on", 1e5, 1.2, 3.0, 4, True, False)
_SHARPER_GATE = 12  # numbers that a value gate sees since then; before, 32


def era_of(tensors: Mapping[str, object]) -> tuple[Era, str]:
    """The code that trained these tensors, and which of them say so."""
    if "smear_gate.weight" in tensors or "backout_lambda.weight" in tensors:
        return SMEAR, "a smear or a backout"
    gates = [ref for name, ref in tensors.items() if name.endswith(".attn.ve_gate.weight")]
    if any(isinstance(ref, TensorRef) and ref.shape[1:] == (_SHARPER_GATE,) for ref in gates):
        return SHARPER, f"value gates of {_SHARPER_GATE} numbers"
    if gates:
        return VALUES, "wide value gates"
    if "resid_lambdas.weight" in tensors or "x0_lambdas.weight" in tensors:
        return LAMBDAS, "lambdas for the layers, but no value embeddings"
    return FIRST, "no lambdas for the layers"


def windows(
    pattern: str, layers: int, length: int, context: int, era: Era
) -> tuple[tuple[int, ...], int]:
    """How many positions each layer sees, its own included, 0 for all; and how far back a short
    window reaches. `length` is what the model was trained on. Raises CheckpointError.
    """
    if not pattern or set(pattern.upper()) - {"S", "L"}:
        raise CheckpointError(
            "the model's settings cannot be used",
            f"its window_pattern is {pattern[:40]!r}, which is not made of S and L",
        )
    short = length // era.short
    if era.rounded:
        short = -(-length // era.short // 128) * 128
    # A window of n reaches n positions back, so it holds n + 1.
    sees = {"S": short + 1, "L": length + 1}
    found = [sees[pattern.upper()[i % len(pattern)]] for i in range(layers)]
    found[-1] = sees["L"]
    return tuple(0 if size >= context else size for size in found), short


def whole(value: object) -> int:
    """A count of the settings, 0 for what is none: that is refused where the spec is made."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def without_padding(tensors: Mapping[str, object], rows: int, ids: int) -> dict[str, object] | None:
    """The tensors with the first `ids` of the `rows` of each table of ids; None where one is not
    stored in one piece."""
    found = dict(tensors)
    for name, ref in tensors.items():
        table = name in ("transformer.wte.weight", "lm_head.weight")
        if not (table or name.startswith("value_embeds.")) or not isinstance(ref, TensorRef):
            continue
        if len(ref.shape) == 2 and ref.shape[0] == rows:
            if ref.stride != contiguous(ref.shape):
                return None
            found[name] = part(ref, (ids, ref.shape[1]))
    return found


def check_parts(tensors: Mapping[str, object], spec: Mapping[str, object]) -> None:
    """Shapes that the general tables do not know. Raises CheckpointError."""
    layers, width, rows = (whole(spec[name]) for name in ("n_layer", "n_embd", "vocab_size"))
    heads, keys = whole(spec["n_head"]), whole(spec["n_kv_head"])
    some = range(1, width + 1)  # numbers of the stream that a gate sees
    wanted: dict[str, tuple[range, ...]] = {
        "resid_lambdas.weight": (_just(layers),),
        "x0_lambdas.weight": (_just(layers),),
        "bigram_lambdas.weight": (_just(layers),),
        "smear_gate.weight": (_just(1), some),
        "smear_lambda.weight": (_just(1),),
        "backout_lambda.weight": (_just(1),),
        "bigram_embed.embed.weight": (range(2, 2**31), _just(width)),
    }
    if heads and keys and width % heads == 0:  # else the settings are refused later, by name
        dim = width // heads
        for i in range(layers):
            at = f"transformer.h.{i}.attn"
            wanted[f"{at}.c_q.weight"] = (_just(width), _just(width))
            wanted[f"{at}.c_k.weight"] = (_just(keys * dim), _just(width))
            wanted[f"{at}.c_v.weight"] = (_just(keys * dim), _just(width))
            wanted[f"{at}.ve_gate.weight"] = (_just(keys), some)
            wanted[f"value_embeds.{i}.weight"] = (_just(rows), _just(keys * dim))
    wrong = []
    for name, shape in wanted.items():
        ref = tensors.get(name)
        if not isinstance(ref, TensorRef) or (shape == (_just(1),) and ref.numel == 1):
            continue
        if len(ref.shape) != len(shape) or not all(map(range.__contains__, shape, ref.shape)):
            wrong.append(f"{name} is {shape_text(ref.shape)}")
    pairs = [("smear_gate.weight", "smear_lambda.weight")]
    pairs += [("bigram_embed.embed.weight", "bigram_lambdas.weight")]
    pairs += [
        (f"value_embeds.{i}.weight", f"transformer.h.{i}.attn.ve_gate.weight")
        for i in range(layers)
    ]
    for one, other in pairs:
        if (one in tensors) != (other in tensors):
            wrong.append(f"there is no {other if one in tensors else one}")
    if wrong:
        raise CheckpointError(
            "the tensors do not fit the model's settings",
            listed(wrong[:4]),
            "If a setting is wrong, give the right one with --config name=value",
        )


def _just(size: int) -> range:
    return range(size, size + 1)
