"""What the benchmarks of the engine share: shapes, random weights, the machine, taking turns.

Import it before anything else of torch: it sets what tui-chat itself sets.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tui_chat.engine.torch_import import import_torch

torch = import_torch()

from tui_chat.engine.speed import read_bandwidth  # noqa: E402
from tui_chat.model.build import Model, build  # noqa: E402
from tui_chat.model.native import ready  # noqa: E402
from tui_chat.model.spec import ModelSpec  # noqa: E402
from tui_chat.pages import PAGES  # noqa: E402
from tui_chat.settings import Paths  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
Weights = dict[str, Any]  # canonical names, see model/build.py


class Shape(NamedTuple):
    """A model people train. `inner` is the width of the MLP."""

    spec: ModelSpec
    inner: int

    @property
    def like_gpt2(self) -> bool:
        return self.spec.position == "learned"

    def longer(self, context_length: int) -> Shape:
        """The same with room for more tokens."""
        kept = {name: getattr(self.spec, name) for name in self.spec.__slots__}
        return Shape(ModelSpec(**{**kept, "context_length": context_length}), self.inner)


def gpt(n_layer: int, n_head: int, n_embd: int, vocab_size: int = 50304) -> Shape:
    """GPT-2's layers, with its biases and its approximation of GELU; the head is tied."""
    spec = ModelSpec(
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        context_length=1024,
        activation="gelu_tanh",
    )
    return Shape(spec, 4 * n_embd)


def llama(n_layer: int, n_head: int, n_embd: int, inner: int, vocab_size: int = 32000) -> Shape:
    spec = ModelSpec(
        vocab_size=vocab_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        context_length=1024,
        position="rope",
        norm="rmsnorm",
        activation="silu",
        gated=True,
    )
    return Shape(spec, inner)


SHAPES = {
    "GPT-like 1M": gpt(4, 4, 128, 2048),
    "Llama-like 1M": llama(4, 4, 128, 352, 2048),
    "GPT-like 26M": gpt(4, 6, 384),
    "Llama-like 110M": llama(12, 12, 768, 2048),
    "GPT-2 124M": gpt(12, 12, 768),
}


def random_weights(
    shape: Shape, *, tied: bool = True, dtype: Any = None, device: str = "cpu"
) -> Weights:
    """Weights of the usual size, the same ones each time."""
    spec, inner, c = shape.spec, shape.inner, shape.spec.n_embd
    source = torch.Generator(device=device).manual_seed(1)
    found: Weights = {}

    def add(name: str, *size: int, mean: float = 0.0) -> None:
        made = torch.randn(size, generator=source, device=device, dtype=dtype)
        found[name] = made.mul_(0.02).add_(mean)

    def matrix(name: str, rows: int, columns: int) -> None:
        add(f"{name}.weight", rows, columns)
        if shape.like_gpt2:
            add(f"{name}.bias", rows)

    def norm(name: str) -> None:
        add(f"{name}.weight", c, mean=1.0)
        if shape.like_gpt2:
            add(f"{name}.bias", c)

    add("embed.weight", spec.vocab_size, c)
    if shape.like_gpt2:
        add("position.weight", spec.context_length, c)
    for i in range(spec.n_layer):
        at = f"blocks.{i}"
        norm(f"{at}.attn_norm")
        matrix(f"{at}.attn.qkv", 3 * c, c)
        matrix(f"{at}.attn.out", c, c)
        norm(f"{at}.mlp_norm")
        if spec.gated:
            matrix(f"{at}.mlp.gate_up", 2 * inner, c)
        else:
            matrix(f"{at}.mlp.up", inner, c)
        matrix(f"{at}.mlp.down", c, inner)
    norm("final_norm")
    if not tied:
        add("head.weight", spec.vocab_size, c)
    return found


def built(shape: Shape, weights: Weights, precision: str = "float32") -> Model:
    """tui-chat's decoder of these weights, as a CPU runs it: float32, bfloat16, float16 or int8;
    its step is compiled when this returns.
    """
    ready.start(Paths.find().cache)
    if not ready.wait(120):
        print("the compiled step cannot be had: torch computes all")
    copied = {  # as they are read from a file
        name: PAGES.empty(tensor.shape, tensor.dtype).copy_(tensor)
        for name, tensor in weights.items()
    }
    return build(shape.spec, copied, "dense" if precision == "float32" else precision)  # type: ignore[arg-type]


