"""From a plan to tensors: reads just the bytes the model needs, checks them on the way, keeps no
file open.

The plan is made without torch (description.py); torch is imported when weights are loaded. Nothing
is mapped into memory: a training run may overwrite the file at any time, and a mapped file that
shrinks kills the process.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from tui_chat.checkpoint.files import (
    Damaged,
    RegularFile,
    being_written,
    refused,
    shown_path,
)
from tui_chat.checkpoint.names import Recipe
from tui_chat.checkpoint.plan import WeightPlan
from tui_chat.checkpoint.tensors import ITEM_BYTES, Storage, TensorRef
from tui_chat.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from tui_chat.checkpoint.info import CheckpointInfo

_CHUNK = 8 * 1024 * 1024


class LoadCancelled(CheckpointError):
    """Loading ended because it was asked to."""


def load(
    info: CheckpointInfo,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, torch.Tensor]:
    """The weights of `info` under their canonical names.

    `dtype` None keeps the file's own. `progress` hears numbers from 0 to 1. Raises CheckpointError
    when the file is damaged, or has changed since it was described; LoadCancelled when `cancelled`
    says so.
    """
    if info.plan is None:
        raise CheckpointError(
            f"cannot open {shown_path(info.path)}", "it was described without its tensors"
        )
    return read(info.plan, dtype=dtype, device=device, progress=progress, cancelled=cancelled)


def read(
    plan: WeightPlan,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a plan under their names; everything else as in `load`."""
    import torch

    wanted = getattr(torch, dtype) if isinstance(dtype, str) and dtype else dtype or None
    reader = _Reader(plan, progress or (lambda done: None), cancelled or (lambda: False))
    try:
        return reader.tensors(wanted, torch.device(device))
    finally:
        reader.close()


class _Reader:
    """Reads storages when the first tensor needs them, forgets them after the last one did."""

    def __init__(
        self, plan: WeightPlan, progress: Callable[[float], None], cancelled: Callable[[], bool]
    ) -> None:
        self.plan = plan
        self.progress = progress
        self.cancelled = cancelled
        self.files: dict[str, RegularFile] = {}
        self.held: dict[tuple[str, int], torch.Tensor] = {}
        self.uses: dict[tuple[str, int], int] = {}
        for recipe in plan.recipes.values():
            for storage in (s for part in recipe.parts for s in part.storages):
                key = (storage.file, storage.begin)
                self.uses[key] = self.uses.get(key, 0) + 1
        self.total = max(plan.nbytes, 1)
        self.done = 0

    def close(self) -> None:
        for file in self.files.values():
            file.__exit__(None, None, None)

    def tensors(self, dtype: torch.dtype | None, device: torch.device) -> dict[str, torch.Tensor]:
        recipes = self.plan.recipes
        order = sorted(recipes, key=lambda name: recipes[name].parts[0].storage.begin)
        found: dict[str, torch.Tensor] = {}
        for name in order:
            found[name] = self._built(recipes[name], dtype, device)
        for path, file in self.files.items():
            if not file.unchanged():
                raise being_written(path)
        self.progress(1.0)
        return {name: found[name] for name in recipes}

    def _built(
        self, recipe: Recipe, dtype: torch.dtype | None, device: torch.device
    ) -> torch.Tensor:
        import torch

        parts = [self._part(ref) for ref in recipe.parts]
        if recipe.transposed:
            parts = [part.t() for part in parts]
        one = (
            parts[0]
            if len(parts) == 1
            else torch.cat([p.to(dtype or parts[0].dtype) for p in parts])
        )
        moved = one.to(device=device, dtype=dtype or one.dtype).contiguous()
        if moved.untyped_storage().nbytes() > moved.nbytes:
            moved = moved.clone()  # a small view must not keep a large storage alive
        return moved

    def _part(self, ref: TensorRef) -> torch.Tensor:
        import torch

        key = (ref.storage.file, ref.storage.begin)
        buffer = self.held.get(key)
        if buffer is None:
            buffer = self.held[key] = self._read(ref.storage)
        self.uses[key] -= 1
        if not self.uses[key]:
            del self.held[key]
        # A storage of mixed blocks, such as int8 numbers and float16 scales, need not be whole.
        whole = buffer.numel() - buffer.numel() % ITEM_BYTES[ref.dtype]
        numbers = buffer[:whole].view(getattr(torch, ref.dtype))
        values = torch.as_strided(numbers, ref.grid or ref.shape, ref.stride, ref.offset)
        values = values.reshape(ref.shape)
        if ref.scales is not None:
            scales = self._part(ref.scales).float()
            groups = values.reshape(scales.numel(), -1).float()
            values = groups.mul_(scales.reshape(-1, 1)).reshape(ref.shape)
        if ref.deltas or ref.plus:
            # In float32: what is added may be smaller than what 16 bits can tell apart.
            values = values.to(torch.float32, copy=True)
            for delta in ref.deltas:
                up, down = self._part(delta.up).float(), self._part(delta.down).float()
                change = (up @ down).mul_(delta.scale)
                values += change.t() if delta.transposed else change
            values += ref.plus
        return values

    def _read(self, storage: Storage) -> torch.Tensor:
        """The bytes of a storage as a uint8 tensor. It owns them: no file stays behind it."""
        import torch

        if not storage.nbytes:
            return torch.empty(0, dtype=torch.uint8)
        file = self._file(storage.file)
        buffer = bytearray(storage.nbytes)
        view = memoryview(buffer)
        checksum = 0
        try:
            for begin in range(0, storage.nbytes, _CHUNK):
                if self.cancelled():
                    raise LoadCancelled("loading was cancelled")
                piece = view[begin : begin + _CHUNK]
                file.read_into(storage.begin + begin, piece)
                if storage.crc32 is not None:
                    checksum = zlib.crc32(piece, checksum)
                self.done += len(piece)
                self.progress(self.done / self.total)
            if storage.crc32 is not None and checksum != storage.crc32:
                raise Damaged(f"the tensor data in {storage.label} does not match its checksum")
        except Damaged as error:
            if not file.unchanged():
                raise being_written(storage.file) from None
            raise refused(storage.file, error) from None
        return torch.frombuffer(buffer, dtype=torch.uint8)

    def _file(self, path: str) -> RegularFile:
        file = self.files.get(path)
        if file is None:
            file = self.files[path] = RegularFile(path)
            if file.stamp != self.plan.stamps[path]:
                raise being_written(path)
        return file
