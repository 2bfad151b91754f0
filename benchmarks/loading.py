"""Time and memory to load a checkpoint, beside torch.load and beside reading the bytes.

python benchmarks/loading.py [--smoke] [--rounds N] [--dtype float32] [--files DIR] [--keep]

Every way loads the same files in a process of its own, in turn (A B C A B C); the best of each
counts, for a neighbour can only make it slower. Times leave out starting Python and importing
torch. Memory is the most the process held, above what it held just before. "floor" reads the bytes
of the weights alone to fresh memory, each once, and computes their checksum; "weights" is
tui-chat's loading, "laid out" the same with each matrix lying as the decoder wants
it, "open" all of `tui_chat.open`: description, weights, tokenizer, decoder, warming up, choice of
threads. "mmap" maps the file and copies the weights; "naive" is what scripts
do: build the module, torch.load, load_state_dict.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

SHAPES = {  # layers, heads, width, rows, positions
    "1M": (4, 4, 128, 2048, 256),
    "124M": (12, 12, 768, 50304, 1024),
    "354M": (24, 16, 1024, 50304, 1024),
}
FILES = {
    "124M with optimizer": ("124M", "torch"),  # 1.8 GB, of which 0.5 are weights
    "354M": ("354M", "safetensors"),  # 1.4 GB, all weights
}
SMOKE = {"1M with optimizer": ("1M", "torch"), "1M": ("1M", "safetensors")}


# ---- the files, as nanoGPT's training and tui-chat's own write them


def state(shape: str) -> dict[str, Any]:
    """Weights of a nanoGPT model under its names."""
    import torch

    layers, _, width, rows, positions = SHAPES[shape]
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (rows, width),
        "transformer.wpe.weight": (positions, width),
    }
    for i in range(layers):
        h = f"transformer.h.{i}"
        shapes |= {
            f"{h}.ln_1.weight": (width,),
            f"{h}.attn.c_attn.weight": (3 * width, width),
            f"{h}.attn.c_proj.weight": (width, width),
            f"{h}.ln_2.weight": (width,),
            f"{h}.mlp.c_fc.weight": (4 * width, width),
            f"{h}.mlp.c_proj.weight": (width, 4 * width),
        }
    shapes["transformer.ln_f.weight"] = (width,)
    weights = {name: torch.randn(size) * 0.02 for name, size in shapes.items()}
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    return weights


def sizes(shape: str) -> dict[str, Any]:
    layers, heads, width, rows, positions = SHAPES[shape]
    return {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "vocab_size": rows,
        "block_size": positions,
        "bias": False,
    }


def write(path: Path, shape: str, kind: str) -> None:
    import torch

    weights = state(shape)
    if kind == "torch":
        moments = {
            at: {"step": torch.tensor(1.0), "exp_avg": w.clone(), "exp_avg_sq": w.square()}
            for at, w in enumerate(weights.values())
        }
        torch.save(
            {
                "model": weights,
                "optimizer": {"state": moments, "param_groups": []},
                "model_args": sizes(shape),
                "iter_num": 1000,
                "best_val_loss": torch.tensor(3.0),
            },
            path,
        )
        return
    names = native_names(shape)
    tensors = {ours: weights[theirs] for ours, theirs in names.items()}
    write_safetensors(path, tensors, native_metadata(shape))


def native_names(shape: str) -> dict[str, str]:
    found = {"embed.weight": "transformer.wte.weight", "position.weight": "transformer.wpe.weight"}
    for i in range(SHAPES[shape][0]):
        for ours, theirs in (
            ("attn_norm", "ln_1"),
            ("attn.qkv", "attn.c_attn"),
            ("attn.out", "attn.c_proj"),
            ("mlp_norm", "ln_2"),
            ("mlp.up", "mlp.c_fc"),
            ("mlp.down", "mlp.c_proj"),
        ):
            found[f"blocks.{i}.{ours}.weight"] = f"transformer.h.{i}.{theirs}.weight"
    found["final_norm.weight"] = "transformer.ln_f.weight"
    return found


def native_metadata(shape: str) -> dict[str, str]:
    layers, heads, width, rows, positions = SHAPES[shape]
    spec = {
        "n_layer": layers,
        "n_head": heads,
        "n_embd": width,
        "vocab_size": rows,
        "context_length": positions,
        "norm": "layernorm",
        "position": "learned",
        "activation": "gelu",
    }
    return {
        "format": "tui-chat",
        "format_version": "1",
        "spec": json.dumps(spec),
        "tokenizer": "none.json",
    }


def write_safetensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    header: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, tensor in tensors.items():
        end = at + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    with open(path, "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for tensor in tensors.values():
            file.write(memory(tensor))


def memory(tensor: Any) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")


# ---- the ways to load; each returns what must stay alive, and how many bytes that is


def floor(path: str, shape: str, dtype: str) -> Any:
    from tui_chat.checkpoint import catalog

    info = catalog.describe(path, tokenizer="none")
    assert info.plan is not None
    reads = list(info.plan.reads().values())

    def load() -> Any:
        import torch

        kept = []
        with open(path, "rb", buffering=0) as file:
            for one in reads:
                tensor = torch.empty(one.nbytes, dtype=torch.uint8)
                view, checksum = memory(tensor), 0
                file.seek(one.storage.begin)
                for begin in range(0, len(view), 2**21):
                    piece = view[begin : begin + 2**21]
                    file.readinto(piece)
                    checksum = zlib.crc32(piece, checksum)
                kept.append(tensor)
        return kept, sum(tensor.nbytes for tensor in kept)

    return load


def ours(path: str, shape: str, dtype: str) -> Any:
    from tui_chat.checkpoint import catalog, weights

    def load() -> Any:
        info = catalog.describe(path, tokenizer="none")
        found = weights.load(info, dtype=dtype)
        return found, sum({t.data_ptr(): t.nbytes for t in found.values()}.values())

    return load


def laid_out(path: str, shape: str, dtype: str) -> Any:
    import torch

    from tui_chat.checkpoint import catalog
    from tui_chat.engine.load import read_weights

    def load() -> Any:
        info = catalog.describe(path, tokenizer="none")
        found = read_weights(info, getattr(torch, dtype), torch.device("cpu"))
        return found, sum({t.data_ptr(): t.nbytes for t in found.values()}.values())

    return load


def whole(path: str, shape: str, dtype: str) -> Any:
    import tui_chat
    import tui_chat.engine.load  # importing is not loading

    def load() -> Any:
        checkpoint = tui_chat.open(path, dtype=dtype, device="cpu", tokenizer="none")
        return checkpoint, checkpoint.loaded.model.weight_bytes

    return load


def module(shape: str) -> Any:
    """nanoGPT's modules, initialised as its constructor does."""
    from torch import nn

    layers, _, width, rows, positions = SHAPES[shape]

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1 = nn.LayerNorm(width, bias=False)
            self.attn = nn.ModuleDict(
                {
                    "c_attn": nn.Linear(width, 3 * width, bias=False),
                    "c_proj": nn.Linear(width, width, bias=False),
                }
            )
            self.ln_2 = nn.LayerNorm(width, bias=False)
            self.mlp = nn.ModuleDict(
                {
                    "c_fc": nn.Linear(width, 4 * width, bias=False),
                    "c_proj": nn.Linear(4 * width, width, bias=False),
                }
            )

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transformer = nn.ModuleDict(
                {
                    "wte": nn.Embedding(rows, width),
                    "wpe": nn.Embedding(positions, width),
                    "h": nn.ModuleList([Block() for _ in range(layers)]),
                    "ln_f": nn.LayerNorm(width, bias=False),
                }
            )
            self.lm_head = nn.Linear(width, rows, bias=False)
            self.transformer["wte"].weight = self.lm_head.weight
            self.apply(self.start)

        def start(self, module: Any) -> None:
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.normal_(module.weight, mean=0.0, std=0.02)

    return GPT()


