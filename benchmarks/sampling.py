"""Microseconds to draw a token from its logits, beside transformers' processors and the usual way.

python benchmarks/sampling.py [--smoke] [--threads N] [--vocab N] [--rounds N] [--keep]

"tui-chat" is the sampler of the app: the token, its logprob and how many others it could have been.
"transformers" is its list of processors and warpers, softmax and multinomial, as its `generate`
calls them; "usual" is what training repositories write: temperature, topk, softmax, multinomial,
and a full sort for top-p. Logits are random, but as peaked as a trained language model's or as flat
as an untrained one's. All take turns (A B C A B C); medians of the rounds are shown, by CPU time
and by the clock on the wall. What they compute is checked before.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import peers
from common import arguments, keep, machine, median, torch

from tui_chat.sampler import Sampler
from tui_chat.sampling import SamplingParams, explain

PURE = SamplingParams(temperature=1.0, top_k=0)
KNOBS = {
    "greedy": PURE.with_(temperature=0.0),
    "temperature 1": PURE,
    "temperature": PURE.with_(temperature=0.8),
    "top-k": PURE.with_(temperature=0.8, top_k=50),
    "top-p": PURE.with_(temperature=0.8, top_p=0.95),
    "min-p": PURE.with_(temperature=0.8, min_p=0.05),
    "top-k, top-p, min-p": PURE.with_(temperature=0.8, top_k=50, top_p=0.95, min_p=0.05),
    "repetition, top-k, top-p, min-p": PURE.with_(
        temperature=0.8, top_k=50, top_p=0.95, min_p=0.05, repetition_penalty=1.1
    ),
}
VOCABULARIES = (256, 2048, 32_000, 50_257, 151_936)
POOL = 8  # different logits, so that no way can learn them
HISTORY = 1000  # tokens that the repetition penalty looks at
CLOCKS = {"cpu": time.process_time, "wall": time.perf_counter}
Draw = Callable[[Any], object]  # (V,) float32 -> a token


def made(kind: str, size: int) -> list[Any]:
    """POOL times (size,) logits. Peaked: probabilities fall as a power of the rank, with noise, so
    that some 50 tokens hold three quarters. Flat: what small random weights give.
    """
    source = torch.Generator().manual_seed(1)
    found = []
    for _ in range(POOL):
        noise = torch.randn(size, generator=source) * 0.5
        if kind == "flat":
            found.append(noise)
        else:
            ranks = torch.randperm(size, generator=source) + 1
            found.append(noise - 1.3 * ranks.log())
    return found


def text(size: int) -> list[int]:
    """HISTORY ids, some of them often, as in a text."""
    source = torch.Generator().manual_seed(2)
    shares = 1.0 / torch.arange(1, size + 1)
    return torch.multinomial(shares, HISTORY, True, generator=source).tolist()


# ---- the ways


def transformers_way(params: SamplingParams, history: list[int]) -> tuple[Any, Draw]:
    """Its processors for these knobs, and how its `generate` draws with them."""
    import transformers as hf

    chain = hf.LogitsProcessorList()
    if params.repetition_penalty != 1.0:
        chain.append(hf.RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature not in (0.0, 1.0):
        chain.append(hf.TemperatureLogitsWarper(params.temperature))
    if params.top_k:
        chain.append(hf.TopKLogitsWarper(params.top_k))
    if params.top_p < 1.0:
        chain.append(hf.TopPLogitsWarper(params.top_p))
    if params.min_p > 0.0:
        chain.append(hf.MinPLogitsWarper(params.min_p))
    ids = torch.tensor([history])

    def draw(logits: Any) -> object:
        scores = chain(ids, logits[None])
        if params.temperature == 0.0:
            return torch.argmax(scores, dim=-1)
        return torch.multinomial(scores.softmax(-1), num_samples=1).squeeze(1)

    return lambda logits: chain(ids, logits[None])[0], draw


def usual_scores(params: SamplingParams) -> Callable[[Any], Any] | None:
    """Temperature, topk, and a full sort for top-p. None where no training repository does it."""
    if params.repetition_penalty != 1.0 or (params.min_p > 0.0 and not params.top_k):
        return None

    def scores(logits: Any) -> Any:
        logits = logits / params.temperature
        if params.top_k:
            least = torch.topk(logits, min(params.top_k, logits.shape[-1])).values[-1]
            logits[logits < least] = -math.inf
        if params.top_p < 1.0:
            ordered, ids = torch.sort(logits, descending=True)
            reached = torch.cumsum(ordered.softmax(-1), -1) > params.top_p
            reached[1:] = reached[:-1].clone()
            reached[0] = False
            logits[ids[reached]] = -math.inf
        return logits

    return scores


def usual_way(params: SamplingParams) -> Draw | None:
    if params.temperature == 0.0:
        return lambda logits: int(logits.argmax())
    scores = usual_scores(params)
    if scores is None:
        return None
    return lambda logits: int(torch.multinomial(scores(logits).softmax(-1), 1))


def ways(params: SamplingParams, size: int) -> dict[str, Draw]:
    history = text(size)
    found: dict[str, Draw] = {"tui-chat": Sampler(params, 1, history)}
    if not peers.there("transformers"):
        found["transformers"] = transformers_way(params, history)[1]
    usual = usual_way(params)
    if usual is not None:
        found["usual"] = usual
    return found


def check(name: str, params: SamplingParams, logits: Any) -> None:
    """That all give the tokens nearly the same probabilities: float32 sums may disagree on the
    last tokens of top-p.
    """
    history = text(len(logits))
    ours = explain(logits, params, history)
    kept = sum(one is None for one in ours.cut_by)
    found = Sampler(params, 1, history)(logits).kept
    if abs(found - kept) > 1:
        raise SystemExit(f"{name}: the sampler lets {found} tokens through, not {kept}")
    others = {}
    if params.temperature > 0.0 and not peers.there("transformers"):
        others["transformers"] = transformers_way(params, history)[0](logits)
    usual = usual_scores(params) if params.temperature > 0.0 and not params.min_p else None
    if usual is not None:
        others["usual"] = usual(logits)
    for other, scores in others.items():
        off = float((scores.double().softmax(-1) - ours.kept_probs).abs().sum()) / 2
        if off > 1e-3:
            raise SystemExit(f"{name}: {other} draws from another distribution: {off:.2g} of it")


# ---- measuring


def measure(size: int, kind: str, name: str, rounds: int, seconds: float) -> dict[str, Any]:
    params, pool = KNOBS[name], made(kind, size)
    check(f"{name}, {size} {kind}", params, pool[0])
    draws = ways(params, size)
    counts = {}
    for way, draw in draws.items():  # warm, and see how many calls fill a turn
        began = time.perf_counter()
        for logits in pool:
            draw(logits)
        counts[way] = max(1, round(seconds * POOL / (time.perf_counter() - began)))
    found: dict[str, dict[str, list[float]]] = {
        clock: {way: [] for way in draws} for clock in CLOCKS
    }
    for _ in range(rounds):
        for way, draw in draws.items():
            began_at = {clock: now() for clock, now in CLOCKS.items()}
            for number in range(counts[way]):
                draw(pool[number % POOL])
            for clock, now in CLOCKS.items():
                found[clock][way].append((now() - began_at[clock]) / counts[way] * 1e6)
    kept = [Sampler(params, 1)(logits).kept for logits in pool]
    return {
        "vocab_size": size,
        "logits": kind,
        "knobs": name,
        "kept": median([float(count) for count in kept]),
        "microseconds": {way: median(values) for way, values in found["wall"].items()},
        "cpu_microseconds": {way: median(values) for way, values in found["cpu"].items()},
        "ratios": {
            clock: {
                way: median([b / a for a, b in zip(times["tui-chat"], values, strict=True)])
                for way, values in times.items()
                if way != "tui-chat"
            }
            for clock, times in found.items()
        },
    }


def show(row: dict[str, Any]) -> None:
    line = f"{row['knobs']:<32} {row['kept']:9,.0f}"
    for way in ("tui-chat", "transformers", "usual"):
        for name in ("microseconds", "cpu_microseconds"):
            value = row[name].get(way)
            line += f" {'' if value is None else f'{value:,.0f}':>7}"
    for way in ("transformers", "usual"):
        ratio = row["ratios"]["cpu"].get(way)
        line += f" {'' if ratio is None else f'{ratio:.1f} x':>8}"
    print(line, flush=True)


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--vocab", type=int, action="append", help="its size (all)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    versions = peers.versions()
    where = machine(
        args.threads, **{name: versions[name] for name in ("transformers",) if name in versions}
    )
    if why := peers.there("transformers"):
        print(why)
    sizes = args.vocab or ((2048, 50_257) if args.smoke else VOCABULARIES)
    rounds, seconds = args.rounds or (3 if args.smoke else 9), 0.002 if args.smoke else 0.02
    rows = []
    with torch.inference_mode():
        for size in sizes:
            for kind in ("peaked",) if args.smoke else ("peaked", "flat"):
                print(
                    f"\nvocabulary {size:,}, {kind} logits; us a token, (CPU time)\n{'':<32} "
                    f"{'kept':>9} {'tui-chat':>15} {'transformers':>15} {'usual':>15} "
                    f"{'x tr.':>8} {'x usual':>8}"
                )
                for name in KNOBS:
                    rows.append(measure(size, kind, name, rounds, seconds))
                    show(rows[-1])
    keep("sampling", args, where, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
