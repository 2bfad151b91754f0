"""Tokens per second on a GPU, in bfloat16 with random weights, beside transformers and beside what
the GPU's memory allows.

python benchmarks/gpu.py [--smoke] [--only NAME] [--rounds N] [--device cuda] [--keep]

"engine" is a whole reply as the app makes it: step and draw recorded as CUDA graphs, each token
queued before the one before it is looked at; "compiled" is the same with --compile, and "step" the
decoder started operator by operator. transformers runs eagerly with a cache that grows, and
compiled with a static one (CUDA graphs, full graph). All take turns with the same weights; a warm
round comes before. "limit" is the weights, keys and values of a token over the bandwidth that a
copy reaches in the same run. Where there is no GPU, --smoke tries the code on the CPU, with plain
calls in place of graphs; its figures mean nothing.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any

import peers
from common import (
    Shape,
    Weights,
    arguments,
    bytes_read,
    cache_bytes,
    free,
    gpt,
    keep,
    llama,
    machine,
    median,
    random_weights,
    torch,
)
from peers import Round, Way

from tui_chat.checkpoint.info import CheckpointInfo, TokenizerHint
from tui_chat.engine.engine import Lane
from tui_chat.engine.events import Prompt, Started, Stepped
from tui_chat.engine.load import assemble
from tui_chat.engine.overlap import RECORDERS
from tui_chat.engine.speed import read_bandwidth
from tui_chat.engine.warm import warm_up
from tui_chat.model.build import Model, build
from tui_chat.model.cuda.recorder import CudaGraphRecorder, EagerRecorder, Work
from tui_chat.sampling import SamplingParams
from tui_chat.tokenizers.none import IdsOnly

# name -> the shape, and whether embedding and head are one matrix
SHAPES = {
    "GPT-2 124M": (gpt(12, 12, 768), True),
    "GPT-2 1.5B": (gpt(48, 25, 1600), True),
    "Llama-2 7B": (llama(32, 32, 4096, 11008), False),
}
SMOKE = {"GPT-like 1M": (gpt(4, 4, 128, 2048), True)}
PROMPT = 128  # tokens


class ClockedRecorder(CudaGraphRecorder):
    """Notes how long each recording takes, without the run before it."""

    seconds: list[float]

    def _captured(self, work: Work) -> Work:
        began = time.perf_counter()
        replay = super()._captured(work)
        self.seconds = [*getattr(self, "seconds", []), time.perf_counter() - began]
        return replay


def recordings(in_lane: Lane) -> list[float]:
    """Milliseconds that each recording of a lane has taken: steps and draws, as they came."""
    recorder = in_lane.pipeline._recorder if in_lane.pipeline is not None else None
    return [1e3 * seconds for seconds in getattr(recorder, "seconds", [])]


def lane(shape: Shape, model: Model, compile: bool = False) -> Lane:
    """The model in the engine, with a tokenizer of numbers."""
    info = CheckpointInfo(
        path="random",
        format="random",
        spec=shape.spec,
        parameters=model.parameters,
        dtype="bfloat16",
        run="random",
        tokenizer=TokenizerHint(kind="none"),
    )
    loaded = assemble(info, model, IdsOnly(shape.spec.vocab_size), None, compile=compile)
    made = Lane(loaded)
    assert made.pipeline is not None, "the engine's way for GPUs is not in use"
    if loaded.compilation is not None:
        loaded.compilation.wait()
        print(loaded.compilation.remark)
    return made


def engine(in_lane: Lane) -> Way:
    """A greedy reply of the engine. Its lane is emptied before, so that the prompt is read; the
    room stays, and what was recorded over it, as between the turns of a chat.
    """

    def way(prompt: Sequence[int], count: int) -> Round:
        in_lane.cache.truncate(0)
        params = SamplingParams(temperature=0.0, max_new_tokens=count + 1)
        ids: list[int] = []
        stamps: list[float] = []
        began = time.perf_counter()
        for event in in_lane.reply(Prompt(mode="raw", ids=tuple(prompt)), params).events():
            if isinstance(event, Started):
                assert not event.reused_tokens
                if event.note:
                    print(event.note)
            if isinstance(event, Stepped) and event.steps:
                ids += [step.id for step in event.steps]
                stamps += [time.perf_counter()] * len(event.steps)
        each = (stamps[-1] - stamps[0]) / max(1, len(ids) - 1)
        return Round(stamps[0] - began, each, 0.0, 0.0, ids)

    return way


def step(model: Model) -> Way:
    kept: dict[str, Any] = {}

    def first(prompt: Sequence[int]) -> Any:
        kept["cache"] = model.new_cache()
        return model.forward(prompt, kept["cache"])

    return peers.greedy(first, lambda token: model.forward((token,), kept["cache"]))


def ways(
    shape: Shape, weights: Weights, length: int, compiled: bool, lanes: dict[str, Lane]
) -> dict[str, Way]:
    """All of them, by name; `lanes` gets those of the engine."""
    model = build(shape.spec, {name: tensor.clone() for name, tensor in weights.items()})
    warm_up(model)
    lanes["engine"] = lane(shape, model)
    found = {"tui-chat engine": engine(lanes["engine"]), "tui-chat step": step(model)}
    if compiled:
        lanes["compiled"] = lane(shape, model, compile=True)
        found["tui-chat compiled"] = engine(lanes["compiled"])
    if peers.there("transformers"):
        return found
    module = peers.hf_model(shape, weights)
    prompt = [at % shape.spec.vocab_size for at in range(PROMPT)]
    with torch.inference_mode():
        ids = torch.tensor([prompt], device=weights["embed.weight"].device)
        theirs = module(ids).logits[0, -1].float().log_softmax(0)
        ours = model.forward(prompt, model.new_cache()).log_softmax(0)
    off = float((ours - theirs).abs().max())
    if off > 0.5:
        raise SystemExit(f"transformers computes another model: logprobs off by {off:.2f}")
    found["transformers, eager"] = peers.hf(module)
    if compiled:
        fast = torch.compile(module, mode="reduce-overhead", fullgraph=True)
        found["transformers, compiled"] = peers.hf(module, length, fast)
    return found


def measure(
    name: str, shape: Shape, tied: bool, device: Any, rounds: int, count: int
) -> dict[str, Any]:
    weights = random_weights(shape, tied=tied, dtype=torch.bfloat16, device=str(device))
    prompt = [at % shape.spec.vocab_size for at in range(PROMPT)]
    lanes: dict[str, Lane] = {}
    all_ways = ways(shape, weights, PROMPT + count + 8, device.type == "cuda", lanes)
    found: dict[str, list[Round]] = {way: [] for way in all_ways}
    warming = {}
    for way, run in list(all_ways.items()):  # twice: a graph is captured in the second call
        began = time.perf_counter()
        try:
            run(prompt, count)
            run(prompt, count)
        except Exception as error:
            if "compiled" not in way:
                raise
            print(f"{way} is left out: {type(error).__name__}: {str(error)[:200]}")
            del all_ways[way], found[way]
        warming[way] = time.perf_counter() - began
    widths = []
    for _ in range(rounds):
        widths.append(read_bandwidth(device))
        for way, run in all_ways.items():
            found[way].append(run(prompt, count))
    read = bytes_read(shape, weights, "bfloat16")
    read += cache_bytes(shape, PROMPT + count // 2, "bfloat16")
    token = {way: median([made.token for made in made_all]) for way, made_all in found.items()}
    return {
        "shape": name,
        "parameters": sum(tensor.numel() for tensor in weights.values()),
        "prompt": PROMPT,
        "tokens": count,
        "bandwidth": median(widths),
        "warming_seconds": warming,
        "recording_ms": {name: recordings(one) for name, one in lanes.items()},
        "tokens_per_second": {way: 1 / one for way, one in token.items()},
        "share_of_limit": {way: read / median(widths) / one for way, one in token.items()},
        "first_token_ms": {
            way: 1e3 * median([made.first for made in made_all]) for way, made_all in found.items()
        },
    }


def show(row: dict[str, Any]) -> None:
    print(
        f"\n{row['shape']}, {row['parameters'] / 1e6:.0f}M parameters, memory "
        f"{row['bandwidth'] / 1e9:.0f} GB/s\n"
        f"{'':24} {'tok/s':>8} {'of limit':>9} {'first ms':>9} {'warming s':>10}"
    )
    for way, rate in row["tokens_per_second"].items():
        print(
            f"{way:24} {rate:8.1f} {row['share_of_limit'][way]:9.0%}"
            f" {row['first_token_ms'][way]:9.2f} {row['warming_seconds'][way]:10.1f}",
            flush=True,
        )
    for way, each in row["recording_ms"].items():
        if each:
            print(f"{way}: {len(each)} recordings, {median(each):.1f} ms each")


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("--only", help="shapes whose name holds this")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        if not args.smoke:
            print("There is no CUDA device here: nothing was measured.")
            return 0
        print(
            "There is no CUDA device here: the code is tried on the CPU. No figure means anything."
        )
        args.device, args.keep = "cpu", False
    RECORDERS["cuda"] = ClockedRecorder
    if args.smoke and args.device == "cpu":
        RECORDERS["cpu"] = lambda device: EagerRecorder()
    device = torch.device(args.device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    torch.set_num_threads(args.threads)
    where = machine(args.threads, gpu=gpu, **peers.versions())
    if why := peers.there("transformers"):
        print(why)
    rows = []
    for name, (shape, tied) in (SMOKE if args.smoke else SHAPES).items():
        if args.only and args.only not in name:
            continue
        rounds, count = args.rounds or (2 if args.smoke else 5), 32 if args.smoke else 128
        try:
            rows.append(measure(name, shape, tied, device, rounds, count))
        except torch.OutOfMemoryError:
            print(f"\n{name} is left out: the GPU's memory does not hold it twice over")
        else:
            show(rows[-1])
        free()
    keep("gpu", args, where, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
