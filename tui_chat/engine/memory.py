"""How much memory there is: of the machine, of the group of processes that a container is, of a
GPU. Torch-free until a GPU is asked about.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.display import size
from tui_chat.errors import EngineError

SMALL = (
    16 * 2**20
)  # bytes that are taken without asking: looking takes a millisecond on some systems
GROUPS = Path("/sys/fs/cgroup")
_PER_WEIGHT: Mapping[str, float] = {"bfloat16": 2, "float16": 2, "int8": 1.3}  # bytes


def available_memory(device: object = "cpu") -> int:
    """Bytes that a program may take on a device without swapping or being ended; a cautious guess
    where the system does not say.
    """
    if str(device).startswith("cuda"):
        return _available_on_gpu(str(device))
    try:
        groups = Path("/proc/self/cgroup").read_text()
    except OSError:
        groups = ""
    return min([_available_on_machine(), *left_in_groups(groups)])


def _available_on_gpu(device: str) -> int:
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    # What torch has taken and not given out again is free as well.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _available_on_machine() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    except (AttributeError, ValueError, OSError):
        return 4 * 2**30


def left_in_groups(groups: str, mounted: Path = GROUPS) -> Iterator[int]:
    """What the limits of control groups leave, both versions of them; `groups` as Linux lists them
    for a process.
    """
    for line in groups.splitlines():
        _, kind, name = line.split(":", 2)
        if kind == "":
            files, top = ("memory.max", "memory.current"), mounted
        elif "memory" in kind.split(","):
            files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
            top = mounted / "memory"
        else:
            continue
        # In a container the group may be the root of what is mounted, whatever its name.
        below = [part for part in name.split("/") if part not in ("", "..")]
        for depth in range(len(below), -1, -1):
            left = _left(top.joinpath(*below[:depth]), *files)
            if left is not None:
                yield left


def _left(group: Path, limit: str, used: str) -> int | None:
    try:
        most = int((group / limit).read_text())  # "max": no number, no limit
        taken = int((group / used).read_text())
        stat = dict(
            line.split()[:2] for line in (group / "memory.stat").read_text().splitlines() if line
        )
    except (OSError, ValueError):
        return None
    # Pages of files that nobody looks at any more are given up first.
    return max(0, most - taken + int(stat.get("inactive_file", 0)))


def weights_size(info: CheckpointInfo, dtype: str, device: object) -> int:
    """The bytes that a checkpoint's weights will take, 0 where that is not known. `dtype` "": what
    is chosen for the device.
    """
    dtype = dtype or ("bfloat16" if str(device).startswith("cuda") else "float32")
    return int(info.parameters * _PER_WEIGHT.get(dtype, 4))


def too_little(needed: int, free: int, what: str, remedy: str) -> EngineError:
    """What is said before something is begun that the memory does not hold."""
    return EngineError(
        "there is not enough memory",
        f"{what} need {size(needed)}, and {size(max(0, free))} is free",
        remedy,
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory: on a CPU it is a RuntimeError of the allocator."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "out of memory" in text or "can't allocate memory" in text
    )
