"""Several replies at once beside one alone: of different checkpoints, and of one.

python benchmarks/lanes.py [--smoke] [--threads N] [--only NAME] [--rounds N] [--keep]

"different" has two lanes with a file each, "same" 2, 4 or 8 lanes of one file; both are driven
through the worker as the app drives it, all replies at once, and count the tokens of all while all
are being written. "step" is the decoder's step for so many sequences, without the worker. All take
turns with one reply alone, and the ratios to it in each round are shown as medians.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import (
    SHAPES,
    Shape,
    arguments,
    built,
    free,
    in_turn,
    keep,
    machine,
    median,
    random_weights,
    save,
    timed,
    torch,
)
from driven import driver, total_rate

STREAMS = (2, 4, 8)
PROMPT = 64  # tokens


def through_the_worker(
    shape: Shape, files: list[str], dtype: str, rounds: int, count: int, threads: int
) -> dict[str, list[float]]:
    """Tokens a second in each round: one, different, and each number of the same."""
    size = shape.spec.vocab_size

    def prompts(number: int) -> list[list[int]]:
        return [[(lane * 131 + at * 7) % size for at in range(PROMPT)] for lane in range(number)]

    with driver(threads) as engine:
        lanes = [f"same {at}" for at in range(max(STREAMS))]
        for lane in lanes:
            engine.load(lane, files[0], dtype)
        engine.load("other", files[1], dtype)
        ways: dict[str, Callable[[], float]] = {
            "one": lambda: total_rate(engine.ask(lanes[:1], prompts(1), count)),
            "different": lambda: total_rate(engine.ask([lanes[0], "other"], prompts(2), count)),
        }
        for number in STREAMS:
            ways[f"same {number}"] = lambda number=number: total_rate(
                engine.ask(lanes[:number], prompts(number), count)
            )
        return in_turn(ways, rounds)


def step_alone(shape: Shape, dtype: str, rounds: int, count: int) -> dict[str, list[float]]:
    """Tokens a second of the decoder for 1, 2, 4 and 8 sequences in each round."""
    model: Any = built(shape, random_weights(shape), dtype)

    def way(number: int) -> Callable[[], float]:
        def run() -> float:
            caches = [model.new_cache() for _ in range(number)]
            for at, cache in enumerate(caches):
                model.forward([at + 7 * i for i in range(PROMPT)], cache)
            ids = list(range(number))

            def steps() -> None:
                nonlocal ids
                for _ in range(count):
                    if number == 1:
                        ids = [int(model.forward(ids, caches[0]).argmax())]
                    else:
                        ids = model.forward_each(ids, caches).argmax(-1).tolist()

            return number * count / timed(steps)

        return run

    with torch.inference_mode():
        return in_turn({f"step {n}": way(n) for n in (1, *STREAMS)}, rounds)


def measure(
    name: str, shape: Shape, dtypes: list[str], rounds: int, threads: int
) -> list[dict[str, Any]]:
    rows = []
    count = 900 if "1M" in name.split() else 32  # long enough for lanes that take turns of 8 ms
    with tempfile.TemporaryDirectory() as scratch:
        weights = random_weights(shape)
        files = [save(Path(scratch) / f"{at}.safetensors", shape, weights) for at in range(2)]
        del weights
        for dtype in dtypes:
            found = through_the_worker(shape, files, dtype, rounds, count, threads)
            found |= step_alone(shape, dtype, rounds, count)
            free()
            row = {
                "shape": name,
                "dtype": dtype,
                "tokens_per_second": {way: median(values) for way, values in found.items()},
                "times_one": {
                    way: median([a / b for a, b in zip(found[way], found[alone], strict=True)])
                    for way in found
                    if way not in ("one", "step 1")
                    for alone in ["step 1" if way.startswith("step") else "one"]
                },
            }
            rows.append(row)
            show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    rates, times = row["tokens_per_second"], row["times_one"]
    print(
        f"{row['shape']:16} {row['dtype']:9} {rates['one']:8.1f} {times['different']:9.2f}x "
        + "".join(f" {times[f'same {n}']:6.2f}x" for n in STREAMS)
        + f"  {rates['step 1']:8.1f}"
        + "".join(f" {times[f'step {n}']:6.2f}x" for n in STREAMS),
        flush=True,
    )


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="shapes whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = machine(args.threads)
    print(
        f"{'':26} {'one':>8} {'different':>10} {'same 2':>8}{'4':>8}{'8':>8}"
        f"  {'step 1':>8}{'2':>8}{'4':>8}{'8':>8}"
    )
    names = [name for name in SHAPES if not args.only or args.only in name]
    rows = []
    for name in names[:1] if args.smoke else names:
        dtypes = ["float32"] if args.smoke else ["float32", "float16", "int8"]
        rounds = args.rounds or (1 if args.smoke else 5)
        rows += measure(name, SHAPES[name], dtypes, rounds, args.threads)
    keep("lanes", args, where, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
