"""GGUF's tensors under our names: experts apart where they are joined, gates as matrices."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tui_chat.checkpoint.gguf.architectures import Architecture
from tui_chat.checkpoint.gguf.reader import slab, stacked
from tui_chat.checkpoint.names import Row, Table, cat, optional, partial
from tui_chat.checkpoint.tensors import TensorRef, contiguous

IGNORED = (
    "rope_freqs.weight",
    "rope_factors_*.weight",
    "blk.*.attn_rot_embd.weight",
    "blk.*.rope_freqs.weight",
    "blk.*.rope_factors_*.weight",
)
_STACKS = re.compile(r"(blk\.\d+\.ffn_(?:gate|up))_exps\.(weight|bias)$")


def arranged(tensors: Mapping[str, object]) -> dict[str, object]:
    """Experts that are stacked become one tensor each where gate and up are joined, else a tall
    matrix; a gate of one row becomes a matrix."""
    found: dict[str, object] = {}
    for name, ref in tensors.items():
        stack = _STACKS.match(name)
        if not isinstance(ref, TensorRef):
            found[name] = ref
        elif stack and len(ref.shape) == 3 and ref.shape[0] <= 4096:
            for n in range(ref.shape[0]):
                found[f"{stack.group(1)}.{n}.{stack.group(2)}"] = slab(ref, n)
        elif len(ref.shape) == 3:
            found[name] = stacked(ref)
        elif name.endswith(".ffn_gate_inp_shexp.weight") and len(ref.shape) == 1:
            row = (1, *ref.shape)
            found[name] = TensorRef(ref.dtype, row, contiguous(row), 0, ref.storage)
        else:
            found[name] = ref
    return found


def names_of(form: Architecture, tensors: Mapping[str, object], *, shared: bool) -> Table:
    """Where each tensor comes from; the tensors tell what is fused and which layers have experts.
    `shared`: one norm feeds attention and MLP."""

    def norm(name: str) -> str | Row:
        return optional(name) if form.bare_norms else name

    layer = "blk.{i}"
    fused = "blk.0.attn_qkv.weight" in tensors
    table: dict[str, str | Row] = {
        "embed": "token_embd",
        "position": optional("position_embd"),
        "blocks.{i}.attn.qkv": f"{layer}.attn_qkv"
        if fused
        else cat(*(f"{layer}.attn_{part}" for part in "qkv")),
        "blocks.{i}.attn.q_norm": optional(f"{layer}.attn_q_norm"),
        "blocks.{i}.attn.k_norm": optional(f"{layer}.attn_k_norm"),
        "blocks.{i}.attn.out": f"{layer}.attn_output",
        "blocks.{i}.attn_post_norm": optional(f"{layer}.post_attention_norm"),
        "blocks.{i}.mlp_post_norm": optional(f"{layer}.post_ffw_norm"),
        "final_norm": norm("output_norm"),
        "head": optional("output"),
    }
    if form.pre_norm:
        first, second = "attn_norm", "ffn_norm"
        if "blk.0.attn_norm_2.weight" in tensors:  # Falcon's larger models
            first, second = "attn_norm_2", "attn_norm"
        table["blocks.{i}.attn_norm"] = norm(f"{layer}.{first}")
        if not shared:
            table["blocks.{i}.mlp_norm"] = norm(f"{layer}.{second}")
    up = "gate_up" if form.gated else "up"
    table[f"blocks.{{i}}.mlp.{up}"] = partial(_up(form, tensors, layer, ""))
    table["blocks.{i}.mlp.down"] = partial(f"{layer}.ffn_down")
    if any(".ffn_gate_inp." in name for name in tensors):
        merged = any(name.endswith("ffn_down_exps.weight") for name in tensors)
        table |= {
            "blocks.{i}.mlp.router": partial(f"{layer}.ffn_gate_inp"),
            f"blocks.{{i}}.mlp.experts.{up}": partial(_up(form, tensors, layer, ".{e}")),
            "blocks.{i}.mlp.experts.down": partial(
                f"{layer}.ffn_down_exps" if merged else f"{layer}.ffn_down.{{e}}"
            ),
            f"blocks.{{i}}.mlp.shared.{up}": partial(
                cat(f"{layer}.ffn_gate_shexp", f"{layer}.ffn_up_shexp")
            ),
            "blocks.{i}.mlp.shared.down": partial(f"{layer}.ffn_down_shexp"),
            "blocks.{i}.mlp.shared_gate": partial(f"{layer}.ffn_gate_inp_shexp"),
        }
    return table


def _up(form: Architecture, tensors: Mapping[str, object], layer: str, end: str) -> str | Row:
    """Gate over up; Phi-3 stores them as one."""
    gate = f"{layer}.ffn_gate{end}"
    probe = gate.replace("{i}", "0").replace("{e}", "0") + ".weight"
    if not form.gated or (not end and probe not in tensors and "blk.0.ffn_up.weight" in tensors):
        return f"{layer}.ffn_up{end}"
    return cat(gate, f"{layer}.ffn_up{end}")
