"""Who may know whom.

What stands in a module is read off its syntax tree; what an import really loads is seen in a fresh
interpreter.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "tui_chat"
MODULES = sorted(PACKAGE.rglob("*.py"))

ROOMS = (
    "model", "checkpoint", "tokenizers", "templates", "engine", "sessions", "tui", "cli",
)  # fmt: skip

NEVER = {
    "model": ("checkpoint", "tokenizers", "templates", "engine", "sessions", "tui", "cli"),
    "checkpoint": ("engine", "sessions", "tui", "cli", "tokenizers", "templates"),
    "tokenizers": ("engine", "sessions", "tui", "cli", "templates"),
    "templates": ("engine", "sessions", "tui", "cli"),
    "engine": ("tui", "cli", "sessions"),
    "sessions": ("engine", "model", "checkpoint", "tokenizers", "templates", "tui", "cli"),
    "tui": ("cli",),
    # The floor below all rooms.
    "conversation": ROOMS,
    "errors": ROOMS,
    "sampling": ROOMS,
    "sampler": ROOMS,
    "settings": ROOMS,
    "display": ROOMS,
    "pages": (*ROOMS, "conversation", "errors", "sampling", "settings", "display", "child"),
    "child": (*ROOMS, "conversation", "errors", "sampling", "settings", "display"),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every module that is imported anywhere in a file, in functions and for types too."""
    found: set[str] = set()
    package = name_of(path).split(".")
    if path.name != "__init__.py":
        package = package[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            found.add(module)
            # `from tui_chat.tui import app` names a module too.
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def room(module: str) -> str:
    """`tui_chat.model.spec` -> model."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[0] == "tui_chat" else ""


def breaches(path: Path, forbidden: Iterator[str] | tuple[str, ...]) -> list[str]:
    banned = set(forbidden)
    return sorted(module for module in imports(path) if room(module) in banned)


@pytest.mark.parametrize("place", NEVER)
def test_no_arrow_goes_up(place: str) -> None:
    files = [path for path in MODULES if room(name_of(path)) == place]
    assert files, f"there is no {place}"
    found = {name_of(path): bad for path in files if (bad := breaches(path, NEVER[place]))}
    assert found == {}


def test_the_engine_and_below_know_no_screen() -> None:
    found = {
        name_of(path): bad
        for path in MODULES
        if room(name_of(path)) not in ("tui", "cli")
        if (bad := {m for m in imports(path) if m.split(".")[0] in ("textual", "rich")})
    }
    assert found == {}


def test_widgets_know_neither_screens_nor_the_app_and_screens_not_the_app() -> None:
    banned = {
        "widgets": ("tui_chat.tui.screens", "tui_chat.tui.app"),
        "screens": ("tui_chat.tui.app",),
    }
    for folder, modules in banned.items():
        files = sorted((PACKAGE / "tui" / folder).rglob("*.py"))
        assert len(files) > 1
        for path in files:
            assert not [m for m in imports(path) if m.startswith(modules)], name_of(path)


@pytest.mark.parametrize("folder", ["checkpoint/formats", "model/families"])
def test_plug_ins_do_not_know_each_other(folder: str) -> None:
    package = f"tui_chat.{folder.replace('/', '.')}"
    for path in sorted((PACKAGE / folder).glob("*.py")):
        if path.name != "__init__.py":
            found = [m for m in imports(path) if m.startswith(f"{package}.")]
            assert found == [], name_of(path)


def test_no_circle_is_closed_by_imports_at_the_top() -> None:
    graph = {name_of(path): top_imports(path) for path in MODULES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in done:
            for below in sorted(graph[module] & graph.keys()):
                visit(below, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def top_imports(path: Path) -> set[str]:
    """Modules imported when the file is: neither in functions nor for types alone."""
    found: set[str] = set()
    waiting: list[ast.AST] = list(tree(path).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name_of(p) for p in MODULES}
            found |= (names & modules) or {node.module}
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting += node.orelse
        elif not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            waiting += ast.iter_child_nodes(node)
    return found


def runs_foreign_code(path: Path) -> list[str]:
    """Calls and imports by which a file could be executed instead of read."""
    found = [
        m
        for m in imports(path)
        if m.split(".")[0] in ("pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle")
    ]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("eval", "exec", "compile", "__import__", "torch.load", "yaml.load"):
                found.append(f"{called} in line {node.lineno}")
            if any(word.arg == "trust_remote_code" for word in node.keywords):
                found.append(f"trust_remote_code in line {node.lineno}")
    return found


def test_nothing_can_run_a_file_instead_of_reading_it() -> None:
    found = {name_of(path): bad for path in MODULES if (bad := runs_foreign_code(path))}
    assert found == {}


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import load", "import torch\ntorch.load(x)", "eval('1')"],
)
def test_that_check_can_fail(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    bad = tmp_path / "bad.py"
    bad.write_text(code)
    assert runs_foreign_code(bad)


def test_every_folder_is_a_package_and_says_nothing_at_import() -> None:
    for folder in {path.parent for path in MODULES}:
        init = folder / "__init__.py"
        assert init.exists(), folder
        if init.parent not in (PACKAGE, PACKAGE / "checkpoint" / "formats"):
            assert init.read_text() == "", init


def test_what_runs_in_a_process_of_its_own_is_imported_nowhere_else() -> None:
    served = {name_of(path) for path in MODULES if path.name == "served.py"}
    assert len(served) == 2
    for path in MODULES:
        assert not served & imports(path), name_of(path)
        named = {m.split(".")[0] for m in imports(path)} & {"jinja2", "tokenizers"}
        assert not named or path.name == "served.py", name_of(path)


HEAVY = ("torch", "tiktoken", "tokenizers", "jinja2", "safetensors", "transformers", "numpy")


@pytest.mark.parametrize(
    ("modules", "never"),
    [
        (("tui_chat",), (*HEAVY, "textual", "rich", "argparse", "sqlite3", "typing")),
        (("tui_chat.cli.main",), (*HEAVY, "textual", "rich", "sqlite3")),
        (("tui_chat.tui.app",), HEAVY),
        (
            ("tui_chat.checkpoint.catalog", "tui_chat.engine.worker", "tui_chat.engine.events",
             "tui_chat.sessions.writer", "tui_chat.settings", "tui_chat.sampling"),
            (*HEAVY, "textual", "rich"),
        ),
        (
            ("tui_chat.engine.engine", "tui_chat.cli.generate", "tui_chat.cli.tokens"),
            ("textual", "rich"),
        ),
    ],
    ids=lambda value: value[0] if value[0].startswith("tui_chat") else "",
)  # fmt: skip
def test_an_import_loads_only_what_it_should(
    modules: tuple[str, ...], never: tuple[str, ...]
) -> None:
    code = f"import sys, {', '.join(modules)}\nprint(*(set({never!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-S", "-c", _without_site(code)],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def _without_site(code: str) -> str:
    """The same import path, but no .pth file has imported what is looked for."""
    return f"import sys; sys.path[:] = [''] + {[p for p in sys.path if p]!r}\n{code}"
