"""Who drafts for a chat: what the user chose, and what the worker made of it.

The checkpoint that drafts is loaded like any other, into a lane of its own; until it is there, and
wherever it does not fit, replies are written without it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tui_chat.display import one_line
from tui_chat.engine import events as ev

LOOKUP = "lookup"


class Draft:
    """The draft of the lane `lane`. `tell` takes a sentence for the reader, and whether it is an
    error.
    """

    def __init__(
        self, lane: str, send: Callable[[ev.Request], None], tell: Callable[[str, bool], None]
    ) -> None:
        self.lane = lane
        self.by = f"{lane}/draft"  # the lane of the checkpoint that drafts
        self._send, self._tell = send, tell
        self.path = ""  # of the checkpoint that was chosen
        self.lookup = False
        self._options = ev.LoadOptions()
        self._loads_due = 0
        self._there = False  # a checkpoint is in its lane
        self._target = False  # and one in the lane it drafts for
        self._set = ev.DraftSet(lane=lane)
        self._asked = False  # by the user, who is told what came of it
        self._before = ("", False)  # path and lookup, where the one chosen cannot draft

    @property
    def active(self) -> bool:
        """Whether something was chosen."""
        return self.lookup or bool(self.path)

    @property
    def label(self) -> str:
        """ "draft: demo-base/263", "lookup", "" for none."""
        if self._loads_due and self.path:
            return f"loading the draft {one_line(Path(self.path).name, 30)}"
        if self._set.kind == "draft":
            return f"draft: {one_line(self._set.label, 30)}"
        return self._set.kind

    @property
    def said(self) -> str:
        """A sentence about who drafts."""
        if not self.active:
            return "Nobody drafts."
        if self.lookup:
            return "The text so far is the draft; /draft off ends it."
        return f"The draft is {one_line(self._set.label, 30)}; /draft off ends it."

    def choose(self, path: str = "", *, lookup: bool = False, options: ev.LoadOptions) -> None:
        """A checkpoint, the text so far, or nobody. `options`: how the chat's own was opened."""
        if not self._loads_due:
            self._before = (self.path, self.lookup)
        self.path, self.lookup, self._asked, self._options = path, lookup, True, options
        if path:
            self._loads_due += 1
            self._send(ev.Load(lane=self.by, path=path, options=options.for_draft()))
            return
        if self._loads_due:
            self._send(ev.CancelLoad(lane=self.by))
        self._apply()
        self._unload()

    def target_loaded(self) -> None:
        """There is a checkpoint in the lane, perhaps another one."""
        self._target = True
        self._set = ev.DraftSet(lane=self.lane)
        if self.active:
            self._apply()

    def handle(self, event: ev.Event) -> bool:
        """Take an event of the worker; False when it is somebody else's."""
        match event:
            case ev.DraftSet(lane=self.lane):
                self._on_set(event)
            case ev.LoadProgress(lane=self.by) | ev.Unloaded(lane=self.by):
                pass
            case ev.Loaded(lane=self.by):
                self._loads_due = max(0, self._loads_due - 1)
                self._there = True
                if self.path and not self._loads_due:
                    self.path = event.info.path  # as the picker names it
                    self._apply()
                elif not self.path:
                    self._unload()
            case ev.LoadFailed(lane=self.by):
                self._loads_due = max(0, self._loads_due - 1)
                if not event.cancelled and not self._loads_due:
                    # Its lane keeps what it had, and who drafted goes on.
                    self.path, self.lookup = self._before
                    self._asked = False
                    self._apply()
                    self._refused(event.error)
            case _:
                return False
        return True

    def _apply(self) -> None:
        if self._target and (self._there or not self.path):
            by = self.by if self.path else ""
            self._send(ev.SetDraft(lane=self.lane, by=by, lookup=self.lookup))

    def _unload(self) -> None:
        if self._there:
            self._there = False
            self._send(ev.Unload(lane=self.by))

    def _on_set(self, event: ev.DraftSet) -> None:
        self._set = event
        asked, self._asked = self._asked, False
        if event.error is not None:
            (path, lookup), self._before = self._before, ("", False)
            again = path if path != self.path else ""
            self.path, self.lookup = again, lookup and not self.lookup
            if again:
                self._loads_due += 1
                self._send(ev.Load(lane=self.by, path=again, options=self._options.for_draft()))
            else:
                if self.lookup:
                    self._apply()
                self._unload()
            self._refused(event.error)
            return
        self._before = ("", False)
        if asked:
            self._tell(self.said, False)

    def _refused(self, error: object) -> None:
        stays = " The draft stays as it was." if self.active else ""
        self._tell(f"No draft: {error}{stays}", False)
