"""Tokens per second and time to the first token, beside what the memory allows and beside others.

python benchmarks/decode.py [--smoke] [--threads N] [--only NAME] [--prompt N] [--rounds N] [--keep]

Random weights in the shapes people train; batch 1, greedy. All ways take turns (A B C A B C) and
have the same weights, which is checked before; each round reads the prompt anew and writes on.
Medians of the rounds are shown, ratios by the clock on the wall and by CPU time, which neighbours
disturb less. "limit" is what reading the weights once a token, and the keys and
values so far, would take at the read bandwidth that is measured in every round. Peers (peers.py)
are measured where they are installed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import peers
from common import (
    ROOT,
    SHAPES,
    Shape,
    Weights,
    arguments,
    bandwidth,
    built,
    bytes_read,
    cache_bytes,
    free,
    keep,
    machine,
    median,
    random_weights,
    torch,
)
from peers import Round, Way

from tui_chat.engine.generate import prefill

PRECISIONS = ("float32", "float16", "int8")
AGAINST = {"float32": "llama.cpp F32", "float16": "llama.cpp F16", "int8": "llama.cpp Q8_0"}
Widths = dict[str, list[float]]  # clock -> bytes a second in each round
Times = dict[str, list[float]]  # way -> seconds in each round
UNCACHED = 2  # tokens a round: each costs as much as a prompt
LOGPROB_OFF = {"F32": 0.01, "F16": 0.02, "Q8_0": 0.2}  # most a peer may differ in the likeliest's


def tui_chat(model: Any) -> Way:
    """The engine's own reading of a prompt, in its pieces, and the decoder's step."""
    kept: dict[str, Any] = {}

    def first(prompt: Sequence[int]) -> Any:
        kept["cache"] = model.new_cache()
        return [logits for _, logits in prefill(model, kept["cache"], prompt)][-1]

    return peers.greedy(first, lambda token: model.forward((token,), kept["cache"]))


class Ways:
    """What takes turns on one shape, and the figures of each round."""

    def __init__(self, shape: Shape, folder: Path, length: int, threads: int) -> None:
        self.shape = shape
        self.weights = random_weights(shape)
        self.ways: dict[str, Way] = {}
        for precision in PRECISIONS:
            model = built(shape, self.weights, precision)
            self.ways[f"tui-chat {precision}"] = tui_chat(model)
            if precision == "float32":
                self.reference = model
        self.ways["without a cache"] = peers.uncached(shape, self.weights)
        if not peers.there("transformers"):
            module = peers.hf_model(shape, self.weights)
            self.ways["transformers"] = peers.hf(module)
            self.ways["transformers, static"] = peers.hf(module, length)
        if not peers.there("llama.cpp"):
            for kind in peers.KINDS:
                path = folder / f"{kind}.gguf"
                peers.write_gguf(path, shape, self.weights, kind)
                self.ways[f"llama.cpp {kind}"] = peers.LlamaCpp(path, threads, length)

    def check(self, prompt: list[int]) -> None:
        """That all compute the same model: the same tokens, or nearly the same logprob."""
        logprobs = self.reference.forward(prompt, self.reference.new_cache()).log_softmax(0)
        wanted = self.ways["tui-chat float32"](prompt, 4).ids
        for name, way in self.ways.items():
            if isinstance(way, peers.LlamaCpp):
                token, logprob = way.likeliest(prompt)
                off = abs(float(logprobs[token]) - logprob)
                if off > LOGPROB_OFF[name.split()[-1]]:
                    raise SystemExit(f"{name} computes another model: logprob off by {off:.3f}")
            elif "16" not in name and "int8" not in name and way(prompt, 4).ids != wanted:
                raise SystemExit(f"{name} computes another model: other tokens")

    def run(self, prompt: list[int], rounds: int, count: int) -> tuple[Any, Widths]:
        """Rounds of each way, and the bandwidth in each round by both clocks."""
        found: dict[str, list[Round]] = {name: [] for name in self.ways}
        widths: Widths = {"wall": [], "cpu": []}
        for number in range(rounds + 1):
            width = bandwidth(), bandwidth(time.process_time)
            for name, way in self.ways.items():
                made = way(prompt, UNCACHED if name == "without a cache" else count)
                if number:  # the first one warms up
                    found[name].append(made)
            if number:
                widths["wall"].append(width[0])
                widths["cpu"].append(width[1])
        return found, widths


def measure(
    name: str, shape: Shape, prompts: Sequence[int], rounds: int, count: int, threads: int
) -> list[dict[str, Any]]:
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        ways = Ways(shape, Path(scratch), max(prompts) + count + 8, threads)
        for length in prompts:
            # Ids of ordinary tokens; the end of a text is none.
            prompt = [3 + (7 * at) % (shape.spec.vocab_size - 3) for at in range(length)]
            ways.check(prompt)
            found, widths = ways.run(prompt, rounds, count)
            row = summary(ways.shape, ways.weights, found, widths, length + count // 2)
            rows.append({"shape": name, "prompt": length, "tokens": count, **row})
            show(rows[-1])
        del ways
    free()
    return rows


def summary(
    shape: Shape,
    weights: Weights,
    found: dict[str, list[Round]],
    widths: Widths,
    behind: int,
) -> dict[str, Any]:
    """Medians, and the ratios of "wall" and of "cpu" time."""
    wall_token = {name: [made.token for made in rounds] for name, rounds in found.items()}
    wall_first = {name: [made.first for made in rounds] for name, rounds in found.items()}
    cpu_token = {name: [made.token_cpu for made in rounds] for name, rounds in found.items()}
    cpu_first = {name: [made.first_cpu for made in rounds] for name, rounds in found.items()}

    def ratios(clock: str, token: Times, first: Times, precision: str) -> dict[str, float | None]:
        ours = f"tui-chat {precision}"
        need = bytes_read(shape, weights, precision) + cache_bytes(shape, behind)
        shares = [need / width / one for width, one in zip(widths[clock], token[ours], strict=True)]
        return {
            "share_of_limit": median(shares),
            "times_without_a_cache": times(token, ours, "without a cache"),
            "times_transformers": times(token, ours, "transformers"),
            "times_transformers_static": times(token, ours, "transformers, static"),
            "times_llama_cpp": times(token, ours, AGAINST[precision]),
            "first_times_transformers": times(first, ours, "transformers"),
            "first_times_llama_cpp": times(first, ours, AGAINST[precision]),
        }

    return {
        "parameters": sum(t.numel() for t in weights.values()),
        "bandwidth": median(widths["wall"]),
        "bandwidth_cpu": median(widths["cpu"]),
        "tokens_per_second": {name: 1 / median(all_) for name, all_ in wall_token.items()},
        "token_cpu_ms": {name: 1e3 * median(all_) for name, all_ in cpu_token.items()},
        "first_token_ms": {name: 1e3 * median(all_) for name, all_ in wall_first.items()},
        "first_token_cpu_ms": {name: 1e3 * median(all_) for name, all_ in cpu_first.items()},
        "ratios": {
            "wall": {one: ratios("wall", wall_token, wall_first, one) for one in PRECISIONS},
            "cpu": {one: ratios("cpu", cpu_token, cpu_first, one) for one in PRECISIONS},
        },
    }


def times(of: Times, ours: str, theirs: str) -> float | None:
    """The median of the ratios of each round: what disturbs a round disturbs both sides."""
    if theirs not in of:
        return None
    return median([b / a for a, b in zip(of[ours], of[theirs], strict=True)])


def show(row: dict[str, Any]) -> None:
    print(
        f"\n{row['shape']}, prompt {row['prompt']}, {row['parameters'] / 1e6:.1f}M parameters, "
        f"memory {row['bandwidth'] / 1e9:.1f} GB/s, by CPU time {row['bandwidth_cpu'] / 1e9:.1f}"
    )
    print(f"{'':58} x transformers   x llama.cpp")
    print(
        f"{'':22} {'first ms':>9} {'tok/s':>9} {'of limit (CPU)':>15}"
        f" {'wall':>6} {'CPU':>6} {'wall':>6} {'CPU':>6}  CPU ms a token"
    )
    for name, rate in row["tokens_per_second"].items():
        line = f"{name:22} {row['first_token_ms'][name]:9.1f} {rate:9.1f}"
        ours = name.startswith("tui-chat")
        wall, cpu = (
            row["ratios"][clock][name.split()[1]] if ours else {} for clock in ("wall", "cpu")
        )
        if ours:
            by_cpu = f"({cpu['share_of_limit']:.0%})"
            line += f" {wall['share_of_limit']:8.0%} {by_cpu:>6}"
        else:
            line += " " * 16
        for key in ("times_transformers", "times_llama_cpp"):
            for clock in (wall, cpu):
                ratio = clock.get(key)
                line += f" {'' if ratio is None else f'{ratio:.2f}':>6}"
        print(f"{line}  {row['token_cpu_ms'][name]:9.2f}", flush=True)


def agreement(path: Path, text: str) -> dict[str, Any]:
    """In how many places of a text the likeliest next token is that of float32."""
    import tui_chat as package

    best: dict[str, Any] = {}
    for precision in PRECISIONS:
        checkpoint = package.open(str(path), dtype=precision, device="cpu")
        ids = checkpoint.encode(text)
        model, room = checkpoint.loaded.model, checkpoint.loaded.context_length
        rows = [
            model.forward_all(ids[at : at + room], model.new_cache()).argmax(-1)
            for at in range(0, len(ids), room)
        ]
        best[precision] = torch.cat(rows)
    row: dict[str, Any] = {"checkpoint": path.name, "tokens": len(best["float32"])}
    for precision in PRECISIONS[1:]:
        row[precision] = float((best[precision] == best["float32"]).float().mean())
    return row


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="shapes whose name holds this")
    parser.add_argument("--prompt", type=int, action="append", help="its length (32 and 512)")
    parser.add_argument("--text", type=Path, help="to compare precisions on (a play)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    where = machine(args.threads, **peers.versions())
    for name in peers.NEEDS:
        if why := peers.there(name):
            print(why)
    names = [name for name in SHAPES if not args.only or args.only in name]
    prompts = args.prompt or ([32] if args.smoke else [32, 512])
    rows = []
    for name in names[:1] if args.smoke else names:
        count = 64 if "1M" in name.split() else 32
        rounds = args.rounds or (2 if args.smoke else 5)
        rows += measure(name, SHAPES[name], prompts, rounds, count, args.threads)
    play = args.text or ROOT / "tui_chat" / "engine" / "passages" / "play.txt"
    text = play.read_text("utf-8") if play.exists() else (ROOT / "README.md").read_text("utf-8")
    agreed = [agreement(ROOT / "checkpoints" / "demo-base", text)]
    torch.set_num_threads(args.threads)
    for row in agreed:
        print(
            f"\n{row['checkpoint']}, {row['tokens']} tokens of text: the likeliest token is that "
            f"of float32 in {row['float16']:.2%} with float16, {row['int8']:.2%} with int8"
        )
    keep("decode", args, {**where, "agreement": agreed}, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
