"""From canonical tensors to the parts of a decoder, in the form in which they run.

What the spec chooses is settled here; the two straight lines through the parts are in decoder.py
(a piece of a prompt) and step.py (the next token).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tui_chat.errors import CheckpointError
from tui_chat.model.layers import (
    ACTIVATIONS,
    UNNORMED,
    Attention,
    Map,
    Norm,
    attention,
    gate,
    norm,
    shaped_logits,
)
from tui_chat.model.linear import (
    DOWN_MAKERS,
    MAKERS,
    DenseTable,
    Held,
    HeldTable,
    Linear,
    Make,
    Matrix,
    Precision,
    Table,
    turned,
)
from tui_chat.model.mixture import mixture
from tui_chat.model.native import ready
from tui_chat.model.rotary import QKNorm, Rotary, paired, rotaries, rotate, rotate_mismatched
from tui_chat.model.spec import ModelSpec


class MLP(NamedTuple):
    """up, activation (gating included), down."""

    up: Linear
    act: Map
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """(T, n_embd) -> (T, n_embd)."""
        return self.down.many(self.act(self.up.many(x)))


class Block(NamedTuple):
    """One layer."""

    attn_norm: Norm
    qkv: Linear  # (n_embd, (n_head + 2 n_kv_head) * head_dim), rotary pairs side by side
    qk_norm: QKNorm | None
    rotary: Rotary | None
    window: int  # 0: all
    out: Linear | None
    attn_post: Norm | None
    mlp_norm: Norm | None  # None: the norm of attention serves both
    mlp: MLP | Map
    mlp_post: Norm | None


class Parts(NamedTuple):
    """A whole decoder."""

    spec: ModelSpec
    dtype: torch.dtype
    device: torch.device
    embed: Table
    position: Tensor | None
    embed_norm: Norm | None
    blocks: list[Block]
    final_norm: Norm | None
    head: Linear
    attend: Attention
    shape_logits: Map | None

    def begin(self, ids: Tensor, places: slice | Tensor) -> Tensor:
        """What goes into the first layer: (T, n_embd), for ids (T,) at their positions."""
        x = self.embed.many(ids)
        if self.spec.embed_scale != 1.0:
            x = x * self.spec.embed_scale
        if self.position is not None:
            x = x + self.position[places]
        return x if self.embed_norm is None else self.embed_norm.many(x)

    def join(self, block: Block, x: Tensor, normed: Tensor, mixed: Tensor) -> Tensor:
        """What comes out of a layer: `x` went in, `normed` into its attention, `mixed` (T, n_head *
        head_dim) are its heads -> (T, n_embd).
        """
        if block.out is not None:
            mixed = block.out.many(mixed)
        if block.attn_post is not None:
            mixed = block.attn_post.many(mixed)
        serial = self.spec.residual == "serial"
        seen = x + mixed if serial else x
        made = block.mlp(normed if block.mlp_norm is None else block.mlp_norm.many(seen))
        if block.mlp_post is not None:
            made = block.mlp_post.many(made)
        return seen + made if serial else x + mixed + made

    def logits(self, x: Tensor) -> Tensor:
        """After the last layer: (T, n_embd) -> (T, vocab_size) float32."""
        if self.final_norm is not None:
            x = self.final_norm.many(x)
        logits = self.head.many(x).float()
        return logits if self.shape_logits is None else self.shape_logits(logits)

    def turn(self, qk: Tensor, block: Block, angles: Tensor | None) -> None:
        """Norm and rotate q and k in place, in the order of the spec. (T, n_head + n_kv_head,
        head_dim); `angles` are the rows of these positions.
        """
        normed = block.qk_norm
        if normed is not None and self.spec.qk_norm == "before_rope":
            normed(qk)
        if angles is not None:
            turn = rotate_mismatched if self.spec.rope_layout == "mismatched" else rotate
            turn(qk, angles)
        if normed is not None and self.spec.qk_norm == "after_rope":
            normed(qk)


def assemble(
    spec: ModelSpec,
    weights: dict[str, Tensor],
    precision: Precision = "dense",
    *,
    turn: bool = False,
) -> Parts:
    """The parts of a decoder. `weights` (canonical names, see build.py) is emptied: the tensors
    now belong to the parts. `turn`: dense matrices are laid out for torch's single rows.
    """
    return _Assembly(spec, weights, precision, turn).parts()


def lies_turned(spec: ModelSpec, name: str, *, tied: bool) -> bool:
    """Whether the matrix `name` ends up lying (in, out) just as it is, in float32 on a CPU: then
    it is best read to such a place at once.
    """
    if spec.family not in ("decoder", "hipgpt") or not name.endswith(".weight"):
        return False
    if spec.family == "decoder" and not best_turned(spec):
        return False
    part = name.removesuffix(".weight").rpartition(".")[2]
    if part == "qkv":  # rotary pairs are brought together first
        return spec.position != "rope" or spec.rope_layout == "interleaved"
    if part == "embed":
        return tied
    return part in ("out", "up", "gate_up", "down", "head") and ".experts." not in name


def best_turned(spec: ModelSpec) -> bool:
    """Whether torch computes the next token of such a decoder on a CPU, and wants its float32
    matrices turned for that; the compiled step wants them as they come.
    """
    return not ready.suits(spec)


class _Assembly:
    def __init__(
        self, spec: ModelSpec, weights: dict[str, Tensor], precision: Precision, turn: bool
    ) -> None:
        self.spec = spec
        self.weights = weights
        self.precision = precision
        self.make, self.make_down = MAKERS[precision], DOWN_MAKERS[precision]
        if turn and precision == "dense":
            self.make = self.make_down = turned
        sample = weights["embed.weight"]
        # What is not a matrix is computed in float32 beside matrices of fewer bits.
        dtype = sample.dtype if precision == "dense" else torch.float32
        self.like = torch.empty(0, dtype=dtype, device=sample.device)

    def parts(self) -> Parts:
        spec = self.spec
        turns = rotaries(spec, self.like.device)
        position = self.small("position.weight")
        embed_norm = self.norm("embed_norm") if spec.embed_norm else None
        blocks = [self.block(i, turns[i]) for i in range(spec.n_layer)]
        final_norm = self.norm("final_norm") if spec.final_norm else None
        embed, head = self.ends()
        return Parts(
            spec=spec,
            dtype=self.like.dtype,
            device=self.like.device,
            embed=embed,
            position=position,
            embed_norm=embed_norm,
            blocks=blocks,
            final_norm=final_norm,
            head=head,
            attend=attention(spec),
            shape_logits=shaped_logits(spec),
        )

    def ends(self) -> tuple[Table, Linear]:
        """The embedding and the head."""
        embed, head = self.weights.pop("embed.weight"), self.weights.pop("head.weight", None)
        tied = head is None or head.data_ptr() == embed.data_ptr()
        output = self.make(
            embed if head is None or tied else head, self.weights.pop("head.bias", None)
        )
        if self.precision != "dense":
            of = output if tied else self.make(embed, None)
            assert isinstance(of, Held)
            return HeldTable(of), output
        # A tied table is kept once, in the layout of the head; looking up a column of it costs
        # nothing beside.
        if tied and isinstance(output, Matrix):
            embed = output.weight.t()
        return DenseTable(embed), output

    def small(self, name: str) -> Tensor | None:
        """A tensor that is no matrix to multiply by, None if there is none."""
        found = self.weights.pop(name, None)
        return None if found is None else found.to(self.like.dtype)

    def norm(self, name: str, scale: float = 1.0) -> Norm:
        weight, bias = self.small(f"{name}.weight"), self.small(f"{name}.bias")
        if scale != 1.0 and weight is not None:
            weight, bias = weight * scale, None if bias is None else bias * scale
        return norm(self.spec, self.like, weight, bias)

    def post_norm(self, name: str) -> Norm | None:
        """The norm of what a branch adds, with what scales that."""
        there = f"{name}.weight" in self.weights
        return self.norm(name, self.spec.residual_scale) if there else None

    def linear(self, name: str, scale: float = 1.0, make: Make | None = None) -> Linear:
        weight = self.weights.pop(f"{name}.weight")
        bias = self.weights.pop(f"{name}.bias", None)
        if scale != 1.0:
            weight, bias = weight * scale, None if bias is None else bias * scale
        return (make or self.make)(weight, bias)

    def block(self, i: int, rotary: Rotary | None) -> Block:
        spec, at = self.spec, f"blocks.{i}"
        attn_post = self.post_norm(f"{at}.attn_post_norm")
        mlp_post = self.post_norm(f"{at}.mlp_post_norm")
        # What scales the residual is part of the norm or the matrix before it.
        attn_scale = 1.0 if attn_post else spec.residual_scale
        mlp_scale = 1.0 if mlp_post else spec.residual_scale
        if attn_scale != 1.0 and not spec.attention_output:
            raise CheckpointError(
                "the model cannot be built",
                "its residuals are scaled, but not after a matrix",
                "No known family does that",
            )
        mlp_norm: Norm | None = UNNORMED
        if spec.shared_norm:
            mlp_norm = None
        elif spec.pre_norm:
            mlp_norm = self.norm(f"{at}.mlp_norm")
        return Block(
            attn_norm=self.norm(f"{at}.attn_norm") if spec.pre_norm else UNNORMED,
            qkv=self.qkv(at),
            qk_norm=self.qk_norm(at),
            rotary=rotary,
            window=spec.window[i] if spec.window else 0,
            out=self.linear(f"{at}.attn.out", attn_scale) if spec.attention_output else None,
            attn_post=attn_post,
            mlp_norm=mlp_norm,
            mlp=self.mlp(at, mlp_scale),
            mlp_post=mlp_post,
        )

    def mlp(self, at: str, added: float) -> MLP | Map:
        spec = self.spec
        if f"{at}.mlp.router.weight" in self.weights:
            experts = mixture(spec, self.weights, at, self.make, self.make_down)
            return experts if added == 1.0 else lambda x: experts(x).mul_(added)
        return MLP(
            self.linear(f"{at}.mlp.gate_up" if spec.gated else f"{at}.mlp.up"),
            gate(spec.activation) if spec.gated else ACTIVATIONS[spec.activation],
            self.linear(f"{at}.mlp.down", added, self.make_down),
        )

    def qkv(self, at: str) -> Linear:
        weight = self.weights.pop(f"{at}.attn.qkv.weight")
        bias = self.weights.pop(f"{at}.attn.qkv.bias", None)
        return self.make(self.ordered(weight), None if bias is None else self.ordered(bias))

    def qk_norm(self, at: str) -> QKNorm | None:
        if self.spec.qk_norm == "none":
            return None
        q_weight = self.small(f"{at}.attn.q_norm.weight")
        return QKNorm(self.spec, q_weight, self.small(f"{at}.attn.k_norm.weight"))

    def ordered(self, rows: Tensor) -> Tensor:
        """The fused rows with those of q and k in rotary order."""
        spec = self.spec
        if spec.position != "rope" or spec.rope_layout == "interleaved":
            return rows
        heads = spec.n_head + spec.n_kv_head
        cut = heads * spec.head_dim
        return torch.cat([paired(spec, rows[:cut], heads), rows[cut:]])
