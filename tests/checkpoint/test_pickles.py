from __future__ import annotations

import collections
import pickle
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tui_chat.checkpoint.files import Damaged
from tui_chat.checkpoint.pickles import Name, Record, Truncated, read_pickle
from tui_chat.checkpoint.plain import Opaque, plain

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
)
data = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text() | st.integers(-(2**60), 2**60), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.tuples(inner, inner, inner, inner)
    ),
    max_leaves=20,
)


@given(data, st.integers(2, 5))
@settings(max_examples=150, deadline=None)
def test_reads_plain_data_as_python_does(value: object, protocol: int) -> None:
    raw = pickle.dumps(value, protocol=protocol)
    if any(len(str(abs(n))) > 300 for n in _integers(value)):
        return
    found, end = read_pickle(raw)
    assert plain(found) == value and end == len(raw)


def _integers(value: object) -> list[int]:
    if isinstance(value, int):
        return [value]
    inside = (
        value.values()
        if isinstance(value, dict)
        else value
        if isinstance(value, (list, tuple))
        else ()
    )
    return [n for part in inside for n in _integers(part)]


@given(data)
@settings(max_examples=60, deadline=None)
def test_every_shorter_pickle_is_refused(value: object) -> None:
    raw = pickle.dumps(value, protocol=4)
    for end in range(0, len(raw), max(1, len(raw) // 10)):
        with pytest.raises(Damaged):
            read_pickle(raw[:end])


class Config:
    def __init__(self) -> None:
        self.n_layer = 12
        self.name = "gpt"


def test_an_object_of_an_unknown_class_keeps_its_fields() -> None:
    raw = pickle.dumps(Config(), protocol=2).replace(__name__.encode(), b"no_such_module")
    found = plain(read_pickle(raw)[0])
    assert isinstance(found, Opaque)
    assert found.name == "no_such_module.Config" and found.fields == {"n_layer": 12, "name": "gpt"}


def test_an_ordered_dict_with_attributes_is_a_dict() -> None:
    value = collections.OrderedDict(a=1, b=[2])
    value._metadata = {"version": 1}  # type: ignore[attr-defined]  # as torch's state dicts have
    assert plain(read_pickle(pickle.dumps(value, protocol=2))[0]) == {"a": 1, "b": [2]}


class Exec:
    def __reduce__(self) -> tuple[object, ...]:
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_call_is_kept_as_a_record_and_not_made(protocol: int) -> None:
    found, _ = read_pickle(pickle.dumps(Exec(), protocol=protocol))
    assert isinstance(found, Record)
    assert found.cls == Name("__builtin__" if protocol == 2 else "builtins", "exec")
    assert found.args == ("raise SystemExit('it ran')",)


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b"I12\n.", "opcode"),
        (b"\x80\x02(i__main__\nX\n.", "opcode"),
        (b"\x80\x02\x82\x01.", "opcode"),
        (b"\x80\x06N.", "protocol 6"),
        (b".", "stack"),
        (b"u.", "group"),
        (b")Na.", "appends to an empty tuple"),
        (b"}NNs0h\x07.", "not made"),
        (b"}]Ns.", "list as a key"),
        (b"}\x8a\x09" + (2**61 - 1).to_bytes(9, "little") + b"Ns.", "huge number as a key"),
        (b"Nb.", "stack"),
        (b"NNb.", "state"),
        (b"\x8b" + struct.pack("<i", 10**6) + b"0" * 100, "integer"),
        (b"X\xff\xff\xff\xffab", "text"),
        (b"X\x01\x00\x00\x00\xff.", "UTF-8"),
    ],
)
def test_refuses_with_a_reason(raw: bytes, reason: str) -> None:
    with pytest.raises(Damaged, match=reason):
        read_pickle(raw)


def test_tells_an_unfinished_pickle_from_a_wrong_one() -> None:
    with pytest.raises(Truncated):
        read_pickle(b"\x80\x02}q\x00")


def test_nesting_is_bounded_where_it_is_walked() -> None:
    deep = b"]" * 30_000 + b"a" * 29_999 + b"."
    with pytest.raises(Damaged, match="levels"):
        plain(read_pickle(deep)[0])


def test_what_is_shared_a_billion_times_is_looked_at_once() -> None:
    value: list[object] = []
    for _ in range(30):
        value = [value] * 10
    found = plain(read_pickle(pickle.dumps(value, protocol=2))[0])
    assert isinstance(found, list) and found[0] is found[9]


def test_data_that_contains_itself_is_refused() -> None:
    value: list[object] = []
    value.append(value)
    with pytest.raises(Damaged, match="itself"):
        plain(read_pickle(pickle.dumps(value, protocol=2))[0])
