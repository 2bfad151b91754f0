"""Lanes that draft for other lanes, as the worker keeps them. Loads no torch by being imported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tui_chat.engine.events import DraftSet, SetDraft
from tui_chat.errors import TuiChatError, UsageError

if TYPE_CHECKING:
    from tui_chat.engine.engine import Lane


def set_draft(lanes: Mapping[str, Lane], request: SetDraft) -> DraftSet:
    """Do what was asked, and say what came of it."""
    lane = lanes.get(request.lane)
    if lane is None:
        error = UsageError("there is no checkpoint to draft for", "", "Open one first")
        return DraftSet(lane=request.lane, error=error)
    lane.drafting = None
    if not request.lookup and not request.by:
        return DraftSet(lane=request.lane)
    from tui_chat.engine import speculate

    try:
        if request.lookup:
            made = speculate.lookup(lane.checkpoint)
        elif request.by in lanes:
            source = lanes[request.by].checkpoint
            made = speculate.draft(source, lane.checkpoint)._replace(by=request.by)
        else:
            raise UsageError("there is no checkpoint that could draft", "", "Open one first")
    except TuiChatError as error:
        return DraftSet(lane=request.lane, error=error)
    lane.drafting = made
    return DraftSet(lane=request.lane, kind=made.kind, label=made.label)


def forget_draft(lanes: Mapping[str, Lane], by: str) -> None:
    """The lane `by` has been emptied: whoever it drafted for goes on without."""
    for lane in lanes.values():
        if lane.drafting is not None and lane.drafting.by == by:
            lane.drafting = None
