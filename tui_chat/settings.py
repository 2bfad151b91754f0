"""Where everything lies, and what the user has chosen. Nothing is read or made at import time.

Two files: `settings.toml` is the user's, written by hand or by the settings screen; `state.json` is
the program's own memory of how it was left, so that quitting never rewrites what was typed by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import platformdirs

from tui_chat.errors import TuiChatError, UsageError
from tui_chat.sampling import SamplingParams

APP = "tui-chat"


@dataclass(frozen=True, slots=True)
class Paths:
    """Every directory the program uses. Each can be moved with an environment variable."""

    config: Path
    data: Path
    cache: Path

    @classmethod
    def find(cls) -> Paths:
        def at(variable: str, default: str) -> Path:
            return Path(os.environ.get(variable) or default).expanduser()

        return cls(
            config=at("TUI_CHAT_CONFIG_DIR", platformdirs.user_config_dir(APP, appauthor=False)),
            data=at("TUI_CHAT_DATA_DIR", platformdirs.user_data_dir(APP, appauthor=False)),
            cache=at("TUI_CHAT_CACHE_DIR", platformdirs.user_cache_dir(APP, appauthor=False)),
        )

    @property
    def settings_file(self) -> Path:
        return self.config / "settings.toml"

    @property
    def state_file(self) -> Path:
        return self.data / "state.json"

    @property
    def themes(self) -> Path:
        return self.config / "themes"

    @property
    def database(self) -> Path:
        return self.data / "chats.sqlite3"

    @property
    def log(self) -> Path:
        return self.cache / "tui-chat.log"


def user_path(text: str) -> Path:
    """A path as a user types it. Never raises, unlike Path.expanduser for a user there is not."""
    return Path(os.path.expanduser(text))


def bundled(kind: str) -> Path:
    """Where what comes with the program lies: "themes" or "checkpoints", in a wheel or a tree."""
    packaged = Path(str(resources.files("tui_chat"))) / "_data" / kind
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / kind


# ---- settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the user has chosen. Under each field stands what `settings.toml` says of it."""

    theme: str = "auto"
    """Name of a theme; "auto" follows the light or dark background of the terminal."""
    roots: tuple[str, ...] = ()
    """More directories in which the picker looks for checkpoints."""
    system: str = ""
    """System prompt of a new chat."""
    sampling: SamplingParams = field(default_factory=SamplingParams)
    """Knobs of a new chat; a knob that is not named keeps its default."""
    presets: Mapping[str, SamplingParams] = field(default_factory=dict)
    """Presets of your own: a table [presets.NAME] with knobs."""
    mouse: bool = True
    """Whether the program takes the mouse; off leaves selecting text to the terminal."""
    keymap: Mapping[str, str] = field(default_factory=dict)
    """Other keys for actions: "chat.send" = "ctrl+s"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How the program was left."""

    last_checkpoint: str = ""  # a path
    last_session: str = ""  # the id of a chat
    theme: str = ""  # chosen in the program; settings.toml goes before it once it names one
    panel_open: bool = True


def load(paths: Paths) -> tuple[Settings, list[str]]:
    """The user's settings, and one sentence for each thing in the file that cannot be used.

    A bad value costs its default and nothing else; a file that cannot be read costs all of them.
    """
    name = paths.settings_file
    try:
        table = tomllib.loads(name.read_text("utf-8"))
    except FileNotFoundError:
        return Settings(), []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        return Settings(), [f"{name} was not read, defaults are in force: {reason}."]
    notices: list[str] = []
    values: dict[str, Any] = {}
    for key, value in table.items():
        reader = _READERS.get(key)
        if reader is None:
            notices.append(f"{name.name}: there is no setting {key!r}.")
            continue
        try:
            values[key] = reader(value, notices)
        except (TypeError, ValueError, TuiChatError) as error:
            notices.append(f"{name.name}: {key} was not used: {str(error).rstrip('.')}.")
    return Settings(**values), notices


