"""KempnerForge: step directories of torch's distributed checkpoints, whole, sharded over ranks or
in the stages of a pipeline.

The settings are not in the checkpoint but in the TOML of the training, which is looked for beside
it (training_toml.py) or given. Sizes follow from the shapes in any case; without a TOML the number
of heads is asked for, unless norms of queries and keys show it. Mixtures of experts come with two
routers, and with their experts one by one or stacked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from tui_chat.checkpoint.archive import Archive
from tui_chat.checkpoint.dcp import METADATA, SUFFIX, read_dcp, same_numbers
from tui_chat.checkpoint.description import Description, run_name
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import Damaged, RegularFile, shown_path
from tui_chat.checkpoint.kempnerforge.experts import one_by_one
from tui_chat.checkpoint.kempnerforge.settings import Settings, Shown, heads_of, shown_of
from tui_chat.checkpoint.kempnerforge.training_tokenizer import tokenizer_of
from tui_chat.checkpoint.kempnerforge.training_toml import find_training
from tui_chat.checkpoint.names import (
    Row,
    Table,
    cat,
    optional,
    partial,
    strip,
)
from tui_chat.checkpoint.pickles import MAX_BYTES
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import Experts

NAME = "KempnerForge"
READS_CONFIG_FILE = True

_MLP = "layers.{i}.mlp"
_BLOCK = "blocks.{i}.mlp"
NAMES: Table = {
    "embed": "token_embedding.embedding",
    "blocks.{i}.attn_norm": "layers.{i}.attention_norm",
    "blocks.{i}.attn.qkv": cat(*(f"layers.{{i}}.attention.{part}_proj" for part in "qkv")),
    "blocks.{i}.attn.q_norm": optional("layers.{i}.attention.q_norm"),
    "blocks.{i}.attn.k_norm": optional("layers.{i}.attention.k_norm"),
    "blocks.{i}.attn.out": "layers.{i}.attention.o_proj",
    "blocks.{i}.mlp_norm": "layers.{i}.mlp_norm",
    f"{_BLOCK}.down": partial(f"{_MLP}.down_proj"),
    f"{_BLOCK}.router": partial(f"{_MLP}.router.gate"),
    f"{_BLOCK}.experts.down": partial(f"{_MLP}.experts.{{e}}.down_proj"),
    f"{_BLOCK}.shared.down": partial(f"{_MLP}.shared_expert.down_proj"),
    "final_norm": "norm",
    "head": "output_head.proj",
}
_PLACES = {"": "", ".experts": ".experts.{e}", ".shared": ".shared_expert"}
GATED_NAMES: Table = {
    f"{_BLOCK}{ours}.gate_up": partial(
        Row((f"{_MLP}{theirs}.gate_proj", f"{_MLP}{theirs}.up_proj"))
    )
    for ours, theirs in _PLACES.items()
}
PLAIN_NAMES: Table = {
    f"{_BLOCK}{ours}.up": partial(f"{_MLP}{theirs}.up_proj") for ours, theirs in _PLACES.items()
}
IGNORED = ("*.router.expert_ema",)  # how often each expert was used in training
HEAD = "output_head.proj.weight"
_OPTIMIZER = ("optimizer.", "optimizers.", "optim.")

_TELL_TALE = (
    "token_embedding.embedding.weight",
    "layers.0.attention_norm.weight",
    "layers.0.attention.q_proj.weight",
    HEAD,
)
# What only the models that also see images have.
_SEES = re.compile(
    r"(vision_encoder|adapter|cross_attention_layers|mot_norms)\."
    r"|.*\.mlp\.experts\.[a-z]|layers\.\d+\.(attention|mlp|mlp_norm|attention_norm)\.(text|image)\."
)
_STAGE = re.compile(r"pp(\d{1,4})")
_STEP = re.compile(r"step_(\d{1,15})")


def claims(names: frozenset[str]) -> bool:
    """A directory with shards in it, or with stages of a pipeline."""
    if any(name.endswith(SUFFIX) for name in names):
        return True
    beside = not names.isdisjoint(("train_state.pt", "metadata.json", "pp1"))
    return beside and (METADATA in names or any(_STAGE.fullmatch(name) for name in names))


def recognise(source: Source) -> float:
    folder = _folder(source)
    if not folder:
        return 0.0
    stages = _stages(folder)
    raw = b"".join(_raw_metadata(stage) for stage in stages)
    found = sum(name.encode() in raw for name in _TELL_TALE) / len(_TELL_TALE)
    # Others' and unfinished ones are described too: with the reason why they cannot be opened.
    return max(found, 0.5 if stages or _has_shards(folder) else 0.0)


def describe(source: Source) -> Description:
    folder = _folder(source)
    stages = _stages(folder)
    if not stages:
        raise CheckpointError(
            f"cannot open {shown_path(source.path)}",
            f"it is unfinished: there is no {METADATA} in it, which is written last",
            "Open another step of the run",
        )
    tensors, archives, removed = _tensors(source, stages)
    notes = Notes(source.config)
    warnings, inferred = notes.warnings, notes.inferred
    notes.removed([word for word in removed if word != "model."])
    notes.tensors(tensors, IGNORED)
    notes.unused += _for_training(folder, stages)
    shown = shown_of(tensors)
    own = Settings.taken_from(source.config)
    training = find_training(
        folder, source.config_file, lambda m: shown.clash({**m, **own}), warnings
    )
    said = Settings(training, own)
    if training.path:
        how = "as you said" if training.given else "found by its place; its sizes fit the tensors"
        inferred.append(f"settings from {shown_path(training.path)}: {how}")
    else:
        warnings.append(
            "no TOML of the training was found: sizes are the tensors', all else is KempnerForge's "
            "default; name it with --config-file"
        )
    spec = _spec(said, shown, source.config, inferred, warnings)
    bare = _untied(tensors, said, warnings)
    notes.head(HEAD not in bare, HEAD, tensors)
    tokenizer = tokenizer_of(folder, training, own.get("tokenizer_path"), rows=shown.vocab_size)
    step, seen = _progress(folder, warnings)
    return Description(
        format=NAME,
        spec=spec,
        tensors=bare,
        names=_names(tensors, said, gated=shown.gated),
        ignored=IGNORED,
        archives=archives,
        tokenizer=tokenizer.hint,
        run=run_name(folder),
        step=step,
        stop_ids=tokenizer.stop_ids,
        text_start=tokenizer.text_start,
        mode="raw",
        warnings=[*warnings, *tokenizer.warnings],
        inferred=inferred,
        defaults=said.defaults,
        unused=[*notes.unused, *said.unused()],
        description=f"{seen:,} tokens seen" if seen else "",
    )


def latest(folder: Source) -> str:
    """The step that the run's link `latest` leads to, "" where it is unfinished or there is none:
    a save in the background moves the link before it ends."""
    link = os.path.join(folder.path, "latest")
    name = os.path.basename(os.path.realpath(link)) if os.path.isdir(link) else _named(link)
    step = os.path.join(folder.path, name)
    return name if _STEP.fullmatch(name) and os.path.isdir(step) and _stages(step) else ""


# ---- directories


def _folder(source: Source) -> str:
    """The step directory that `source` stands for, "" if for none: a stage stands for its step, and
    so does a file called latest that a copy made of the link."""
    if not source.is_dir:
        if os.path.basename(source.path) != "latest":
            return ""
        name = _named(source.path)
        return os.path.join(source.folder, name) if name else ""
    parent = os.path.dirname(source.path)
    whole = os.path.isfile(os.path.join(parent, METADATA))
    return parent if _STAGE.fullmatch(os.path.basename(source.path)) and not whole else source.path


def _named(path: str) -> str:
    """The step that a file names which stands for a link, as some copies make of it."""
    try:
        with RegularFile(path) as file:
            name = file.read(0, min(file.size, 64)).decode("utf-8", "replace").strip()
    except (CheckpointError, Damaged):
        return ""
    return name if _STEP.fullmatch(name) else ""


def _stages(folder: str) -> list[str]:
    """The directories that hold the checkpoint: itself, or the stages of a pipeline in order; none
    of an unfinished one."""
    if os.path.isfile(os.path.join(folder, METADATA)):
        return [folder]
    numbers = sorted(
        int(found[1])
        for name in _listdir(folder)
        if (found := _STAGE.fullmatch(name)) and os.path.isdir(os.path.join(folder, name))
    )
    stages = [os.path.join(folder, f"pp{number}") for number in numbers]
    if any(not os.path.isfile(os.path.join(stage, METADATA)) for stage in stages):
        return []
    return stages


def _listdir(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _has_shards(folder: str) -> bool:
    names = _listdir(folder)
    return claims(frozenset(names)) or any(_STAGE.fullmatch(name) for name in names)


def _for_training(folder: str, stages: list[str]) -> list[str]:
    """What lies in the step directory and is not read."""
    found = []
    if any(name.encode() in _raw_metadata(stage) for stage in stages for name in _OPTIMIZER):
        found.append("the tensors of the optimizer: only training needs them")
    if os.path.isfile(os.path.join(folder, "train_state.pt")):
        found.append("train_state.pt: only training needs it")
    return found


def _raw_metadata(stage: str) -> bytes:
    with RegularFile(os.path.join(stage, METADATA)) as file:
        return file.read(0, min(file.size, MAX_BYTES))


def _progress(folder: str, warnings: list[str]) -> tuple[int | None, int]:
    """The step, and how many tokens were seen (0: not known)."""
    path = os.path.join(folder, "metadata.json")
    said: Mapping[str, object] = {}
    if os.path.isfile(path):
        try:
            said = mapping(read_json(path))
        except CheckpointError as error:
            warnings.append(str(error))
    named = _STEP.fullmatch(os.path.basename(os.path.realpath(folder)))
    step, by_name = _count_of(said.get("step")), int(named[1]) if named else None
    if step is not None and by_name not in (None, step):
        warnings.append(f"the directory is called step_{by_name}, but holds step {step}")
    return by_name if step is None else step, _count_of(said.get("tokens_seen")) or 0


def _count_of(value: object) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if whole and isinstance(value, int) else None


# ---- tensors


def _tensors(
    source: Source, stages: list[str]
) -> tuple[dict[str, object], tuple[Archive, ...], list[str]]:
    """The weights of all stages under KempnerForge's bare names, the files they are in, and what
    was taken from the names. Raises CheckpointError."""
    together: dict[str, object] = {}
    archives: list[Archive] = []
    for number, stage in enumerate(stages):
        if _STAGE.fullmatch(name := os.path.basename(stage)) and name != f"pp{number}":
            raise CheckpointError(
                f"cannot open {shown_path(source.path)}", f"the stage pp{number} is missing"
            )
        dcp = read_dcp(stage, lambda name: not name.startswith(_OPTIMIZER))
        twice = dcp.tensors.keys() & together.keys()
        if twice:
            raise CheckpointError(
                f"cannot open {shown_path(source.path)}",
                f"two stages of the pipeline have {min(twice)[:80]}",
            )
        together |= dcp.tensors
        archives += dcp.archives
    tensors, removed = strip(together, ("model", "module"))
    seeing = next((name for name in tensors if _SEES.match(name)), "")
    if seeing:
        raise CheckpointError(
            f"cannot open {shown_path(source.path)} ({NAME})",
            f"it is a model that also sees images ({seeing[:60]}), and only text models can talk",
        )
    if not any(name in tensors for name in _TELL_TALE):
        names = listed([name[:60] for name in list(together)[:3]]) or "nothing"
        raise CheckpointError(
            f"cannot open {shown_path(source.path)}",
            f"it is a distributed checkpoint of another trainer than {NAME}: among its "
            f"{len(together):,} tensors are {names}",
            "Its trainer, or torch's dcp_to_torch, may turn it into a file that can be opened",
        )
    return one_by_one(tensors), tuple(archives), removed


def _untied(
    tensors: Mapping[str, object], said: Settings, warnings: list[str]
) -> dict[str, object]:
    """The tensors without an output matrix that repeats the embedding."""
    embed = tensors.get("token_embedding.embedding.weight")
    tied = same_numbers(embed, tensors.get(HEAD))
    if said.get("tie_embeddings") is True and HEAD in tensors and not tied:
        warnings.append(
            "tie_embeddings is true, but output and embedding are not stored alike: each is used"
        )
    return {name: value for name, value in tensors.items() if not (tied and name == HEAD)}


def _names(tensors: Mapping[str, object], said: Settings, *, gated: bool) -> Table:
    tied = same_numbers(tensors.get("token_embedding.embedding.weight"), tensors.get(HEAD))
    names = {**NAMES, **(GATED_NAMES if gated else PLAIN_NAMES)}
    # Tied models store both matrices too; one without an output lacks a stage of its pipeline.
    if tied or said.get("tie_embeddings") is True:
        names["head"] = optional(NAMES["head"])
    return names


# ---- settings


def _spec(
    said: Settings,
    shown: Shown,
    overrides: Mapping[str, object],
    inferred: list[str],
    warnings: list[str],
) -> dict[str, object]:
    n_head, n_kv_head, head_dim = heads_of(said, shown, overrides, inferred)
    norm_eps = said.number("norm_eps", 1e-5)
    spec: dict[str, object] = {
        "vocab_size": shown.vocab_size,
        "n_embd": shown.dim,
        "n_layer": shown.n_layers,
        "n_head": n_head,
        "n_kv_head": n_kv_head,
        "head_dim": head_dim,
        "context_length": said.whole("max_seq_len", 2048),
        "norm": "layernorm" if shown.norm_bias else "rmsnorm",
        "norm_eps": norm_eps,
        "position": "rope",
        "rope_layout": "half",
        "rope_theta": said.number("rope_theta", 10000.0),
        "gated": shown.gated,
        "activation": said.activation(shown, overrides, warnings),
        "qk_norm": "before_rope" if shown.qk_norm else "none",
    }
    if shown.qk_norm:
        # Versions whose settings have a head_dim norm queries and keys with norm_eps; before, the
        # number was fixed.
        spec["qk_norm_eps"] = norm_eps if said.get("head_dim") is not None else 1e-5
        if norm_eps != 1e-5 and "qk_norm_eps" not in overrides:
            inferred.append(
                f"qk_norm_eps {spec['qk_norm_eps']:g}: versions of KempnerForge differ in it"
            )
    if shown.experts:
        spec["experts"] = _experts(said, shown, warnings, inferred)
    kind = said.get("model_type")
    if kind not in (None, "transformer"):
        warnings.append(f"its model_type {str(kind)[:40]!r} is read as KempnerForge's transformer")
    return spec


def _experts(said: Settings, shown: Shown, warnings: list[str], inferred: list[str]) -> Experts:
    if shown.expert_parts != shown.experts:
        raise CheckpointError(
            "experts are missing",
            f"the router chooses among {shown.experts}, the file holds {shown.expert_parts}: "
            "saved with expert parallelism, ranks overwrite one another's",
        )
    if shown.router_bias and said.get("moe_router") is None:
        inferred.append("moe_router sigmoid_topk: the router has an expert_bias")
        router = "sigmoid_topk"
    else:
        router = said.word("moe_router", "softmax_topk")
    if router not in ("softmax_topk", "sigmoid_topk"):
        raise CheckpointError("its router is not known", f"moe_router is {router[:40]!r}")
    capacity = said.number("moe_capacity_factor", 0.0)
    if capacity > 0:
        warnings.append(
            f"moe_capacity_factor {capacity:g} lets an expert take few positions of one call: a "
            "prompt is read anew and at once for each reply, and a reply differs from it when read"
        )
    return Experts(
        count=shown.experts,
        used=said.whole("moe_top_k", 2),
        router="sigmoid" if router == "sigmoid_topk" else "softmax",
        capacity_factor=max(capacity, 0.0),
    )
