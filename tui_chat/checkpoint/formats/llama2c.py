"""llama2.c: the trainer's ckpt.pt and the three kinds of .bin that it exports, one model in all.

Llama with rotary positions on adjacent pairs, a gated MLP and grouped queries. A .bin without magic
number is known by its exact length (binaries.py); int8 exports are opened as the numbers they
stand for.
"""

from __future__ import annotations

from collections.abc import Mapping

from tui_chat.checkpoint.description import Description, agree
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.gpt2 import loss, matrix, step, stripped, untied, weight_keys
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.names import Table, cat, count, optional
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.checkpoint.vocabularies import read_scored_pieces, read_sentencepiece
from tui_chat.errors import CheckpointError

NAME = "llama2.c"

NAMES: Table = {
    "embed": "tok_embeddings",
    "blocks.{i}.attn_norm": "layers.{i}.attention_norm",
    "blocks.{i}.attn.qkv": cat(
        "layers.{i}.attention.wq", "layers.{i}.attention.wk", "layers.{i}.attention.wv"
    ),
    "blocks.{i}.attn.out": "layers.{i}.attention.wo",
    "blocks.{i}.mlp_norm": "layers.{i}.ffn_norm",
    "blocks.{i}.mlp.gate_up": cat("layers.{i}.feed_forward.w1", "layers.{i}.feed_forward.w3"),
    "blocks.{i}.mlp.down": "layers.{i}.feed_forward.w2",
    "final_norm": "norm",
    "head": optional("output"),
}
IGNORED = ("freqs_cos", "freqs_sin")

_WORDS = {
    "vocab_size": "vocab_size",
    "n_embd": "dim",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "n_kv_head": "n_kv_heads",
    "context_length": "max_seq_len",
}
_BEGIN, _END = 1, 2
_LLAMA_IDS = 32_000


def recognise(source: Source) -> float:
    if source.is_dir:
        return 0.0
    if source.archive.kind == "llama2.c":
        return 1.0
    tensors = stripped(source)[0]
    known = ("tok_embeddings.weight", "layers.0.attention.wq.weight")
    if not all(isinstance(tensors.get(name), TensorRef) for name in known):
        return 0.0
    return 0.95 if "dim" in mapping(source.root.get("model_args")) else 0.6


def describe(source: Source) -> Description:
    notes = Notes(source.config)
    if source.archive.kind == "llama2.c":
        said = mapping(source.root["sizes"])
        tensors: Mapping[str, object] = mapping(source.root["weights"])
        if said["version"] == 2:
            notes.inferred.append(
                "its weights are int8 and are computed with as float32; llama2.c's own runq "
                "rounds the activations too, so its text may differ"
            )
    else:
        said = mapping(source.root.get("model_args"))
        tensors, removed = stripped(source)
        notes.removed(removed)
        notes.tensors(tensors, IGNORED)
        notes.keys(
            source.root,
            {*weight_keys(source), "model_args", "iter_num", "best_val_loss"},
            "the file",
        )
        notes.keys(said, (*_WORDS.values(), "norm_eps"), "model_args")
        if not said:
            notes.warnings.append(
                "it has no model_args: it is read as llama2.c's, but other Llama models have the "
                "same names; theirs may need --config rope_theta=N and norm_eps=N"
            )
    embed = matrix(tensors, "tok_embeddings.weight")
    shown: dict[str, object] = {
        "vocab_size": embed.shape[0],
        "n_embd": embed.shape[1],
        "n_layer": count(tensors, "layers.{n}."),
    }
    agree(shown, said, {ours: _WORDS[ours] for ours in shown if ours not in source.config})
    notes.shapes(shown)
    bare = untied(tensors, "output.weight", "tok_embeddings.weight")
    notes.head("output.weight" not in bare, "output.weight", tensors)
    eps = said.get("norm_eps")
    said_eps = isinstance(eps, float) and 0 < eps < 1
    fixed: dict[str, object] = {
        **({} if said_eps else {"norm_eps": 1e-5}),
        "rope_theta": 10000.0,
        "rope_layout": "interleaved",
        "activation": "silu",
    }
    notes.fixed(fixed)
    key_heads = said.get("n_kv_heads")
    if key_heads is None and "n_kv_head" not in source.config:
        key_heads = _key_heads(tensors, source.config.get("n_head", said.get("n_heads")), notes)
    return Description(
        format=NAME,
        spec={
            **{ours: said[word] for ours, word in _WORDS.items() if said.get(word) is not None},
            **shown,
            **({} if key_heads is None else {"n_kv_head": key_heads}),
            "norm_eps": eps,
            **fixed,
            "norm": "rmsnorm",
            "position": "rope",
            "gated": True,
        },
        tensors=bare,
        names=NAMES,
        ignored=IGNORED,
        archives=(source.archive,),
        tokenizer=_tokenizer(source, embed.shape[0], notes.warnings),
        step=step(source, "iter_num"),
        losses=loss(source, "val", "best_val_loss"),
        stop_ids=(_BEGIN, _END),
        text_start=(_BEGIN,),
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
    )


def _key_heads(tensors: Mapping[str, object], heads: object, notes: Notes) -> int | None:
    """How many heads keys have where the file leaves it out: all, unless wk is smaller than wq."""
    queries, keys = (matrix(tensors, f"layers.0.attention.{name}.weight") for name in ("wq", "wk"))
    if isinstance(heads, int) and 0 < keys.shape[0] < queries.shape[0]:
        found = heads * keys.shape[0] // queries.shape[0]
        notes.inferred.append(f"n_kv_head {found}: wk has {keys.shape[0]} rows")
        return found
    notes.defaults.append("n_kv_head: as many as n_head, for the file does not say it")
    return None


def _tokenizer(source: Source, rows: int, warnings: list[str]) -> TokenizerHint:
    """The tokenizer.bin or .model, or tok512.bin after its size, that has as many ids: beside the
    file, above it, or in data/."""
    named = ("tokenizer.bin", f"tok{rows}.bin", "tokenizer.model", f"tok{rows}.model")
    for folder in ("", "..", "data", "../data", "../.."):
        for name in named:
            path = source.near(folder, name)
            if path and _fits(path, rows):
                return TokenizerHint(
                    kind="llama2c",
                    path=path,
                    source=f"{shown_name(path)} has as many ids as the model",
                    vocab_size=rows,
                )
    warnings.append(
        f"no tokenizer found for {rows} ids: put the trainer's tokenizer.bin or {named[1]} beside "
        "the checkpoint, or name it with --tokenizer; until then only ids are shown"
        + (" (Llama 2's tokenizer.bin comes with llama2.c)" if rows == _LLAMA_IDS else "")
    )
    return TokenizerHint(kind="none", source="no tokenizer.bin found", vocab_size=rows)


def _fits(path: str, rows: int) -> bool:
    try:
        if path.endswith(".model"):
            return len(read_sentencepiece(path).pieces) == rows
        return len(read_scored_pieces(path, rows).pieces) == rows
    except CheckpointError:
        return False
