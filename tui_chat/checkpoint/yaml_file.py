"""YAML files of settings, as plain data: no tags, no objects, no copies by alias.

PyYAML's safe loader would still follow aliases, which make a gigabyte of a few lines, and make
dates and sets by tag; the events are read here instead, up to a size and a depth.
"""

from __future__ import annotations

from typing import Any

from tui_chat.checkpoint.files import Damaged, RegularFile, refused

MAX_YAML = 1024 * 1024  # bytes
MAX_DEPTH = 32
MAX_NODES = 20_000
_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str"))


def read_yaml(path: str) -> object:
    """The YAML file at `path`: dicts, lists, texts, numbers, truth values, None. Raises
    CheckpointError in one sentence, whatever is in it."""
    with RegularFile(path) as file:
        try:
            if file.size > MAX_YAML:
                raise Damaged(f"it has {file.size:,} bytes, more than a file of settings has")
            return parse_yaml(file.read(0, file.size))
        except Damaged as error:
            raise refused(path, error) from None


def parse_yaml(raw: bytes) -> object:
    """One YAML document, or Damaged; None for an empty one."""
    import yaml  # rarely needed, and slow to import

    try:
        return _Reader(raw).document()
    except UnicodeDecodeError:
        raise Damaged("it is not UTF-8") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, Damaged):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise Damaged(f"it is not YAML ({first[:80]})") from None


class _Reader:
    def __init__(self, raw: bytes) -> None:
        import yaml

        self.yaml = yaml
        self.loader: Any = yaml.SafeLoader(raw.decode("utf-8"))
        self.nodes = 0

    def document(self) -> object:
        try:
            self.next()  # the beginning of the stream
            if isinstance(self.next(), self.yaml.StreamEndEvent):
                return None
            value = self.value(self.next(), 0)
            self.next()  # the end of the document
            if not isinstance(self.next(), self.yaml.StreamEndEvent):
                raise Damaged("it holds more than one document")
            return value
        finally:
            self.loader.dispose()

    def next(self) -> Any:
        event = self.loader.get_event()
        self.nodes += 1
        if self.nodes > MAX_NODES:
            raise Damaged("it has more entries than a file of settings has")
        return event

    def value(self, event: Any, depth: int) -> object:
        yaml = self.yaml
        if depth > MAX_DEPTH:
            raise Damaged("it is nested too deeply")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise Damaged("it has anchors or aliases, which are not read")
        if getattr(event, "tag", None) not in (None, "!"):
            raise Damaged(f"it has the tag {str(event.tag)[:60]!r}, and tags are not read")
        if isinstance(event, yaml.ScalarEvent):
            return self.scalar(event)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[object] = []
            while not isinstance(event := self.next(), yaml.SequenceEndEvent):
                items.append(self.value(event, depth + 1))
            return items
        table: dict[object, object] = {}
        while not isinstance(event := self.next(), yaml.MappingEndEvent):
            key = self.value(event, depth + 1)
            if isinstance(key, (list, dict)) or key in table:
                raise Damaged("it has a key twice, or one that is no text")
            table[key] = self.value(self.next(), depth + 1)
        return table

    def scalar(self, event: Any) -> object:
        """A value by YAML 1.1's rules, as the trainers' own reader takes it."""
        yaml = self.yaml
        tag = self.loader.resolve(yaml.ScalarNode, event.value, event.implicit)
        if tag not in _TAGS:  # a date, or a lone "=": the text that it is
            return str(event.value)
        if len(event.value) > 400 and tag.endswith((":int", ":float")):
            raise Damaged("a number in it is too long")
        return self.loader.construct_object(yaml.ScalarNode(tag, event.value), deep=True)


__all__ = ["parse_yaml", "read_yaml"]
