"""What a user may say of a model in place of its file, and whether it can be so."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Literal, Union, get_args, get_origin, get_type_hints

from tui_chat.errors import UsageError
from tui_chat.model.spec import ModelSpec

# A family is its format's to choose, and tables do not fit behind a --config.
_TABLES = frozenset(("options", "rope_scaling", "experts", "family"))
_HINTS = {name: hint for name, hint in get_type_hints(ModelSpec).items() if name not in _TABLES}

SETTABLE = tuple(sorted(_HINTS))


def setting(name: str, value: object, others: Iterable[str] = ()) -> object:
    """`value` for the field `name` of ModelSpec. Raises UsageError where there is no such field
    (`others` may be said beside them) or it takes no such value.
    """
    if name not in _HINTS:
        there = ", ".join((*others, *SETTABLE))
        raise UsageError(f"there is no model setting {name[:80]!r}", "", f"There are {there}")
    fits, found = _fitting(_HINTS[name], value)
    if not fits:
        wanted = _words(_HINTS[name])
        raise UsageError(f"the setting {name} is {wanted}", f"{str(value)[:40]!r} is not")
    return found


def _fitting(hint: object, value: object) -> tuple[bool, object]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in parts and type(value) in {type(part) for part in parts}, value
    if origin in (Union, types.UnionType):
        return next((found for part in parts if (found := _fitting(part, value))[0]), (False, None))
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            return False, value
        items = [_fitting(parts[0], item) for item in value]
        return all(fits for fits, _ in items), tuple(item for _, item in items)
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool), value
    if hint is int and isinstance(value, float) and value.is_integer():
        return True, int(value)
    if hint is int and isinstance(value, bool):
        return False, value
    return isinstance(value, hint) if isinstance(hint, type) else False, value


def _words(hint: object) -> str:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(str(part) for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in parts)
    if origin is tuple:
        return f"a list, each {_words(parts[0])}"
    return {float: "a number", int: "a whole number", bool: "true or false"}.get(hint, "none")  # type: ignore[call-overload,no-any-return]
