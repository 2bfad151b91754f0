"""The process for strangers' code: its limits, its import path, and that it comes back."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import tui_chat
from tui_chat.child import Child, Ended, Refused

SERVED = """
import os, socket, sys, time
openings = 0

def answer(request, data):
    global openings
    match request["do"]:
        case "open":
            openings += 1
            return {"openings": openings}, b""
        case "echo":
            return {"said": request["text"]}, data
        case "path":
            return {"path": sys.path, "modules": sorted(sys.modules), "cwd": os.getcwd(),
                    "environment": dict(os.environ)}, b""
        case "spin":
            while True:
                pass
        case "sleep":
            time.sleep(100)
        case "grow":
            return {"size": len(bytes(request["size"]))}, b""
        case "write":
            with open(request["path"], "w") as file:
                file.write("x" * 5000)
        case "read":
            return {"text": open(os.devnull).read()}, b""
        case "connect":
            socket.socket().connect(("127.0.0.1", 9))
        case "fork":
            return {"pid": os.fork()}, b""
        case "print":
            print("noise")
            os.write(1, b"noise")
            return {"said": "quiet"}, b""
        case "die":
            os._exit(3)
        case "abort":
            os.abort()
        case "exit":
            sys.exit("gone")
    raise ValueError("no such request\\nsecond line")
"""


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of its own that the process imports."""
    package = tmp_path / "served_here"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "work.py").write_text(SERVED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "served_here.work"


@pytest.fixture
def worker(served: str) -> Iterator[Child]:
    found = Child(
        served, ("served_here",), seconds=0.3, megabytes=100, opening=lambda: ({"do": "open"}, b"")
    )
    yield found
    found.close()


def test_text_and_bytes_go_there_and_back(worker: Child) -> None:
    assert worker.start() == ({"openings": 1}, b"")
    assert worker.start() == ({}, b"")  # it runs already
    text = "é\ud800\x00🙂" * 1000
    assert worker.call({"do": "echo", "text": text}, b"\x00\xff" * 100_000) == (
        {"said": text},
        b"\x00\xff" * 100_000,
    )


def test_what_it_raises_is_a_reason_in_one_line_and_it_goes_on(worker: Child) -> None:
    for request, reason in (("nothing", "no such request"), ("exit", "gone")):
        with pytest.raises(Refused, match=f"^{reason}$"):
            worker.call({"do": request})
    assert worker.start() == ({}, b"")


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        ({"do": "spin"}, r"longer than 0\.3 seconds"),
        ({"do": "sleep"}, r"longer than 0\.3 seconds"),
        ({"do": "die"}, "brought down"),
        ({"do": "abort"}, "more than 100 MB"),
    ],
)
def test_where_it_ends_the_next_request_starts_another(
    worker: Child, request_: dict[str, object], reason: str
) -> None:
    worker.start()
    began = time.monotonic()
    with pytest.raises(Ended, match=reason):
        worker.call(request_)
    assert time.monotonic() - began < 4
    assert worker.call({"do": "echo", "text": "a"})[0] == {"said": "a"}


def test_one_request_may_take_longer_than_the_others(worker: Child) -> None:
    began = time.monotonic()
    with pytest.raises(Ended, match="1 seconds"):
        worker.call({"do": "spin"}, seconds=1.0)
    assert time.monotonic() - began > 0.9


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_memory_has_a_limit_beyond_what_it_takes_idle(worker: Child) -> None:
    assert worker.call({"do": "grow", "size": 60 << 20})[0] == {"size": 60 << 20}
    with pytest.raises(Refused, match="too much memory"):
        worker.call({"do": "grow", "size": 150 << 20})


def test_it_writes_no_file(worker: Child, tmp_path: Path) -> None:
    path = tmp_path / "written"
    with pytest.raises((Refused, Ended)):
        worker.call({"do": "write", "path": str(path)})
    assert not path.exists() or path.stat().st_size == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="no limit of processes holds for root")
