"""litgpt (and lit-gpt before it): lit_model.pth beside model_config.yaml, in a directory.

One decoder with many switches; the config says which. The tokenizer is Hugging Face's, with
litgpt's own rule for the begin-of-text token. LoRA weights are merged into the model they were
trained on, where that is still found.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace

from tui_chat.checkpoint.archive import Archive, read_archive
from tui_chat.checkpoint.description import Description, agree, name_of_run, run_name
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import shown_name, shown_path
from tui_chat.checkpoint.gpt2 import matrix, untied
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.litgpt.config import Settings, spec_of
from tui_chat.checkpoint.litgpt.tensors import (
    inferred_config,
    merged,
    normalised,
    parted,
    split_queries,
)
from tui_chat.checkpoint.litgpt.text import describe_text
from tui_chat.checkpoint.names import (
    Row,
    Table,
    biased,
    cat,
    count,
    optional,
    partial,
    removed_words,
    strip,
)
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source, read_json
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.checkpoint.yaml_file import read_yaml
from tui_chat.errors import CheckpointError

NAME = "litgpt"

WEIGHTS, CONFIG, OLD_CONFIG = "lit_model.pth", "model_config.yaml", "lit_config.json"
LORA = "lit_model.pth.lora"
_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".safetensors")
_PREFIXES = ("module", "model", "_forward_module", "state_dict")
_QKV = re.compile(r"transformer\.h\.\d+\.attn\.(qkv|attn)\.(linear\.)?weight")
_ADAPTER = re.compile(r"\.(gating_factor|adapter_wte\.weight|adapter_bias|adapter_scale)$")
_STEP = re.compile(r"(?:step|iter)-0*(\d{1,15})")


def claims(names: frozenset[str]) -> bool:
    """Whether a directory with these names in it is one checkpoint."""
    if names & {WEIGHTS, LORA}:
        return bool(names & {CONFIG, OLD_CONFIG})
    weights = [name for name in names if name.lower().endswith(_SUFFIXES)]
    return CONFIG in names and len(weights) == 1


def recognise(source: Source) -> float:
    if source.is_dir:
        return 1.0 if claims(source.files) else 0.0
    tensors, _ = _tensors(source.archive)
    if any(name.endswith(".lora_A") and ".h." in name for name in tensors):
        return 0.9
    if any(_ADAPTER.search(name) for name in tensors):
        return 0.6
    known = any(_QKV.fullmatch(name) for name in tensors)
    if not known or "transformer.wpe.weight" in tensors:
        return 0.0
    # The file of a checkpoint directory stands for the directory.
    return 0.85 if os.path.basename(source.path) == WEIGHTS else 0.95


def describe(source: Source) -> Description:
    archive = read_archive(_weights(source)) if source.is_dir else source.archive
    archives = [archive]
    tensors, removed = _tensors(archive)
    if any(_ADAPTER.search(name) for name in tensors):
        raise CheckpointError(
            "its adapter cannot be computed",
            "it was finetuned by litgpt's adapter, which changes the attention itself",
            "Checkpoints of full and LoRA finetuning can be opened",
        )
    warnings: list[str] = []
    lora, base = parted(tensors)
    if lora and not base:
        archives.append(read_archive(_base(source.folder)))
        base, _ = _tensors(archives[-1])
        warnings.append(
            f"LoRA weights, merged into {shown_path(archives[-1].path)} as litgpt's merge would"
        )
    tensors = normalised(base)
    embed = matrix(tensors, "transformer.wte.weight")
    inferred: list[str] = []
    config = _config(source)
    if not config:
        config, inferred = inferred_config(tensors, source.config)
        warnings.append(
            f"its {CONFIG} is missing: what the tensors do not show was guessed; name it with "
            "--config-file"
        )
    inferred += removed_words(removed)
    settings = Settings.of({**config, **_overrides(source.config)})
    spec = spec_of(settings, embed.shape[0])
    _hold(tensors, embed, settings, source)
    tensors = split_queries(tensors, spec)
    if lora:
        tensors = merged(tensors, lora, _hyperparameters(source.folder), spec)
    if settings.norm_is_offset:
        tensors = {name: _offset(name, value) for name, value in tensors.items()}
    tensors = untied(tensors, "lm_head.weight", "transformer.wte.weight")
    if "lm_head.weight" not in tensors:
        inferred.append("tied output: there is no lm_head.weight of its own")
    found = Description(
        format=NAME,
        spec=spec,
        tensors=tensors,
        names=_names(settings),
        archives=tuple(archives),
        tokenizer=TokenizerHint(kind="none"),
        run=_run(source),
        step=_step(source, archive),
        warnings=warnings,
        inferred=inferred,
        defaults=settings.defaults,
        unused=[*_for_training(archive), *settings.unused],
    )
    describe_text(source.folder, settings.name, embed.shape[0], found)
    return found


def _for_training(archive: Archive) -> list[str]:
    """Keys beside the weights that only a training goes on from."""
    root = mapping(archive.root)
    notes = Notes({})
    if "model" in root:
        notes.keys(root, ("model", "iter_num", "step_count"), "the file")
    return notes.unused


# ---- the files


def _weights(source: Source) -> str:
    """The path of the weights in a checkpoint directory."""
    if os.path.isdir(os.path.join(source.folder, WEIGHTS)):
        raise CheckpointError(
            f"{WEIGHTS} is a directory",
            "it was saved in shards, which litgpt's own converter joins",
            "Convert it with `litgpt convert_pretrained_checkpoint`",
        )
    for name in (WEIGHTS, LORA):
        if path := source.near(name):
            return path
    others = [name for name in sorted(source.files) if name.lower().endswith(_SUFFIXES)]
    path = source.near(others[0]) if len(others) == 1 else ""
    if not path:
        raise CheckpointError(f"there is no {WEIGHTS} in it")
    return path


def _base(folder: str) -> str:
    """The weights that LoRA weights were trained on top of, as hyperparameters.yaml names them."""
    said = _hyperparameters(folder).get("checkpoint_dir")
    if not isinstance(said, str) or not said:
        raise CheckpointError(
            "it holds only LoRA weights",
            "no hyperparameters.yaml beside it names the model they belong to",
            "Merge them with `litgpt merge_lora`",
        )
    tried = [os.path.join(said, WEIGHTS), os.path.join("checkpoints", said, WEIGHTS)]
    above = folder
    for _ in range(6):  # relative to where the training was started, which lies somewhere above
        tried += [os.path.join(above, path) for path in tried[:2]]
        above = os.path.dirname(above)
    tried.append(os.path.join(os.path.dirname(folder), os.path.basename(said), WEIGHTS))
    for path in tried:
        if os.path.isfile(path):
            return path
    raise CheckpointError(
        "it holds only LoRA weights",
        f"the model they belong to is not found at {shown_path(said)}",
        "Bring it there, or merge them with `litgpt merge_lora`",
    )


def _hyperparameters(folder: str) -> Mapping[str, object]:
    path = os.path.join(folder, "hyperparameters.yaml")
    return mapping(read_yaml(path)) if os.path.isfile(path) else {}


def _config(source: Source) -> Mapping[str, object]:
    """What the user's file says, else the config beside the weights or above them; empty where
    there is none."""
    given = source.config_file
    if given.endswith((".yaml", ".yml", ".json")):
        return mapping(_read(given))
    for folder in ("", ".."):
        for name in (CONFIG, OLD_CONFIG):
            if path := source.near(folder, name):
                return mapping(_read(path))
    return mapping(_hyperparameters(source.folder).get("model_config"))


def _read(path: str) -> object:
    return read_json(path) if path.endswith(".json") else read_yaml(path)


def _overrides(config: Mapping[str, object]) -> dict[str, object]:
    """What the user says, under litgpt's names, so that what follows from it follows."""
    words = {
        "n_layer": "n_layer",
        "n_head": "n_head",
        "n_kv_head": "n_query_groups",
        "head_dim": "head_size",
        "n_embd": "n_embd",
        "context_length": "block_size",
    }
    return {word: config[ours] for ours, word in words.items() if ours in config}