def save(paths: Paths, settings: Settings) -> None:
    """Write what differs from the defaults. Raises UsageError when it cannot be written."""
    import tomli_w

    defaults = Settings()
    table: dict[str, Any] = {}
    for f in fields(Settings):
        value = getattr(settings, f.name)
        if value == getattr(defaults, f.name):
            continue
        if isinstance(value, SamplingParams):
            table[f.name] = _turned(value)
        elif f.name == "presets":
            table[f.name] = {name: _turned(params) for name, params in value.items()}
        elif isinstance(value, tuple):
            table[f.name] = list(value)
        else:
            table[f.name] = dict(value) if isinstance(value, Mapping) else value
    try:
        text = tomli_w.dumps(table, multiline_strings=True)
        if tomllib.loads(text) != table:  # a multi-line string cannot hold CR LF
            text = tomli_w.dumps(table)
        write_atomically(paths.settings_file, text)
    except OSError as error:
        raise UsageError(
            "the settings were not saved", f"{paths.settings_file}: {error.strerror}"
        ) from error


def load_state(paths: Paths) -> State:
    """How the program was left; what is missing or damaged has its default."""
    with contextlib.suppress(OSError, ValueError):
        stored = json.loads(paths.state_file.read_text("utf-8"))
        if isinstance(stored, dict):
            defaults = State()
            return State(
                **{
                    f.name: stored[f.name]
                    for f in fields(State)
                    if type(stored.get(f.name)) is type(getattr(defaults, f.name))
                }
            )
    return State()


def save_state(paths: Paths, state: State) -> None:
    """Remember how the program was left.

    Not worth an error: what cannot be written is forgotten.
    """
    with contextlib.suppress(OSError):
        write_atomically(paths.state_file, json.dumps(asdict(state), indent=1))


def write_atomically(path: Path, text: str) -> None:
    """Replace a file whole: a crash or a full disk leaves the old one. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through a link, so that settings kept in a repository of dotfiles stay there.
    target = path.resolve()
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if os.name == "posix":
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ---- reading one setting

T = TypeVar("T")


def _plain(kind: type[T], words: str) -> Callable[[object, list[str]], T]:
    def read(value: object, notices: list[str]) -> T:
        if type(value) is not kind:
            raise TypeError(f"it takes {words}, not {value!r}")
        return value

    return read


def _texts(value: object, notices: list[str]) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise TypeError(f"it takes a list of texts, not {value!r}")
    return tuple(value)


def _table(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"it takes a table, not {value!r}")
    return value


def _knobs(value: object, notices: list[str]) -> SamplingParams:
    params = SamplingParams()
    for name, knob in _table(value).items():
        try:
            params = params.with_(**{name: knob})
        except UsageError as error:
            notices.append(f"settings.toml: {str(error).rstrip('.')}.")
    return params


def _presets(value: object, notices: list[str]) -> dict[str, SamplingParams]:
    return {name: _knobs(knobs, notices) for name, knobs in _table(value).items()}


def _keys(value: object, notices: list[str]) -> dict[str, str]:
    good: dict[str, str] = {}
    for action, key in _table(value).items():
        if isinstance(key, str) and key:
            good[action] = key
        else:
            notices.append(f"settings.toml: keymap.{action} takes the name of a key, not {key!r}.")
    return good


_READERS: Mapping[str, Callable[[object, list[str]], object]] = {
    "theme": _plain(str, "the name of a theme"),
    "roots": _texts,
    "system": _plain(str, "a text"),
    "sampling": _knobs,
    "presets": _presets,
    "mouse": _plain(bool, "true or false"),
    "keymap": _keys,
}


def _turned(params: SamplingParams) -> dict[str, object]:
    """Knobs that are not at their default, as TOML knows them (a random seed is not written)."""
    defaults = SamplingParams().as_dict()
    return {name: value for name, value in params.as_dict().items() if value != defaults[name]}
