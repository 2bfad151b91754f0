"""How the readers' messages call a value, whatever its type is called here."""

from __future__ import annotations

_KINDS = {
    "NoneType": "None",
    "bool": "a truth value",
    "int": "a number",
    "float": "a number",
    "str": "a text",
    "bytes": "a text of bytes",
    "tuple": "a tuple",
    "list": "a list",
    "dict": "a dict",
    "set": "a set",
    "frozenset": "a set",
    # What stands for an object while a pickle is read (pickles.py).
    "Name": "a class name",
    "Record": "an object",
    "Persistent": "a persistent id",
    "TensorRef": "a tensor",
}


def kind(value: object) -> str:
    """ "a list", "an empty dict", "a number"."""
    if isinstance(value, (list, dict, set, tuple)) and not value:
        return f"an empty {type(value).__name__}"
    return _KINDS.get(type(value).__name__, "an object")


def listed(words: list[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))
