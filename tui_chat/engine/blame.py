"""What went wrong, as one sentence for people."""

from __future__ import annotations

from tui_chat.errors import CheckpointError, EngineError, TuiChatError


def wrapped(error: BaseException) -> TuiChatError:
    """Any exception as one sentence for people; its traceback is in the log."""
    if isinstance(error, TuiChatError):
        return error
    if isinstance(error, MemoryError) or "out of memory" in str(error):
        return CheckpointError(
            "there is not enough memory", "", "Close other programs, or open a smaller checkpoint"
        )
    first = (str(error).strip().splitlines() or [""])[0]
    return EngineError(
        "something went wrong that should not",
        f"{type(error).__name__}: {first}" if first else type(error).__name__,
        "The log has the details",
    )
