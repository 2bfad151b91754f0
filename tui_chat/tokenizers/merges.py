"""From the pieces and scores of a SentencePiece model to the merges of a byte-pair tokenizer."""

from __future__ import annotations

import math
from collections.abc import Mapping


def merges_of(scores: Mapping[str, float], ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that joins to a piece, the highest score first.

    `scores` are those of the pieces that may be joined; `ids` breaks ties. SentencePiece joins the
    neighbours whose whole scores highest, so this order gives what it gives.
    """
    found: list[tuple[float, int, int, str, str]] = []
    for piece, score in scores.items():
        if math.isnan(score):
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in scores and right in scores:
                found.append((-score, ids[left], ids[right], left, right))
    found.sort()
    return [(left, right) for *_, left, right in found]
