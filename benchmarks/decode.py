"""Tokens per second of the decoder, beside what the memory allows and beside a loop without a
cache.

python benchmarks/decode.py [--smoke] [--threads N] [--dtype float32] [--json FILE]

Random weights in the shapes people train; batch 1, greedy. The variants of a shape take turns (A
B A B), and medians are printed. "limit" is the bytes of the weights over the read bandwidth that
was measured in the same run; "uncached" runs the whole text again for each token, as the
sampling loops of most training repositories do.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tui_chat.engine.torch_import import import_torch

torch = import_torch()

from tui_chat.engine.load import DTYPES  # noqa: E402
from tui_chat.model.build import Model, build  # noqa: E402
from tui_chat.model.spec import ModelSpec  # noqa: E402

LLAMA: dict[str, Any] = {
    "position": "rope",
    "norm": "rmsnorm",
    "activation": "silu",
    "gated": True,
}
SHAPES = {
    "Llama-like 1M": ModelSpec(
        vocab_size=2048, n_layer=4, n_head=4, n_embd=128, context_length=1024, **LLAMA
    ),
    "GPT-like 26M": ModelSpec(
        vocab_size=50304, n_layer=4, n_head=6, n_embd=384, context_length=1024
    ),
    "GPT-2 124M": ModelSpec(
        vocab_size=50304, n_layer=12, n_head=12, n_embd=768, context_length=1024
    ),
}


def random_model(spec: ModelSpec, dtype: Any) -> Model:
    """The shape with weights of the usual size and a tied head."""
    inner = 4 * spec.n_embd if not spec.gated else 2 * (8 * spec.n_embd // 3)
    down = inner // 2 if spec.gated else inner
    c = spec.n_embd
    shapes: dict[str, tuple[int, ...]] = {"embed.weight": (spec.vocab_size, c)}
    if spec.position == "learned":
        shapes["position.weight"] = (spec.context_length, c)
    for i in range(spec.n_layer):
        at = f"blocks.{i}"
        shapes |= {
            f"{at}.attn_norm.weight": (c,),
            f"{at}.attn.qkv.weight": (3 * c, c),
            f"{at}.attn.out.weight": (c, c),
            f"{at}.mlp_norm.weight": (c,),
            f"{at}.mlp.{'gate_up' if spec.gated else 'up'}.weight": (inner, c),
            f"{at}.mlp.down.weight": (c, down),
        }
    shapes["final_norm.weight"] = (c,)
    return build(spec, {name: (torch.randn(s) * 0.02).to(dtype) for name, s in shapes.items()})


def bandwidth() -> float:
    """Bytes a second that a matrix far larger than the caches can be read at."""
    size = 6144
    big, row = torch.randn(size, size), torch.randn(1, size)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        torch.mm(row, big)
        best = min(best, time.perf_counter() - began)
    return size * size * 4 / best


def cached(model: Model, prompt: list[int]) -> Callable[[], None]:
    cache = model.new_cache()
    state = [int(model.forward(prompt, cache).argmax())]

    def step() -> None:
        state[0] = int(model.forward(state, cache).argmax())

    return step


def uncached(model: Model, prompt: list[int]) -> Callable[[], None]:
    text = list(prompt)

    def step() -> None:
        text.append(int(model.forward(text, model.new_cache()).argmax()))

    return step


def seconds(step: Callable[[], None], times: int) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        step()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken)


def measure(
    spec: ModelSpec, dtype: Any, prompt_length: int, rounds: int, steps: int
) -> dict[str, float]:
    model = random_model(spec, dtype)
    prompt = [at % spec.vocab_size for at in range(prompt_length)]
    began = time.perf_counter()
    model.forward(prompt, model.new_cache())
    model_first = time.perf_counter() - began
    fast, slow = cached(model, prompt), uncached(model, prompt)
    fast_times, slow_times = [], []
    for _ in range(rounds):
        fast_times.append(seconds(fast, steps))
        slow_times.append(seconds(slow, max(2, steps // 10)))
    token, naive = statistics.median(fast_times), statistics.median(slow_times)
    limit = bandwidth() / model.weight_bytes
    return {
        "parameters": model.parameters,
        "prompt": prompt_length,
        "first_token_ms": model_first * 1e3,
        "tokens_per_second": 1 / token,
        "uncached_tokens_per_second": 1 / naive,
        "times_uncached": naive / token,
        "limit_tokens_per_second": limit,
        "share_of_limit": 1 / token / limit,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, small shapes only")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="float32")
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "threads": args.threads,
        "dtype": args.dtype,
        "torch": torch.__version__,
    }
    print(", ".join(f"{name} {value}" for name, value in machine.items()))
    print(f"{'':15} prompt  first ms    tok/s uncached      x of limit")
    results = {}
    names = list(SHAPES)[:1] if args.smoke else list(SHAPES)
    for name in names:
        for prompt in (32,) if args.smoke else (32, 512):
            rounds, steps = (2, 20) if args.smoke else (5, 40 if "1M" in name else 20)
            row = measure(SHAPES[name], DTYPES[args.dtype], prompt, rounds, steps)
            results[f"{name}, prompt {prompt}"] = row
            print(
                f"{name:15} {prompt:6} {row['first_token_ms']:9.1f} {row['tokens_per_second']:8.1f}"
                f" {row['uncached_tokens_per_second']:8.1f} {row['times_uncached']:6.1f}"
                f" {row['share_of_limit']:8.0%}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