def naive(path: str, shape: str, dtype: str) -> Any:
    import torch

    def load() -> Any:
        model = module(shape)
        if path.endswith(".safetensors"):
            model.load_state_dict(from_safetensors(path, shape), strict=False)
        else:
            model.load_state_dict(torch.load(path, map_location="cpu")["model"])
        model.to(getattr(torch, dtype))
        return model, sum(p.nbytes for p in model.parameters())

    return load


def from_safetensors(path: str, shape: str) -> dict[str, Any]:
    """The file read at once, and its tensors as views of that, as the library's `load` does."""
    import torch

    raw = bytearray(Path(path).read_bytes())
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    names = native_names(shape)
    found = {}
    for name, row in header.items():
        if name != "__metadata__":
            begin, end = row["data_offsets"]
            numbers = torch.frombuffer(
                raw, dtype=torch.float32, count=(end - begin) // 4, offset=8 + length + begin
            )
            found[names[name]] = numbers.view(row["shape"])
    return found


def mapped(path: str, shape: str, dtype: str) -> Any:
    import torch

    def load() -> Any:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)["model"]
        kept = {name: w.clone().to(getattr(torch, dtype)) for name, w in state.items()}
        return kept, sum(w.nbytes for name, w in kept.items() if name != "lm_head.weight")

    return load


