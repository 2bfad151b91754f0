"""A process of its own for what a stranger's file could make endless, huge or fatal: chat
templates, regular expressions, tokenizer libraries.

The process has limits of time and memory, no way to write a file, and an import path without the
working directory. It stays for the next request; where it ended, the next request starts another.
Requests and replies are JSON with bytes behind it, each with its length in front.

This file is also the program that runs in the process: it imports the module it was told and hands
it the requests.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import os
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import MethodType
from typing import IO, NoReturn

Request = tuple[Mapping[str, object], bytes]
Reply = tuple[dict[str, object], bytes]

_LENGTHS = struct.Struct(">QQ")
MAX_REPLY = 256 * 1024 * 1024  # bytes
START_SECONDS = 6.0
# Waiting is not working: on a busy machine the process may take this many times its limit.
PATIENCE = 5.0
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "SYSTEMROOT", "LANG", "TMPDIR")


class Refused(Exception):
    """The request cannot be answered; the text says why, and the process goes on."""


class Ended(Exception):
    """The process took too long, took too much memory or died; the text says which."""


class Child:
    """One process that runs `module`, which needs the top-level `packages` as well.

    The module has a function `answer(request, data) -> (reply, data)`, which may raise anything,
    and where it needs one a function `prepare()`: after that it can open and import nothing more.
    `seconds` of processor time and `megabytes` beyond what it takes idle are the limits of each
    request. `opening` makes a request that every new process gets first; a method is held weakly,
    so that the process ends with the object that has it. For several threads; requests wait for
    each other.
    """

    def __init__(
        self,
        module: str,
        packages: tuple[str, ...] = (),
        *,
        seconds: float,
        megabytes: int,
        opening: Callable[[], Request] | None = None,
    ) -> None:
        self._module = module
        self._packages = packages
        self._seconds = seconds
        self._megabytes = megabytes
        self._opening: Callable[[], Callable[[], Request] | None] = (
            weakref.WeakMethod(opening) if isinstance(opening, MethodType) else lambda: opening
        )
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def start(self) -> Reply:
        """Have a process that has answered the opening request; that answer, or an empty one where
        it ran already. Raises Refused, Ended."""
        with self._lock:
            return self._ready()

    def call(
        self,
        request: Mapping[str, object],
        data: bytes = b"",
        *,
        seconds: float = 0.0,
        megabytes: int = 0,
    ) -> Reply:
        """The answer to one request; `seconds` and `megabytes` are other limits for it. Raises
        Refused, Ended."""
        with self._lock:
            self._ready()
            limits = seconds or self._seconds, megabytes or self._megabytes
            return self._ask(request, data, *limits)

    def close(self) -> None:
        """End the process. A later call starts another."""
        with self._lock:
            self._end()

    def _ready(self) -> Reply:
        if self._process is not None and self._process.poll() is None:
            return {}, b""
        self._end()
        make = self._opening()
        opening = make() if make is not None else None
        self._process = _started(self._module, self._packages)
        self._finalizer = weakref.finalize(self, _kill, self._process)
        try:
            self._ask({}, b"", START_SECONDS, self._megabytes)
            if opening is None:
                return {}, b""
            return self._ask(*opening, self._seconds, self._megabytes)
        except BaseException:  # a process that is not open answers nothing
            self._end()
            raise

    def _ask(
        self, request: Mapping[str, object], data: bytes, seconds: float, megabytes: int
    ) -> Reply:
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds * PATIENCE, stop)
        timer.daemon = True
        timer.start()
        try:
            limits = {"seconds": seconds, "megabytes": megabytes}
            with _unsignalled():
                _write(process.stdin, {**request, **limits}, data)
            reply, back = _read(process.stdout)
        except (OSError, ValueError, EOFError):
            process.kill()
            status = process.wait()
            raise Ended(_why(status, late.is_set(), seconds, megabytes)) from None
        except BaseException:  # interrupted in the middle of a reply: the rest would be misread
            process.kill()
            raise
        finally:
            timer.cancel()
        if "refused" in reply:
            raise Refused(str(reply["refused"]))
        return reply, back

    def _end(self) -> None:
        if self._process is not None:
            self._finalizer()
            self._process = None


def _why(status: int, late: bool, seconds: float, megabytes: int) -> str:
    """Why a process ended, by its exit status and whether it was stopped for being late."""
    if late or -status == getattr(signal, "SIGPROF", 0):
        return f"it took longer than {seconds:.3g} seconds"
    if -status == getattr(signal, "SIGABRT", 0):
        return f"it took more than {megabytes:,} MB"
    return "it brought down the process that read it"


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent yet
                pipe.close()


def _started(module: str, packages: tuple[str, ...]) -> subprocess.Popen[bytes]:
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    folders = list(dict.fromkeys([*map(_folder_of, packages), here]))
    try:
        # -I and -S: no working directory, no PYTHONPATH, no .pth file, no user's packages.
        return subprocess.Popen(
            [sys.executable, "-I", "-S", os.path.abspath(__file__), module, *folders],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=os.path.dirname(os.path.abspath(__file__)),
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
            | {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"},
            start_new_session=True,  # ctrl+c in the terminal is not for it
        )
    except OSError as error:
        raise Ended(f"no process could be started for it ({error.strerror or error})") from None


def _folder_of(package: str) -> str:
    """The directory from which `package` is imported here."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.origin:
        raise Ended(f"the package {package} is not installed")
    return os.path.dirname(os.path.dirname(os.path.abspath(spec.origin)))


