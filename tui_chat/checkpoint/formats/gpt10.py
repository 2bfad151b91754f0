"""GPT10.4, the course "Building GPT": GPT-2 with parts named after it, sizes named by the course.

Of this trainer no source is public: names outside c_attn, c_fc and c_proj are read in several
spellings, which of them a file has is looked up in it. A `config` with `d_model` or `n_layers`
tells it from nanoGPT, whose names may be the same.
"""

from __future__ import annotations

from collections.abc import Mapping

from tui_chat.checkpoint.description import Description, agree
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.gpt2 import (
    GPT2_END,
    gpt2_tokenizer,
    heads_of_64,
    loss,
    matrix,
    step,
    stripped,
    untied,
    weight_keys,
)
from tui_chat.checkpoint.names import Row, Table, count, optional
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef

NAME = "GPT10.4"

# The spellings of each part, the likeliest first. A model may keep all but the head in
# `transformer`.
_EMBED = ("token_embedding", "tok_emb", "wte")
_POSITION = ("position_embedding", "pos_emb", "wpe")
_BLOCKS = ("blocks", "h")
_FIRST_NORM = ("ln1", "ln_1")
_SECOND_NORM = ("ln2", "ln_2")
_FEED_FORWARD = ("ffn", "mlp")
_WITHIN = "transformer."

IGNORED = ("*.attn.bias", "*.attn.masked_bias", "*.attn.mask", "*.tril")  # causal masks

_WORDS = {
    "vocab_size": "vocab_size",
    "context_length": "context_length",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "n_embd": "d_model",
}
_OWN_WORDS = frozenset(("d_model", "n_layers", "n_heads", "context_length"))
_STEPS = ("step", "iter", "iter_num", "global_step")
_LOSSES = ("best_val_loss", "val_loss")
DEFAULT_HEADS = 12


def recognise(source: Source) -> float:
    tensors = stripped(source)[0]
    block = _block(tensors)
    embed, position = _found(tensors, _EMBED), _found(tensors, _POSITION)
    feed_forward = _found(tensors, _FEED_FORWARD, f"{block}.0.", ".c_fc.weight")
    if not (embed and position and feed_forward):
        return 0.0
    if "model_args" not in source.root and _OWN_WORDS & _settings(source).keys():
        return 1.0
    # GPT-2's own names alone are nanoGPT's, or Hugging Face's.
    return 0.0 if embed.endswith("wte") else 0.8


def describe(source: Source) -> Description:
    tensors, removed = stripped(source)
    notes = Notes(source.config)
    notes.removed(removed)
    notes.tensors(tensors, IGNORED)
    said = _settings(source)
    names = _names(tensors)
    embed_name, position_name = f"{names['embed']}.weight", f"{names['position']}.weight"
    embed, positions = matrix(tensors, embed_name), matrix(tensors, position_name)
    rows, width = embed.shape
    shown: dict[str, object] = {
        "vocab_size": rows,
        "n_embd": width,
        "context_length": positions.shape[0],
        "n_layer": count(tensors, f"{_block(tensors)}.{{n}}."),
    }
    agree(shown, said, {ours: word for ours, word in _WORDS.items() if ours not in source.config})
    notes.shapes(shown)
    tokenizer = gpt2_tokenizer(rows, notes.warnings, raw_end=False)
    fixed: dict[str, object] = {"norm_eps": 1e-5}
    notes.fixed(fixed, "GPT-2")
    if "activation" not in source.config:
        notes.defaults.append(
            "the file does not say which GELU it was trained with: the tanh form is taken, as in "
            "GPT-2; the other is --config activation=gelu"
        )
    spelled = [row for row in names.values() if isinstance(row, str)]
    notes.inferred.append(
        f"the parts are called {', '.join(name[:40] for name in spelled[:3])}, ... in this file"
    )
    turned = _conv1d(tensors)
    if turned:
        notes.inferred.append("its matrices are stored [in, out]: the shape of c_attn says so")
    bare = untied(tensors, "lm_head.weight", embed_name)
    notes.head("lm_head.weight" not in bare, "lm_head.weight", tensors)
    notes.keys(source.root, {*weight_keys(source), "config", *_STEPS, *_LOSSES}, "the file")
    notes.keys(said, (*_WORDS.values(), "n_head"), "config")
    return Description(
        format=NAME,
        spec={
            **shown,
            **fixed,
            "n_head": _heads(source, said, width, notes),
            "norm": "layernorm",
            "position": "learned",
            "activation": "gelu_tanh",
        },
        tensors=bare,
        names=_turned(names) if turned else names,
        ignored=IGNORED,
        archives=(source.archive,),
        tokenizer=tokenizer,
        step=step(source, *_STEPS),
        losses=loss(source, "val", *_LOSSES),
        stop_ids=(GPT2_END,) if tokenizer.kind == "tiktoken" else (),
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
    )


