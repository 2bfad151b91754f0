"""The GPT of "Build a Large Language Model (From Scratch)": bare weights and nothing beside them.

Sizes follow from the shapes, all but the number of heads: the book's configurations have 64
columns for each, which is taken and said. Two spellings are read: the book's separate W_query,
W_key and W_value with norms of `scale` and `shift`, and the faster variant's fused qkv with torch's
own norms.
"""

from __future__ import annotations

import os
import re

from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.gpt2 import (
    END,
    GPT2_END,
    gpt2_tokenizer,
    heads_of_64,
    matrix,
    stripped,
    untied,
    weight_keys,
)
from tui_chat.checkpoint.info import TemplateHint
from tui_chat.checkpoint.names import Table, cat, count, optional
from tui_chat.checkpoint.source import Source
from tui_chat.conversation import Mode

NAME = "LLMs from scratch"

_ATT = "trf_blocks.{i}.att"
_BOTH: Table = {
    "embed": "tok_emb",
    "position": "pos_emb",
    "blocks.{i}.attn_norm": "trf_blocks.{i}.norm1",
    "blocks.{i}.mlp_norm": "trf_blocks.{i}.norm2",
    "blocks.{i}.mlp.up": "trf_blocks.{i}.ff.layers.0",
    "blocks.{i}.mlp.down": "trf_blocks.{i}.ff.layers.2",
    "final_norm": "final_norm",
    "head": optional("out_head"),
}
NAMES: Table = {
    **_BOTH,
    "blocks.{i}.attn.qkv": cat(f"{_ATT}.W_query", f"{_ATT}.W_key", f"{_ATT}.W_value"),
    "blocks.{i}.attn.out": f"{_ATT}.out_proj",
}
FUSED_NAMES: Table = {
    **_BOTH,
    "blocks.{i}.attn.qkv": f"{_ATT}.qkv",
    "blocks.{i}.attn.out": f"{_ATT}.proj",
}
IGNORED = ("*.att.mask",)  # the causal mask, a buffer
_NORM_WORDS = {"scale": "weight", "shift": "bias"}

_PREAMBLE = (
    "Below is an instruction that describes a task. "
    "Write a response that appropriately completes the request."
)
# Alpaca's layout, in which the book's chapter 7 tunes. A turn after the first is a new document,
# since the layout has a single one; a system prompt, which it lacks too, stands before.
TEMPLATE = TemplateHint(
    name="alpaca",
    source="the book's own",
    turns={
        "system": ("", "\n\n"),
        "user": (f"{_PREAMBLE}\n\n### Instruction:\n", ""),
        "assistant": ("\n\n### Response:\n", END),
    },
    stop=(END, "\n\n### Instruction:"),
)


def recognise(source: Source) -> float:
    tensors = _tensors(source)[0]
    block = ("trf_blocks.0.att.W_query.weight", "trf_blocks.0.att.qkv.weight")
    # The book's other families (Llama, Qwen, Gemma) share most names; their feed-forward is fc1.
    if "trf_blocks.0.ff.layers.0.weight" not in tensors or not any(n in tensors for n in block):
        return 0.0
    ends = ("tok_emb.weight", "pos_emb.weight", "out_head.weight")
    return (1 + sum(name in tensors for name in ends)) / (1 + len(ends))


def describe(source: Source) -> Description:
    tensors, removed = _tensors(source)
    notes = Notes(source.config)
    notes.removed(removed)
    notes.tensors(tensors, IGNORED)
    embed, positions = matrix(tensors, "tok_emb.weight"), matrix(tensors, "pos_emb.weight")
    # A file without a head was cut: the book's models never do without one. A head that repeats
    # the embedding is what loading OpenAI's weights leaves behind.
    matrix(tensors, "out_head.weight")
    rows, width = embed.shape
    heads = heads_of_64(width, source.config, notes.inferred)
    tokenizer = gpt2_tokenizer(rows, notes.warnings, raw_end=True)
    shown: dict[str, object] = {
        "vocab_size": rows,
        "n_embd": width,
        "context_length": positions.shape[0],
        "n_layer": count(tensors, "trf_blocks.{n}."),
    }
    notes.shapes(shown)
    bare = untied(tensors, "out_head.weight", "tok_emb.weight")
    notes.head("out_head.weight" not in bare, "out_head.weight", tensors)
    fixed: dict[str, object] = {"norm_eps": 1e-5, "activation": "gelu_tanh"}
    notes.fixed(fixed, "the book's code")
    notes.keys(source.root, weight_keys(source), "the file")
    return Description(
        format=NAME,
        spec={
            **shown,
            **fixed,
            "n_head": heads,
            "norm": "layernorm",
            "position": "learned",
        },
        tensors=bare,
        names=FUSED_NAMES if "trf_blocks.0.att.qkv.weight" in tensors else NAMES,
        ignored=IGNORED,
        archives=(source.archive,),
        tokenizer=tokenizer,
        step=_step(source, notes),
        template=TEMPLATE,
        stop_ids=(GPT2_END,) if tokenizer.kind == "tiktoken" else (),
        mode=_mode(source, notes.inferred),
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
    )


def _tensors(source: Source) -> tuple[dict[str, object], list[str]]:
    """The weights, the norms under torch's own words."""
    tensors, removed = stripped(source)
    found: dict[str, object] = {}
    for name, value in tensors.items():
        stem, _, last = name.rpartition(".")
        norm = stem.rpartition(".")[2] in ("norm1", "norm2", "final_norm")
        found[f"{stem}.{_NORM_WORDS.get(last, last)}" if norm else name] = value
    return found, removed


def _step(source: Source, notes: Notes) -> int | None:
    """The number in the name, as chapter 5's longer training writes it: "model_pg_1000.pth"."""
    number = re.fullmatch(r"model_pg_(\d{1,12})\.\w+", os.path.basename(source.path))
    if number:
        notes.inferred.append(f"step {int(number[1])}: from the name of the file")
    return int(number[1]) if number else None


def _mode(source: Source, inferred: list[str]) -> Mode:
    """What the file is for, which its name alone may tell: "gpt2-medium355M-sft.pth"."""
    name = os.path.basename(source.path)
    tuned = "sft" in re.split(r"[^a-z]+", name.lower())
    inferred.append(
        f"the name {shown_name(name)} says that it was tuned on instructions, the file itself "
        "does not: its chat template is alpaca"
        if tuned
        else "nothing in the file says whether it was tuned on instructions: it continues text; "
        "in a chat, its template is alpaca"
    )
    return "chat" if tuned else "raw"