def test_it_starts_no_process(worker: Child) -> None:
    with pytest.raises(Refused):
        worker.call({"do": "fork"})


def test_what_is_printed_there_does_not_come_between_the_replies(worker: Child) -> None:
    assert worker.call({"do": "print"})[0] == {"said": "quiet"}
    assert worker.call({"do": "echo", "text": "b"})[0] == {"said": "b"}


def test_the_working_directory_is_not_on_its_import_path(
    worker: Child, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A json.py that lies beside a checkpoint is not imported, and no variable reaches it."""
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("json", "struct", "tokenizers", "sitecustomize", "usercustomize"):
        (trap / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", str(trap))
    monkeypatch.setenv("SECRET_KEY", "x")
    found, _ = worker.call({"do": "path"})
    path, environment, modules = found["path"], found["environment"], found["modules"]
    assert isinstance(path, list) and isinstance(environment, dict) and isinstance(modules, list)
    assert "" not in path and str(trap) not in path and found["cwd"] != str(trap)
    assert "SECRET_KEY" not in environment and "PYTHONPATH" not in environment
    assert not {"torch", "textual", "tui_chat.errors"} & set(modules)


def test_a_package_that_is_missing_is_named() -> None:
    with pytest.raises(Ended, match="no_such_package"):
        Child("x", ("no_such_package",), seconds=1, megabytes=10).start()


def test_a_module_that_cannot_be_imported_is_an_end_like_any_other() -> None:
    with pytest.raises(Ended):
        Child("tui_chat.no_such_module", seconds=1, megabytes=10).start()


def test_it_ends_with_the_program(tmp_path: Path) -> None:
    """Also where the program is killed and can clean up nothing."""
    code = (
        "import os, sys\n"
        "from tui_chat.child import Child\n"
        "c = Child('tui_chat.tokenizers.served', ('tokenizers',), seconds=1, megabytes=200)\n"
        "c.start()\n"
        "print(c._process.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(tui_chat.__file__).parent.parent))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _alive(pid):
        time.sleep(0.05)
    assert not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        status = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return status != "Z"


def test_it_can_open_and_connect_nothing(worker: Child) -> None:
    for request in ("read", "connect"):
        with pytest.raises(Refused, match="Too many open files"):
            worker.call({"do": request})


def test_a_process_that_died_does_not_end_a_program_that_ends_by_broken_pipes(
    served: str, tmp_path: Path
) -> None:
    code = (
        "import signal, sys\n"
        f"sys.path.append({str(tmp_path)!r})\n"
        "signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n"
        "from tui_chat.child import Child, Ended\n"
        f"c = Child({served!r}, ('served_here',), seconds=1, megabytes=100)\n"
        "c.start()\n"
        "c._ready = lambda: None\n"  # as when it dies just now
        "c._process.kill()\n"
        "c._process.wait()\n"
        "try:\n"
        "    c.call({'do': 'echo', 'text': ''}, bytes(1_000_000))\n"
        "except Ended as error:\n"
        "    print(error, signal.SIGPIPE in signal.sigpending())\n"
    )
    environment = dict(os.environ, PYTHONPATH=str(Path(tui_chat.__file__).parent.parent))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "it brought down the process that read it False\n", done.stderr


def test_it_ends_with_the_object_that_it_works_for(served: str) -> None:
    class Owner:
        def __init__(self) -> None:
            self.child = Child(
                served, ("served_here",), seconds=1, megabytes=100, opening=self.opening
            )
            self.child.start()

        def opening(self) -> tuple[dict[str, object], bytes]:
            return {"do": "open"}, b""

    gc.disable()  # a cycle of references would keep it
    try:
        owner = Owner()
        process = owner.child._process
        assert process is not None and process.poll() is None
        del owner
        assert process.poll() is not None
    finally:
        gc.enable()
