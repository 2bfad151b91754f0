"""Importing torch while a screen is alive.

A plain `import torch` in a thread holds the interpreter lock for about a second at a stretch:
the dynamic linker runs inside it. So the shared libraries are opened first by a foreign call,
which releases the lock; the import then finds them in place. Everything here is best effort: on
any surprise it is a plain import.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

# c10 before torch_cpu before torch_python: each needs the one before it. A CUDA build has more, and
# loads them itself.
_LIBRARIES = ("libc10", "libtorch_cpu", "libtorch_python")


def _preload() -> None:
    import ctypes

    found = find_spec("torch")  # of a top-level module: imports nothing
    if found is None or found.origin is None:
        return
    folder = Path(found.origin).parent / "lib"
    suffix = ".dylib" if sys.platform == "darwin" else ".so"
    dlopen = ctypes.CDLL(None).dlopen
    dlopen.argtypes, dlopen.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_void_p
    for name in _LIBRARIES:
        library = folder / f"{name}{suffix}"
        if library.is_file():
            dlopen(os.fsencode(library), os.RTLD_LAZY)


def import_torch() -> ModuleType:
    """torch, imported in small bites the first time. Call it in the thread that will run the
    model.
    """
    if (loaded := sys.modules.get("torch")) is not None:
        return loaded
    # Idle OpenMP threads sleep instead of spinning: with a busy neighbour on one of two cores, two
    # spinning threads are ten times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Weights in large pages: a token reads all of them, and small pages cost it up to a tenth.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if os.name == "posix":
        with contextlib.suppress(Exception):
            _preload()
    interval, collecting = sys.getswitchinterval(), gc.isenabled()
    sys.setswitchinterval(0.0005)
    gc.disable()
    try:
        import torch
    finally:
        sys.setswitchinterval(interval)
        if collecting:
            gc.enable()
    gc.freeze()  # torch's 150,000 objects are here to stay: a full collection need not look at them
    return torch
