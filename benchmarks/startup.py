"""How soon the app is there, and whether it answers while torch loads.

    python benchmarks/startup.py [PATH] [--rounds 5] [--smoke]

Starts `python -m tui_chat PATH` in a pseudo-terminal as a user would, with a home of its own. What
the terminal received is kept with the time of each piece and only afterwards played into a terminal
emulator, so that looking does not slow down what is looked at. CPU seconds and memory are read from
/proc, and shown as "-" where there is none.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyte
from homes import home_in

ROOT = Path(__file__).resolve().parents[1]
SIZES = ((80, 24), (120, 40))
KEY = "ø"  # stands nowhere else on the screen
KEY_EVERY = 0.020  # seconds
TYPE_AFTER_TORCH = 3.0  # seconds of typing after its libraries were mapped: weights load meanwhile
PATIENCE = 60.0  # seconds
FRAME_ROWS = 5  # a frame counts as painted when so many rows hold text


@dataclass(slots=True)
class Piece:
    """What arrived at one moment, and what the app had used up by then."""

    at: float  # seconds since the start
    data: bytes
    cpu: float | None  # seconds, all threads


@dataclass(slots=True)
class Session:
    """One start of the app."""

    pieces: list[Piece] = field(default_factory=list)
    keys: list[float] = field(default_factory=list)  # when each was sent
    memory: int | None = None  # bytes resident, before torch
    memory_loaded: int | None = None  # bytes resident, at the end


def run_app(path: str, columns: int, rows: int, home: Path, *, typing: bool) -> Session:
    """Start the app, wait for its first frame; with `typing`, press keys while torch loads."""
    began = time.perf_counter()
    pid, master = pty.fork()
    if pid == 0:
        fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        os.chdir(ROOT)
        environment = {
            **os.environ,
            **home_in(home),
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
        }
        os.execve(sys.executable, [sys.executable, "-m", "tui_chat", path], environment)
    session = Session()
    try:
        _watch(session, pid, master, began, (columns, rows), typing)
    finally:
        _end(pid, master)
    return session


def _watch(
    session: Session, pid: int, master: int, began: float, size: tuple[int, int], typing: bool
) -> None:
    seen = pyte.ByteStream(screen := pyte.Screen(*size))
    painted = False
    torch_at: float | None = None
    next_key = 0.0
    while True:
        now = time.perf_counter() - began
        if now > PATIENCE:
            raise TimeoutError("the app painted nothing" if not painted else "torch never came")
        wait = max(0.0, next_key - now) if painted and typing else 0.1
        if select.select([master], [], [], wait)[0]:
            try:
                data = os.read(master, 1 << 16)
            except OSError:
                raise RuntimeError(f"the app ended: {_tail(session)}") from None
            at = time.perf_counter() - began
            session.pieces.append(Piece(at, data, _cpu(pid)))
            if not painted:
                seen.feed(data)
                if painted := _rows_with_text(screen) >= FRAME_ROWS:
                    session.memory = _memory(pid)
                    next_key = at
                    if not typing:
                        return
            continue
        now = time.perf_counter() - began
        if painted and now >= next_key:
            session.keys.append(now)
            os.write(master, KEY.encode())
            next_key = now + KEY_EVERY
            if torch_at is None and _has_torch(pid):
                torch_at = now
            if torch_at is not None and now > torch_at + TYPE_AFTER_TORCH:
                session.memory_loaded = _memory(pid)
                return


def _end(pid: int, master: int) -> None:
    """Ask the app to end, as a closed window does, and read its last words; then insist."""
    deadline = time.perf_counter() + 10.0
    os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while time.perf_counter() < deadline and (
            not select.select([master], [], [], 0.1)[0] or os.read(master, 1 << 16)
        ):
            pass
    os.close(master)
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        if time.perf_counter() > deadline:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _tail(session: Session) -> str:
    return b"".join(piece.data for piece in session.pieces)[-2000:].decode("utf-8", "replace")


def _rows_with_text(screen: pyte.Screen) -> int:
    return sum(1 for row in screen.display if any(char.isalnum() for char in row))


# ---- /proc


def _cpu(pid: int) -> float | None:
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return sum(int((task / "schedstat").read_text().split()[0]) for task in threads) / 1e9
    except (OSError, IndexError, ValueError):
        return None


def _memory(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    return next(
        (int(line.split()[1]) * 1024 for line in status.splitlines() if line[:6] == "VmRSS:"), None
    )


def _has_torch(pid: int) -> bool:
    try:
        return "libtorch_python" in Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return True  # nobody can tell: type for the fixed time


# ---- what the pieces say


def first_frame(session: Session, size: tuple[int, int]) -> Piece:
    """The piece with which the first frame was complete."""
    stream = pyte.ByteStream(screen := pyte.Screen(*size))
    for piece in session.pieces:
        stream.feed(piece.data)
        if _rows_with_text(screen) >= FRAME_ROWS:
            return piece
    raise RuntimeError("no frame was painted")


def echoes(session: Session, size: tuple[int, int]) -> list[float]:
    """Seconds from each key to the piece that brought it onto the screen.

    Keys that never showed (the prompt was full) are left out, but at least half must have.
    """
    stream = pyte.ByteStream(screen := pyte.Screen(*size))
    waits: list[float] = []
    for piece in session.pieces:
        stream.feed(piece.data)
        shown = sum(row.count(KEY) for row in screen.display)
        while len(waits) < min(shown, len(session.keys)):
            waits.append(piece.at - session.keys[len(waits)])
    if len(waits) * 2 < len(session.keys):
        raise RuntimeError(f"only {len(waits)} of {len(session.keys)} keys were echoed")
    return waits


# ---- inspect


def write_nanogpt(path: Path, n_layer: int, n_embd: int, vocab_size: int) -> None:
    """A checkpoint as nanoGPT's train.py saves it, of zeros; its optimizer is left out."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
        import torch

    block = 1024
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (vocab_size, n_embd),
        "wpe.weight": (block, n_embd),
    }
    for i in range(n_layer):
        shapes |= {
            f"h.{i}.ln_1.weight": (n_embd,),
            f"h.{i}.attn.c_attn.weight": (3 * n_embd, n_embd),
            f"h.{i}.attn.c_proj.weight": (n_embd, n_embd),
            f"h.{i}.ln_2.weight": (n_embd,),
            f"h.{i}.mlp.c_fc.weight": (4 * n_embd, n_embd),
            f"h.{i}.mlp.c_proj.weight": (n_embd, 4 * n_embd),
        }
    shapes["ln_f.weight"] = (n_embd,)
    model = {f"transformer.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    model["lm_head.weight"] = model["transformer.wte.weight"]
    arguments = {
        "n_layer": n_layer, "n_head": n_embd // 64, "n_embd": n_embd, "block_size": block,
        "bias": False, "vocab_size": vocab_size, "dropout": 0.0,
    }  # fmt: skip
    torch.save(
        {
            "model": model,
            "model_args": arguments,
            "iter_num": 1000,
            "best_val_loss": 3.0,
            "config": {"dataset": "none"},
        },
        path,
    )


def command_cpu(*arguments: str) -> tuple[float, float]:
    """CPU and wall seconds of one command, start of Python included."""
    import resource

    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tui_chat", *arguments],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


# ---- the report


def line(name: str, values: Sequence[float | None], unit: str, target: str) -> None:
    """Best and middle of several measurements, beside the target."""
    known = [value for value in values if value is not None]
    figures = (
        f"{min(known):8.1f} {statistics.median(known):8.1f}" if known else f"{'-':>8} {'-':>8}"
    )
    print(f"{name:46} {figures} {unit:3}  {target}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("path", nargs="?", default=str(ROOT / "checkpoints" / "demo-chat"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--smoke", action="store_true", help="once, small: does it still run?")
    options = parser.parse_args()
    rounds = 1 if options.smoke else options.rounds
    path = str(Path(options.path).resolve())
    print(f"{'':46} {'best':>8} {'median':>8}      target", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        for name in ("--help", "--version"):
            used = [command_cpu(name) for _ in range(rounds)]
            line(f"tui-chat {name}, CPU", [cpu * 1e3 for cpu, _ in used], "ms", "300")
        file = home / "ckpt.pt"
        write_nanogpt(file, *((1, 64, 500) if options.smoke else (12, 768, 50304)))
        name = f"inspect of {file.stat().st_size / 1e6:.0f} MB"
        used = [command_cpu("inspect", str(file)) for _ in range(rounds)]
        line(f"{name}, CPU", [cpu * 1e3 for cpu, _ in used], "ms", "300")
        line(f"{name}, wall", [wall * 1e3 for _, wall in used], "ms", "")
        file.unlink()

        for columns, rows in SIZES[: 1 if options.smoke else None]:
            size, label = (columns, rows), f"{columns}x{rows}"
            starts = [run_app(path, columns, rows, home, typing=False) for _ in range(rounds)]
            frames = [first_frame(session, size) for session in starts]
            line(f"{label}: first frame, wall", [f.at * 1e3 for f in frames], "ms", "600")
            cpu = [None if f.cpu is None else f.cpu * 1e3 for f in frames]
            line(f"{label}: first frame, CPU", cpu, "ms", "500")
            memory = [None if s.memory is None else s.memory / 1e6 for s in starts]
            line(f"{label}: memory before torch", memory, "MB", "")

            loads = [run_app(path, columns, rows, home, typing=True) for _ in range(rounds)]
            waits = [echoes(session, size) for session in loads]
            line(
                f"{label}: longest stall while torch loads",
                [max(w) * 1e3 for w in waits],
                "ms",
                "60",
            )
            p99 = [statistics.quantiles(w, n=100)[98] * 1e3 for w in waits]
            line(f"{label}: key to screen while it loads, p99", p99, "ms", "20")
            p50 = [statistics.median(w) * 1e3 for w in waits]
            line(f"{label}: key to screen while it loads, p50", p50, "ms", "")
            memory = [None if s.memory_loaded is None else s.memory_loaded / 1e6 for s in loads]
            line(f"{label}: memory with the checkpoint", memory, "MB", "")
            keys = sum(len(w) for w in waits)
            print(f"{label}: {keys} keys in {len(waits)} starts", flush=True)
    print(f"machine: {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
