"""llm.c's GPT-2: a header of 256 numbers, then float32 or bfloat16 weights, the head tied.

The rows that pad its vocabulary to a multiple of 128 are not read.
"""

from __future__ import annotations

import os
import re

from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.explain import Notes
from tui_chat.checkpoint.files import shown_name
from tui_chat.checkpoint.gpt2 import END, GPT2_END, GPT2_IDS
from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.names import Table
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.vocabularies import read_byte_pieces
from tui_chat.errors import CheckpointError

NAME = "llm.c"

NAMES: Table = {
    "embed": "wte",
    "position": "wpe",
    "blocks.{i}.attn_norm": "h.{i}.ln_1",
    "blocks.{i}.attn.qkv": "h.{i}.attn.c_attn",
    "blocks.{i}.attn.out": "h.{i}.attn.c_proj",
    "blocks.{i}.mlp_norm": "h.{i}.ln_2",
    "blocks.{i}.mlp.up": "h.{i}.mlp.c_fc",
    "blocks.{i}.mlp.down": "h.{i}.mlp.c_proj",
    "final_norm": "ln_f",
}
_VOCABULARY = "gpt2_tokenizer.bin"


def recognise(source: Source) -> float:
    return 1.0 if not source.is_dir and source.archive.kind == "llm.c" else 0.0


def describe(source: Source) -> Description:
    said = mapping(source.root["sizes"])
    notes = Notes(source.config)
    fixed: dict[str, object] = {"norm_eps": 1e-5, "activation": "gelu_tanh"}
    notes.fixed(fixed)
    notes.inferred.append("the head is tied: llm.c has no other")
    rows = said["vocab_size"]
    assert isinstance(rows, int)
    tokenizer, end = _tokenizer(source, rows, notes.warnings)
    number = re.fullmatch(r"model_(\d{1,12})\.bin", os.path.basename(source.path))
    step = int(number.group(1)) if number else None
    if step is not None:
        notes.inferred.append(f"step {step}: from the name of the file")
    return Description(
        format=NAME,
        spec={
            "vocab_size": rows,
            "n_layer": said["num_layers"],
            "n_head": said["num_heads"],
            "n_embd": said["channels"],
            "context_length": said["max_seq_len"],
            **fixed,
            "norm": "layernorm",
            "position": "learned",
        },
        tensors=mapping(source.root["weights"]),
        names=NAMES,
        archives=(source.archive,),
        tokenizer=tokenizer,
        step=step,
        stop_ids=(end,) if end is not None else (),
        warnings=notes.warnings,
        inferred=notes.inferred,
        defaults=notes.defaults,
        unused=notes.unused,
    )


def _tokenizer(source: Source, rows: int, warnings: list[str]) -> tuple[TokenizerHint, int | None]:
    """The project's own vocabulary file where it lies beside, else GPT-2's where the size fits; and
    the id that ends a document."""
    for folder in ("", ".."):
        path = source.near(folder, _VOCABULARY)
        try:
            found = read_byte_pieces(path) if path else None
        except CheckpointError as error:
            warnings.append(f"{shown_name(path)} is not used: {error.found}")
            found = None
        if found is not None and len(found.pieces) == rows:
            hint = TokenizerHint(
                kind="llmc",
                path=path,
                source=f"{shown_name(path)} has as many ids as the model",
                vocab_size=rows,
                text_specials=(END,),
            )
            return hint, found.end
    if rows == GPT2_IDS:
        hint = TokenizerHint(
            kind="tiktoken",
            name="gpt2",
            source=f"{rows} ids are GPT-2's",
            vocab_size=rows,
            text_specials=(END,),
        )
        return hint, GPT2_END
    warnings.append(
        f"no tokenizer found for {rows} ids: put {_VOCABULARY} beside the checkpoint, or name one "
        "with --tokenizer; until then only ids are shown"
    )
    hint = TokenizerHint(kind="none", source=f"no {_VOCABULARY} found", vocab_size=rows)
    return hint, None
