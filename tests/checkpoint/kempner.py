"""KempnerForge's model written out in float64, its weights under its own names, and its step
directories as torch's own distributed checkpoints write them."""

from __future__ import annotations

import json
import logging
import math
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Weights = dict[str, Tensor]

for logger in ("torch.distributed.checkpoint", "c10d-NullHandler-dcp_logger"):
    logging.getLogger(logger).setLevel(logging.ERROR)


@dataclass(frozen=True)
class Model:
    """A [model] table, with the defaults of the tests."""

    dim: int = 24
    n_layers: int = 2
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 0
    vocab_size: int = 40
    ffn_hidden_dim: int = 32
    max_seq_len: int = 32
    norm_type: str = "rmsnorm"
    norm_eps: float = 1e-5
    activation: str = "silu"
    rope_theta: float = 10000.0
    tie_embeddings: bool = False
    qk_norm: bool = False
    num_experts: int = 0
    moe_top_k: int = 2
    moe_frequency: int = 1
    moe_router: str = "softmax_topk"
    moe_shared_experts: int = 0
    moe_capacity_factor: float = 0.0
    moe_packed_experts: bool = False
    left_out: Sequence[str] = field(default=(), repr=False)

    @property
    def head(self) -> int:
        return self.head_dim or self.dim // self.n_heads

    def routed(self, layer: int) -> bool:
        return self.num_experts > 0 and (layer + 1) % self.moe_frequency == 0

    def toml(self, **tables: str) -> str:
        """The TOML its training would have been started with."""
        lines = ["[model]"]
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name == "left_out" or name in self.left_out or (name == "head_dim" and not value):
                continue
            lines.append(f"{name} = {json.dumps(value)}")
        for name, text in tables.items():
            lines += [f"[{name}]", text]
        return "\n".join(lines) + "\n"


def weights_of(model: Model, seed: int = 0) -> Weights:
    """Random weights, large enough for logits to differ clearly."""
    draw = torch.Generator().manual_seed(seed)
    out: Weights = {}

    def put(name: str, *shape: int, around: float = 0.0) -> None:
        out[name] = around + 0.3 * torch.randn(shape, generator=draw)

    def norm(name: str) -> None:
        put(f"{name}.weight", model.dim, around=1.0)
        if model.norm_type == "layernorm":
            put(f"{name}.bias", model.dim)

    def mlp(name: str, hidden: int) -> None:
        for part in ("gate", "up") if model.activation == "silu" else ("up",):
            put(f"{name}.{part}_proj.weight", hidden, model.dim)
        put(f"{name}.down_proj.weight", model.dim, hidden)

    put("token_embedding.embedding.weight", model.vocab_size, model.dim)
    for i in range(model.n_layers):
        at = f"layers.{i}"
        norm(f"{at}.attention_norm")
        query, keys = model.n_heads * model.head, model.n_kv_heads * model.head
        put(f"{at}.attention.q_proj.weight", query, model.dim)
        put(f"{at}.attention.k_proj.weight", keys, model.dim)
        put(f"{at}.attention.v_proj.weight", keys, model.dim)
        put(f"{at}.attention.o_proj.weight", model.dim, query)
        if model.qk_norm:
            put(f"{at}.attention.q_norm.weight", model.head, around=1.0)
            put(f"{at}.attention.k_norm.weight", model.head, around=1.0)
        norm(f"{at}.mlp_norm")
        if not model.routed(i):
            mlp(f"{at}.mlp", model.ffn_hidden_dim)
            continue
        put(f"{at}.mlp.router.gate.weight", model.num_experts, model.dim)
        if model.moe_router == "sigmoid_topk":
            put(f"{at}.mlp.router.expert_bias", model.num_experts)
            put(f"{at}.mlp.router.expert_ema", model.num_experts)
        for e in range(model.num_experts):
            mlp(f"{at}.mlp.experts.{e}", model.ffn_hidden_dim)
        if model.moe_packed_experts:
            for part in ("gate", "up", "down"):
                names = [f"{at}.mlp.experts.{e}.{part}_proj.weight" for e in range(99)]
                stack = [out.pop(name).t().contiguous() for name in names if name in out]
                if stack:
                    out[f"{at}.mlp.{part}_w"] = torch.stack(stack)
        if model.moe_shared_experts:
            mlp(f"{at}.mlp.shared_expert", model.ffn_hidden_dim)
    norm("norm")
    put("output_head.proj.weight", model.vocab_size, model.dim)
    if model.tie_embeddings:
        out["output_head.proj.weight"] = out["token_embedding.embedding.weight"]
    return out


