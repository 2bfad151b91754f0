"""Time to the first token late in a chat, and after switching back to a checkpoint.

python benchmarks/turns.py [--smoke] [--threads N] [--only NAME] [--rounds N] [--keep]

Driven through the worker as the app drives it, on files with random weights. Ten turns are made,
until 1,500 tokens of history stand in the cache; then 30 new tokens are answered, each time other
ones. "switched back": another checkpoint is opened in the lane, then the first one again; the time
counts from the wish to open it. "all anew" reads as many tokens that the lane has not seen, as a
program without a cache would at every turn. The three take turns, medians are shown.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import SHAPES, Shape, arguments, in_turn, keep, machine, median, random_weights, save
from driven import Driver, driver

TURNS = 9  # before the one that is measured
NEW, REPLY = 30, 16  # tokens
HISTORY = 1500  # tokens


class Chat:
    """A lane with its history, and the three ways to answer in it."""

    def __init__(
        self, engine: Driver, path: str, other: str, dtype: str, size: int, history: int
    ) -> None:
        self.engine, self.path, self.other, self.dtype = engine, path, other, dtype
        self.size = size  # of the vocabulary
        self._number = 0
        engine.load("chat", path, dtype)
        engine.load("anew", path, dtype)
        each = history // TURNS - REPLY
        self.history: list[int] = []
        for _ in range(TURNS):
            prompt = self.history + self.fresh(each)
            (made,) = engine.ask(["chat"], [prompt], REPLY)
            self.history = prompt + made.ids
        self.reused: set[int] = set()

    def fresh(self, count: int) -> list[int]:
        """Tokens that were not there before."""
        self._number += 1
        return [(self._number * 31 + at * 7) % self.size for at in range(count)]

    def turn(self) -> float:
        (made,) = self.engine.ask(["chat"], [self.history + self.fresh(NEW)], 1)
        self.reused.add(made.reused)
        return made.first

    def anew(self) -> float:
        (made,) = self.engine.ask(["anew"], [self.fresh(len(self.history) + NEW)], 1)
        assert made.reused < 8, made.reused
        return made.first

    def switched(self) -> float:
        self.engine.load("chat", self.other, "float32")
        began = time.perf_counter()
        self.engine.send_load("chat", self.path, self.dtype)
        (made,) = self.engine.ask(["chat"], [self.history + self.fresh(NEW)], 1)
        self.reused.add(made.reused)
        return made.stamps[0] - began


def measure(
    name: str, shape: Shape, dtypes: list[str], history: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        path = save(Path(scratch) / "model.safetensors", shape, random_weights(shape))
        small = SHAPES["Llama-like 1M"]
        other = save(Path(scratch) / "other.safetensors", small, random_weights(small))
        for dtype in dtypes:
            with driver(threads) as engine:
                chat = Chat(engine, path, other, dtype, shape.spec.vocab_size, history)
                ways = {"turn": chat.turn, "switched": chat.switched, "anew": chat.anew}
                found = in_turn(ways, rounds)
                row = {
                    "shape": name,
                    "dtype": dtype,
                    "history": len(chat.history),
                    "new": NEW,
                    "reused": sorted(chat.reused),
                    **{f"{way}_ms": 1e3 * median(values) for way, values in found.items()},
                    **{
                        f"{way}_times": median(
                            [b / a for a, b in zip(found[way], found["anew"], strict=True)]
                        )
                        for way in ("turn", "switched")
                    },
                }
            rows.append(row)
            print(
                f"{name:16} {dtype:9} {row['history']:7} {row['anew_ms']:9.1f}"
                f" {row['turn_ms']:9.1f} {row['turn_times']:5.1f}x"
                f" {row['switched_ms']:9.1f} {row['switched_times']:5.1f}x",
                flush=True,
            )
    return rows


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="shapes whose name holds this")
    args = parser.parse_args()
    where = machine(args.threads)
    print(f"{'':26} {'history':>7} {'anew ms':>9} {'turn ms':>9} {'':6} {'switched':>9}")
    names = [name for name in SHAPES if not args.only or args.only in name]
    rows = []
    for name in names[:1] if args.smoke else names:
        dtypes = ["float32"] if args.smoke else ["float32", "float16", "int8"]
        history = 400 if args.smoke else HISTORY
        shape = SHAPES[name].longer(2048)
        rounds = args.rounds or (2 if args.smoke else 5)
        rows += measure(name, shape, dtypes, history, rounds, args.threads)
    keep("turns", args, where, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
