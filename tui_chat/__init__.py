"""tui-chat: open any language model you trained and talk to it.

`tui_chat.open(path)` is the Python interface; it loads torch on first use. Importing this package
loads nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tui_chat.engine.api import Checkpoint


def open(path: str, **options: Any) -> Checkpoint:
    """Open a checkpoint. Options: device, dtype, step, tokenizer, template, config, config_file."""
    from tui_chat.engine.api import open_checkpoint

    return open_checkpoint(path, **options)
