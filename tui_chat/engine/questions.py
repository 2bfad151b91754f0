"""What can be asked about a prompt without running the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tui_chat.engine.events import Counted, CountTokens, PromptShown, Question
from tui_chat.errors import TuiChatError

if TYPE_CHECKING:
    from tui_chat.engine.engine import Lane
    from tui_chat.tokenizers.base import Tokenizer


def answer(lane: Lane, question: Question) -> Counted | PromptShown:
    """The answer of a lane. Raises what its tokenizer raises where only a number was asked for."""
    if isinstance(question, CountTokens):
        return Counted(
            request_id=question.request_id,
            lane=question.lane,
            tokens=lane.count(question.prompt),
            missing=lane.missing(question.prompt),
        )
    try:
        sent = lane.window.fit(question.prompt, question.reply_tokens)
    except TuiChatError as error:  # such as a template that refuses a role
        return PromptShown(request_id=question.request_id, lane=question.lane, why=str(error))
    return PromptShown(
        request_id=question.request_id,
        lane=question.lane,
        tokens=len(sent.ids),
        dropped_tokens=sent.dropped_tokens,
        pieces=tuple(spelled(lane.checkpoint.tokenizer, sent.ids)),
        note=sent.note,
    )


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> list[tuple[str, bool]]:
    """Ids as text, control tokens by their names and apart: (text, whether it is one)."""
    names = {token: text for text, token in tokenizer.special.items()}
    found: list[tuple[str, bool]] = []
    waiting = b""
    for token in ids:
        piece = tokenizer.token_bytes(token)
        if token not in names and piece:
            waiting += piece
            continue
        if waiting:
            found.append((waiting.decode("utf-8", "replace"), False))
            waiting = b""
        found.append((names.get(token) or f"<{token}>", True))
    if waiting:
        found.append((waiting.decode("utf-8", "replace"), False))
    return found