def logits_of(
    model: Model,
    weights: Mapping[str, Tensor],
    ids: Sequence[int],
    *,
    qk_eps: float = 1e-5,
    calls: Sequence[int] = (),
) -> Tensor:
    """(len(ids), vocab_size) float64: one call over all of them, or calls of so many each."""
    w = {name: tensor.double() for name, tensor in weights.items()}
    x = w["token_embedding.embedding.weight"][list(ids)]
    count, dim = len(ids), model.head
    half = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    angle = torch.arange(count, dtype=torch.float64)[:, None] * model.rope_theta ** (-half)
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def rms(z: Tensor, weight: Tensor, eps: float) -> Tensor:
        return z / (z.square().mean(-1, keepdim=True) + eps).sqrt() * weight

    def norm(z: Tensor, name: str) -> Tensor:
        if model.norm_type == "rmsnorm":
            return rms(z, w[f"{name}.weight"], model.norm_eps)
        z = z - z.mean(-1, keepdim=True)
        spread = (z.square().mean(-1, keepdim=True) + model.norm_eps).sqrt()
        return z / spread * w[f"{name}.weight"] + w[f"{name}.bias"]

    def turn(z: Tensor) -> Tensor:
        one, two = z[..., : dim // 2], z[..., dim // 2 :]
        return torch.cat([one * cos - two * sin, two * cos + one * sin], -1)

    def act(z: Tensor) -> Tensor:
        if model.activation == "relu":
            return z.clamp(min=0)
        if model.activation == "gelu":
            return z * 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        return z * torch.sigmoid(z)

    def mlp(z: Tensor, name: str) -> Tensor:
        up = z @ w[f"{name}.up_proj.weight"].t()
        gated = f"{name}.gate_proj.weight"
        inner = act(z @ w[gated].t()) * up if gated in w else act(up)
        return inner @ w[f"{name}.down_proj.weight"].t()

    def expert(z: Tensor, name: str, e: int) -> Tensor:
        if f"{name}.up_w" not in w:
            return mlp(z, f"{name}.experts.{e}")
        up = z @ w[f"{name}.up_w"][e]
        inner = act(z @ w[f"{name}.gate_w"][e]) * up if f"{name}.gate_w" in w else act(up)
        return inner @ w[f"{name}.down_w"][e]

    def mixture(z: Tensor, name: str) -> Tensor:
        router = z @ w[f"{name}.router.gate.weight"].t()
        if model.moe_router == "sigmoid_topk":
            scores = torch.sigmoid(router + w[f"{name}.router.expert_bias"])
        else:
            scores = router.softmax(-1)
        best, chosen = scores.topk(model.moe_top_k, -1)
        best = best / best.sum(-1, keepdim=True)
        begin = 0
        for size in (calls or (count,)) if model.moe_capacity_factor else ():
            share = size * model.moe_top_k / model.num_experts
            room = max(1, math.ceil(share * model.moe_capacity_factor))
            for rank in range(model.moe_top_k):
                for e in range(model.num_experts):
                    mine = [t for t in range(begin, begin + size) if int(chosen[t, rank]) == e]
                    best[mine[room:], rank] = 0.0
            begin += size
        out = torch.zeros_like(z)
        for t in range(count):
            for score, e in zip(best[t], chosen[t], strict=True):
                out[t] += score * expert(z[t], name, int(e))
        shared = f"{name}.shared_expert"
        return out + mlp(z, shared) if f"{shared}.up_proj.weight" in w else out

    for i in range(model.n_layers):
        at = f"layers.{i}"
        z = norm(x, f"{at}.attention_norm")
        q, k, v = (
            (z @ w[f"{at}.attention.{part}_proj.weight"].t()).view(count, -1, dim) for part in "qkv"
        )
        if model.qk_norm:
            q = rms(q, w[f"{at}.attention.q_norm.weight"], qk_eps)
            k = rms(k, w[f"{at}.attention.k_norm.weight"], qk_eps)
        q, k = turn(q), turn(k)
        share = model.n_heads // model.n_kv_heads
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(dim)
        scores = scores.masked_fill(torch.ones(count, count).triu(1).bool(), -math.inf)
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(count, -1)
        x = x + mixed @ w[f"{at}.attention.o_proj.weight"].t()
        z = norm(x, f"{at}.mlp_norm")
        x = x + (mixture(z, f"{at}.mlp") if model.routed(i) else mlp(z, f"{at}.mlp"))
    return norm(x, "norm") @ w["output_head.proj.weight"].t()


# ---- directories


def save_step(folder: Path, weights: Mapping[str, Tensor], *, optimizer: bool = True) -> Path:
    """A step directory by torch's own writer."""
    import torch.distributed.checkpoint as dcp

    state: dict[str, Any] = {"model": dict(weights)}
    if optimizer:
        moments = {n: {"exp_avg": t * 0 + 7, "step": torch.tensor(3.0)} for n, t in weights.items()}
        state["optimizer"] = {"state": moments, "param_groups": [{"lr": 0.1}]}
    folder.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder), no_dist=True)
    if folder.name.startswith("step_"):
        said = {"step": int(folder.name.removeprefix("step_")), "tokens_seen": 1024}
        (folder / "metadata.json").write_text(json.dumps(said))
    return folder


