"""What was aimed for, beside what the newest figures say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from figures import Figures, clock, newest, one_thread

GPT2, SMALL, TINY = "GPT-2 124M", "GPT-like 26M", "GPT-like 1M"


class Target(NamedTuple):
    """A bound that was set, and what was measured: None where it was not."""

    what: str
    bound: float
    measured: float | None
    unit: str = "x"  # x, % (of 1), ms
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        met = self.measured <= self.bound if self.at_most else self.measured >= self.bound
        return "met" if met else "missed"

    def row(self) -> list[str]:
        bound = f"{'at most' if self.at_most else 'at least'} {self._said(self.bound)}"
        measured = "" if self.measured is None else self._said(self.measured)
        verdict = "**missed**" if self.verdict == "missed" else self.verdict
        return [self.what, measured, bound, verdict]

    def _said(self, value: float) -> str:
        return f"{value:.1%}" if self.unit == "%" else f"{value:.2f} {self.unit}"


DECODE = (  # shape, prompt, precision, what, at least, which ratio
    (GPT2, 32, "float32", "tokens/s of transformers", 1.2, "times_transformers"),
    (GPT2, 32, "float32", "tokens/s of llama.cpp F32", 1.1, "times_llama_cpp"),
    (GPT2, 32, "float32", "of the memory's limit", 0.85, "share_of_limit"),
    (GPT2, 32, "float16", "tokens/s of llama.cpp F16", 1.0, "times_llama_cpp"),
    (GPT2, 32, "float16", "of the memory's limit", 0.7, "share_of_limit"),
    (GPT2, 32, "int8", "tokens/s of llama.cpp Q8_0", 1.15, "times_llama_cpp"),
    (GPT2, 32, "int8", "of the memory's limit", 0.6, "share_of_limit"),
    (SMALL, 32, "float32", "tokens/s of transformers", 1.1, "times_transformers"),
    (SMALL, 32, "float32", "tokens/s of llama.cpp F32", 1.0, "times_llama_cpp"),
    (SMALL, 32, "int8", "tokens/s of llama.cpp Q8_0", 1.0, "times_llama_cpp"),
    (TINY, 32, "float32", "tokens/s of transformers", 5.0, "times_transformers"),
    (TINY, 32, "float32", "tokens/s of llama.cpp F32", 0.67, "times_llama_cpp"),
    (GPT2, 512, "float32", "tokens/s of a loop without a cache", 15.0, "times_without_a_cache"),
    (GPT2, 512, "float32", "first token, sooner than transformers", 1.0,
     "first_times_transformers"),
    (GPT2, 512, "float32", "first token, sooner than llama.cpp F32", 3.0, "first_times_llama_cpp"),
    (GPT2, 512, "int8", "first token, sooner than llama.cpp Q8_0", 5.0, "first_times_llama_cpp"),
)  # fmt: skip


def targets() -> list[Target]:
    """On one CPU thread, and on a GPU where one was measured."""
    return [*_decode(), *_replies(), *_sampling(), *_screen(), *_loading(), *_gpu()]


def _row(figures: Figures | None, **wanted: object) -> Any:
    """The row with these values; an empty one where it was not measured."""
    for row in figures["rows"] if figures else ():
        if all(row.get(key) == value for key, value in wanted.items()):
            return row
    return {}


def _decode() -> Iterator[Target]:
    figures = one_thread("decode")
    for shape, prompt, precision, what, least, key in DECODE:
        row = _row(figures, shape=shape, prompt=prompt)
        ratios = row["ratios"][clock(figures)][precision] if figures and row else {}
        unit = "%" if key == "share_of_limit" else "x"
        yield Target(f"{shape} {precision}, prompt {prompt}: {what}", least, ratios.get(key), unit)
    agreed = (figures or {}).get("machine", {}).get("agreement") or [{}]
    yield Target("int8 on text: the likeliest token is float32's", 0.99, agreed[0].get("int8"), "%")


def _replies() -> Iterator[Target]:
    turns, lanes = one_thread("turns"), one_thread("lanes")
    for dtype, least in (("float32", 20.0), ("float16", 25.0), ("int8", 25.0)):
        value = _row(turns, shape=GPT2, dtype=dtype).get("turn_times")
        yield Target(
            f"{GPT2} {dtype}: first token of turn 10, sooner than by reading all anew", least, value
        )
    value = _row(turns, shape=GPT2, dtype="float32").get("switched_times")
    yield Target(f"{GPT2} float32: the same after switching back to it", 20.0, value)
    row = _row(lanes, shape=GPT2, dtype="float32").get("times_one", {})
    for what, least, way in (
        ("two checkpoints at once", 0.95, "different"),
        ("two replies of one checkpoint", 1.8, "same 2"),
        ("eight replies of one checkpoint", 3.0, "same 8"),
    ):
        yield Target(f"{GPT2} float32, {what}: tokens/s of one", least, row.get(way))


def _sampling() -> Iterator[Target]:
    figures = one_thread("sampling")
    row = _row(figures, vocab_size=50_257, logits="peaked", knobs="top-k, top-p, min-p")
    name, by = "temperature, top-k, top-p, min-p of 50,257 tokens", "cpu"
    if figures and row:
        by = clock(figures)
    spent = row.get("cpu_microseconds" if by == "cpu" else "microseconds", {}).get("tui-chat")
    ratios = row.get("ratios", {}).get(by, {})
    yield Target(name, 0.5, None if spent is None else spent / 1e3, "ms", at_most=True)
    yield Target(f"{name}: cheaper than transformers", 10.0, ratios.get("transformers"))
    yield Target(f"{name}: cheaper than the usual way", 12.0, ratios.get("usual"))


def _screen() -> Iterator[Target]:
    figures = one_thread("ui")
    idle = _row(figures, writes="nobody").get("tick_late_ms", {}).get("p99")
    for shape in (TINY, GPT2):
        row = _row(figures, writes=shape)
        late, echo = row.get("tick_late_ms", {}).get("p99"), row.get("echo_ms", {}).get("p99")
        beyond = None if late is None or idle is None else late - idle
        yield Target(f"key echo while {shape} decodes, p99", 33.0, echo, "ms", at_most=True)
        yield Target(
            f"tick of the screen while {shape} decodes, p99: later than in an idle app",
            2.0, beyond, "ms", at_most=True,
        )  # fmt: skip


def _loading() -> Iterator[Target]:
    name = "124M with optimizer"
    ways = _row(one_thread("loading"), file=name).get("ways", {})
    ours, floor, naive = (ways.get(way) for way in ("open", "floor", "naive"))
    there = ours and floor and naive
    yield Target(
        f"loading {name}: time of reading its bytes", 1.5,
        ours["seconds"] / floor["seconds"] if there else None, at_most=True,
    )  # fmt: skip
    yield Target(
        f"loading {name}: faster than building and copying", 4.0,
        naive["seconds"] / ours["seconds"] if there else None,
    )  # fmt: skip
    yield Target(
        f"loading {name}: peak memory, times the weights", 1.15,
        ours["peak"] / ours["stays"] if there else None, at_most=True,
    )  # fmt: skip


def _gpu() -> Iterator[Target]:
    figures = next(iter(newest("gpu").values()), None)
    name, eager = "tui-chat engine", "transformers, eager"
    for shape, least in (("124M", 5.0), ("7B", 2.0)):
        found = [row for row in (figures["rows"] if figures else ()) if shape in row["shape"]]
        rates = found[0]["tokens_per_second"] if found else {}
        ratio = rates[name] / rates[eager] if eager in rates else None
        yield Target(f"GPU, {shape} bfloat16: tokens/s of transformers", least, ratio)
        if shape == "7B":
            part = found[0]["share_of_limit"][name] if found else None
            yield Target(f"GPU, {shape} bfloat16: of the limit of its memory", 0.85, part, "%")
        else:
            first = found[0]["first_token_ms"][name] if found else None
            yield Target(f"GPU, {shape} bfloat16: first token", 30.0, first, "ms", at_most=True)
