"""Hugging Face chat templates: Jinja that a stranger wrote, rendered in a process of its own.

What a template writes may be control tokens, what a message holds never is (served.py tells one
from the other). The text is then encoded as one, as the models were trained with it, so that
neighbouring letters of template and message are joined as they should.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from tui_chat.child import Child, Ended, Refused
from tui_chat.conversation import Turn
from tui_chat.errors import CheckpointError, UsageError
from tui_chat.templates.base import Rendered
from tui_chat.tokenizers.base import Tokenizer

SECONDS, MEGABYTES = 1.5, 180
_REMEMBERED = 8
_OTHER = "Choose another template with --template, e.g. plain"


class JinjaTemplate:
    """A chat template in Jinja. `tokens` are its variables: bos_token, eos_token, ...; `stop` are
    texts known to end a reply, beside what the template itself shows."""

    def __init__(
        self,
        name: str,
        text: str,
        tokenizer: Tokenizer,
        tokens: Mapping[str, str] | None = None,
        stop: Sequence[str] = (),
    ) -> None:
        """Raises CheckpointError for a template that cannot be parsed."""
        self.name = name
        self._tokenizer = tokenizer
        self._text = text
        self._tokens = dict(tokens or {})
        self._controls = dict.fromkeys(tokenizer.special, True)
        other: Mapping[str, int] = getattr(tokenizer, "marks", {})
        self._controls |= dict.fromkeys(other, False)
        request: Mapping[str, object] = {
            "do": "open",
            "template": text,
            "tokens": self._tokens,
            "controls": self._controls,
        }
        self._child = Child(
            "tui_chat.templates.served",
            ("jinja2", "markupsafe"),
            seconds=SECONDS,
            megabytes=MEGABYTES,
            opening=lambda: (request, b""),
        )
        try:
            said, _ = self._child.start()
        except (Refused, Ended) as error:
            raise CheckpointError("the chat template cannot be used", str(error), _OTHER) from None
        marks = said["marks"]
        assert isinstance(marks, list)
        self._ordinary = [mark for mark in other if mark not in marks]
        self._remembered: dict[object, Rendered] = {}
        known = {tokenizer.special[end] for end in stop if end in tokenizer.special}
        self.stop_ids = frozenset(known | set(self._ends()))
        self.stop_strings = tuple(end for end in stop if end not in tokenizer.special)

    def close(self) -> None:
        """End the process; it starts again when it is needed."""
        self._child.close()

    def render(
        self, turns: Sequence[Turn], *, continue_last: bool = False, **variables: object
    ) -> Rendered:
        """See templates.base.Template; `variables` are the template's own, as enable_thinking.

        Where it refuses a system prompt, the prompt goes in front of the first user's text, and
        the result's `note` says so.
        """
        key = (tuple(turns), continue_last, repr(sorted(variables.items())))
        found = self._remembered.get(key)
        if found is None:
            found = self._rendered(list(turns), continue_last, variables)
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.pop(next(iter(self._remembered)))
            self._remembered[key] = found
        return Rendered(list(found.ids), list(found.starts), found.note)

    def _rendered(
        self, turns: list[Turn], continue_last: bool, variables: Mapping[str, object]
    ) -> Rendered:
        empty = bool(turns) and turns[0].role == "system" and not turns[0].text
        if empty:  # counts as none
            turns = turns[1:]
        try:
            found = self._asked(turns, continue_last, variables)
        except Refused as error:
            merged = _merged(turns)
            if merged is None:
                raise self._refusal(error) from None
            try:
                found = self._asked(merged, continue_last, variables)
            except Refused:
                raise self._refusal(error) from None
            note = f"the template has no system prompt ({error}): it stands before the first text"
            found = replace(found, starts=[0, *found.starts], note=note)
        return replace(found, starts=[0, *found.starts]) if empty else found

    def _refusal(self, error: Refused) -> UsageError:
        return UsageError("the chat template refuses this conversation", str(error), _OTHER)

    def _asked(
        self, turns: Sequence[Turn], continue_last: bool, variables: Mapping[str, object]
    ) -> Rendered:
        last = bool(turns) and turns[-1].role == "assistant"
        parts, places, lost = self._parts(turns, not last, last and continue_last, variables)
        ids, starts = self._encoded(parts, places)
        note = ""
        if lost:
            words = {"system": "the system prompt", "user": "what the user said"}
            names = dict.fromkeys(words.get(turns[n].role, "an earlier reply") for n in lost)
            note = f"the template leaves out {' and '.join(names)}"
        return Rendered(ids, starts, note)

    def _parts(
        self, turns: Sequence[Turn], ask: bool, open_end: bool, variables: Mapping[str, object]
    ) -> tuple[list[str | tuple[str]], list[int], list[int]]:
        """Text and control tokens, where each turn begins in it, and the turns that are not in
        it. Raises Refused, and CheckpointError where it takes too long or too much."""
        messages = [{"role": turn.role, "content": _clean(turn.text)} for turn in turns]
        try:
            reply, _ = self._child.call(
                {
                    "do": "render",
                    "messages": messages,
                    "variables": dict(variables),
                    "ask": ask,
                    "open_end": open_end,
                }
            )
        except Ended as error:
            raise CheckpointError("the chat template cannot be used", str(error), _OTHER) from None
        except TypeError:
            raise UsageError(
                "a variable of the template cannot be used", "it is not of JSON"
            ) from None
        given, places, lost = reply["parts"], reply["places"], reply["lost"]
        assert isinstance(given, list) and isinstance(places, list) and isinstance(lost, list)
        parts = [part if isinstance(part, str) else (str(part[0]),) for part in given]
        return parts, places, lost

    def _encoded(
        self, parts: Sequence[str | tuple[str]], places: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        encode = getattr(self._tokenizer, "encode_parts", None)
        if encode is not None:
            found: tuple[list[int], list[int]] = encode(parts, places, also=self._ordinary)
            return found
        ids: list[int] = []
        starts: list[int] = []
        begin = 0
        waiting = list(places)
        for part in parts:
            text = part if isinstance(part, str) else part[0]
            while waiting and waiting[0] < begin + len(text):
                before = text[: max(waiting.pop(0) - begin, 0)]
                starts.append(len(ids) + (len(self._tokenizer.encode(before)) if before else 0))
            if isinstance(part, str):
                ids += self._tokenizer.encode(part)
            else:
                ids.append(self._tokenizer.special[text])
            begin += len(text)
        return ids, starts + [len(ids)] * len(waiting)

    def _ends(self) -> list[int]:
        """The control token that ends a reply, read off a conversation of one exchange. Raises
        CheckpointError for a template that takes too long over it."""
        said = [Turn("user", "a"), Turn("assistant", "b")]
        try:
            whole, _, _ = self._parts(said, False, False, {})
            cut, _, _ = self._parts(said, False, True, {})
        except Refused:
            return []
        for part in whole[max(len(cut) - 1, 0) :]:
            if isinstance(part, tuple):
                token = self._tokenizer.special.get(part[0])
                return [] if token is None else [token]
        return []


def _merged(turns: Sequence[Turn]) -> list[Turn] | None:
    """The turns with the system prompt in the first user's text, None where that cannot be."""
    if len(turns) < 2 or turns[0].role != "system" or turns[1].role != "user":
        return None
    return [Turn("user", f"{turns[0].text}\n\n{turns[1].text}"), *turns[2:]]


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()
