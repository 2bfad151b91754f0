"""Tokens proposed beforehand and checked several at a time, beside one after the other.

python benchmarks/speculation.py [--smoke] [--threads N] [--only NAME] [--rounds N] [--keep]

Models have random weights, so what a reply says is given: the sampler draws as ever and then takes
the token it was told. "copying" says the prompt again with one token in 40 changed; "ordinary" goes
on in a page of this program's documentation; "random" draws from 20 tokens, so that nearly every
ending has stood there before and nothing follows from it. "lookup" proposes from the text so far.
"draft 1M" is a model of that size that is right 7 times in 10. Plain and drafted replies take
turns; the ratios within each round are shown as medians.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    ROOT,
    SHAPES,
    Shape,
    arguments,
    free,
    gpt,
    in_turn,
    keep,
    machine,
    median,
    random_weights,
    save,
    timed,
    torch,
)

import tui_chat
from tui_chat.engine import speculate
from tui_chat.engine.engine import Lane
from tui_chat.engine.events import LoadOptions
from tui_chat.engine.load import LoadedCheckpoint, load_checkpoint
from tui_chat.engine.speculate import Speculation
from tui_chat.sampler import Choice, Sampler
from tui_chat.sampling import SamplingParams

PROMPT = 400  # tokens
RIGHT = 0.7  # of what the draft proposes


class Told(Sampler):
    """Draws, and takes what it is told instead; a draft that uses its dice is told the same with
    the chance `right`.
    """

    def __init__(self, text: Sequence[int], seed: int, right: float = 1.0) -> None:
        super().__init__(SamplingParams(), seed)
        self._text, self._at, self._right = text, 0, right
        self._chance = random.Random(seed)

    def __call__(self, logits: Any) -> Choice:
        drawn = super().__call__(logits)
        token = self._text[self._at]
        self._at += 1
        if self._chance.random() >= self._right:
            token = (token + 1) % logits.shape[0]
        return drawn._replace(id=token)

    def ahead(self) -> Told:
        twin = Told(self._text, self._chance.randrange(2**31), RIGHT)
        twin._at, twin._scratch = self._at, self._scratch
        return twin


def texts(vocabulary: int, count: int) -> dict[str, tuple[list[int], list[int]]]:
    """Prompts and what is to be said after them."""
    encode = tui_chat.open(str(ROOT / "checkpoints/demo-base"), device="cpu").encode
    page = encode((ROOT / "docs/architecture.md").read_text())
    dice = random.Random(3)
    copied = [t if at % 40 else dice.randrange(vocabulary) for at, t in enumerate(page[:PROMPT])]
    mixed = [dice.randrange(20) for _ in range(PROMPT + count)]
    return {
        "copying": (page[:PROMPT], (copied[1:] * 2)[:count]),
        "ordinary": (page[:PROMPT], page[PROMPT : PROMPT + count]),
        "random": (mixed[:PROMPT], mixed[PROMPT:]),
    }


class Writer:
    """A lane that says what it is told. What it has learned of its drafts stays."""

    def __init__(self, checkpoint: LoadedCheckpoint, drafting: speculate.Drafting | None) -> None:
        self.lane = Lane(checkpoint)
        self.lane.drafting = drafting
        self.drafted = self.accepted = 0

    def write(self, prompt: list[int], text: list[int]) -> float:
        """Tokens a second."""
        lane = self.lane
        lane.drop_cache()
        first = lane.offered(lane.checkpoint.model.forward(prompt, lane.cache))
        speculation, sampler, context = Speculation(lane), Told(text, 1), list(prompt)

        def run() -> None:
            logits = first
            for left in range(len(text) - 1, -1, -1):
                context.append(sampler(lane.offered(logits)).id)
                logits = speculation.after(context, sampler, left)

        taken = timed(run)
        speculation.close(context)
        self.drafted += speculation.drafted
        self.accepted += speculation.accepted
        return len(text) / taken


def measure(name: str, shape: Shape, dtype: str, rounds: int, count: int) -> list[dict[str, Any]]:
    rows = []
    vocabulary = shape.spec.vocab_size
    with tempfile.TemporaryDirectory() as scratch:
        small = gpt(4, 4, 128, vocabulary)
        options = LoadOptions(device="cpu", dtype=dtype, tokenizer="none")
        target, source = (
            load_checkpoint(
                save(Path(scratch) / f"{at}.safetensors", s, random_weights(s)), options
            )
            for at, s in enumerate((shape, small))
        )
    for kind, (prompt, text) in texts(vocabulary, count).items():
        writers = {
            "plain": Writer(target, None),
            "lookup": Writer(target, speculate.lookup(target)),
        }
        if kind == "ordinary" and "1M" not in name.split():
            writers["draft 1M"] = Writer(target, speculate.draft(source, target))
        ways = {way: partial(writer.write, prompt, text) for way, writer in writers.items()}
        found = in_turn(ways, rounds)
        row = {
            "shape": name,
            "dtype": dtype,
            "text": kind,
            "tokens": count,
            "tokens_per_second": {way: median(values) for way, values in found.items()},
            "times_plain": {
                way: median([a / b for a, b in zip(found[way], found["plain"], strict=True)])
                for way in found
                if way != "plain"
            },
            "accepted": {
                way: writer.accepted / writer.drafted if writer.drafted else None
                for way, writer in writers.items()
                if way != "plain"
            },
        }
        rows.append(row)
        show(row)
    return rows


def show(row: dict[str, Any]) -> None:
    plain = row["tokens_per_second"]["plain"]
    print(
        f"{row['shape']:16} {row['dtype']:9} {row['text']:9} {plain:9.1f}"
        + "".join(
            f"   {way} {times:5.2f}x"
            + ("" if (right := row["accepted"][way]) is None else f" ({right:4.0%} right)")
            for way, times in row["times_plain"].items()
        ),
        flush=True,
    )


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="shapes whose name holds this")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = machine(args.threads)
    print(f"{'':26} {'text':9} {'plain':>9}")
    names = [name for name in SHAPES if not args.only or args.only in name]
    rows = []
    for name in names[:1] if args.smoke else names:
        for dtype in ["float32"] if args.smoke else ["float32", "float16", "int8"]:
            count = 96 if args.smoke else 384
            rounds = args.rounds or (2 if args.smoke else 5)
            rows += measure(name, SHAPES[name], dtype, rounds, count)
            free()
    keep("speculation", args, where, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
