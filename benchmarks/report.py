"""Makes docs/performance.md of the newest figures in benchmarks/results. No number is typed.

python benchmarks/report.py
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "performance.md"

INTRODUCTION = """# Performance

Made by `python benchmarks/report.py` from the figures in `benchmarks/results/`; no number here is
typed by hand. Each script of `benchmarks/` measures all its ways in turn (A B C A B C) in one run,
on the same random weights, greedily, with the same number of threads each; medians of the rounds
are shown, and ratios are medians of each round's ratio, so that what disturbs a round disturbs both
sides. What each way computes is checked beforehand: peers must give the same tokens, or the same
logprob within their precision.

"Of the limit" is what reading the weights once a token, and the keys and values so far, would take
at the read bandwidth measured in the same rounds. It is a limit for models that the processor's
caches cannot hold.

`tui-chat bench PATH` measures a file of yours on your machine.
"""

Figures = dict[str, Any]


class Target(NamedTuple):
    """A floor that was set, and what was measured: None where it was not."""

    what: str
    least: float
    measured: float | None
    percent: bool = False

    def row(self) -> list[str]:
        def said(value: float) -> str:
            return f"{value:.1%}" if self.percent else f"{value:.2f} x"

        if self.measured is None:
            return [self.what, said(self.least), "not measured", ""]
        met = "met" if self.measured >= self.least else "missed"
        return [self.what, said(self.least), said(self.measured), met]


def newest(benchmark: str) -> dict[str, Figures]:
    """Kind of machine and threads -> the newest figures of a benchmark."""
    found: dict[str, Figures] = {}
    for path in sorted(RESULTS.glob(f"*-{benchmark}*.json")):
        kind = path.stem.split(f"-{benchmark}", 1)[1].removeprefix("-")
        found[kind] = json.loads(path.read_text("utf-8"))
    return found


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def where(machine: Figures) -> str:
    """The machine, in a line."""
    about = [machine["date"], machine.get("gpu") or machine["processor"]]
    about += [f"{machine['cores']} cores", f"{machine['threads']} threads of each way"]
    end = machine.get("load_at_the_end")
    about.append(f"load {machine['load']}" + ("" if end is None else f" to {end}"))
    about += [
        f"{name} {machine[name]}"
        for name in ("torch", "transformers", "xllamacpp")
        if name in machine
    ]
    return ", ".join(map(str, about)).replace("1 threads", "1 thread") + ".\n"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def clock(figures: Figures) -> str:
    """By which clock programs are compared: CPU time where others used the processor meanwhile."""
    machine = figures["machine"]
    busy = max(machine["load"], machine["load_at_the_end"] - machine["threads"]) > 1.0
    return "cpu" if busy else "wall"


# ---- pages of each benchmark


def decode(figures: Figures) -> Iterator[str]:
    yield where(figures["machine"])
    if clock(figures) == "cpu":
        yield "The machine was busy: ratios and shares are those of CPU time.\n"
    width = "bandwidth" if clock(figures) == "wall" else "bandwidth_cpu"
    for row in figures["rows"]:
        yield (
            f"{row['shape']}, {row['parameters'] / 1e6:.1f}M parameters, prompt {row['prompt']}, "
            f"memory {row[width] / 1e9:.1f} GB/s:\n"
        )
        lines = []
        for way, tokens in row["tokens_per_second"].items():
            ratio = row["ratios"][clock(figures)].get(way.removeprefix("tui-chat "), {})
            share = ratio.get("share_of_limit")
            lines.append(
                [
                    way,
                    rate(tokens),
                    f"{row['token_cpu_ms'][way]:,.2f}",
                    "" if share is None else f"{share:.0%}",
                    times(ratio.get("times_transformers")),
                    times(ratio.get("times_llama_cpp")),
                    f"{row['first_token_ms'][way]:,.1f}",
                ]
            )
        head = (
            "", "tokens/s", "CPU ms a token", "of the limit", "x transformers", "x llama.cpp",
            "first token, ms",
        )  # fmt: skip
        yield table(head, lines)
    for row in figures["machine"].get("agreement", []):
        yield (
            f"Precision: on {row['tokens']:,} tokens of text, the likeliest next token of "
            f"{row['checkpoint']} is that of float32 in {row['float16']:.2%} of the places with "
            f"float16 and in {row['int8']:.2%} with int8.\n"
        )


def turns(figures: Figures) -> Iterator[str]:
    yield where(figures["machine"])
    yield table(
        (
            "",
            "tokens before",
            "all anew, ms",
            "turn 10, ms",
            "faster",
            "switched back, ms",
            "faster",
        ),
        [
            [
                f"{row['shape']} {row['dtype']}",
                f"{row['history']:,}",
                f"{row['anew_ms']:,.1f}",
                f"{row['turn_ms']:,.1f}",
                f"{row['turn_times']:.1f} x",
                f"{row['switched_ms']:,.1f}",
                f"{row['switched_times']:.1f} x",
            ]
            for row in figures["rows"]
        ],
    )


def lanes(figures: Figures) -> Iterator[str]:
    yield where(figures["machine"])
    streams = ("same 2", "same 4", "same 8")
    yield table(
        ("", "one reply, tokens/s", "two checkpoints", *(f"{n[5:]} of one" for n in streams)),
        [
            [
                f"{row['shape']} {row['dtype']}",
                rate(row["tokens_per_second"]["one"]),
                *(f"{row['times_one'][way]:.2f} x" for way in ("different", *streams)),
            ]
            for row in figures["rows"]
        ],
    )


def gpu(figures: Figures) -> Iterator[str]:
    yield where(figures["machine"])
    for row in figures["rows"]:
        yield (
            f"{row['shape']}, {row['parameters'] / 1e6:,.0f}M parameters, prompt {row['prompt']}, "
            f"a copy reaches {row['bandwidth'] / 1e9:,.0f} GB/s:\n"
        )
        yield table(
            ("", "tokens/s", "of the limit", "first token, ms", "warming up, s"),
            [
                [
                    way,
                    rate(tokens),
                    f"{row['share_of_limit'][way]:.0%}",
                    f"{row['first_token_ms'][way]:.1f}",
                    f"{row['warming_seconds'][way]:.1f}",
                ]
                for way, tokens in row["tokens_per_second"].items()
            ],
        )


def loading(figures: Figures) -> Iterator[str]:
    machine = figures["machine"]
    yield ", ".join(f"{name} {value}" for name, value in machine.items()) + ".\n"
    for name, ways in figures["results"].items():
        yield f"{name}:\n"
        floor = ways["floor"]
        yield table(
            ("", "ms", "x reading the bytes", "peak MB", "x the weights"),
            [
                [
                    way,
                    f"{row['seconds'] * 1e3:,.0f}",
                    f"{row['seconds'] / floor['seconds']:.2f}",
                    f"{row['peak'] / 1e6:,.0f}",
                    f"{row['peak'] / row['stays']:.2f}",
                ]
                for way, row in ways.items()
            ],
        )


SECTIONS = (
    ("decode", "Decoding", decode),
    ("turns", "First token late in a chat", turns),
    ("lanes", "Several replies at once", lanes),
    ("gpu", "On a GPU", gpu),
    ("loading", "Loading", loading),
)


# ---- the floors that were set

GPT2, SMALL, TINY = "GPT-2 124M", "GPT-like 26M", "GPT-like 1M"
DECODE = (  # what, at least, shape, prompt, precision, which ratio
    ("decode x transformers", 1.2, GPT2, 32, "float32", "times_transformers"),
    ("decode x llama.cpp F32", 1.1, GPT2, 32, "float32", "times_llama_cpp"),
    ("of the memory's limit", 0.85, GPT2, 32, "float32", "share_of_limit"),
    ("decode x llama.cpp F16", 1.0, GPT2, 32, "float16", "times_llama_cpp"),
    ("of the memory's limit", 0.7, GPT2, 32, "float16", "share_of_limit"),
    ("decode x llama.cpp Q8_0", 1.15, GPT2, 32, "int8", "times_llama_cpp"),
    ("of the memory's limit", 0.6, GPT2, 32, "int8", "share_of_limit"),
    ("decode x transformers", 1.1, SMALL, 32, "float32", "times_transformers"),
    ("decode x llama.cpp F32", 1.0, SMALL, 32, "float32", "times_llama_cpp"),
    ("decode x llama.cpp Q8_0", 1.0, SMALL, 32, "int8", "times_llama_cpp"),
    ("decode x transformers", 5.0, TINY, 32, "float32", "times_transformers"),
    ("decode x llama.cpp F32", 0.67, TINY, 32, "float32", "times_llama_cpp"),
    ("decode x without a cache", 15.0, GPT2, 512, "float32", "times_without_a_cache"),
    ("first token x transformers", 1.0, GPT2, 512, "float32", "first_times_transformers"),
    ("first token x llama.cpp F32", 3.0, GPT2, 512, "float32", "first_times_llama_cpp"),
    ("first token x llama.cpp Q8_0", 5.0, GPT2, 512, "int8", "first_times_llama_cpp"),
)


def targets() -> list[Target]:
    """What was aimed for on one CPU thread, beside what the newest figures say."""
    found: list[Target] = []
    ratio = _ratios("decode")
    for what, least, shape, prompt, precision, key in DECODE:
        value = ratio.get((shape, prompt, precision), {}).get(key)
        title = f"{shape} {precision}, prompt {prompt}: {what}"
        found.append(Target(title, least, value, key == "share_of_limit"))
    agreed = [row for one in _one_thread("decode") for row in one["machine"].get("agreement", [])]
    found.append(
        Target("int8: the same likeliest token", 0.99, agreed[0]["int8"] if agreed else None, True)
    )
    for dtype, least in (("float32", 20.0), ("float16", 25.0), ("int8", 25.0)):
        value = _of("turns", "GPT-2 124M", dtype, "turn_times")
        found.append(Target(f"124M {dtype}: turn 10 x reading all anew", least, value))
    value = _of("turns", "GPT-2 124M", "float32", "switched_times")
    found.append(Target("124M float32: switching back x reading all anew", 20.0, value))
    for what, least, way in (
        ("two checkpoints at once x one", 0.95, "different"),
        ("two replies of one checkpoint x one", 1.8, "same 2"),
        ("eight replies of one checkpoint x one", 3.0, "same 8"),
    ):
        all_times = _of("lanes", "GPT-2 124M", "float32", "times_one")
        found.append(Target(f"124M float32: {what}", least, (all_times or {}).get(way)))
    return found


def _one_thread(benchmark: str) -> list[Figures]:
    """The newest figures of one CPU thread, if there are any."""
    found = [one for kind, one in newest(benchmark).items() if kind.startswith("cpu-1-of")]
    return sorted(found, key=lambda one: one["machine"]["date"])[-1:]


def _ratios(benchmark: str) -> dict[tuple[str, int, str], Figures]:
    return {
        (row["shape"], row["prompt"], precision): ratio
        for one in _one_thread(benchmark)
        for row in one["rows"]
        for precision, ratio in row["ratios"][clock(one)].items()
    }


def _of(benchmark: str, shape: str, dtype: str, key: str) -> Any:
    for one in _one_thread(benchmark):
        for row in one["rows"]:
            if (row["shape"], row["dtype"]) == (shape, dtype):
                return row[key]
    return None


def page() -> str:
    parts = [INTRODUCTION, "## Targets, one CPU thread\n"]
    parts.append(table(("", "at least", "measured", ""), [one.row() for one in targets()]))
    for benchmark, title, section in SECTIONS:
        parts.append(f"## {title}\n")
        found = newest(benchmark)
        if not found:
            parts.append(f"Not measured: `python benchmarks/{benchmark}.py` does.\n")
        for kind, figures in found.items():
            parts.append(f"`{benchmark}.py`{f', {kind}' if kind else ''}: ")
            parts[-1] += "\n".join(section(figures))
    return "\n".join(parts)


def main() -> int:
    PAGE.write_text(page(), "utf-8")
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
