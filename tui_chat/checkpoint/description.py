"""What a format found out about a checkpoint, and how that becomes a CheckpointInfo.

A format says what the file says; here the user's overrides are applied, the settings are held
against the tensors, and whatever does not fit is refused by name. The same for every format, so a
format stays data.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from tui_chat.checkpoint.archive import Archive
from tui_chat.checkpoint.files import RegularFile, Stamp, shown_name, shown_path
from tui_chat.checkpoint.info import CheckpointInfo, TemplateHint, TokenizerHint
from tui_chat.checkpoint.names import Recipe, Table, match
from tui_chat.checkpoint.overrides import setting
from tui_chat.checkpoint.plan import WeightPlan
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.conversation import Mode
from tui_chat.errors import CheckpointError, UsageError
from tui_chat.model.spec import ModelSpec

_SAMPLE = 64  # bytes looked at in each of three places of a tensor without a checksum


@dataclass(slots=True, kw_only=True)
class Description:
    """`spec` holds the ModelSpec fields that are known, `tensors` the weights under the trainer's
    own names.

    `names` and `ignored` say what those mean (names.py). `archives` are the files that were read.
    `options` are settings of the family beyond ModelSpec's, and what each is unless the user says
    otherwise.
    """

    format: str
    spec: dict[str, object]
    tensors: Mapping[str, object]
    names: Table
    ignored: tuple[str, ...] = ()
    archives: tuple[Archive, ...]
    tokenizer: TokenizerHint
    run: str = ""
    step: int | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    template: TemplateHint = field(default_factory=TemplateHint)
    stop_ids: tuple[int, ...] = ()
    text_start: tuple[int, ...] = ()
    mode: Mode = "raw"
    options: Mapping[str, bool | int | str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    inferred: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    description: str = ""


def finish(source: Source, found: Description) -> CheckpointInfo:
    """The checkpoint as the rest of the program knows it. Raises CheckpointError where file and
    settings differ."""
    try:
        spec = build_spec(found.spec, source.config, found.options)
        recipes = match(spec, found.tensors, found.names, found.ignored)
    except CheckpointError as error:
        raise CheckpointError(
            f"cannot open {shown_path(source.path)} ({found.format})",
            f"{error.title}: {error.found}" if error.found else error.title,
            error.remedy,
        ) from None
    refs = {ref.place: ref for recipe in recipes.values() for ref in recipe.parts}
    dtypes = sorted({_stored(ref) for ref in refs.values()}, key=lambda name: -_count(refs, name))
    return CheckpointInfo(
        path=source.path,
        format=found.format,
        spec=spec,
        parameters=sum(ref.numel for ref in refs.values()),
        dtype=dtypes[0] if dtypes else "",
        run=found.run or run_name(source.path),
        step=found.step,
        losses=found.losses,
        tokenizer=found.tokenizer,
        template=found.template,
        stop_ids=tuple(i for i in found.stop_ids if 0 <= i < spec.vocab_size),
        text_start=tuple(i for i in found.text_start if 0 <= i < spec.vocab_size),
        mode=found.mode,
        warnings=tuple(found.warnings),
        inferred=tuple(found.inferred),
        defaults=tuple(found.defaults),
        unused=tuple(found.unused),
        fingerprint=_fingerprint(recipes),
        size=sum(archive.stamp.size for archive in found.archives),
        modified=max(archive.modified for archive in found.archives),
        description=found.description,
        plan=WeightPlan(
            recipes=recipes, stamps={archive.path: archive.stamp for archive in found.archives}
        ),
    )


def _count(refs: Mapping[tuple[object, ...], TensorRef], dtype: str) -> int:
    return sum(ref.numel for ref in refs.values() if _stored(ref) == dtype)


def _stored(ref: TensorRef) -> str:
    """How the numbers of a tensor are stored, in a word."""
    return ref.encoding or ref.dtype


# Names of directories that say what is in them, and not which run it is of.
_NAMELESS = frozenset(("checkpoints", "checkpoint", "ckpts", "ckpt", "weights"))


def run_name(path: str) -> str:
    """The run a file belongs to is the directory it lies in."""
    return name_of_run(os.path.dirname(path))


def name_of_run(folder: str) -> str:
    """What the run in a directory is called: its name, with its parent's before it where it says
    nothing by itself."""
    name = shown_name(folder)
    above = os.path.dirname(folder)
    return f"{shown_name(above)}/{name}" if name.lower() in _NAMELESS and above != "/" else name


_COUNTS = ("vocab_size", "n_layer", "n_head", "n_embd", "context_length", "n_kv_head", "head_dim")


def build_spec(
    known: Mapping[str, object],
    overrides: Mapping[str, object],
    options: Mapping[str, bool | int | str] | None = None,
) -> ModelSpec:
    """A ModelSpec from what the file says and what the user says, the user last. Raises
    CheckpointError, UsageError."""
    values = dict(known)
    chosen: dict[str, object] = dict(options or {})
    for name, value in overrides.items():
        if name in chosen:
            chosen[name] = _alike(name, value, chosen[name])
        else:
            values[name] = setting(name, value, chosen)
    if chosen:
        values["options"] = chosen
    for name in _COUNTS[:5]:
        if values.get(name) is None:
            raise CheckpointError(
                f"the file does not say {name}", "", f"Give it with --config {name}=N"
            )
    for name in _COUNTS:
        values[name] = _whole(name, values.get(name, 0))
    return ModelSpec(**values)  # type: ignore[arg-type]


def _alike(name: str, value: object, usual: object) -> object:
    """`value` where it is of the kind that the option's usual value is. Raises UsageError."""
    if type(value) is not type(usual):
        kinds = {bool: "true or false", int: "a whole number", str: "a word"}
        raise UsageError(
            f"the setting {name} is {kinds[type(usual)]}", f"{str(value)[:40]!r} is not"
        )
    return value


