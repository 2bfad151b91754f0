"""Where a knob's value lies on a slider, and back. Pure numbers; knows no widget."""

from __future__ import annotations

import math

from tui_chat.sampling import Knob

# What a slider spans where the whole range of the knob would be useless; other values are typed.
_SPANS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 2.0),
    "min_p": (0.0, 0.5),
    "repetition_penalty": (1.0, 2.0),
    "max_new_tokens": (1.0, 4096.0),
}
TRACK, THUMB = "─", "●"


def has_slider(knob: Knob) -> bool:
    return knob.kind in ("float", "int")


def fraction_of(knob: Knob, value: object) -> float:
    """How far right the value lies, 0 to 1."""
    number = float(value)  # type: ignore[arg-type]
    if knob.ladder:
        below = sum(1 for stop in knob.ladder if stop <= number) - 1
        return max(0, below) / (len(knob.ladder) - 1)
    low, high = _span(knob)
    number = max(low, min(high, number))
    if knob.kind == "int":
        return math.log(number / low) / math.log(high / low)
    return (number - low) / (high - low)


def value_at(knob: Knob, fraction: float) -> object:
    """The value of a place on the slider, on the knob's steps."""
    fraction = max(0.0, min(1.0, fraction))
    if knob.ladder:
        return knob.checked(knob.ladder[round(fraction * (len(knob.ladder) - 1))])
    low, high = _span(knob)
    if knob.kind == "int":
        number = low * (high / low) ** fraction
        return knob.checked(int(max(knob.step, round(number / knob.step) * knob.step)))
    number = low + fraction * (high - low)
    return knob.checked(round(round(number / knob.step) * knob.step, 6))


def draw(knob: Knob, value: object, width: int) -> tuple[str, str, str]:
    """Track before the thumb, thumb, track after it: `width` cells together."""
    if width < 3:
        return "", "", " " * max(0, width)
    at = round(fraction_of(knob, value) * (width - 1))
    return TRACK * at, THUMB, TRACK * (width - 1 - at)


def _span(knob: Knob) -> tuple[float, float]:
    low, high = _SPANS.get(knob.name, (knob.low, knob.high))
    return (max(low, 1.0) if knob.kind == "int" else low), high
