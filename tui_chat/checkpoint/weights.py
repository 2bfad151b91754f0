"""From a plan to tensors: the bytes the model needs are read once, to where they stay.

They are checked on the way, and no file stays open behind them. The plan is made without torch
(description.py); torch is imported when weights are loaded. Nothing is mapped into memory: a
training run may overwrite the file at any time, and a mapped file that shrinks kills the process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tui_chat.checkpoint.assembly import fill, held, straight
from tui_chat.checkpoint.files import shown_path
from tui_chat.checkpoint.names import Recipe
from tui_chat.checkpoint.plan import Key, Read, Span, Use, WeightPlan, bytes_of, key_of, refs_of
from tui_chat.checkpoint.reading import LoadCancelled, Reader
from tui_chat.checkpoint.tensors import ITEM_BYTES, TensorRef
from tui_chat.errors import CheckpointError

if TYPE_CHECKING:
    import torch

    from tui_chat.checkpoint.info import CheckpointInfo

__all__ = ["LoadCancelled", "load", "read"]

Turned = Callable[[str], bool]


def load(
    info: CheckpointInfo,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    turned: Turned = lambda name: False,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, torch.Tensor]:
    """The weights of `info` under their canonical names.

    `dtype` None keeps the file's own. Matrices whose name is `turned` lie (in, out) in memory;
    their shape is (out, in) all the same. Tensors of the same numbers are one tensor. `progress`
    hears numbers from 0 to 1. Raises CheckpointError when the file is damaged, or has changed
    since it was described; LoadCancelled when `cancelled` says so.
    """
    if info.plan is None:
        raise CheckpointError(
            f"cannot open {shown_path(info.path)}", "it was described without its tensors"
        )
    return read(
        info.plan,
        dtype=dtype,
        device=device,
        turned=turned,
        progress=progress,
        cancelled=cancelled,
    )


def read(
    plan: WeightPlan,
    *,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device = "cpu",
    turned: Turned = lambda name: False,
    progress: Callable[[float], None] | None = None,
    cancelled: Callable[[], bool] | None = None,
) -> dict[str, torch.Tensor]:
    """The tensors of a plan under their names; everything else as in `load`."""
    import torch

    wanted = getattr(torch, dtype) if isinstance(dtype, str) and dtype else dtype or None
    heard = progress or (lambda done: None)
    reads = plan.reads()
    total = sum(one.nbytes for one in reads.values())
    with Reader(plan.stamps, total, heard, cancelled or (lambda: False)) as reader:
        loader = _Loader(plan, reads, reader, wanted, torch.device(device), turned)
        found = loader.tensors()
        reader.check_unchanged()
    heard(1.0)
    return found


class _Loader:
    """Allocates each tensor when the first of its bytes comes, and lets go of what was only read
    to be computed with as soon as the last one who needs it had it."""

    def __init__(
        self,
        plan: WeightPlan,
        reads: dict[Key, Read],
        reader: Reader,
        dtype: torch.dtype | None,
        device: torch.device,
        turned: Turned,
    ) -> None:
        self.plan = plan
        self.reader = reader
        self.dtype = dtype
        self.device = device
        self.turned = {recipe for name, recipe in plan.recipes.items() if turned(name)}
        self.reads = reads
        self.begun: set[Key] = set()
        self.made: dict[Recipe, torch.Tensor] = {}
        self.buffers: dict[tuple[Key, int], torch.Tensor] = {}  # by storage and first byte
        self.waiting: dict[tuple[Key, int], int] = {}  # how many uses still need it
        self.spans: dict[TensorRef, tuple[Key, Span]] = {}
        for key, one in reads.items():
            for span in one.spans:
                self.waiting[key, span.begin] = len(span.uses)
                self.spans.update((use.ref, (key, span)) for use in span.uses)

    def tensors(self) -> dict[str, torch.Tensor]:
        for key in self.reads:
            self._read(key)
        return {name: self._target(recipe) for name, recipe in self.plan.recipes.items()}

    def _read(self, key: Key) -> None:
        """Read a storage, and compute what is made of it."""
        import torch

        if key in self.begun:
            return
        self.begun.add(key)
        one = self.reads[key]
        pieces = []
        for span in one.spans:
            use = span.straight
            if use is not None:
                memory = straight(self._place(use), use.ref)
            else:
                buffer = torch.empty(span.end - span.begin, dtype=torch.uint8)
                self.buffers[key, span.begin] = buffer
                memory = held(buffer)
            pieces.append((span.begin, span.end, memory))
        self.reader.read(one.storage, pieces)
        for span in one.spans:
            for use in span.uses if span.straight is None else ():
                if use.main:
                    self._compute(use)

    def _compute(self, use: Use) -> None:
        needed = [ref for ref in refs_of(use.ref) if ref.numel]
        for ref in needed:
            self._read(key_of(ref.storage))
        fill(self._place(use), use.ref, self._numbers)
        for ref in needed:
            key, span = self.spans[ref]
            self.waiting[key, span.begin] -= 1
            if not self.waiting[key, span.begin]:
                del self.buffers[key, span.begin]

    def _numbers(self, ref: TensorRef) -> tuple[torch.Tensor, int]:
        import torch

        key, span = self.spans[ref]
        buffer = self.buffers[key, span.begin]
        item = ITEM_BYTES[ref.dtype]
        # A run of mixed blocks, such as int8 numbers and float16 scales, need not be whole.
        numbers = buffer[: len(buffer) - len(buffer) % item].view(getattr(torch, ref.dtype))
        return numbers, (bytes_of(ref)[0] - span.begin) // item

    # ---- where the numbers go

    def _place(self, use: Use) -> torch.Tensor:
        """What a part becomes of its tensor, in the part's own shape."""
        recipe = use.recipe
        target = self._target(recipe)
        shapes = [p.shape[::-1] if recipe.transposed else p.shape for p in recipe.parts]
        if recipe.corners:
            ends = zip(recipe.corners[use.part], shapes[use.part], strict=True)
            target = target[tuple(slice(begin, begin + size) for begin, size in ends)]
        elif len(shapes) > 1:
            begin = sum(shape[0] for shape in shapes[: use.part])
            target = target[begin : begin + shapes[use.part][0]]
        return target.t() if recipe.transposed else target

    def _target(self, recipe: Recipe) -> torch.Tensor:
        import torch

        from tui_chat.pages import PAGES

        target = self.made.get(recipe)
        if target is None:
            first = recipe.parts[0]
            own = "float32" if first.scales is not None or first.encoding else first.dtype
            shape = recipe.shape if recipe.parts[0].shape else ()
            over = recipe in self.turned and len(shape) == 2
            size, dtype = shape[::-1] if over else shape, self.dtype or getattr(torch, own)
            if self.device.type == "cpu":
                target = PAGES.empty(size, dtype)
            else:
                target = torch.empty(size, dtype=dtype, device=self.device)
            if over:
                target = target.t()
            self.made[recipe] = target
        return target
