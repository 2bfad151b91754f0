"""Where everything lies, and what the user has chosen. Nothing is read or made at import time."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import platformdirs

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
    def themes(self) -> Path:
        return self.config / "themes"

    @property
    def database(self) -> Path:
        return self.data / "chats.sqlite3"

    @property
    def log(self) -> Path:
        return self.cache / "tui-chat.log"


def bundled(kind: str) -> Path:
    """The directory of what comes with the program: "themes" or "checkpoints", from a wheel or a source tree."""
    packaged = Path(str(resources.files("tui_chat"))) / "_data" / kind
    return packaged if packaged.is_dir() else Path(__file__).resolve().parent.parent / kind
