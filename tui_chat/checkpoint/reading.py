"""Runs of bytes from files to memory, each read once and held against its checksum.

The checksum is computed on a second thread from what was just read, while the next piece is read
or converted: both leave Python's lock alone. Knows no tensors; a file that changes underneath is
noticed and refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from tui_chat.checkpoint.files import Damaged, RegularFile, Stamp, being_written, refused
from tui_chat.checkpoint.tensors import Storage
from tui_chat.errors import CheckpointError

PIECE = 2 * 1024 * 1024  # bytes: still in the cache when checksum and conversion come to them
_HANDED_OVER = 128 * 1024  # below, the other thread would be woken for less than it costs

Stage = Callable[[int], memoryview]
Pieces = Callable[[Stage], Iterator[memoryview]]
"""Memory to fill, piece by piece; each is full when the next is asked for. `stage` lends two pieces
of memory in turn, each until the next but one is lent."""


class LoadCancelled(CheckpointError):
    """Loading ended because it was asked to."""


class Reader:
    """Reads storages. A context manager: files are closed and the second thread ended with it.

    `stamps` say how the files were when their contents were planned with; `total` is the number of
    bytes that `progress` calls 1.
    """

    def __init__(
        self,
        stamps: Mapping[str, Stamp],
        total: int,
        progress: Callable[[float], None],
        cancelled: Callable[[], bool],
    ) -> None:
        self._stamps = stamps
        self._total = max(total, 1)
        self._done = 0
        self._progress = progress
        self._cancelled = cancelled
        self._files: dict[str, RegularFile] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checksum")
        self._stages = [_Stage(), _Stage()]

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)
        for file in self._files.values():
            file.__exit__(None, None, None)

    def read(self, storage: Storage, spans: Iterable[tuple[int, int, Pieces]]) -> None:
        """Fill the memory of each span (begin, end, pieces), which come in order and do not
        overlap.

        Bytes between them are read only where a checksum covers them. Raises CheckpointError when
        the file is damaged or changes meanwhile, LoadCancelled when that was asked for.
        """
        file = self._file(storage.file)
        total = _Checksum(self._thread) if storage.crc32 is not None else None
        try:
            at = 0
            for begin, end, pieces in spans:
                if total is not None:
                    self._fill(file, storage, at, begin, _dropped(begin - at), total)
                self._fill(file, storage, begin, end, pieces, total)
                at = end
            if total is not None:
                rest = storage.nbytes
                self._fill(file, storage, at, rest, _dropped(rest - at), total)
                if total.value() != storage.crc32:
                    raise Damaged(f"the tensor data in {storage.label} does not match its checksum")
        except Damaged as error:
            if not file.unchanged():
                raise being_written(storage.file) from None
            raise refused(storage.file, error) from None

    def check_unchanged(self) -> None:
        """Raises CheckpointError when a file is no longer as it was planned with."""
        for path, file in self._files.items():
            if not file.unchanged():
                raise being_written(path)

    def _fill(
        self,
        file: RegularFile,
        storage: Storage,
        at: int,
        end: int,
        pieces: Pieces,
        total: _Checksum | None,
    ) -> None:
        for piece in pieces(self._stage):
            if self._cancelled():
                raise LoadCancelled("loading was cancelled")
            file.read_into(storage.begin + at, piece)
            if total is not None:
                pending = total.add(piece)
                self._stages[0].pending = pending  # the one that was lent last, if any was
            at += len(piece)
            self._done += len(piece)
            self._progress(min(1.0, self._done / self._total))
        assert at == end

    def _stage(self, size: int) -> memoryview:
        """Memory to read to that does not stay, by turns from two pieces of it."""
        self._stages.reverse()
        return self._stages[0].lend(size)

    def _file(self, path: str) -> RegularFile:
        file = self._files.get(path)
        if file is None:
            file = self._files[path] = RegularFile(path)
            if file.stamp != self._stamps[path]:
                raise being_written(path)
        return file


class _Stage:
    """Memory that is used again and again, not before its checksum is done."""

    def __init__(self) -> None:
        self._memory = bytearray()
        self.pending: Future[None] | None = None

    def lend(self, size: int) -> memoryview:
        if self.pending is not None:
            self.pending.result()
            self.pending = None
        if len(self._memory) < size:
            self._memory = bytearray(max(size, min(PIECE, 2 * size)))
        return memoryview(self._memory)[:size]


class _Checksum:
    """CRC-32 of pieces in their order, large ones on the other thread."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._sum = 0
        self._last: Future[None] | None = None

    def add(self, piece: memoryview) -> Future[None] | None:
        """Count a piece in, now or soon: the result is done when its memory is free again."""
        if len(piece) >= _HANDED_OVER:
            self._last = self._thread.submit(self._update, piece)
            return self._last
        self._wait()
        self._update(piece)
        return None

    def value(self) -> int:
        self._wait()
        return self._sum

    def _update(self, piece: memoryview) -> None:
        self._sum = zlib.crc32(piece, self._sum)

    def _wait(self) -> None:
        if self._last is not None:
            self._last.result()
            self._last = None


def _dropped(size: int) -> Pieces:
    """Bytes that only the checksum needs."""

    def pieces(stage: Stage) -> Iterator[memoryview]:
        for begin in range(0, size, PIECE):
            yield stage(min(PIECE, size - begin))

    return pieces
