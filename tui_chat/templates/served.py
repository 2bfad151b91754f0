"""Renders a stranger's Jinja template, in a process of its own (tui_chat/child.py).

Which characters of the result came from a message and which from the template decides what may be
a control token. So the messages are rendered twice: as they are, and with every character that
control tokens are written with exchanged for a private one. Whatever the template does with a
text (trims, splits, joins it), a private character in the result came from a message.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jinja2
import jinja2.nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_OUTPUT = 8 * 1024 * 1024  # characters
_PRIVATE = range(0xF0000, 0xFFFFE)
_PLACES = range(0x100000, 0x10FFFE)
# Methods and filters whose arguments a template compares a text with.
_LOOKS = ("split", "startswith", "endswith", "strip", "lstrip", "rstrip", "replace", "find",
          "index", "rindex", "rfind", "partition", "rpartition", "count", "removeprefix",
          "removesuffix")  # fmt: skip

_REASONING = re.compile(r"\W*(think|thinking|thought|reason|reasoning)\W*", re.I)

Message = dict[str, str]

_served: _Rendering | None = None


def prepare() -> None:
    """Have read what rendering reads the first time: the time zone, and how errors are told."""
    with contextlib.suppress(jinja2.TemplateError):
        _environment().from_string("{{ strftime_now('%d') }}{{ a.b.c }}").render()


def answer(request: dict[str, Any], data: bytes) -> tuple[dict[str, Any], bytes]:
    """Open a template, or render messages with the one that is open."""
    global _served
    if request.get("do") == "open":
        _served = _Rendering(request["template"], request["tokens"], request["controls"])
        return {"marks": sorted(_served.marks)}, b""
    assert _served is not None
    return _served.render(
        request["messages"], request["variables"], request["ask"], request["open_end"]
    ), b""


class _Generation(Extension):
    """{% generation %}: marks for training what an assistant says; here only its text counts."""

    tags = {"generation"}  # noqa: RUF012  the base class declares it so

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )

    def tojson(
        value: object,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    def raise_exception(message: object) -> None:
        raise jinja2.TemplateError(str(message))

    environment.filters["tojson"] = tojson
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    return environment


class _Rendering:
    """One template. `controls` are the control tokens by text; `tokens` its variables
    (bos_token, ...)."""

    def __init__(
        self, source: str, tokens: Mapping[str, str], controls: Mapping[str, bool]
    ) -> None:
        environment = _environment()
        tree = environment.parse(source)
        written = [node.data for node in tree.find_all(jinja2.nodes.TemplateData)]
        strings = "\0".join([*written, *_strings(tree)])
        self.template = environment.from_string(source)
        self.tokens = dict(tokens)
        # Added tokens that are not called special count as such where the template writes them. A
        # reply may hold them, and those of reasoning: they are what its model wrote.
        self.marks = {
            text
            for text, special in controls.items()
            if _REASONING.fullmatch(text) or (not special and text in strings)
        }
        self.controls = {text for text, special in controls.items() if special} | self.marks
        longest = sorted(self.controls, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest)) or "(?!)")
        self.letters = _letters(self.controls)
        looked = [text for text in _looked_for(tree) if self.letters & set(text)]
        self.kept = {
            role: _kept(looked, self.controls, self.marks if role == "assistant" else set())
            for role in ("system", "user", "assistant")
        }

    # ---- one rendering

    def text(self, messages: Sequence[Message], variables: Mapping[str, Any], ask: bool) -> str:
        pieces: list[str] = []
        size = 0
        given = {"tools": None, "documents": None} | self.tokens | dict(variables)
        for piece in self.template.generate(
            messages=[dict(m) for m in messages], add_generation_prompt=ask, **given
        ):
            pieces.append(piece)
            size += len(piece)
            if size > MAX_OUTPUT:
                raise ValueError("it writes more than a prompt can be")
        return "".join(pieces)

    # ---- a prompt

    def render(
        self, messages: list[Message], variables: Mapping[str, Any], ask: bool, open_end: bool
    ) -> dict[str, Any]:
        plain = self.text(messages, variables, ask)
        private = self.private_letters("".join(m["content"] for m in messages) + plain)
        table = str.maketrans(private)
        back = str.maketrans({value: key for key, value in private.items()})
        masked_messages = [
            {**m, "content": self.masked(m["content"], m["role"], table)} for m in messages
        ]
        masked = self.text(masked_messages, variables, ask)
        stays = masked.translate(back) == plain or not self.same_controls(masked, plain)
        if not stays and self.says_none(messages, masked_messages):
            # The template looked into a text; nothing in it spells a control token, though.
            masked = plain
        tail, places, lost = self.structure(masked, masked_messages, messages, variables, ask)
        if open_end and tail and masked.endswith(tail):
            masked = masked[: len(masked) - len(tail)]
        return {
            "parts": self.parts(masked, back),
            "places": [min(place, len(masked)) for place in places],
            "lost": lost,
        }

    def private_letters(self, used: str) -> dict[str, str]:
        """A private character for each that control tokens are written with, none of which is
        used."""
        taken = set(used)
        free = (chr(code) for code in _PRIVATE if chr(code) not in taken)
        return {letter: next(free) for letter in sorted(self.letters)}

    def masked(self, text: str, role: str, table: Mapping[int, Any]) -> str:
        """`text` in private characters, but for what the template looks for in it."""
        kept = self.kept.get(role)
        if kept is None:
            return text.translate(table)
        out: list[str] = []
        begin = 0
        for match in kept.finditer(text):
            out += [text[begin : match.start()].translate(table), match.group()]
            begin = match.end()
        return "".join([*out, text[begin:].translate(table)])

    def same_controls(self, masked: str, plain: str) -> bool:
        return self.pattern.findall(masked) == self.pattern.findall(plain)

    def says_none(self, messages: Sequence[Message], masked: Sequence[Message]) -> bool:
        """Whether no message spells a control token that could stand for the template's own."""
        texts, safe = ([m["content"] for m in some] for some in (messages, masked))
        pairs = [*zip(texts, safe, strict=True), ("".join(texts), "".join(safe))]
        return all(self.same_controls(hidden, text) for text, hidden in pairs)

    def parts(self, masked: str, back: Mapping[int, Any]) -> list[str | list[str]]:
        """The result cut into text and control tokens, these as lists of one."""
        found: list[str | list[str]] = []
        begin = 0
        for match in self.pattern.finditer(masked):
            if match.start() > begin:
                found.append(masked[begin : match.start()].translate(back))
            found.append([match.group()])
            begin = match.end()
        if begin < len(masked):
            found.append(masked[begin:].translate(back))
        return found

    # ---- where the turns are

    def structure(
        self,
        masked: str,
        masked_messages: Sequence[Message],
        messages: Sequence[Message],
        variables: Mapping[str, Any],
        ask: bool,
    ) -> tuple[str, list[int], list[int]]:
        """What follows the last message, where in the result each turn begins, and which messages
        are not in it at all.

        Found by a rendering in which each text is one character of its own.
        """
        signs = [chr(_PLACES[n % len(_PLACES)]) for n in range(len(messages))]
        count = len(messages)
        try:
            frame = self.text(
                [{**m, "content": sign} for m, sign in zip(messages, signs, strict=True)],
                variables,
                ask,
            )
            asked = self.text(
                [{**m, "content": sign} for m, sign in zip(messages, signs, strict=True)],
                variables,
                not ask,
            )
        except Exception:
            # It wants more of a text than one character. A turn then begins where its text does.
            return "", _found(masked, [m["content"] for m in masked_messages]), []
        at = [frame.find(sign) for sign in signs]
        lost = [n for n in range(count) if at[n] < 0 and messages[n]["content"].strip()]
        prompt = self.added(frame, asked) if ask else self.added(asked, frame)
        between = _between(frame, signs, at)
        begins = self.begins(between, [m["role"] for m in messages], prompt)
        places: list[int] = []
        cursor = 0
        for n in range(count):
            text = between[n]
            if text is None:
                places.append(cursor)
                continue
            here = masked.find(text, cursor) if text else -1
            if here < 0:
                inside = masked_messages[n]["content"].strip()
                here = masked.find(inside, cursor) if inside else cursor
                here = max(here, cursor)
                places.append(here)
                cursor = here
                continue
            places.append(here + begins[n])
            cursor = here + len(text)
        last = max((place for place in at if place >= 0), default=-1)
        tail = frame[last + 1 :] if last >= 0 and at[-1] == last else ""
        return tail, places, lost

    def begins(self, between: Sequence[str | None], roles: Sequence[str], prompt: str) -> list[int]:
        """Where in the text before each message its turn begins: behind what closes the turn
        before.

        `prompt` is what asks for a reply, which is how a turn of the assistant begins. What stands
        before that closes a turn. Else a turn begins with what the texts before all turns of its
        role end with.
        """
        # Before a reply that is there, white space may follow that a model would write itself.
        asked = prompt.rstrip()
        replies = [
            text[: len(text.rstrip()) - len(asked)]
            for text, role in zip(between[1:], roles[1:], strict=True)
            if text is not None and role == "assistant" and text.rstrip().endswith(asked)
        ]
        closings = {text for text in replies if text and asked}
        found: list[int] = []
        for n, text in enumerate(between):
            if text is None or n == 0:
                found.append(0)
                continue
            if roles[n] == "assistant" and text.rstrip().endswith(asked):
                ends = [m.end() for m in self.pattern.finditer(text)] if not asked else []
                found.append(max(ends, default=len(text.rstrip()) - len(asked)))
                continue
            closed = max((len(c) for c in closings if c and text.startswith(c)), default=0)
            opening = prompt.replace("assistant", roles[n])
            if closed:
                found.append(closed)
            elif opening != prompt and text.endswith(opening):
                found.append(len(text) - len(opening))
            else:
                others = {
                    other
                    for other, role in zip(between, roles, strict=True)
                    if other is not None and role == roles[n] and other != text
                }
                common = max((_common_end(text, other) for other in others), default=0)
                found.append(len(text) - common)
        return found

    def added(self, longer: str, shorter: str) -> str:
        """What `longer` has behind what it shares with `shorter`, no control token cut."""
        size = 0
        while size < min(len(longer), len(shorter)) and longer[size] == shorter[size]:
            size += 1
        for match in self.pattern.finditer(longer, max(size - 200, 0)):
            if match.start() < size < match.end():
                size = match.start()
        return longer[size:]


