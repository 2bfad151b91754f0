"""Tiny nanoGPT checkpoints, saved as nanoGPT saves them, whose behaviour is known beforehand."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from tui_chat.checkpoint.info import TemplateHint
from tui_chat.conversation import Turn
from tui_chat.engine.engine import Lane, Reply
from tui_chat.engine.events import Event, Finished, LoadOptions, Prompt, Started, Stepped
from tui_chat.engine.load import LoadedCheckpoint, assemble, load_checkpoint
from tui_chat.model.spec import ModelSpec
from tui_chat.sampling import SamplingParams
from tui_chat.templates.roles import RoleTemplate

from ..model.tiny import random_weights

torch.set_num_threads(1)

# The alphabet model says the next of these, whatever came before.
LETTERS = "abcdefghijklmnopqrstuvwxyz.:\n UAS0123456"
GREEDY = SamplingParams(temperature=0.0, max_new_tokens=8)


def spec(context_length: int = 64) -> ModelSpec:
    size = len(LETTERS)
    return ModelSpec(
        vocab_size=size, n_layer=1, n_head=4, n_embd=size, context_length=context_length
    )


def alphabet_weights(context_length: int = 64) -> dict[str, Tensor]:
    """The last letter alone decides: embeddings are one-hot, attention and MLP add nothing."""
    weights = random_weights(spec(context_length))
    size = len(LETTERS)
    for name, tensor in weights.items():
        tensor.fill_(1.0 if name.endswith("norm.weight") else 0.0)
    weights["embed.weight"].copy_(torch.eye(size))
    weights["head.weight"].copy_(4 * torch.eye(size).roll(1, 0))
    return weights


def save_nanogpt(folder: Path, weights: dict[str, Tensor], context_length: int = 64) -> str:
    """A checkpoint with its meta.pkl beside it, by nanoGPT's names. Returns its path."""
    names = {
        "embed": "transformer.wte",
        "position": "transformer.wpe",
        "final_norm": "transformer.ln_f",
        "head": "lm_head",
        "blocks.0.attn_norm": "transformer.h.0.ln_1",
        "blocks.0.attn.qkv": "transformer.h.0.attn.c_attn",
        "blocks.0.attn.out": "transformer.h.0.attn.c_proj",
        "blocks.0.mlp_norm": "transformer.h.0.ln_2",
        "blocks.0.mlp.up": "transformer.h.0.mlp.c_fc",
        "blocks.0.mlp.down": "transformer.h.0.mlp.c_proj",
    }
    state = {}
    for name, tensor in weights.items():
        prefix, kind = name.rsplit(".", 1)
        if name != "head.bias":
            state[f"{names[prefix]}.{kind}"] = tensor
    shape = spec(context_length)
    arguments = {
        "n_layer": 1,
        "n_head": shape.n_head,
        "n_embd": shape.n_embd,
        "block_size": context_length,
        "bias": True,
        "vocab_size": shape.vocab_size,
        "dropout": 0.0,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "ckpt.pt"
    torch.save({"model": state, "model_args": arguments, "iter_num": 100}, path)
    meta = {
        "vocab_size": len(LETTERS),
        "stoi": {letter: at for at, letter in enumerate(LETTERS)},
        "itos": dict(enumerate(LETTERS)),
    }
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return str(path)


def opened(path: str, *, stop_ids: tuple[int, ...] = (), chat: bool = False) -> LoadedCheckpoint:
    """The checkpoint, with stop ids and a template of its own if wanted: U hello, A hello, new
    line.
    """
    loaded = load_checkpoint(path, LoadOptions(device="cpu"))
    turns = {"system": ("S", "\n"), "user": ("U", "\n"), "assistant": ("A", "\n")}
    template = RoleTemplate("letters", loaded.tokenizer, turns, ("\n",)) if chat else None
    info = loaded.info
    object.__setattr__(info, "stop_ids", stop_ids)
    if chat:
        object.__setattr__(info, "template", TemplateHint(name="letters", turns=turns))
    return assemble(info, loaded.model, loaded.tokenizer, template)


def raw(text: str) -> Prompt:
    return Prompt(mode="raw", text=text)


def chat(*texts: str, system: str = "") -> Prompt:
    """Turns of the user and the assistant in alternation."""
    turns = [Turn("assistant" if at % 2 else "user", text) for at, text in enumerate(texts)]
    return Prompt(turns=((Turn("system", system),) if system else ()) + tuple(turns))


class Ran:
    """A reply run to its end, and what it emitted."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self.events: list[Event] = list(reply.events())

    def of(self, kind: type[Event]) -> Iterator[Event]:
        return (event for event in self.events if isinstance(event, kind))

    @property
    def started(self) -> Started:
        return next(event for event in self.events if isinstance(event, Started))

    @property
    def finished(self) -> Finished:
        last = self.events[-1]
        assert isinstance(last, Finished), last
        return last

    @property
    def shown(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, Stepped))


def run(lane: Lane, prompt: Prompt, params: SamplingParams = GREEDY) -> Ran:
    return Ran(lane.reply(prompt, params, "r"))