Cuts = Mapping[str, tuple[int, ...]]


def save_sharded(folder: Path, tensors: Mapping[str, Tensor], cuts: Cuts, ranks: int = 2) -> Path:
    """A directory as several ranks write it: `cuts` says into how many pieces each dimension of a
    tensor goes; pieces go to the ranks in turn. Torch's own classes and torch.save do the writing.
    """
    from torch.distributed.checkpoint import metadata as m
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    folder.mkdir(parents=True, exist_ok=True)
    files = [(folder / f"__{rank}_0.distcp").open("wb") for rank in range(ranks)]
    entries: dict[str, Any] = {}
    places: dict[Any, Any] = {}
    turn = 0
    for name, tensor in tensors.items():
        chunks = []
        for corner, piece in pieces(tensor, cuts.get(name, ())):
            file = files[turn % ranks]
            turn += 1
            begin = file.tell()
            torch.save(piece.clone(), file)
            file.seek(0, 2)
            chunks.append(m.ChunkStorageMetadata(torch.Size(corner), piece.shape))
            places[m.MetadataIndex(name, torch.Size(corner))] = _StorageInfo(
                Path(file.name).name, begin, file.tell() - begin
            )
        entries[name] = m.TensorStorageMetadata(
            m.TensorProperties.create_from_tensor(tensor), tensor.shape, chunks
        )
    for file in files:
        file.close()
    whole = m.Metadata(entries, storage_data=places)
    (folder / ".metadata").write_bytes(pickle.dumps(whole))
    return folder


def pieces(tensor: Tensor, cuts: Sequence[int]) -> list[tuple[tuple[int, ...], Tensor]]:
    """The pieces of a tensor and where each begins."""
    found: list[tuple[tuple[int, ...], Tensor]] = [((0,) * tensor.dim(), tensor)]
    for at, count in enumerate(cuts):
        split = []
        for corner, piece in found:
            begin = corner[at]
            for part in piece.chunk(count, at):
                split.append(((*corner[:at], begin, *corner[at + 1 :]), part))
                begin += part.shape[at]
        found = split
    return found
