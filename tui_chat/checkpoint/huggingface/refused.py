"""Families that the decoder cannot do, by what it would need, and how weights say that they were
quantised.
"""

from __future__ import annotations

from collections.abc import Mapping

from tui_chat.checkpoint.tensors import WEIGHT_DTYPES, TensorRef
from tui_chat.errors import CheckpointError

_DOES = {
    "has ALiBi positions": ("bloom", "mpt"),
    "has state space layers": (
        "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "zamba", "zamba2", "nemotron_h",
        "granitemoehybrid", "falcon_h1", "plamo2", "hymba",
    ),
    "has recurrent layers": ("rwkv", "rwkv5", "rwkv6", "rwkv7", "recurrent_gemma", "xlstm"),
    "has linear attention layers": (
        "qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "minimax",
        "kimi_linear", "bailing_hybrid", "olmo_hybrid",
    ),
    "has convolution layers": ("lfm2", "lfm2_moe", "lfm3"),
    "keeps keys and values in a latent space": (
        "deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek_v4", "kimi_k2", "minicpm3",
        "glm4_moe_lite", "glm_moe_dsa", "longcat_flash", "youtu", "axk1", "mistral4", "sarvam_mla",
    ),
    "has attention sinks": ("gpt_oss", "mimo_v2_flash"),
    "is an encoder and a decoder": (
        "t5", "mt5", "umt5", "longt5", "bart", "mbart", "pegasus", "marian", "blenderbot",
        "blenderbot-small", "m2m_100", "led", "prophetnet", "whisper", "fsmt", "mvp", "plbart",
        "bigbird_pegasus", "switch_transformers", "t5gemma", "encoder-decoder",
    ),
    "fills gaps in a text and does not continue it": (
        "bert", "roberta", "distilbert", "albert", "electra", "deberta", "deberta-v2", "camembert",
        "xlm-roberta", "modernbert", "mpnet", "ernie", "big_bird", "longformer", "nomic_bert",
        "roformer", "megatron-bert", "eurobert",
    ),
    "chooses experts with a correction of the scores": (
        "dots1", "glm4_moe", "ernie4_5_moe", "solar_open", "exaone_moe", "minimax_m2", "hy_v3",
        "bailing_moe", "afmoe", "laguna",
    ),
    "chooses experts by sparse mixing": ("phimoe",),
    "has sinusoidal positions": ("xglm", "ctrl"),
    "norms what a branch was added to": ("openai-gpt",),
    "has the activation xIELU": ("apertus",),
    "subtracts two attentions from one another": ("diffllama",),
    "masks attention by learned weights": ("doge",),
    "has ternary weights and norms inside its branches": ("bitnet",),
    "mixes several streams and has embeddings for each layer": ("gemma3n", "gemma3n_text"),
    "shares keys between layers and has embeddings for each layer": (
        "gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text",
    ),
    "attends in chunks": ("llama4", "llama4_text"),
    "changes the scores with the position": ("ministral3",),
    "looks at pictures by cross-attention": ("mllama", "mllama_text_model"),
    "has layers with several sizes of MLP": ("openelm", "deci", "nemotron-nas"),
}  # fmt: skip
REFUSED = {model_type: does for does, types in _DOES.items() for model_type in types}

_QUANTISED = (
    ".qweight", ".qzeros", ".scales", ".g_idx", ".absmax", ".SCB", ".quant_map", ".weight_scale",
    ".weight_scale_inv", ".weight_packed", ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4", "_blocks", ".weight_format",
)  # fmt: skip


def check_known(model_type: str) -> None:
    """Raises CheckpointError for a family of which it is known what the decoder lacks."""
    does = REFUSED.get(model_type)
    if does is not None:
        raise CheckpointError(f"a {model_type} model {does}, which tui-chat cannot do")


def check_not_quantised(config: Mapping[str, object], tensors: Mapping[str, object]) -> None:
    """Raises CheckpointError for weights that were quantised. Settings alone are no reason: they
    often stay behind when weights are saved in full again."""
    packed = [name for name in tensors if name.endswith(_QUANTISED)]
    matrices = [
        name
        for name, ref in tensors.items()
        if name.endswith("proj.weight")
        and isinstance(ref, TensorRef)
        and ref.dtype not in WEIGHT_DTYPES
    ]
    if not packed and not matrices:
        return
    said = config.get("quantization_config")
    method = said.get("quant_method") if isinstance(said, dict) else None
    how = f" by {str(method)[:40]}" if method else ""
    raise CheckpointError(
        f"its weights are quantised{how}, which tui-chat cannot read in this format",
        f"it has {(packed or matrices)[0][:80]}",
        "Save the model in bfloat16, or open a GGUF file of it",
    )
