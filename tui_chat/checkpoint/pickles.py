"""Reads a pickle without running it: an interpreter of the opcodes that has no call operation.

Data (numbers, texts, lists, tuples, dicts, sets) becomes data. A global becomes a `Name`, what
would have been a call or an object becomes a `Record` that keeps name, arguments and state. Nothing
is ever imported or called, so there is no list of forbidden names that could miss one.

Opcodes are those of protocols 2 to 5, which is what torch and Python write. The text opcodes of
protocol 0, the extension registry and out-of-band buffers are refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.words import kind

MAX_BYTES = 128 * 1024 * 1024
MAX_OPERATIONS = 4_000_000
MAX_INTEGER_BYTES = 128
MAX_KEY_LENGTH = 8  # items of a tuple that is used as a key
MAX_TUPLE_KEYS = 10_000
# Python's hash of a whole number is the number up to here; beyond it, a file can make all collide.
MAX_INTEGER_KEY = 2**61 - 2


class Truncated(Damaged):
    """The pickle goes on after the bytes that were given."""


@dataclass(frozen=True, slots=True)
class Name:
    """A global that the pickle names. It is not looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, eq=False)
class Record:
    """An object the pickle would have made by a call, kept as what it says about it."""

    cls: object  # mostly a Name
    args: tuple[object, ...] = ()
    state: object = None
    items: list[object] = field(default_factory=list)  # appended, as to a list
    entries: dict[object, object] = field(default_factory=dict)  # set, as in a dict

    def __str__(self) -> str:
        return f"an object of {self.cls}"


@dataclass(slots=True, eq=False)
class Persistent:
    """A persistent id: torch's way to name a storage."""

    value: object


def read_pickle(
    data: bytes, begin: int = 0, *, operations: int = MAX_OPERATIONS
) -> tuple[object, int]:
    """The object pickled at `begin`, and where the pickle ends. Raises Damaged, nothing else; also
    where it takes more than `operations` steps."""
    if len(data) > MAX_BYTES:
        raise Damaged(f"its pickled part has {len(data):,} bytes, more than {MAX_BYTES:,}")
    return _Reader(data, begin).run(operations)


