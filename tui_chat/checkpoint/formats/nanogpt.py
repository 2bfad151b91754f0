"""nanoGPT and build-nanogpt: GPT-2 shaped, one fused c_attn, the head tied to the embedding.

nanoGPT keeps its sizes in `model_args` (a dict), build-nanogpt in `config` (an object of the
script's own class, read as a record). Files that were trimmed to the weights open too, as far as
the tensors tell: all but the number of heads.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

from tui_chat.checkpoint.archive import read_pickle_file
from tui_chat.checkpoint.description import Description, agree
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.names import Table, biased, count, optional, strip
from tui_chat.checkpoint.plain import Opaque, mapping
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

NAME = "nanoGPT"
BUILD_NAME = "build-nanogpt"

NAMES: Table = {
    "embed": "transformer.wte",
    "position": "transformer.wpe",
    "blocks.{i}.attn_norm": "transformer.h.{i}.ln_1",
    "blocks.{i}.attn.qkv": "transformer.h.{i}.attn.c_attn",
    "blocks.{i}.attn.out": "transformer.h.{i}.attn.c_proj",
    "blocks.{i}.mlp_norm": "transformer.h.{i}.ln_2",
    "blocks.{i}.mlp.up": "transformer.h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.down": "transformer.h.{i}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
    "head": optional("lm_head"),
}
IGNORED = ("*.attn.bias", "*.attn.masked_bias")  # causal masks that older code kept as buffers
PREFIXES = ("module", "model")

_FUSED = re.compile(r"transformer\.h\.\d+\.attn\.c_attn\.weight")

# Where people keep the weights in the file, and the settings.
_WEIGHTS = ("model", "model_state_dict", "state_dict", "model_state", "weights")
_SETTINGS = ("model_args", "config", "cfg", "args", "hparams", "hyper_parameters")
_NUMBERS = ("best_val_loss", "val_loss", "iter_num", "step")
_WORDS = {
    "vocab_size": "vocab_size",
    "context_length": "block_size",
    "n_layer": "n_layer",
    "n_head": "n_head",
    "n_embd": "n_embd",
}
GPT2_IDS = 50257
GPT2_END = 50256
GPT2_MOST = 51200  # 50257 padded to a round number: 50304 in nanoGPT, 51200 at most


def recognise(source: Source) -> float:
    if source.is_dir:
        return 0.0
    tensors = _tensors(source)[0]
    fused = [ref for name, ref in tensors.items() if _FUSED.fullmatch(name)]
    # Hugging Face's GPT-2 has the same names, but its matrices are stored [in, out].
    if not fused or not all(
        isinstance(ref, TensorRef) and len(ref.shape) == 2 and ref.shape[0] == 3 * ref.shape[1]
        for ref in fused
    ):
        return 0.0
    there = sum(name in tensors for name in ("transformer.wte.weight", "transformer.wpe.weight"))
    return (0.0, 0.6, 0.9)[there]  # one that lost a tensor is refused by that tensor's name


def describe(source: Source) -> Description:
    tensors, removed = _tensors(source)
    notes = Notes(source.config)
    notes.removed(removed)
    notes.tensors(tensors, IGNORED)
    said, place = _settings(source)
    build = _is_build(source)
    embed, positions = (
        _matrix(tensors, "transformer.wte.weight"),
        _matrix(tensors, "transformer.wpe.weight"),
    )
    shown: dict[str, object] = {
        "vocab_size": embed.shape[0],
        "n_embd": embed.shape[1],
        "context_length": positions.shape[0],
        "n_layer": count(tensors, "transformer.h.{n}."),
    }
    agree(shown, said, {ours: word for ours, word in _WORDS.items() if ours not in source.config})
    notes.shapes(shown)
    head = tensors.get("lm_head.weight")
    tied = not isinstance(head, TensorRef) or head.same_numbers(embed)
    notes.head(tied, "lm_head.weight", tensors)
    if tied:
        tensors = {name: value for name, value in tensors.items() if name != "lm_head.weight"}
    if "n_head" in said and place not in _SETTINGS:
        notes.inferred.append(f"n_head {str(said['n_head'])[:20]}: from {place}")
    # nanoGPT had the tanh approximation until May 2023; the file does not say, the difference is
    # tiny.
    fixed: dict[str, object] = {"norm_eps": 1e-5, "activation": "gelu_tanh" if build else "gelu"}
    notes.fixed(fixed, "build-nanogpt" if build else "nanoGPT since May 2023")
    _unused(source, notes)
    tokenizer = _tokenizer(source, embed.shape[0], notes.warnings)
    loss = _number(source, *_NUMBERS[:2])
    step = _number(source, *_NUMBERS[2:])
    return Description(
        format=BUILD_NAME if build else NAME,
        spec={
            **shown,
            "n_head": said.get("n_head"),
            **fixed,
            "norm": "layernorm",
            "position": "learned",
        },
        tensors=tensors,
        names=_names(source, tensors, build),
        ignored=IGNORED,
        archives=(source.archive,),
        tokenizer=tokenizer,
        step=int(step) if step is not None and 0 <= step < 2**53 else None,
        losses={"val": loss} if loss is not None and abs(loss) < 1e8 else {},
        stop_ids=(GPT2_END,) if tokenizer.kind == "tiktoken" else (),
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
    )


def _unused(source: Source, notes: Notes) -> None:
    """What of the file nobody looked at."""
    places = [key for key in _SETTINGS if isinstance(source.root.get(key), (dict, Opaque))]
    used = {key for key in _WEIGHTS if mapping(source.root.get(key))}
    if not used:  # the weights lie at the top
        used = {key for key, value in source.root.items() if isinstance(value, TensorRef)}
    notes.keys(source.root, (*used, *places, *_NUMBERS), "the file")
    for place in places:
        notes.keys(mapping(source.root.get(place)), (*_WORDS.values(), "bias", "dataset"), place)


def _is_build(source: Source) -> bool:
    """build-nanogpt keeps its config object, or a dict made of it, and calls step and loss by
    other names."""
    root = source.root
    config = root.get("config")
    if "model_args" in root:
        return False
    said = isinstance(config, dict) and "n_head" in config and "iter_num" not in root
    return isinstance(config, Opaque) or (said and "step" in root and "val_loss" in root)


def _names(source: Source, tensors: Mapping[str, object], build: bool) -> Table:
    """The table, in which biases are either everywhere or nowhere where the file tells which.

    Files from before the setting always have them. Without any settings the tensors decide.
    """
    settings = mapping(source.root.get("model_args"))
    said = settings.get("bias")
    seen = any(name.endswith(".bias") and not _ignored(name) for name in tensors)
    if said is True or (said is None and seen and (settings or build)):
        return {
            ours: biased(row) if ours.startswith(("blocks.", "final_norm")) else row
            for ours, row in NAMES.items()
        }
    return NAMES


def _ignored(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in IGNORED)


def _tensors(source: Source) -> tuple[dict[str, object], list[str]]:
    """The weights without prefixes, and the prefixes."""
    for key in _WEIGHTS:
        weights = mapping(source.root.get(key))
        if weights:
            return strip(weights, PREFIXES)
    return strip({k: v for k, v in source.root.items() if isinstance(v, TensorRef)}, PREFIXES)


def _number(source: Source, *keys: str) -> float | None:
    """The first of the values that is a number: nanoGPT's word for it, then build-nanogpt's."""
    numbers = (source.archive.scalar(source.root.get(key)) for key in keys)
    return next((number for number in numbers if number is not None), None)


def _matrix(tensors: Mapping[str, object], name: str) -> TensorRef:
    ref = tensors.get(name)
    if not isinstance(ref, TensorRef) or len(ref.shape) != 2:
        raise CheckpointError(
            "the tensors do not fit the format", f"{name} is missing or no matrix"
        )
    return ref


def _settings(source: Source) -> tuple[Mapping[str, object], str]:
    """The sizes as the file says them, and where the number of heads stands; what `model_args`
    leaves out, the script's own settings may say."""
    said: dict[str, object] = {}
    place = ""
    for key in reversed(_SETTINGS):
        values = mapping(source.root.get(key))
        said.update((word, values[word]) for word in _WORDS.values() if word in values)
        place = key if "n_head" in values else place
    number = re.search(r"(\d+)\.\w+$", os.path.basename(source.path))
    beside = source.near(f"meta_{number.group(1)}.json") if number and not said else ""
    if beside:
        values = mapping(mapping(read_json(beside)).get("model_config"))
        said.update((word, values[word]) for word in _WORDS.values() if word in values)
        place = shown_name(beside)
    return said, place


