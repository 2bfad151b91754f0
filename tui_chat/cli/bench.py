"""`tui-chat bench`: how fast a checkpoint is on this machine, in each dtype there is for it.

Writes nothing but its report.
"""

from __future__ import annotations

import argparse
import gc
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tui_chat.checkpoint.card import bytes_in_words, count
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.cli import options
from tui_chat.cli.generate import stopping
from tui_chat.cli.output import STOPPED, Progress, remark, table, write_json, write_line
from tui_chat.engine.events import LoadOptions
from tui_chat.errors import UsageError

if TYPE_CHECKING:
    from tui_chat.engine.speed import Speed

COMPILING = 120.0  # seconds at most that are waited for it
SECONDS = 0.7  # spent on prompts and on tokens, for each dtype
_DTYPES = {"cpu": ("float32", "float16", "int8"), "cuda": ("bfloat16", "float32")}


def bench(arguments: argparse.Namespace) -> int:
    """Measure it in the dtype that was named, else in all that are usual on the device."""
    given = options.load_options(arguments)
    with stopping() as stopped:
        info, speeds = _measured(arguments.path, given, stopped)
        if not speeds:
            return STOPPED
        if arguments.json:
            write_json(
                {
                    "checkpoint": {
                        "path": info.path,
                        "format": info.format,
                        "step": info.step,
                        "fingerprint": info.fingerprint,
                        "parameters": info.parameters,
                    },
                    "cores": os.cpu_count(),
                    "load": _load(),
                    "speeds": [asdict(speed) for speed in speeds],
                }
            )
        else:
            _show(info, speeds)
        return STOPPED if stopped() else 0


def _measured(
    path: str, given: LoadOptions, stopped: Callable[[], bool]
) -> tuple[CheckpointInfo, list[Speed]]:
    """The checkpoint, and its speeds until it was stopped. One dtype is in memory at a time."""
    found: list[Speed] = []
    with Progress() as progress:
        progress("starting torch")
        from tui_chat.engine.torch_import import import_torch

        import_torch()
        from tui_chat.checkpoint.weights import LoadCancelled
        from tui_chat.engine.load import choose_device, describe, load_checkpoint
        from tui_chat.engine.speed import measure
        from tui_chat.model.native import ready

        device = choose_device(given.device)
        dtypes = (given.dtype,) if given.dtype else _DTYPES.get(device.type, ("float32",))
        progress("reading")
        info = describe(path, given)
        for dtype in dtypes:
            if found and stopped():
                break

            def told(stage: str, done: float = 0.0, dtype: str = dtype) -> None:
                progress(f"{dtype}: {stage}", done)

            try:
                loaded = load_checkpoint(path, replace(given, dtype=dtype), told, stopped)
            except LoadCancelled:
                break
            except UsageError as error:
                if len(dtypes) == 1 or not found:
                    raise
                progress.wipe()
                remark(f"tui-chat: {error}")
                continue
            if device.type == "cpu" and ready.available() and not ready.wait(0.0):
                told("compiling the step, once for this machine")
                ready.wait(COMPILING)
            found.append(measure(loaded, seconds=SECONDS, told=told, stopped=stopped))
            del loaded
            gc.collect()
    return info, found


def _show(info: CheckpointInfo, speeds: list[Speed]) -> None:
    first = speeds[0]
    where = f"{first.device}, {os.cpu_count()} cores" if first.device == "cpu" else first.device
    write_line(f"{info.label} · {count(info.parameters)} parameters · {where} · load {_load():.1f}")
    write_line()
    write_line(
        table(
            [
                [
                    speed.dtype,
                    f"{speed.threads}",
                    bytes_in_words(speed.weight_bytes),
                    f"{speed.prefill_rate:,.0f}",
                    f"{speed.first_token_seconds * 1e3:,.1f} ms",
                    f"{speed.decode_rate:,.1f}",
                    f"{speed.limit_rate:,.1f}",
                    f"{speed.decode_rate / speed.limit_rate:.0%}",
                ]
                for speed in speeds
            ],
            head=(
                "dtype", "threads", "weights", "prefill tok/s", "first token", "decode tok/s",
                "limit", "of limit",
            ),
            right=(1, 2, 3, 4, 5, 6, 7),
        )
    )  # fmt: skip
    width = max(speed.bandwidth for speed in speeds)
    write_line(
        f"\nPrompt of {first.prompt_tokens} tokens, one reply, greedy. The limit is reading the "
        f"weights once a token, here at {width / 1e9:.1f} GB/s."
    )


def _load() -> float:
    """How busy the machine is: what is measured beside others is slower."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