def _tensors(archive: Archive) -> tuple[dict[str, object], list[str]]:
    """The weights: under "model" from a training, at the top from a conversion."""
    root = mapping(archive.root)
    for key in ("model", "state_dict"):
        weights = mapping(root.get(key))
        if any(isinstance(value, TensorRef) for value in weights.values()):
            return strip(weights, _PREFIXES)
    return strip({k: v for k, v in root.items() if isinstance(v, TensorRef)}, _PREFIXES)


def _run(source: Source) -> str:
    """Steps and the final weights lie in directories of their own below the run's."""
    name = shown_name(source.folder)
    if _STEP.match(name) or name == "final":
        return run_name(source.folder)
    return name_of_run(source.folder)


def _step(source: Source, archive: Archive) -> int | None:
    root = mapping(archive.root)
    for key in ("step_count", "iter_num"):
        number = archive.scalar(root.get(key))
        if number is not None and 0 <= number < 2**53:
            return int(number)
    named = (os.path.basename(archive.path), os.path.basename(source.folder))
    found = next(filter(None, map(_STEP.match, named)), None)
    return int(found.group(1)) if found else None


# ---- the tensors


def _names(settings: Settings) -> Table:
    """Where each tensor comes from. Biases that the config promises may not be missing."""
    layer = "transformer.h.{i}"
    every = settings.flag("bias")

    def owed(row: str | Row, *, there: bool = every) -> str | Row:
        return biased(row) if there else row

    def norm(name: str) -> str | Row:
        if settings.norm_is_bare:
            return optional(name)
        return owed(name, there=settings.word("norm_class_name") == "LayerNorm")

    table: dict[str, str | Row] = {
        "embed": "transformer.wte",
        "blocks.{i}.attn.qkv": owed(
            cat(*(f"{layer}.attn.{part}" for part in ("q", "k", "v"))),
            there=every or settings.flag("attn_bias"),
        ),
        "blocks.{i}.attn.q_norm": optional(f"{layer}.attn.norm_q"),
        "blocks.{i}.attn.k_norm": optional(f"{layer}.attn.norm_k"),
        "blocks.{i}.attn.out": owed(f"{layer}.attn.proj"),
        "blocks.{i}.attn_post_norm": optional(f"{layer}.post_attention_norm"),
        "blocks.{i}.mlp_post_norm": optional(f"{layer}.post_mlp_norm"),
        "final_norm": norm("transformer.ln_f"),
        "head": owed(optional("lm_head"), there=settings.flag("lm_head_bias")),
    }
    if settings.flag("norm_1"):
        table["blocks.{i}.attn_norm"] = norm(f"{layer}.norm_1")
    if settings.flag("norm_2") and not settings.flag("shared_attention_norm"):
        table["blocks.{i}.mlp_norm"] = norm(f"{layer}.norm_2")
    mlp = settings.word("mlp_class_name")
    if mlp == "GptNeoxMLP":
        table["blocks.{i}.mlp.up"] = owed(f"{layer}.mlp.fc")
        table["blocks.{i}.mlp.down"] = owed(f"{layer}.mlp.proj")
        return table
    dense = (cat(f"{layer}.mlp.fc_1", f"{layer}.mlp.fc_2"), f"{layer}.mlp.proj")
    if mlp != "LLaMAMoE":
        table |= {"blocks.{i}.mlp.gate_up": owed(dense[0]), "blocks.{i}.mlp.down": owed(dense[1])}
        return table
    each, shared = f"{layer}.mlp.experts.{{e}}", f"{layer}.mlp.shared_experts"
    table |= {
        "blocks.{i}.mlp.gate_up": partial(dense[0]),  # the first layers may be dense
        "blocks.{i}.mlp.down": partial(dense[1]),
        "blocks.{i}.mlp.router": partial(f"{layer}.mlp.gate"),
        "blocks.{i}.mlp.experts.gate_up": partial(cat(f"{each}.fc_1", f"{each}.fc_2")),
        "blocks.{i}.mlp.experts.down": partial(f"{each}.proj"),
        "blocks.{i}.mlp.shared.gate_up": partial(cat(f"{shared}.fc_1", f"{shared}.fc_2")),
        "blocks.{i}.mlp.shared.down": partial(f"{shared}.proj"),
    }
    return table


def _hold(
    tensors: Mapping[str, object], embed: TensorRef, settings: Settings, source: Source
) -> None:
    """The config against the tensors. Raises CheckpointError."""
    shown: dict[str, object] = {
        "n_embd": embed.shape[1],
        "n_layer": count(tensors, "transformer.h.{n}."),
    }
    agree(shown, settings.said, {name: name for name in shown if name not in source.config})


def _offset(name: str, value: object) -> object:
    """Gemma's RMS norms multiply by 1 + weight."""
    norm = re.search(r"(norm_1|norm_2|norm_q|norm_k|ln_f|post_\w+_norm)\.weight$", name)
    return replace(value, plus=1.0) if norm and isinstance(value, TensorRef) else value
