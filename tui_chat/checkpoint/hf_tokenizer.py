"""What a Hugging Face folder says of its tokenizer: the file, the ids that begin a text and end a
reply, the chat template.

Only JSON and text are read, and of a tokenizer.json only what stands around its vocabulary; the
tokenizer itself is opened elsewhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tui_chat.checkpoint.files import Damaged, RegularFile, refused
from tui_chat.checkpoint.info import TemplateHint, TokenizerHint
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import MAX_TEXT, MAX_VOCABULARY, read_json
from tui_chat.checkpoint.vocabularies import read_pieces
from tui_chat.errors import CheckpointError

MAX_TEMPLATE = 1024 * 1024  # bytes of a chat template
MAX_ID = 2**31
TEMPLATE_NAME = "chat_template"
# Classes that put a begin-of-text token first, or not, as `add_bos_token` says, whatever the
# post-processor in the file does.
_OBEYS_ADD_BOS = ("LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class HFTokenizer:
    """`stop_ids` end a reply, `text_start` stand before every raw text. `warnings` are short
    sentences on what could not be read or does not fit together.
    """

    hint: TokenizerHint
    stop_ids: tuple[int, ...] = ()
    text_start: tuple[int, ...] = ()
    template: TemplateHint = field(default_factory=TemplateHint)
    warnings: tuple[str, ...] = ()


def hf_tokenizer(folder: str) -> HFTokenizer:
    """The tokenizer of the directory `folder`, hint kind "none" where it has none.

    Looks for tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json,
    tokenizer.model, generation_config.json, config.json and chat_template.jinja. Never raises:
    what cannot be read becomes a warning.
    """
    return _Folder(folder).read()


def token_id(folder: str, text: str) -> int | None:
    """The id of the token `text` in the tokenizer of the directory `folder`, None if it has
    none."""
    found = _Folder(folder)
    found.hint()
    return found.token_id(text)


class _Folder:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.warnings: list[str] = []
        self.config = self.table("tokenizer_config.json")
        self.map = self.table("special_tokens_map.json")
        self.added: dict[str, int] = {}  # text -> id of the added tokens
        self.outer: Mapping[str, object] = {}  # tokenizer.json without its vocabulary
        self.pieces: Mapping[str, int] = {}  # text -> id of a SentencePiece model

    def read(self) -> HFTokenizer:
        hint = self.hint()
        tokens = self.tokens()
        start = self.text_start(hint, tokens)
        stops = dict.fromkeys(self.stop_ids(tokens)) if hint.kind != "none" else {}
        return HFTokenizer(
            hint=hint,
            stop_ids=tuple(stops) or tuple(dict.fromkeys(self.model_stop_ids())),
            text_start=start,
            template=self.template(tokens),
            warnings=tuple(self.warnings),
        )

    # ---- the files

    def path(self, name: str) -> str:
        path = os.path.join(self.folder, name)
        return path if os.path.isfile(path) else ""

    def table(self, name: str) -> Mapping[str, object]:
        """A JSON file as a table, empty where there is none or it cannot be read."""
        path = self.path(name)
        if not path:
            return {}
        try:
            found = read_json(path)
        except CheckpointError as error:
            self.warnings.append(str(error))
            return {}
        if not isinstance(found, dict):
            self.warnings.append(f"{name} holds no table and is left out")
        return mapping(found)

    def hint(self) -> TokenizerHint:
        path = self.path("tokenizer.json")
        if path:
            try:
                self.outer = around_vocabulary(path)
            except CheckpointError as error:
                self.warnings.append(str(error))
            self.added = dict(_added(self.outer.get("added_tokens")))
            return TokenizerHint(kind="tokenizer.json", path=path, source="tokenizer.json")
        for name in ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model"):
            if path := self.path(name):
                self.added = self.added_beside()
                self.pieces = self.sentencepiece(path)
                return TokenizerHint(kind="sentencepiece", path=path, source=name)
        if self.path("vocab.json") and self.path("merges.txt"):
            self.added = self.added_beside()
            return TokenizerHint(
                kind="tokenizer.json",
                path=self.path("vocab.json"),
                source="vocab.json and merges.txt",
            )
        return TokenizerHint(kind="none", source="no tokenizer in the folder")

    def sentencepiece(self, path: str) -> Mapping[str, int]:
        try:
            pieces = read_pieces(path)
        except CheckpointError as error:
            self.warnings.append(str(error))
            return {}
        return {piece.decode("utf-8", "replace"): n for n, piece in enumerate(pieces.pieces)}

    def added_beside(self) -> dict[str, int]:
        """Added tokens of a tokenizer without tokenizer.json: from added_tokens.json and from the
        table in tokenizer_config.json."""
        found = {
            text: token
            for text, token in self.table("added_tokens.json").items()
            if isinstance(token, int) and _is_id(token)
        }
        for key, row in mapping(self.config.get("added_tokens_decoder")).items():
            text = mapping(row).get("content")
            if isinstance(text, str) and key.isdecimal() and len(key) < 10:
                found[text] = int(key)
        return found

    # ---- what they say

    def tokens(self) -> dict[str, str]:
        """The control tokens by their part: {"bos_token": "<s>", ...}; also the named extra ones
        that a template may use."""
        found: dict[str, str] = {}
        for said in (self.map, self.config):
            for name, value in said.items():
                text = mapping(value).get("content") if isinstance(value, dict) else value
                if name.endswith("_token") and isinstance(text, str) and text:
                    found[name] = text
            for name, text in mapping(said.get("extra_special_tokens")).items():
                if isinstance(text, str) and text:
                    found[name] = text
        return found

    def stop_ids(self, tokens: Mapping[str, str]) -> Iterator[int]:
        yield from self.model_stop_ids()
        end = tokens.get("eos_token", "</s>" if self.pieces else None)
        if end is None:
            return
        token = self.token_id(end)
        if token is not None:
            yield token
        elif self.outer or self.added or self.pieces:
            self.warnings.append(f"the eos_token {end[:40]!r} has no id in the tokenizer")

    def model_stop_ids(self) -> Iterator[int]:
        for name in ("generation_config.json", "config.json"):
            said = self.table(name)
            for part in (said, mapping(said.get("text_config"))):
                value = part.get("eos_token_id")
                for token in value if isinstance(value, list) else [value]:
                    if isinstance(token, int) and _is_id(token):
                        yield token

    def token_id(self, text: str) -> int | None:
        """The id of a token by its text: an added one, else one of the vocabulary."""
        if text in self.added or not self.outer:
            return self.added.get(text, self.pieces.get(text))
        for row in mapping(self.config.get("added_tokens_decoder")).items():
            if mapping(row[1]).get("content") == text and row[0].isdecimal():
                return int(row[0])
        try:
            model = mapping(
                mapping(read_json(self.path("tokenizer.json"), MAX_VOCABULARY)).get("model")
            )
        except CheckpointError:
            return None
        found = mapping(model.get("vocab")).get(text)
        return found if isinstance(found, int) and _is_id(found) else None

    def text_start(self, hint: TokenizerHint, tokens: Mapping[str, str]) -> tuple[int, ...]:
        start = tuple(ids_before_text(self.outer.get("post_processor"), self.added))
        wanted = self.config.get("add_bos_token")
        named = str(self.config.get("tokenizer_class", "")).removesuffix("Fast")
        bos = tokens.get("bos_token")
        if hint.kind == "sentencepiece":
            if wanted is None:  # what these classes do unless told otherwise
                wanted = named in _OBEYS_ADD_BOS or not named
            token = self.token_id(bos or "<s>")
            return (token,) if wanted is True and token is not None else ()
        if named in _OBEYS_ADD_BOS and isinstance(wanted, bool) and bos:
            token = self.token_id(bos)
            if token is not None and wanted != (token in start):
                return (token, *start) if wanted else tuple(t for t in start if t != token)
        return start

    def template(self, tokens: Mapping[str, str]) -> TemplateHint:
        text, source = self.template_text()
        if not text:
            return TemplateHint(source=source)
        return TemplateHint(name=TEMPLATE_NAME, source=source, jinja=text, tokens=tokens)

    def template_text(self) -> tuple[str, str]:
        """The chat template, "" if there is none, and where it was found."""
        path = self.path("chat_template.jinja")
        if path:
            try:
                return read_template(path), "chat_template.jinja"
            except CheckpointError as error:
                self.warnings.append(str(error))
        found, source = self.config.get("chat_template"), "tokenizer_config.json"
        if found is None:
            found, source = (
                self.table("chat_template.json").get("chat_template"),
                "chat_template.json",
            )
        if isinstance(found, str):
            return self.short(found), source
        named: dict[str, str] = {}
        for row in found if isinstance(found, list) else []:
            name, text = mapping(row).get("name"), mapping(row).get("template")
            if isinstance(name, str) and isinstance(text, str):
                named[name] = text
        if isinstance(found, dict):
            named = {k: v for k, v in mapping(found).items() if isinstance(v, str)}
        if not named:
            return "", ""
        name = "default" if "default" in named else next(iter(named))
        if name != "default":
            self.warnings.append(f"it has no default chat template; {name[:40]!r} is used")
        return self.short(named[name]), f"{name[:40]!r} in {source}"

    def short(self, text: str) -> str:
        if len(text) <= MAX_TEMPLATE:
            return text
        self.warnings.append(f"its chat template has {len(text):,} characters and is left out")
        return ""


def read_template(path: str) -> str:
    """The Jinja file at `path`. Raises CheckpointError."""
    with RegularFile(path) as file:
        try:
            if file.size > MAX_TEMPLATE:
                raise Damaged(f"it has {file.size:,} bytes, more than a chat template has")
            return file.read(0, file.size).decode("utf-8")
        except UnicodeDecodeError:
            raise refused(path, Damaged("it is not UTF-8")) from None
        except Damaged as error:
            raise refused(path, error) from None


def around_vocabulary(path: str) -> Mapping[str, object]:
    """The entries of a tokenizer.json up to its model, which stands last and holds nearly all of
    the file. Raises CheckpointError."""
    with RegularFile(path) as file:
        try:
            if file.size > MAX_TEXT:
                raise Damaged(f"it has {file.size:,} bytes, more than a tokenizer has")
            raw = file.read(0, file.size)
            if len(raw) > MAX_VOCABULARY and sum(map(raw.count, (b",", b"[", b"{"))) > (
                MAX_VOCABULARY
            ):
                raise Damaged(f"it has more than {MAX_VOCABULARY:,} entries")
            return dict(_entries(raw.decode("utf-8"), until="model"))
        except UnicodeDecodeError:
            raise refused(path, Damaged("it is not UTF-8")) from None
        except RecursionError:
            raise refused(path, Damaged("it is nested too deeply")) from None
        except ValueError as error:  # Damaged is one
            raise refused(path, Damaged(str(error)[:120])) from None


def _entries(text: str, until: str) -> Iterator[tuple[str, object]]:
    """Keys and values of a JSON object as they stand, up to the key `until`."""
    decoder = json.JSONDecoder()
    at = _past_space(text, 0)
    if text[at : at + 1] != "{":
        raise Damaged("it is not a table")
    at = _past_space(text, at + 1)
    while text[at : at + 1] != "}":
        key, at = decoder.raw_decode(text, at)
        at = _past_space(text, at)
        if not isinstance(key, str) or text[at : at + 1] != ":":
            raise Damaged("it is not JSON")
        if key == until:
            return
        value, at = decoder.raw_decode(text, _past_space(text, at + 1))
        yield key, value
        at = _past_space(text, at)
        if text[at : at + 1] == ",":
            at = _past_space(text, at + 1)
        elif text[at : at + 1] != "}":
            raise Damaged("it is not JSON")


def _past_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _added(rows: object) -> Iterator[tuple[str, int]]:
    for row in rows if isinstance(rows, list) else []:
        text, token = mapping(row).get("content"), mapping(row).get("id")
        if isinstance(text, str) and isinstance(token, int) and _is_id(token):
            yield text, token


def ids_before_text(processor: object, added: Mapping[str, int]) -> list[int]:
    """The ids that the post-processor of a tokenizer.json puts before a single text.

    `added` gives the ids of tokens that it names without one. What it puts after a text is not
    wanted where the text is to be continued.
    """
    said = mapping(processor)
    kind = said.get("type")
    if kind == "Sequence":
        steps = said.get("processors")
        found: list[int] = []
        for step in steps[:32] if isinstance(steps, list) else []:
            found = ids_before_text(step, added) + found  # a later one goes around
        return found
    if kind == "TemplateProcessing":
        return _template_start(said, added)
    if kind in ("BertProcessing", "RobertaProcessing"):
        pair = said.get("cls")
        token = pair[1] if isinstance(pair, list) and len(pair) == 2 else None
        return [token] if isinstance(token, int) and _is_id(token) else []
    return []


def _template_start(said: Mapping[str, object], added: Mapping[str, int]) -> list[int]:
    found: list[int] = []
    single = said.get("single")
    ids_of = mapping(said.get("special_tokens"))
    for piece in single[:64] if isinstance(single, list) else []:
        if "Sequence" in mapping(piece):
            return found
        name = mapping(mapping(piece).get("SpecialToken")).get("id")
        if not isinstance(name, str):
            continue
        ids = mapping(ids_of.get(name)).get("ids")
        if not isinstance(ids, list):
            ids = [added.get(name)]
        found += [token for token in ids[:16] if isinstance(token, int) and _is_id(token)]
    return found


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < MAX_ID
