"""train-llm-from-scratch: base, SFT, reward, DPO, PPO and GRPO stages, and the older trainer.

One matrix for each head and each of key, query, value; ReLU; an untied head with a bias. The shapes
say the truth, the settings in the file are only held against them. Its own reader keeps random
weights for a compiled run whose names begin with `_orig_mod.`; here missing tensors are an error.
"""

from __future__ import annotations

from collections.abc import Mapping

from tui_chat.checkpoint.description import Description, agree
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.gpt2 import weight_keys
from tui_chat.checkpoint.info import TemplateHint, TokenizerHint
from tui_chat.checkpoint.names import Table, biased, cat, count, strip
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.conversation import Mode
from tui_chat.errors import CheckpointError

NAME = "train-llm-from-scratch"

_HEADS = "attn_blocks.{i}.attn.heads.{h}"
NAMES: Table = {
    "embed": "token_embed",
    "position": "position_embed",
    "blocks.{i}.attn_norm": biased("attn_blocks.{i}.ln1"),
    "blocks.{i}.attn.qkv": cat(f"{_HEADS}.query", f"{_HEADS}.key", f"{_HEADS}.value"),
    "blocks.{i}.attn.out": biased("attn_blocks.{i}.attn.proj"),
    "blocks.{i}.mlp_norm": biased("attn_blocks.{i}.ln2"),
    "blocks.{i}.mlp.up": biased("attn_blocks.{i}.mlp.hidden"),
    "blocks.{i}.mlp.down": biased("attn_blocks.{i}.mlp.proj"),
    "final_norm": biased("layer_norm"),
    "head": biased("lm_head"),
}
# Files from before 2026-05-30 have no matrix after the heads.
OLD_NAMES: Table = {ours: row for ours, row in NAMES.items() if ours != "blocks.{i}.attn.out"}
IGNORED = ("pos_idxs", "*.tril", "reward_head.*", "value_head.*")
PREFIXES = ("module", "transformer", "model")

_WORDS = {
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "n_layer": "n_blocks",
    "n_head": "n_head",
    "n_embd": "n_embed",
}
_WEIGHTS = ("model_state_dict", "model", "state_dict")
_STEPS = ("step", "last_completed_step", "steps")
_LOSSES = {"train": ("train_loss", "loss"), "val": ("dev_loss", "val_loss")}
_ALL_LOSSES = tuple(word for words in _LOSSES.values() for word in words)
_CHAT_STAGES = ("sft", "dpo", "ppo", "grpo")
R50K_IDS = 50257
R50K_END = 50256
END = "<|endoftext|>"

TEMPLATE = TemplateHint(
    name="train-llm",
    source="the trainer's own",
    turns={role: (f"<|{role}|>\n", END) for role in ("system", "user", "assistant")},
    stop=(END,),
)


def recognise(source: Source) -> float:
    if source.is_dir:
        return 0.0
    tensors = _tensors(source)[0]
    tell_tale = (
        "token_embed.weight",
        "position_embed.weight",
        "attn_blocks.0.attn.heads.0.key.weight",
    )
    return sum(name in tensors for name in tell_tale) / len(tell_tale)


