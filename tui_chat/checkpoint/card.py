"""A checkpoint on a card: what was understood of it, row by row, and how it is known.

The same words for `inspect` and for the app. Texts of the file are as they are: who draws them
makes them safe.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from tui_chat.checkpoint.architecture import architecture, shape_in_words
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.model.spec import ModelSpec

_MODES = {"chat": "chat: turns wrapped in the template", "raw": "raw: the text is continued"}


def card(info: CheckpointInfo) -> list[tuple[str, str]]:
    """Label and text of each row that has something to say."""
    spec = info.spec
    size = f"{bytes_in_words(info.size)}, {date(info.modified)}" if info.size else ""
    tokenizer = " ".join(filter(None, (info.tokenizer.kind, info.tokenizer.name)))
    if info.tokenizer.vocab_size:
        tokenizer += f", {info.tokenizer.vocab_size:,} ids"
    rows = [
        ("path", info.path),
        ("about", info.description),
        ("format", info.format),
        ("run", info.run),
        ("step", "" if info.step is None else f"{info.step:,}"),
        ("loss", losses_in_words(info.losses)),
        ("size", size),
        ("model", f"{shape_in_words(spec)} · {count(info.parameters)} parameters · {info.dtype}"),
        *architecture(info),
        ("context", f"{spec.context_length:,} tokens"),
        ("cache", cache_in_words(spec)),
        ("vocabulary", f"{spec.vocab_size:,} rows"),
        ("tokenizer", _because(tokenizer, info.tokenizer.source)),
        ("template", _because(info.template.name or "none", info.template.source)),
        ("stop ids", " ".join(map(str, info.stop_ids))),
        ("mode", _MODES[info.mode]),
        ("fingerprint", info.fingerprint),
    ]
    return [row for row in rows if row[1]]


def notes(info: CheckpointInfo) -> list[tuple[str, list[str]]]:
    """What is not plainly in the file: titles, and a sentence for each thing. Empty ones are left
    out; what someone should act on comes last."""
    found = [
        ("inferred", list(info.inferred)),
        ("defaults", list(info.defaults)),
        ("ignored", list(info.unused)),
        ("warnings", list(info.warnings)),
    ]
    return [(title, sentences) for title, sentences in found if sentences]


def cache_in_words(spec: ModelSpec) -> str:
    """What keys and values take; "" where the model keeps none."""
    if spec.family == "hipgpt":
        return ""
    each = 2 * spec.n_layer * spec.n_kv_head * spec.head_dim * 4 * 1000
    text = f"{bytes_in_words(each)} per 1,000 tokens in float32, half of it in 16 bits"
    windows = sum(0 < window < spec.context_length for window in spec.window)
    return text + (f"; {windows} layers keep only their window" if windows else "")


def _because(what: str, source: str) -> str:
    return f"{what} ({source})" if source else what


# ---- numbers for people


def count(number: int) -> str:
    """984312 -> "984k", 124439808 -> "124M": three digits."""
    size = float(number)
    for unit in ("", "k", "M", "B"):
        if size < 999.5 or unit == "B":
            return f"{size:.3g}{unit}" if size < 999.5 else f"{size:,.0f}{unit}"
        size /= 1000
    raise AssertionError


def bytes_in_words(number: int) -> str:
    """1981234 -> "1.98 MB"."""
    size = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def date(seconds: float) -> str:
    """Seconds since the epoch as local time, to the minute."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))


def losses_in_words(losses: Mapping[str, float]) -> str:
    """ "train 2.91 · val 3.05"."""
    return " · ".join(f"{name} {value:.4g}" for name, value in losses.items())