def _whole(name: str, value: object) -> int:
    """A count, also where JSON or a trainer made a float of it. A truth value is none."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise CheckpointError(
        "the model's settings cannot be used", f"{name} is {str(value)[:40]}, not a number"
    )


def agree(
    found: Mapping[str, object], said: Mapping[str, object], names: Mapping[str, str]
) -> None:
    """Hold what the tensors show against what the file's own settings say. Raises CheckpointError.

    `names` is our field -> the trainer's word for it.
    """
    for field_name, word in names.items():
        if word in said and field_name in found and said[word] is not None:
            value = _whole(word, said[word])
            if value != found[field_name]:
                raise CheckpointError(
                    "the file contradicts itself",
                    f"its settings say {word} = {value}, its tensors {found[field_name]}",
                    f"If nothing is missing in it, open it with --config "
                    f"{field_name}={found[field_name]}",
                )


def _fingerprint(recipes: Mapping[str, Recipe]) -> str:
    """16 hex digits that tell one set of weights from another; training step and names of files do
    not matter."""
    digest = hashlib.blake2b(digest_size=8)
    files: dict[str, RegularFile] = {}
    try:
        for name in sorted(recipes):
            for ref in recipes[name].parts:
                mark = ref.storage.crc32
                content = _sample(files, ref) if mark is None else mark.to_bytes(4, "little")
                if ref.scales is not None:
                    content += _sample(files, ref.scales)
                layout = (name, ref.dtype, ref.shape, ref.stride, ref.offset, ref.storage.nbytes)
                digest.update(repr(layout).encode() + content)
    finally:
        for file in files.values():
            file.__exit__(None, None, None)
    return digest.hexdigest()


def _sample(files: dict[str, RegularFile], ref: TensorRef) -> bytes:
    storage = ref.storage
    file = files.get(storage.file)
    if file is None:
        file = files[storage.file] = RegularFile(storage.file)
    size = min(_SAMPLE, storage.nbytes)
    places = {0, (storage.nbytes - size) // 2, storage.nbytes - size}
    return b"".join(file.read(storage.begin + place, size) for place in sorted(places))


__all__ = ["Description", "Stamp", "agree", "build_spec", "finish", "name_of_run", "run_name"]
