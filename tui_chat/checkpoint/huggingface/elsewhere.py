"""Families whose code came with their weights and never with the library: what is known of their
names and settings.
"""

from __future__ import annotations

import math

from tui_chat.checkpoint.huggingface.family import Family, Never, Spec, whole
from tui_chat.checkpoint.huggingface.llama import BASE, LLAMA_NAMES, RMS
from tui_chat.checkpoint.huggingface.settings import Settings
from tui_chat.checkpoint.names import cat, optional
from tui_chat.errors import CheckpointError

_BAICHUAN2_IDS = 125696


def _minicpm(settings: Settings, spec: Spec) -> None:
    spec["embed_scale"] = settings.number("scale_emb") or 1.0
    depth = settings.number("scale_depth") or 0.0
    if depth:
        spec["residual_scale"] = depth / math.sqrt(whole(spec, "n_layer"))
    base = settings.number("dim_model_base") or 0.0
    if base:
        spec["logit_scale"] = base / whole(spec, "n_embd")


def _qwen(settings: Settings, spec: Spec) -> None:
    """Beyond the length of its training Qwen changes its rotary base and its scores; here that
    length is the context."""
    length = settings.whole("seq_length")
    if length:
        spec["context_length"] = length


def _baichuan(settings: Settings, spec: Spec) -> None:
    """The second generation normalises its head, the large models have ALiBi; neither says so."""
    if spec.get("vocab_size") == _BAICHUAN2_IDS:
        raise CheckpointError("a Baichuan 2 model normalises its head, which tui-chat cannot do")
    if whole(spec, "n_embd") > 4096:
        raise CheckpointError(
            "a large Baichuan model has ALiBi positions, which tui-chat cannot do"
        )


FAMILIES: dict[str, Family] = {
    "minicpm": Family(names=LLAMA_NAMES, spec=RMS, defaults=BASE, more=_minicpm),
    "internlm": Family(names=LLAMA_NAMES, spec=RMS, defaults=BASE),
    "internlm2": Family(
        names={
            "embed": "tok_embeddings",
            "blocks.{i}.attn_norm": "layers.{i}.attention_norm",
            "blocks.{i}.attn.qkv": cat(*(f"layers.{{i}}.attention.wqkv.{x}" for x in "qkv")),
            "blocks.{i}.attn.out": "layers.{i}.attention.wo",
            "blocks.{i}.mlp_norm": "layers.{i}.ffn_norm",
            "blocks.{i}.mlp.gate_up": cat(
                "layers.{i}.feed_forward.w1", "layers.{i}.feed_forward.w3"
            ),
            "blocks.{i}.mlp.down": "layers.{i}.feed_forward.w2",
            "final_norm": "norm",
            "head": optional("output"),
        },
        spec=RMS,
        defaults=BASE,
        fused="attention.wqkv",
        grouped="heads",
    ),
    "qwen": Family(
        names={
            "embed": "wte",
            "blocks.{i}.attn_norm": "h.{i}.ln_1",
            "blocks.{i}.attn.qkv": "h.{i}.attn.c_attn",
            "blocks.{i}.attn.out": "h.{i}.attn.c_proj",
            "blocks.{i}.mlp_norm": "h.{i}.ln_2",
            "blocks.{i}.mlp.gate_up": cat("h.{i}.mlp.w2", "h.{i}.mlp.w1"),
            "blocks.{i}.mlp.down": "h.{i}.mlp.c_proj",
            "final_norm": "ln_f",
            "head": optional("lm_head"),
        },
        spec={**RMS, "activation": "silu"},
        defaults={**BASE, "layer_norm_epsilon": 1e-6},
        shares_keys=False,
        ignored=("*.rotary_emb.inv_freq",),
        more=_qwen,
    ),
    "baichuan": Family(
        names={**LLAMA_NAMES, "blocks.{i}.attn.qkv": "layers.{i}.self_attn.W_pack"},
        spec=RMS,
        defaults=BASE,
        shares_keys=False,
        never=(Never("alibi", "has ALiBi positions"),),
        more=_baichuan,
    ),
}
