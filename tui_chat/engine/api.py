"""The Python interface: `tui_chat.open(path)`, and what the command line is built on.

The same lane and the same generator of events as in the worker thread, driven by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any, cast

from tui_chat.conversation import Role, Turn
from tui_chat.engine.events import Event, Failed, Finished, LoadOptions, Prompt, Step, Stepped
from tui_chat.engine.torch_import import import_torch
from tui_chat.errors import UsageError
from tui_chat.sampling import Explained, SamplingParams
from tui_chat.sampling import explain as explain_logits

if TYPE_CHECKING:
    from torch import Tensor

    from tui_chat.checkpoint.info import CheckpointInfo
    from tui_chat.engine.engine import Reply
    from tui_chat.engine.load import LoadedCheckpoint


class Checkpoint:
    """An open checkpoint. Not for two threads at once.

    Two generators may run in turn; the cache then serves each of them anew.
    """

    def __init__(self, loaded: LoadedCheckpoint) -> None:
        from tui_chat.engine.engine import Lane

        self.loaded = loaded
        self.lane = Lane(loaded)

    @property
    def info(self) -> CheckpointInfo:
        """What `inspect` prints; `stop_ids` include those of tokenizer and template."""
        return self.loaded.info

    def encode(self, text: str) -> list[int]:
        """Ids of a text as the checkpoint's training system reads one; chats go through
        `prompt_ids`.
        """
        info = self.loaded.info
        start = info.text_start if info.tokenizer.with_start else ()
        return [*start, *self.loaded.tokenizer.encode_raw(text)]

    def decode(self, ids: Iterable[int]) -> str:
        return self.loaded.tokenizer.decode(ids)

    def prompt_ids(self, messages: Sequence[Mapping[str, str]], **variables: object) -> list[int]:
        """Messages (`{"role": ..., "content": ...}`) through the chat template, ready for a
        reply.
        """
        turns = [as_turn(message) for message in messages]
        given = {**self.loaded.template_variables, **variables}
        return self.loaded.chat_template.render(turns, **given).ids  # type: ignore[arg-type]

    def next_logits(self, ids: Sequence[int]) -> Tensor:
        """Logits after `ids`: (vocab_size,) float32 on the CPU, where vocab_size is the
        tokenizer's. Of more ids than the context holds only the last count.
        """
        return self.lane.next_logits(ids)

    def generate(self, ids: Sequence[int], **knobs: object) -> Iterator[Step]:
        """Continue `ids` token by token with any sampling knob; a stop token, if one is made,
        comes last.
        """
        prompt = Prompt(mode="raw", ids=tuple(ids))
        return self._steps(self.lane.reply(prompt, SamplingParams().with_(**knobs)))

    def _steps(self, reply: Reply) -> Iterator[Step]:
        for event in reply.events():
            match event:
                case Stepped():
                    yield from event.steps
                case Failed():
                    raise event.error

    def reply(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        on_event: Callable[[Event], None] = lambda event: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Finished:
        """Make one reply; every event goes to `on_event` as it comes. Raises what made the reply
        fail.
        """
        reply = self.lane.reply(prompt, params)
        for event in reply.events():
            on_event(event)
            match event:
                case Failed():
                    raise event.error
                case Finished():
                    return event
            if cancelled():
                reply.cancel()
        raise AssertionError("a reply ends with Finished or Failed")

    def draft_with(
        self,
        path: str = "",
        *,
        lookup: bool = False,
        options: LoadOptions | None = None,
        progress: Callable[[str, float], None] = lambda stage, done: None,
    ) -> None:
        """Have a smaller or earlier checkpoint with the same tokenizer propose how replies go on,
        or the text so far (`lookup`); neither: nobody. Replies come faster where it is often right,
        and say the same. Raises UsageError for a pair that cannot, CheckpointError.
        """
        from tui_chat.engine import speculate
        from tui_chat.engine.load import load_checkpoint

        if path and lookup:
            raise UsageError("a draft and lookup were given", "", "Give one of them")
        self.lane.drafting = None
        if lookup:
            self.lane.drafting = speculate.lookup(self.loaded)
        elif path:
            source = load_checkpoint(str(path), options or LoadOptions(), progress)
            self.lane.drafting = speculate.draft(source, self.loaded)

    def score(self, ids: Sequence[int]) -> list[float | None]:
        """Natural log of the probability of each id given those before it; None for the first."""
        return self.lane.score(ids)

    def explain(self, ids: Sequence[int], params: SamplingParams) -> tuple[Tensor, Explained]:
        """Logits after `ids`, and what the knobs make of them."""
        logits = self.next_logits(ids)
        return logits, explain_logits(logits, params, ids)


def open_checkpoint(
    path: str,
    *,
    progress: Callable[[str, float], None] = lambda stage, done: None,
    draft: str = "",
    lookup: bool = False,
    **options: Any,
) -> Checkpoint:
    """Open what lies at `path`; `draft` and `lookup` as in `draft_with`. Options are the fields of
    `LoadOptions`; UsageError names them for another one.
    """
    known = [field.name for field in fields(LoadOptions)]
    for name in options:
        if name not in known:
            raise UsageError(f"there is no option {name!r}", "", f"There are {', '.join(known)}")
    given = {name: value for name, value in options.items() if value is not None}
    progress("starting torch", 0.0)
    import_torch()
    from tui_chat.engine.load import load_checkpoint

    asked = LoadOptions(**given)
    checkpoint = Checkpoint(load_checkpoint(str(path), asked, progress))
    if draft or lookup:
        checkpoint.draft_with(draft, lookup=lookup, options=asked.for_draft(), progress=progress)
    return checkpoint


def as_turn(message: Mapping[str, str]) -> Turn:
    """`{"role": ..., "content": ...}` as a turn. Raises UsageError for another form."""
    role, text = message.get("role"), message.get("content")
    if role not in ("system", "user", "assistant") or not isinstance(text, str):
        raise UsageError(
            "a message cannot be used",
            f"{dict(message)!r}",
            "It needs a role (system, user, assistant) and a content",
        )
    return Turn(cast(Role, role), text)
