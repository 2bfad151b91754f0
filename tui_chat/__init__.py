"""tui-chat: open any language model you trained and talk to it.

`tui_chat.open(path)` is the Python interface; it loads torch on first use. Importing this package
loads nothing.
"""

from __future__ import annotations

__version__ = "0.1.0"

# Not from typing: `python -m tui_chat` comes here before __main__ can drop the working directory
# from the import path, and a typing.py might lie there.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tui_chat.engine.api import Checkpoint


def open(path: str, **options: Any) -> Checkpoint:
    """Open a checkpoint. Options: device, dtype, kv_cache, compile, step, tokenizer, template,
    config, config_file.
    """
    from tui_chat.engine.api import open_checkpoint

    return open_checkpoint(path, **options)