def _settings(source: Source) -> Mapping[str, object]:
    return {} if source.is_dir else mapping(source.root.get("config"))


def _heads(source: Source, said: Mapping[str, object], width: int, notes: Notes) -> object:
    """What the config says; GPTConfig's default where it leaves the number out; else a guess."""
    if "n_head" in source.config:
        return None
    for word in ("n_heads", "n_head"):
        if said.get(word) is not None:
            return said[word]
    if not _OWN_WORDS & said.keys():
        return heads_of_64(width, source.config, notes.inferred)
    notes.defaults.append(
        f"the config does not say n_heads: {DEFAULT_HEADS} is the default of its class; "
        "give another with --config n_head=N"
    )
    return DEFAULT_HEADS


# ---- the spelling of this file


def _found(
    tensors: Mapping[str, object], words: tuple[str, ...], before: str = "", after: str = ".weight"
) -> str:
    """The first of the words, as it stands in the file, "" if none does."""
    places = [before] if before else ["", _WITHIN]
    found = (p + word for word in words for p in places if p + word + after in tensors)
    return next(found, "")


def _block(tensors: Mapping[str, object]) -> str:
    """What the list of blocks is called, "" if there is none."""
    return _found(tensors, _BLOCKS, after=".0.attn.c_attn.weight")


def _names(tensors: Mapping[str, object]) -> dict[str, str | Row]:
    """The table of names in the spelling of this file."""
    first = f"{_block(tensors)}.0."

    def block(words: tuple[str, ...], after: str = ".weight") -> str:
        found = _found(tensors, words, first, after) or first + words[0]
        return found.replace(".0.", ".{i}.", 1)

    attention, feed_forward = f"{_block(tensors)}.{{i}}.attn", block(_FEED_FORWARD, ".c_fc.weight")
    return {
        "embed": _found(tensors, _EMBED) or _EMBED[0],
        "position": _found(tensors, _POSITION) or _POSITION[0],
        "blocks.{i}.attn_norm": block(_FIRST_NORM),
        "blocks.{i}.attn.qkv": f"{attention}.c_attn",
        "blocks.{i}.attn.out": f"{attention}.c_proj",
        "blocks.{i}.mlp_norm": block(_SECOND_NORM),
        "blocks.{i}.mlp.up": f"{feed_forward}.c_fc",
        "blocks.{i}.mlp.down": f"{feed_forward}.c_proj",
        "final_norm": _found(tensors, ("ln_f",)) or "ln_f",
        "head": optional("lm_head"),
    }


def _conv1d(tensors: Mapping[str, object]) -> bool:
    """Whether the matrices are stored [in, out], as in GPT-2's own Conv1D."""
    qkv = tensors.get(f"{_block(tensors)}.0.attn.c_attn.weight")
    return isinstance(qkv, TensorRef) and len(qkv.shape) == 2 and qkv.shape[1] == 3 * qkv.shape[0]


def _turned(names: Mapping[str, str | Row]) -> Table:
    """The table with the four matrices of a block turned over."""
    matrices = (".attn.qkv", ".attn.out", ".mlp.up", ".mlp.down")
    return {
        canonical: Row((name,), transposed=True)
        if isinstance(name, str) and canonical.endswith(matrices)
        else name
        for canonical, name in names.items()
    }