# ---- the tokenizer: a meta.pkl for characters, else GPT-2's pieces where the size fits


def _tokenizer(source: Source, rows: int, warnings: list[str]) -> TokenizerHint:
    dataset = mapping(source.root.get("config")).get("dataset")
    name = dataset if isinstance(dataset, str) and _bare(dataset) else ""
    for path in _meta_files(source, name):
        ids = _meta_ids(path)
        # A table that is smaller than the model belongs to it only where the training read it.
        if ids == rows or (name and 0 < ids < rows and (rows < GPT2_IDS or _of(path, name))):
            return TokenizerHint(
                kind="chars", path=path, source=_where(source, path), vocab_size=ids
            )
    if GPT2_IDS <= rows <= GPT2_MOST:
        return TokenizerHint(
            kind="tiktoken",
            name="gpt2",
            source=f"no meta.pkl, and {rows} rows are GPT-2's {GPT2_IDS} ids"
            + (" padded" if rows > GPT2_IDS else ""),
            vocab_size=GPT2_IDS,
            text_specials=("<|endoftext|>",),
        )
    place = f"data/{name}/meta.pkl" if name else "meta.pkl"
    warnings.append(
        f"no tokenizer found for {rows} ids: put the {place} of the training beside the "
        "checkpoint, or name it with --tokenizer; until then only ids are shown"
    )
    return TokenizerHint(kind="none", source="no meta.pkl found", vocab_size=rows)