def _letters(controls: set[str]) -> set[str]:
    """Characters of which every control token has one at least."""
    found: set[str] = set()
    for text in controls:
        marks = {char for char in text if not char.isalnum() and not char.isspace()}
        found |= marks or set(text[:1])
    return found


def _looked_for(tree: jinja2.nodes.Template) -> set[str]:
    """The strings that a template compares texts with or searches them for."""
    found: set[str] = set()
    for compare in tree.find_all(jinja2.nodes.Compare):
        found |= _strings(compare)
    for call in tree.find_all(jinja2.nodes.Call):
        if isinstance(call.node, jinja2.nodes.Getattr) and call.node.attr in _LOOKS:
            for argument in call.args:
                found |= _strings(argument)
    for use in tree.find_all(jinja2.nodes.Filter):
        if use.name in _LOOKS:
            for argument in use.args:
                found |= _strings(argument)
    return found


def _strings(node: jinja2.nodes.Node) -> set[str]:
    constants: Iterator[jinja2.nodes.Const] = node.find_all(jinja2.nodes.Const)
    found = {c.value for c in constants if isinstance(c.value, str)}
    if isinstance(node, jinja2.nodes.Const) and isinstance(node.value, str):
        found.add(node.value)
    return found


_WORD = re.compile(r"\w{3}")


