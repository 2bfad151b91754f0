"""Makes docs/performance.md of the newest figures in benchmarks/results. No number is typed.

python benchmarks/report.py
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from figures import Figures, clock, newest
from targets import Target, targets

PAGE = Path(__file__).resolve().parents[1] / "docs" / "performance.md"

INTRODUCTION = """# Performance

Made by `python benchmarks/report.py` from the figures in `benchmarks/results/`; no number here is
typed by hand. [benchmarks/](../benchmarks/README.md) says how to measure them again, and
`tui-chat bench PATH` measures a file of yours on your machine.

How it is measured: each script runs all its ways in turn (A B C A B C) in one run, on the same
random weights, with the same number of threads each. The median of the rounds is shown; a ratio is
the median of the ratios of each round, so that what disturbs a round disturbs both sides. Under
the name of a peer, "3 x" means that tui-chat is three times faster. Before anything is measured,
peers must give the same tokens, or the same logprobs within their precision. Programs that are
missing here were not measured. Absolute times are those of the machine named in each section;
ratios carry over better.
"""

DECODING = """Batch 1, greedy, by the decoder's own step; sampling and the screen come on top (see
below). float32 stands beside llama.cpp F32, float16 beside F16, int8 beside Q8_0. The limit is what
reading the weights once a token, and the keys and values so far, would allow at the read bandwidth
measured in the same rounds; models that fit into the processor's caches may pass it.
"""

SAMPLING = """Microseconds for one token, from its logits to its id. tui-chat's also gives the
logprob and counts what was let through. "Usual" is what training repositories write: temperature,
`topk`, `softmax`, `multinomial`, a full sort for top-p; where it has no such filter its column is
empty. Peaked logits fall off as a trained model's do, flat ones as an untrained one's.
"""

SCREEN = """Keys are typed from outside into the real app in a pseudo-terminal, while the engine
decodes random weights in the same process. A tick is a callback in the loop of the screen; late is
how much later than due it ran.
"""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def where(machine: Figures) -> str:
    """The machine, in a line or two."""
    about = [machine["date"], machine.get("gpu") or machine["processor"]]
    about += [f"{machine['cores']} cores", f"{machine['threads']} threads of each way"]
    end = machine.get("load_at_the_end")
    about.append(f"load {machine['load']}" + ("" if end is None else f" to {end}"))
    about += [
        f"{name} {machine[name]}"
        for name in ("torch", "transformers", "xllamacpp")
        if name in machine
    ]
    line = "Measured " + ", ".join(map(str, about)).replace("1 threads", "1 thread") + ".\n"
    if built := machine.get("llama.cpp built with"):
        line += f"llama.cpp is a wheel built with {built}; a build for this processor may differ.\n"
    return line


def busy(figures: Figures) -> str:
    return (
        "The machine was busy: times, ratios and shares are those of CPU time.\n"
        if clock(figures) == "cpu"
        else ""
    )


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def times(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} x"


# ---- pages of each benchmark


def decode(figures: Figures) -> Iterator[str]:
    yield DECODING
    yield busy(figures)
    by = clock(figures)
    width = "bandwidth" if by == "wall" else "bandwidth_cpu"
    for row in figures["rows"]:
        yield (
            f"**{row['shape']}**, {row['parameters'] / 1e6:.1f}M parameters, prompt "
            f"{row['prompt']}, {row['tokens']} tokens written, memory {row[width] / 1e9:.1f} "
            "GB/s:\n"
        )
        lines = []
        for way, tokens in row["tokens_per_second"].items():
            ratio = row["ratios"][by].get(way.removeprefix("tui-chat "), {})
            share = ratio.get("share_of_limit")
            lines.append(
                [
                    way,
                    "" if share is None else f"{share:.0%}",
                    *(
                        times(ratio.get(key))
                        for key in (
                            "times_transformers", "times_llama_cpp", "times_without_a_cache",
                        )
                    ),
                    rate(tokens if by == "wall" else 1e3 / row["token_cpu_ms"][way]),
                    times(ratio.get("first_times_transformers")),
                    times(ratio.get("first_times_llama_cpp")),
                    f"{row['first_token_ms' if by == 'wall' else 'first_token_cpu_ms'][way]:,.1f}",
                ]
            )  # fmt: skip
        head = (
            "", "of the limit", "transformers", "llama.cpp", "no cache", "tokens/s",
            "first token: transformers", "llama.cpp", "ms",
        )  # fmt: skip
        yield table(head, lines)
    for row in figures["machine"].get("agreement", []):
        yield (
            f"Precision: on {row['tokens']:,} tokens of text, the likeliest next token of "
            f"{row['checkpoint']} is that of float32 in {row['float16']:.2%} of the places with "
            f"float16 and in {row['int8']:.2%} with int8.\n"
        )


def turns(figures: Figures) -> Iterator[str]:
    yield (
        "Milliseconds to the first token of the tenth turn of a chat, through the worker: by "
        "reading all anew, with what the chat has read before, and after another checkpoint was "
        "used in its place.\n"
    )
    head = (
        "", "faster", "faster after switching back", "tokens before", "all anew, ms",
        "turn 10, ms", "switched back, ms",
    )  # fmt: skip
    yield table(
        head,
        [
            [
                f"{row['shape']} {row['dtype']}",
                times(row["turn_times"]),
                times(row["switched_times"]),
                f"{row['history']:,}",
                f"{row['anew_ms']:,.1f}",
                f"{row['turn_ms']:,.1f}",
                f"{row['switched_ms']:,.1f}",
            ]
            for row in figures["rows"]
        ],
    )


def lanes(figures: Figures) -> Iterator[str]:
    yield "Tokens/s of all replies together, as a multiple of one reply alone.\n"
    streams = ("same 2", "same 4", "same 8")
    yield table(
        ("", "two checkpoints", *(f"{n[5:]} of one" for n in streams), "one reply, tokens/s"),
        [
            [
                f"{row['shape']} {row['dtype']}",
                *(times(row["times_one"][way]) for way in ("different", *streams)),
                rate(row["tokens_per_second"]["one"]),
            ]
            for row in figures["rows"]
        ],
    )


def sampling(figures: Figures) -> Iterator[str]:
    yield SAMPLING
    yield busy(figures)
    by = clock(figures)
    spent = "microseconds" if by == "wall" else "cpu_microseconds"
    groups: dict[tuple[int, str], list[Figures]] = {}
    for row in figures["rows"]:
        groups.setdefault((row["vocab_size"], row["logits"]), []).append(row)
    ways = ("transformers", "usual")
    for (size, logits), rows in groups.items():
        yield f"**{size:,} tokens, {logits}**:\n"
        yield table(
            ("", *ways, "tui-chat, us", *(f"{way}, us" for way in ways), "let through"),
            [
                [
                    row["knobs"],
                    *(times(row["ratios"][by].get(way)) for way in ways),
                    rate(row[spent]["tui-chat"]),
                    *(rate(row[spent][way]) if way in row[spent] else "" for way in ways),
                    f"{row['kept']:,.0f}",
                ]
                for row in rows
            ],
        )


def screen(figures: Figures) -> Iterator[str]:
    if figures["rows"]:
        yield SCREEN
        head = (
            "who writes", "tokens/s", "echo p50, ms", "echo p99, ms", "tick late p50, ms",
            "tick late p99, ms",
        )  # fmt: skip
        yield table(
            head,
            [
                [
                    row["writes"],
                    rate(row["tokens_per_second"]) if row["tokens_per_second"] else "none",
                    *(f"{row['echo_ms'][part]:.1f}" for part in ("p50", "p99")),
                    *(f"{row['tick_late_ms'][part]:.2f}" for part in ("p50", "p99")),
                ]
                for row in figures["rows"]
            ],
        )
    if found := figures["machine"].get("figures"):
        yield "A small app of transcript and text field, 1,000 tokens/s from a script:\n"
        yield table(
            ("", "measured", "at most"),
            [
                [
                    one["what"],
                    f"{one['value']:.1f} {one['unit']}",
                    f"{one['at_most']:g} {one['unit']}" if one["at_most"] else "",
                ]
                for one in found
            ],
        )


def gpu(figures: Figures) -> Iterator[str]:
    for row in figures["rows"]:
        yield (
            f"**{row['shape']}**, {row['parameters'] / 1e6:,.0f}M parameters, prompt "
            f"{row['prompt']}, a copy reaches {row['bandwidth'] / 1e9:,.0f} GB/s:\n"
        )
        yield table(
            ("", "of the limit", "tokens/s", "first token, ms", "warming up, s"),
            [
                [
                    way,
                    f"{row['share_of_limit'][way]:.0%}",
                    rate(tokens),
                    f"{row['first_token_ms'][way]:.1f}",
                    f"{row['warming_seconds'][way]:.1f}",
                ]
                for way, tokens in row["tokens_per_second"].items()
            ],
        )


def loading(figures: Figures) -> Iterator[str]:
    yield (
        f"In {figures['machine']['dtype']}; the best of the rounds, each in a process of its own, "
        'files in the page cache. "floor" reads the bytes of the weights to fresh memory with a '
        'checksum; "open" is all that tui-chat does; "naive" builds the module, then `torch.load` '
        "and `load_state_dict`.\n"
    )
    for row in figures["rows"]:
        floor = row["ways"]["floor"]
        yield f"**{row['file']}**:\n"
        yield table(
            ("", "time of the floor", "peak, x the weights", "ms", "peak MB"),
            [
                [
                    way,
                    times(one["seconds"] / floor["seconds"]),
                    times(one["peak"] / one["stays"]),
                    f"{one['seconds'] * 1e3:,.0f}",
                    f"{one['peak'] / 1e6:,.0f}",
                ]
                for way, one in row["ways"].items()
            ],
        )


SECTIONS = (
    ("decode", "Decoding", decode),
    ("turns", "First token late in a chat", turns),
    ("lanes", "Several replies at once", lanes),
    ("sampling", "Sampling", sampling),
    ("ui", "The screen meanwhile", screen),
    ("gpu", "On a GPU", gpu),
    ("loading", "Loading", loading),
)


def verdicts(found: list[Target]) -> Iterator[str]:
    """How many targets are met, and which are not."""
    said = {word: [one for one in found if one.verdict == word] for word in ("met", "missed")}
    unknown = len(found) - sum(map(len, said.values()))
    line = f"Of {len(found)} targets, {len(said['met'])} are met, {len(said['missed'])} are missed"
    yield f"{line} and {unknown} are not measured. One CPU thread, unless a GPU is named.\n"
    yield table(("", "measured", "target", ""), [one.row() for one in found])


def page() -> str:
    parts = [INTRODUCTION, "## Targets\n", *verdicts(targets())]
    for benchmark, title, section in SECTIONS:
        parts.append(f"## {title}\n")
        found = newest(benchmark)
        if not found:
            parts.append(f"Not measured: `python benchmarks/{benchmark}.py` does.\n")
        for figures in found.values():
            parts.append(f"`benchmarks/{benchmark}.py`. {where(figures['machine'])}")
            parts += filter(None, section(figures))
    return "\n".join(parts)


def main() -> int:
    PAGE.write_text(page(), "utf-8")
    print(f"written to {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
