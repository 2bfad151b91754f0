"""The forward pass of nanoGPT and build-nanogpt, written out plainly from their names and
shapes: the oracle that files of every variant are held against."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import tui_chat

IDS = [3, 1, 4, 1, 5, 9, 2, 6]
HEADS = 2
ARGS = {"n_layer": 2, "n_head": HEADS, "n_embd": 8, "block_size": 16, "vocab_size": 65}


def normed(x: torch.Tensor, w: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]
    return x + w[f"{name}.bias"] if f"{name}.bias" in w else x


def through(x: torch.Tensor, w: Mapping[str, torch.Tensor], name: str) -> torch.Tensor:
    x = x @ w[f"{name}.weight"].T
    return x + w[f"{name}.bias"] if f"{name}.bias" in w else x


def oracle(
    weights: Mapping[str, torch.Tensor], ids: list[int] = IDS, heads: int = HEADS, gelu: str = ""
) -> torch.Tensor:
    """Logits after `ids` in float64, one head after the other."""
    w = {name: tensor.detach().double() for name, tensor in weights.items()}
    t = len(ids)
    x = w["transformer.wte.weight"][ids] + w["transformer.wpe.weight"][:t]
    future = torch.ones(t, t).triu(1).bool()
    layers = sum(name.endswith("mlp.c_fc.weight") for name in w)
    for h in (f"transformer.h.{i}." for i in range(layers)):
        q, k, v = through(normed(x, w, h + "ln_1"), w, h + "attn.c_attn").chunk(3, -1)
        outs = []
        for qh, kh, vh in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
            scores = (qh @ kh.T / math.sqrt(qh.shape[-1])).masked_fill(future, -math.inf)
            outs.append(scores.softmax(-1) @ vh)
        x = x + through(torch.cat(outs, -1), w, h + "attn.c_proj")
        hidden = through(normed(x, w, h + "ln_2"), w, h + "mlp.c_fc")
        x = x + through(F.gelu(hidden, approximate=gelu or "none"), w, h + "mlp.c_proj")
    head = w.get("lm_head.weight", w["transformer.wte.weight"])
    return (normed(x, w, "transformer.ln_f") @ head.T)[-1].float()


def same(path: str | Path, wanted: torch.Tensor, abs_: float = 1e-4, **options: Any) -> Any:
    """Open `path` and hold its logits against `wanted`; the open checkpoint."""
    opened = tui_chat.open(str(path), device="cpu", **options)
    torch.testing.assert_close(opened.next_logits(IDS), wanted, atol=abs_, rtol=0)
    return opened