def _kept(looked: Sequence[str], controls: set[str], own: set[str]) -> re.Pattern[str] | None:
    """Finds what may stay as it is in a text: strings that the template looks for and that are
    no part of a control token, and `own`, the marks that a reply is made of."""
    texts = {
        text
        for text in looked
        if _WORD.search(text) and not any(text in c or c in text for c in controls)
    } | own
    longest = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest))) if longest else None


def _between(frame: str, signs: Sequence[str], at: Sequence[int]) -> list[str | None]:
    """The template's text before each message, None where a message is missing or out of order."""
    found: list[str | None] = []
    cursor = 0
    for place in at:
        if place < cursor:
            found.append(None)
            continue
        found.append(frame[cursor:place])
        cursor = place + 1
    return found


def _common_end(left: str, right: str) -> int:
    size = 0
    while size < min(len(left), len(right)) and left[-1 - size] == right[-1 - size]:
        size += 1
    return size


def _found(masked: str, texts: Sequence[str]) -> list[int]:
    """Where each of `texts` is found, one after the other; where one is not, the place before."""
    places: list[int] = []
    cursor = 0
    for text in texts:
        here = masked.find(text.strip(), cursor)
        if here >= 0:
            places.append(here)
            cursor = here + len(text.strip())
        else:
            places.append(cursor)
    return places