def bytes_read(shape: Shape, weights: Weights, precision: str) -> int:
    """Bytes of weights that every token has to read: all but the tables that are looked up."""
    spec = shape.spec
    looked_up = {"position.weight"} | ({"embed.weight"} if "head.weight" in weights else set())
    size = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}[precision]
    return sum(
        t.numel() * (size if t.dim() == 2 or precision == "bfloat16" else 4)
        for name, t in weights.items()
        if name not in looked_up
    ) + 4 * (spec.vocab_size if precision == "int8" else 0)


def cache_bytes(shape: Shape, length: int, dtype: str = "float32") -> int:
    """Bytes of keys and values that a token reads behind `length` others."""
    spec = shape.spec
    size = 4 if dtype == "float32" else 2
    return 2 * spec.n_layer * spec.n_kv_head * spec.head_dim * size * length


def save(path: Path, shape: Shape, weights: Weights) -> str:
    """The checkpoint as a file of tui-chat's own format, whose tokenizer is not known. Biases are
    left out: that format has none."""
    spec = shape.spec
    said = {
        name: getattr(spec, name)
        for name in (
            "vocab_size", "n_layer", "n_head", "n_embd", "context_length", "norm", "position",
            "activation", "gated",
        )
    }  # fmt: skip
    metadata = {
        "format": "tui-chat",
        "format_version": "1",
        "spec": json.dumps(said),
        "tokenizer": "none.json",
    }
    kept = {name: w.float().contiguous() for name, w in weights.items() if w.dim() == 2 or
            name.endswith("norm.weight")}  # fmt: skip
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in kept.items():
        end = at + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in kept.values():
            file.write((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
    return str(path)


# ---- measuring


def in_turn(
    ways: Mapping[str, Callable[[], float]], rounds: int, *, warm: bool = True
) -> dict[str, list[float]]:
    """A B C A B C: what each way returns in each round; a round before them does not count."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-1 if warm else 0, rounds):
        for name, way in ways.items():
            value = way()
            if number >= 0:
                found[name].append(value)
    return found


def timed(run: Callable[[], object]) -> float:
    """Seconds."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def median(values: list[float]) -> float:
    return statistics.median(values)


def bandwidth(clock: Callable[[], float] = time.perf_counter) -> float:
    """Bytes a second that this CPU reads from memory with the threads in use."""
    return read_bandwidth(torch.device("cpu"), clock)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- saying and keeping


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the options that all have."""
    parser = argparse.ArgumentParser(description=(doc or "").split("\n")[0])
    parser.add_argument("--smoke", action="store_true", help="a few seconds, small shapes only")
    parser.add_argument("--threads", type=int, default=1, help="of each way (1)")
    parser.add_argument("--rounds", type=int, help="how often each way has its turn")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--keep", action="store_true", help="write them to benchmarks/results, for docs/"
    )
    return parser


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def machine(threads: int, **more: object) -> dict[str, object]:
    """Where and when this is measured, printed as it is returned."""
    found = {
        "date": time.strftime("%Y-%m-%d"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "threads": threads,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **more,
    }
    print(", ".join(f"{name} {value}" for name, value in found.items()), flush=True)
    return found


def keep(
    name: str, args: argparse.Namespace, where: dict[str, object], rows: list[dict[str, Any]]
) -> None:
    """Write the figures where the arguments want them."""
    where = {**where, "load_at_the_end": round(os.getloadavg()[0], 1)}
    text = json.dumps({"benchmark": name, "machine": where, "rows": rows}, indent=1) + "\n"
    places = [args.json] if args.json else []
    if args.keep:
        kind = "gpu" if where.get("gpu") else f"cpu-{where['threads']}-of-{where['cores']}"
        places.append(RESULTS / f"{where['date']}-{name}-{kind}.json")
    for place in places:
        place.write_text(text)
        print(f"written to {place}")