@contextlib.contextmanager
def _unsignalled() -> Iterator[None]:
    """In here a pipe whose reader is gone is an error, also where this program ends by SIGPIPE
    like any filter."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before and signal.SIGPIPE in signal.sigpending():
            signal.sigwait({signal.SIGPIPE})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _write(pipe: IO[bytes], head: Mapping[str, object], data: bytes) -> None:
    text = json.dumps(head).encode()
    pipe.write(_LENGTHS.pack(len(text), len(data)) + text)
    pipe.write(data)
    pipe.flush()


def _read(pipe: IO[bytes]) -> Reply:
    lengths = _LENGTHS.unpack(_exactly(pipe, _LENGTHS.size))
    if sum(lengths) > MAX_REPLY:
        raise ValueError("too long")
    head = json.loads(_exactly(pipe, lengths[0]))
    return head, _exactly(pipe, lengths[1])


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    found = pipe.read(count)
    if len(found) != count:
        raise EOFError
    return found


# ---- in the process


def _serve(module: str, folders: list[str]) -> NoReturn:
    sys.path += folders
    served = importlib.import_module(module)
    answer = served.answer
    getattr(served, "prepare", lambda: None)()
    # Whatever the libraries print must not come between the replies.
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer
    idle = _address_space()
    _forbid()
    _read(requests)
    _write(replies, {}, b"")
    while True:
        try:
            request, data = _read(requests)
        except EOFError:
            os._exit(0)
        _limit_memory(idle, int(str(request.pop("megabytes"))) * 2**20)
        _limit_time(float(str(request.pop("seconds"))))
        reply, back = _answered(answer, request, data)
        _limit_time(0.0)
        _limit_memory(idle, None)
        _write(replies, reply, back)


def _answered(
    answer: Callable[[dict[str, object], bytes], Reply], request: dict[str, object], data: bytes
) -> Reply:
    """What the module answers, with everything it may raise as a reason in one line."""
    try:
        return answer(request, data)
    except MemoryError:
        return {"refused": "it takes too much memory"}, b""
    except RecursionError:
        return {"refused": "it is nested too deeply"}, b""
    except BaseException as error:
        # Panics of Rust libraries derive from BaseException.
        lines = str(error).strip().splitlines()
        reason = lines[0][:300] if lines else type(error).__name__
        return {"refused": reason}, b""


def _forbid() -> None:
    """No files, no connections and no other processes from now on."""
    for name in ("CORE", "FSIZE", "NPROC", "NOFILE"):
        _limit(name, 0, for_good=True)


def _address_space() -> int:
    """How many bytes of it the process has, 0 where the system does not say."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def _limit_memory(idle: int, more: int | None) -> None:
    """Let the process have `more` bytes than it takes idle, None for any number."""
    # The address space counts what is mapped; where its size is unknown, the heap must do.
    _limit("AS" if idle else "DATA", None if more is None else idle + more)


def _limit(name: str, size: int | None, *, for_good: bool = False) -> None:
    """Limit what `name` counts to `size`, None for as much as the system lets it have."""
    try:
        import resource
    except ImportError:  # there are no such limits on this system
        return
    kind = getattr(resource, f"RLIMIT_{name}", None)
    if kind is not None:
        # Nobody may go beyond the limit that holds for all programs here, if there is one.
        _, most = resource.getrlimit(kind)
        endless = most == resource.RLIM_INFINITY
        soft = most if size is None else size if endless else min(size, most)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(kind, (soft, soft if for_good else most))


def _limit_time(seconds: float) -> None:
    """End the process once it has worked for `seconds`; 0 for no limit."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2:])