WAYS: dict[str, Callable[[str, str, str], Any]] = {
    "floor": floor,
    "weights": ours,
    "laid out": laid_out,
    "open": whole,
    "mmap": mapped,
    "naive": naive,
}


# ---- measuring


def peak() -> int:
    """Bytes of memory the process held at most, since `held` was asked where the system can say."""
    try:
        with open("/proc/self/status") as file:
            line = next(line for line in file if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    except OSError:
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


def held() -> int:
    """Bytes of memory the process holds now; where that cannot be asked, the most it held."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the highest mark begins anew
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak()


def child(way: str, path: str, shape: str, dtype: str, threads: int) -> None:
    """One measurement, printed as JSON."""
    from tui_chat.engine.torch_import import import_torch

    torch = import_torch()
    torch.set_num_threads(threads)
    torch.zeros(1).add_(1)
    load = WAYS[way](path, shape, dtype)
    before, began, cpu = held(), time.perf_counter(), time.process_time()
    kept, nbytes = load()
    taken = time.perf_counter() - began
    row = {
        "seconds": taken,
        "cpu": time.process_time() - cpu,
        "peak": max(0, peak() - before),
        "stays": nbytes,
    }
    print(json.dumps(row))
    del kept


def python(*arguments: str) -> str:
    """What this script prints in another process, which nothing done here can have warmed up."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def measure(way: str, path: Path, shape: str, dtype: str, threads: int) -> dict[str, float]:
    row: dict[str, float] = json.loads(
        python("--child", way, str(path), shape, dtype, str(threads)).splitlines()[-1]
    )
    return row


def best(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: min(row[key] for row in rows) for key in rows[0]}


def compare(path: Path, shape: str, dtype: str, threads: int, rounds: int) -> dict[str, Any]:
    ways = [w for w in WAYS if w != "mmap" or path.suffix == ".pt"]
    rows: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way in ways:
            rows[way].append(measure(way, path, shape, dtype, threads))
    return {way: best(found) for way, found in rows.items()}


def main() -> int:
    if sys.argv[1:2] == ["--child"]:
        way, path, shape, dtype, threads = sys.argv[2:]
        child(way, path, shape, dtype, int(threads))
        return 0
    if sys.argv[1:2] == ["--write"]:
        write(Path(sys.argv[2]), *sys.argv[3:])
        return 0
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--smoke", action="store_true", help="a few seconds, small files only")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument(
        "--files", type=Path, help="write the checkpoints here, and use those found there"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--keep", action="store_true", help="write them to benchmarks/results, for docs/"
    )
    args = parser.parse_args()
    from common import keep, machine  # not above: it imports torch, which children do by themselves

    where = machine(args.threads, dtype=args.dtype)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = args.files or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        for name, (shape, kind) in (SMOKE if args.smoke else FILES).items():
            path = folder / f"{shape}{'.pt' if kind == 'torch' else '.safetensors'}"
            if not path.exists():
                python("--write", str(path), shape, kind)
            rounds = 1 if args.smoke else args.rounds
            found = compare(path, shape, args.dtype, args.threads, rounds)
            rows.append({"file": name, "ways": found})
            report(name, path, found)
            if args.files is None:
                path.unlink()
    keep("loading", args, where, rows)
    return 0


def report(name: str, path: Path, found: dict[str, dict[str, float]]) -> None:
    print(
        f"\n{name}: {path.stat().st_size / 1e9:.2f} GB, weights {found['floor']['stays'] / 1e9:.2f}"
    )
    print(f"{'':8} {'ms':>7} {'cpu ms':>7} {'x floor':>8} {'peak MB':>8} {'x weights':>10}")
    for way, row in found.items():
        times = row["seconds"] / found["floor"]["seconds"]
        print(
            f"{way:8} {row['seconds'] * 1e3:7.0f} {row['cpu'] * 1e3:7.0f} {times:8.2f} "
            f"{row['peak'] / 1e6:8.0f} {row['peak'] / row['stays']:10.2f}",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