def describe(source: Source) -> Description:
    tensors, removed = _tensors(source)
    notes = Notes(source.config)
    notes.removed(removed)
    notes.tensors(tensors, IGNORED)
    root = source.root
    embed, positions = tensors.get("token_embed.weight"), tensors.get("position_embed.weight")
    for name, ref in (("token_embed.weight", embed), ("position_embed.weight", positions)):
        if not isinstance(ref, TensorRef) or len(ref.shape) != 2:
            raise CheckpointError(
                "the tensors do not fit the format", f"{name} is missing or no matrix"
            )
    assert isinstance(embed, TensorRef) and isinstance(positions, TensorRef)
    shown: dict[str, int] = {
        "vocab_size": embed.shape[0],
        "n_embd": embed.shape[1],
        "context_length": positions.shape[0],
        "n_layer": count(tensors, "attn_blocks.{n}."),
        "n_head": _heads(tensors, embed.shape[1]),
    }
    notes.shapes(shown)
    place = "cfg" if mapping(root.get("cfg")) else "config"
    said = mapping(root.get(place))
    notes.warnings += _differences(source, shown, said)
    output = any(".attn.proj." in name for name in tensors)
    if not output:
        notes.inferred.append(
            "there is no attn.proj: the heads are added to the stream directly, "
            "as in files from before 2026-05-30"
        )
        if "attention_scale" not in source.config:
            notes.defaults.append(
                "scores are divided by the root of a head's width, as since 2025-03-03; before, it "
                "was that of the whole width, which no file shows: "
                f"--config attention_scale={embed.shape[1] ** -0.5:.6g}"
            )
    stage = str(root.get("stage") or "")
    if stage == "reward" or any(name.startswith("reward_head.") for name in tensors):
        notes.warnings.append(
            "this is a reward model: its language head was not trained with it, "
            "so its text is a curiosity"
        )
    tokenizer = _tokenizer(embed.shape[0], notes.warnings)
    mode: Mode = "chat" if stage.startswith(_CHAT_STAGES) else "raw"
    only_ids = mode == "chat" and tokenizer.kind == "none"  # a template needs text
    notes.inferred.append(
        f"mode {mode}{' once there is a tokenizer' if only_ids else ''}: "
        + (f"the file says stage {stage[:40]}" if stage else "the file says no stage of tuning")
    )
    fixed: dict[str, object] = {"norm_eps": 1e-5, "activation": "relu"}
    notes.fixed(fixed)
    used = weight_keys(source)
    notes.keys(root, (*used, place, "stage", "metrics", *_STEPS, *_ALL_LOSSES), "the file")
    notes.keys(said, _WORDS.values(), place)
    return Description(
        format=NAME,
        spec={
            **shown,
            **fixed,
            "norm": "layernorm",
            "position": "learned",
            "attention_output": output,
        },
        tensors=tensors,
        names=NAMES if output else OLD_NAMES,
        ignored=IGNORED,
        archives=(source.archive,),
        tokenizer=tokenizer,
        step=_step(source),
        losses=_losses(source),
        template=TEMPLATE,
        stop_ids=(R50K_END,),
        mode=mode,
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
        description=f"stage {stage[:40]}" if stage else "",
    )


def _heads(tensors: Mapping[str, object], width: int) -> int:
    """How many heads the first block has. Raises CheckpointError where they do not make up the
    width, since then some are missing."""
    heads = count(tensors, "attn_blocks.0.attn.heads.{n}.")
    key = tensors.get("attn_blocks.0.attn.heads.0.key.weight")
    size = key.shape[0] if isinstance(key, TensorRef) and key.shape else 0
    if not size or heads * size == width:
        return max(heads, 1)
    raise CheckpointError(
        "the tensors do not fit the format",
        f"{heads} heads of {size} do not make up the width {width}: "
        f"attn_blocks.0.attn.heads.{heads}.key.weight is missing",
    )


def _differences(source: Source, shown: Mapping[str, int], said: Mapping[str, object]) -> list[str]:
    """Warnings where the settings say another size than the tensors, which are right.

    Fewer layers than they say are an error: a part of the file may be missing.
    """
    found = []
    for ours, word in _WORDS.items():
        value, real = said.get(word), shown[ours]
        if value is None or value == real or ours in source.config:
            continue
        if ours == "n_layer" and not (isinstance(value, int) and value < real):
            agree(shown, said, {ours: word})
        found.append(
            f"its settings say {word} = {str(value)[:40]}, its tensors {real}, which is right"
        )
    return found


def _tensors(source: Source) -> tuple[dict[str, object], list[str]]:
    for key in _WEIGHTS:
        weights = mapping(source.root.get(key))
        if weights:
            return strip(weights, PREFIXES)
    return strip({k: v for k, v in source.root.items() if isinstance(v, TensorRef)}, PREFIXES)


def _tokenizer(rows: int, warnings: list[str]) -> TokenizerHint:
    if rows >= R50K_IDS:
        return TokenizerHint(
            kind="tiktoken",
            name="r50k_base",
            source="the trainer's own",
            vocab_size=R50K_IDS,
            drop_special=True,
        )
    warnings.append(
        f"the trainer's tokenizer (r50k_base) has {R50K_IDS} ids, the model only {rows}: "
        "name the one it was trained with by --tokenizer; until then only ids are shown"
    )
    return TokenizerHint(kind="none", source="the vocabulary is not the trainer's", vocab_size=rows)


def _step(source: Source) -> int | None:
    for key in _STEPS:
        step = source.archive.scalar(source.root.get(key))
        if step is not None and 0 <= step < 2**53:
            return int(step)
    return None


def _losses(source: Source) -> dict[str, float]:
    metrics: Mapping[str, object] = {**source.root, **mapping(source.root.get("metrics"))}
    found: dict[str, float] = {}
    for ours, words in _LOSSES.items():
        for word in words:
            value = source.archive.scalar(metrics.get(word))
            if value is not None and abs(value) < 1e8:
                found[ours] = value
                break
    return found