def _bare(name: str) -> bool:
    parts = name.replace("\\", "/").split("/")
    return (
        all(part not in ("", ".", "..") and ":" not in part for part in parts) and len(name) < 200
    )


def _of(path: str, dataset: str) -> bool:
    """Whether a meta.pkl lies in the folder of a dataset."""
    return os.path.dirname(path).replace(os.sep, "/").endswith("/" + dataset.replace("\\", "/"))


def _meta_files(source: Source, dataset: str) -> list[str]:
    """Where nanoGPT's scripts and people's habits leave meta.pkl, the surest place first."""
    if dataset:
        places: list[tuple[str, ...]] = [("meta.pkl",)]
        for up in ("", "..", "../..", "../../.."):
            places += [(up, "data", dataset, "meta.pkl"), (up, dataset, "meta.pkl")]
        return [path for path in (source.near(*place) for place in places) if path]
    found = [source.near("meta.pkl")]
    data = os.path.join(source.folder, "..", "data")
    with contextlib.suppress(OSError):
        found += [
            source.near("..", "data", name, "meta.pkl") for name in sorted(os.listdir(data))[:200]
        ]
    return [path for path in found if path]


def _meta_ids(path: str) -> int:
    """How many characters a meta.pkl knows, 0 if it is none."""
    try:
        return len(_characters(read_pickle_file(path)))
    except CheckpointError:
        return 0


def _characters(meta: object) -> Mapping[object, object]:
    """The table from id to character in a meta.pkl."""
    table = meta.get("itos") if isinstance(meta, dict) else None
    return table if isinstance(table, dict) else {}


def _where(source: Source, path: str) -> str:
    return (
        os.path.relpath(path, source.folder)
        if os.path.dirname(path) != source.folder
        else shown_name(path)
    )
