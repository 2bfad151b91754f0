"""Whether the compiled step can be had, and getting it without anybody waiting.

Compiling takes about ten seconds, once for each machine and version: another process does it and
leaves the result in the cache directory, while torch computes the tokens. Loading that result takes
half a second of a thread. Importing this module imports neither numba nor torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from torch import Tensor

    from tui_chat.model.native.program import Program
    from tui_chat.model.parts import Parts
    from tui_chat.model.spec import ModelSpec

log = logging.getLogger(__name__)

GROUP = 64  # numbers of an int8 row that share a scale
MOST_ROWS = 16  # that go through together; torch reads longer pieces faster
OFF = "TUI_CHAT_COMPILED"  # set to 0 in the environment: never
_PACKAGES = ("numba", "llvmlite", "numpy")
_DONE = "done"  # a file beside the compiled code: all of it is there

_program: Callable[[Parts], Program] | None = None
_lock = threading.Lock()
_thread: threading.Thread | None = None
_looked = threading.Event()  # whether it has to be compiled is known by now
_compiled = threading.Event()  # it was, so that loading it is all there is to do


def program() -> Callable[[Parts], Program] | None:
    """What makes a Program, None as long as it is not there."""
    return _program


def row_product(weight: Tensor, scales: Tensor | None) -> Callable[[Tensor], Tensor] | None:
    """What multiplies a row by a matrix (out, in), see rows.py; None if that is not to be had."""
    if _program is None or weight.device.type != "cpu" or not weight.is_contiguous():
        return None
    from tui_chat.model.native import rows

    return rows.row_product(weight, scales) if weight.dtype in rows.KINDS else None


def evened(numbers: Tensor, scales: Tensor) -> Tensor | None:
    """As in rows.py, None as long as that is not to be had."""
    if _program is None:
        return None
    from tui_chat.model.native import rows

    return rows.evened(numbers, scales)


def available() -> bool:
    """Whether this Python can have the compiled step at all."""
    return os.environ.get(OFF) != "0" and hasattr(os, "sched_yield") and _installed()


@functools.cache
def _installed() -> bool:
    return all(importlib.util.find_spec(name) is not None for name in _PACKAGES)


def suits(spec: ModelSpec) -> bool:
    """Whether the compiled step can say what `spec` says."""
    return (
        available()
        and spec.family == "decoder"
        and spec.experts is None
        and spec.rope_layout != "mismatched"
    )


def fits(parts: Parts) -> bool:
    """Whether it can compute with these parts: on a CPU, with float32 activations."""
    import torch

    return suits(parts.spec) and parts.device.type == "cpu" and parts.dtype == torch.float32


def start(cache: Path) -> None:
    """Begin to get it, if nobody has yet; compiled code is kept under `cache`."""
    global _thread
    with _lock:
        if _thread is None and available():
            _thread = threading.Thread(target=_get, args=(cache,), name="compile", daemon=True)
            _thread.start()


def wait(seconds: float) -> bool:
    """Whether it is there, after at most so long."""
    if _thread is not None:
        _thread.join(seconds)
    return _program is not None


def soon(seconds: float = 2.0) -> bool:
    """Whether it is there, waiting a moment where it only has to be loaded."""
    if _thread is not None:
        _looked.wait(seconds)
    return wait(seconds if _compiled.is_set() else 0.0)


def _get(cache: Path) -> None:
    """In a thread of its own."""
    global _program
    try:
        folder = _folder(cache)
        if (folder / _DONE).exists():
            _compiled.set()
        _looked.set()
        if not _compiled.is_set() and not _compiled_elsewhere(folder):
            return
        _preload()
        _program = _loaded(folder)
    except Exception as error:
        log.warning("the compiled step cannot be had, torch computes all: %s", error)
        log.debug("it failed here", exc_info=True)
    finally:
        _looked.set()


def _folder(cache: Path) -> Path:
    """Where the code for this machine and these versions belongs. Nobody else may write there, for
    what lies there is run.
    """
    told = hashlib.sha256(f"{sys.version} {platform.platform()} {_processor()}".encode())
    for name in _PACKAGES:
        told.update(importlib.metadata.version(name).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        told.update(source.read_bytes())
    folder = cache / "compiled" / told.hexdigest()[:16]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    state = folder.stat()
    if state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise PermissionError(f"others may write to {folder}")
    return folder


def _processor() -> str:
    """What it can do: code for one is not right for another."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features")
    return " ".join(sorted({line for line in lines if line.startswith(wanted)}))


def _compiled_elsewhere(folder: Path) -> bool:
    """Have another process compile it. False if that cannot be done."""
    here = Path(__file__).parents[3]
    places = [str(here)]
    for name in (*_PACKAGES, "torch"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            return False
        places.append(str(Path(spec.origin).parents[1]))
    code = (
        "import json, os, sys; os.nice(10); sys.path += json.loads(sys.argv[1]);"
        "from tui_chat.model.native.ready import compile_into; compile_into(sys.argv[2])"
    )
    command = [sys.executable, "-I", "-c", code, json.dumps(list(dict.fromkeys(places)))]
    with open(folder / "lock", "wb") as lock:
        while not (folder / _DONE).exists():
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # somebody is at it
                time.sleep(0.2)
            else:
                # The other process has the lock as well, and keeps it if this one ends before it.
                return _ended_well(
                    subprocess.run(
                        [*command, str(folder)],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        cwd=folder,
                        pass_fds=(lock.fileno(),),
                        start_new_session=True,
                        check=False,
                    )
                )
    return True


def _ended_well(made: subprocess.CompletedProcess[bytes]) -> bool:
    if made.returncode:
        said = made.stderr.decode("utf-8", "replace").strip().splitlines()
        log.warning("the step was not compiled: %s", said[-1] if said else made.returncode)
    return made.returncode == 0


def compile_into(folder: str) -> None:
    """Compile the step and leave it in `folder`; in a process of its own."""
    if not (Path(folder) / _DONE).exists():
        _loaded(Path(folder))
        (Path(folder) / _DONE).touch()


def _loaded(folder: Path) -> Callable[[Parts], Program]:
    """The step from what lies in `folder`, compiled now where nothing lies there."""
    import numba

    numba.config.CACHE_DIR = str(folder)  # before the module that is compiled is imported
    from tui_chat.model.native.program import Program, try_out

    try_out()
    return Program


def _preload() -> None:
    """Open LLVM's library by a foreign call, which does not hold the interpreter's lock."""
    spec = importlib.util.find_spec("llvmlite")
    if spec is None or spec.origin is None:
        return
    for library in (Path(spec.origin).parent / "binding").glob("libllvmlite.*"):
        with contextlib.suppress(OSError):
            ctypes.CDLL(None).dlopen(os.fsencode(library), os.RTLD_LAZY)