class _Reader:
    def __init__(self, data: bytes, begin: int) -> None:
        self.data = data
        self.at = begin
        self.stack: list[object] = []
        self.marks: list[int] = []  # stack heights
        self.memo: dict[int, object] = {}
        self.tuple_keys = 0

    def run(self, operations: int) -> tuple[object, int]:
        data, table = self.data, _OPCODES
        for _ in range(operations):
            if self.at >= len(data):
                raise Truncated("its pickled part ends in the middle")
            code = data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.pop(), self.at
            step = table[code]
            if step is None:
                raise Damaged(f"the opcode {bytes([code])!r} of its pickle is not read")
            try:
                step(self)
            except IndexError:  # only the five short opcodes look without asking
                raise Truncated("its pickled part ends in the middle") from None
        raise Damaged(f"its pickled part takes more than {operations:,} steps")

    # ---- what the opcodes are made of

    def take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise Truncated(f"its pickled part announces {count:,} bytes where it has fewer")
        found = self.data[self.at : end]
        self.at = end
        return found

    def number(self, layout: str, size: int) -> int:
        value: int = struct.unpack(layout, self.take(size))[0]
        return value

    def line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1024)
        if end < 0:
            raise Damaged("its pickled part has a name without end")
        return self.text(self.take(end - self.at + 1)[:-1])

    @staticmethod
    def text(raw: bytes) -> str:
        try:
            return raw.decode("utf-8", "surrogatepass")
        except UnicodeDecodeError:
            raise Damaged("its pickled part has a text that is not UTF-8") from None

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Damaged("its pickled part takes more from the stack than is on it")
        return self.stack.pop()

    def top(self) -> object:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise Damaged("its pickled part looks at an empty stack")
        return self.stack[-1]

    def group(self) -> list[object]:
        """Everything since the last mark, taken off the stack."""
        if not self.marks:
            raise Damaged("its pickled part has a group without beginning")
        height = self.marks.pop()
        found = self.stack[height:]
        del self.stack[height:]
        return found

    def words(self, count: int) -> list[str]:
        """`count` texts from the stack, in the order they were pushed."""
        found = [self.pop() for _ in range(count)]
        if not all(isinstance(word, str) for word in found):
            raise Damaged("its pickled part names a global by something other than text")
        return [str(word) for word in reversed(found)]

    def arguments(self) -> tuple[object, ...]:
        if isinstance(value := self.pop(), tuple):
            return value
        raise Damaged("its pickled part has arguments that are no tuple")

    # ---- containers

    def append(self, target: object, values: list[object]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Record):
            target.items.extend(values)
        else:
            raise Damaged(f"its pickled part appends to {kind(target)}")

    def assign(self, target: object, values: list[object]) -> None:
        if len(values) % 2:
            raise Damaged("its pickled part has a key without value")
        if isinstance(target, Record):
            target = target.entries
        if not isinstance(target, dict):
            raise Damaged(f"its pickled part sets an item of {kind(target)}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            target[self.key(key)] = value

    def include(self, target: object, values: list[object]) -> None:
        if not isinstance(target, set):
            raise Damaged(f"its pickled part adds to {kind(target)}")
        target.update(self.key(value) for value in values)

    def key(self, value: object) -> object:
        """`value` if it is cheap and safe to hash: a nested tuple can bring the interpreter down,
        numbers that all collide can keep it busy for hours.
        """
        if isinstance(value, int) and not -MAX_INTEGER_KEY <= value <= MAX_INTEGER_KEY:
            raise Damaged("its pickled part uses a huge number as a key")
        if value is None or isinstance(value, (str, bytes, int, float, Name, Record)):
            return value
        self.tuple_keys += 1
        if (
            isinstance(value, tuple)
            and len(value) <= MAX_KEY_LENGTH
            and self.tuple_keys <= MAX_TUPLE_KEYS
            and all(
                part is None or isinstance(part, (str, bytes, int, float, Name)) for part in value
            )
        ):
            return value
        raise Damaged(f"its pickled part uses {kind(value)} as a key")

    # ---- opcodes; the first five are nine of ten in a checkpoint, so they call nothing

    def op_get_1(self) -> None:
        place = self.data[self.at]
        self.at += 1
        try:
            self.stack.append(self.memo[place])
        except KeyError:
            raise Damaged("its pickled part refers to something it has not made") from None

    def op_memo_1(self) -> None:
        place = self.data[self.at]
        self.at += 1
        self.memo[place] = self.top()

    def op_memo_4(self) -> None:
        at = self.at
        self.at = at + 4
        self.memo[int.from_bytes(self.data[at : at + 4], "little")] = self.top()

    def op_int_1(self) -> None:
        self.stack.append(self.data[self.at])
        self.at += 1

    def op_text_4(self) -> None:
        at = self.at
        begin = at + 4
        self.at = begin + int.from_bytes(self.data[at:begin], "little")
        if self.at > len(self.data):
            raise Truncated("its pickled part announces a text where it has less")
        self.stack.append(self.text(self.data[begin : self.at]))

    def op_mark(self) -> None:
        self.marks.append(len(self.stack))

    def op_pop(self) -> None:
        if self.marks and self.marks[-1] == len(self.stack):
            self.marks.pop()
        else:
            self.pop()

    def op_frame(self) -> None:
        if self.number("<Q", 8) > len(self.data) - self.at:
            raise Truncated("its pickled part has a frame longer than itself")

    def op_proto(self) -> None:
        version = self.take(1)[0]
        if version > 5:
            raise Damaged(f"its pickled part has protocol {version}; 5 is the newest known")

    def op_long(self, count: int) -> None:
        if not 0 <= count <= MAX_INTEGER_BYTES:
            raise Damaged(f"its pickled part has an integer of {count:,} bytes")
        self.push(int.from_bytes(self.take(count), "little", signed=True))

    def op_string(self, count: int) -> None:
        if count < 0:
            raise Damaged("its pickled part has a text of negative length")
        # Python 2 wrote its byte strings this way; names and texts in them are ASCII or UTF-8.
        self.push(self.take(count).decode("utf-8", "replace"))

    def op_global(self) -> None:
        module = self.line()
        self.push(Name(module, self.line()))

    def op_stack_global(self) -> None:
        module, name = self.words(2)
        self.push(Name(module, name))

    def op_call(self) -> None:
        args = self.arguments()
        self.push(Record(self.pop(), args))

    def op_newobj_ex(self) -> None:
        keywords = self.pop()
        args = self.arguments()
        self.push(Record(self.pop(), args, keywords))

    def op_build(self) -> None:
        state, target = self.pop(), self.top()
        if not isinstance(target, Record):
            raise Damaged(f"its pickled part gives a state to {kind(target)}")
        target.state = state

    def op_memo(self, place: int) -> None:
        self.memo[place] = self.top()

    def op_get(self, place: int) -> None:
        if place not in self.memo:
            raise Damaged("its pickled part refers to something it has not made")
        self.push(self.memo[place])

    def op_tuple(self, count: int) -> None:
        found = [self.pop() for _ in range(count)]
        found.reverse()
        self.push(tuple(found))

    def op_dict(self) -> None:
        target: dict[object, object] = {}
        self.assign(target, self.group())
        self.push(target)

    def op_append(self) -> None:
        value = self.pop()
        self.append(self.top(), [value])

    def op_appends(self) -> None:
        values = self.group()
        self.append(self.top(), values)

    def op_setitem(self) -> None:
        value = self.pop()
        key = self.pop()
        self.assign(self.top(), [key, value])

    def op_setitems(self) -> None:
        values = self.group()
        self.assign(self.top(), values)

    def op_additems(self) -> None:
        values = self.group()
        self.include(self.top(), values)

    def op_frozenset(self) -> None:
        self.push(frozenset(self.key(value) for value in self.group()))


_Step = Callable[[_Reader], None]


def _table() -> list[_Step | None]:
    """The opcodes by their byte; None is refused."""
    reader = _Reader
    rows: dict[bytes, _Step] = {
        b"(": reader.op_mark,
        b"0": reader.op_pop,
        b"1": lambda r: (r.group(), None)[1],
        b"2": lambda r: r.push(r.top()),
        b"\x80": reader.op_proto,
        b"\x95": reader.op_frame,
        b"N": lambda r: r.push(None),
        b"\x88": lambda r: r.push(True),
        b"\x89": lambda r: r.push(False),
        b"J": lambda r: r.push(r.number("<i", 4)),
        b"K": reader.op_int_1,
        b"M": lambda r: r.push(r.number("<H", 2)),
        b"\x8a": lambda r: r.op_long(r.take(1)[0]),
        b"\x8b": lambda r: r.op_long(r.number("<i", 4)),
        b"G": lambda r: r.push(r.number(">d", 8)),
        b"U": lambda r: r.op_string(r.take(1)[0]),
        b"T": lambda r: r.op_string(r.number("<i", 4)),
        b"\x8c": lambda r: r.push(r.text(r.take(r.take(1)[0]))),
        b"X": reader.op_text_4,
        b"\x8d": lambda r: r.push(r.text(r.take(r.number("<Q", 8)))),
        b"C": lambda r: r.push(r.take(r.take(1)[0])),
        b"B": lambda r: r.push(r.take(r.number("<I", 4))),
        b"\x8e": lambda r: r.push(r.take(r.number("<Q", 8))),
        b"\x96": lambda r: r.push(r.take(r.number("<Q", 8))),  # a bytearray, kept as bytes
        b"c": reader.op_global,
        b"\x93": reader.op_stack_global,
        b"R": reader.op_call,
        b"\x81": reader.op_call,
        b"\x92": reader.op_newobj_ex,
        b"b": reader.op_build,
        b"Q": lambda r: r.push(Persistent(r.pop())),
        b"q": reader.op_memo_1,
        b"r": reader.op_memo_4,
        b"\x94": lambda r: r.op_memo(len(r.memo)),
        b"h": reader.op_get_1,
        b"j": lambda r: r.op_get(r.number("<I", 4)),
        b")": lambda r: r.push(()),
        b"\x85": lambda r: r.op_tuple(1),
        b"\x86": lambda r: r.op_tuple(2),
        b"\x87": lambda r: r.op_tuple(3),
        b"t": lambda r: r.push(tuple(r.group())),
        b"]": lambda r: r.push([]),
        b"l": lambda r: r.push(r.group()),
        b"}": lambda r: r.push({}),
        b"d": reader.op_dict,
        b"\x8f": lambda r: r.push(set()),
        b"a": reader.op_append,
        b"e": reader.op_appends,
        b"s": reader.op_setitem,
        b"u": reader.op_setitems,
        b"\x90": reader.op_additems,
        b"\x91": reader.op_frozenset,
    }
    table: list[_Step | None] = [None] * 256
    for code, step in rows.items():
        table[code[0]] = step
    return table


_OPCODES = _table()
