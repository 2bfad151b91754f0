"""config.json as a family reads it: under names of several ages, with its own class's defaults.

Which keys were read and which defaults were taken is kept, so that `inspect` can say it and say
what was left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

from tui_chat.checkpoint.rope import ROPE_WORDS
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError

# One meaning, several names. GPT-2's class reads both its own and the newer ones.
_SAME = (
    ("hidden_size", "n_embd", "d_model", "n_embed"),
    ("num_hidden_layers", "n_layer", "num_layers", "n_layers"),
    ("num_attention_heads", "n_head", "num_heads", "attention_heads", "n_heads"),
    ("num_key_value_heads", "num_kv_heads", "n_head_kv", "num_query_groups"),
    ("head_dim", "kv_channels", "attention_head_dim"),
    (
        "max_position_embeddings",
        "n_positions",
        "n_ctx",
        "seq_length",
        "max_sequence_length",
        "model_max_length",
    ),
    ("hidden_activation", "hidden_act", "activation_function", "activation"),
    ("norm_eps", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"),
    ("num_experts", "num_local_experts", "n_routed_experts"),
    ("num_experts_per_tok", "num_experts_per_token", "moe_topk"),
)
_NAMES = {name: names for names in _SAME for name in names}

# What says nothing about how logits are computed, or what the tensors say themselves.
_IRRELEVANT = (
    "*dropout*", "*_pdrop", "*initializer*", "init_std", "layerdrop", "*aux_loss*", "summary_*",
    "*_token_id", "*_token_ids", "output_*", "return_*", "task_specific_params", "problem_type",
    "id2label", "label2id", "num_labels", "finetuning_task", "chunk_size_feed_forward",
    "is_decoder", "is_encoder_decoder", "cross_attention_hidden_size", "add_cross_attention",
    "tie_encoder_decoder", "pruned_heads", "torchscript", "use_bfloat16", "torch_dtype", "dtype",
    "use_cache", "transformers_version", "architectures", "auto_map", "model_type", "_*",
    "tokenizer_class", "prefix", "pretraining_tp", "gradient_checkpointing", "attn_implementation",
    "*jitter*", "use_bidirectional_attention", "tf_legacy_loss", "remove_invalid_values",
    "bad_words_ids", "max_length", "min_length", "do_sample", "early_stopping", "num_beams",
    "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p", "typical_p",
    "repetition_penalty", "length_penalty", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size",
    "num_return_sequences", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "reorder_and_upcast_attn", "scale_attention_softmax_in_fp32",
    "attention_softmax_in_fp32", "unsloth_*", "quantization_config", "use_flash_attn*",
    # the tensors say these
    "vocab_size", "attention_bias", "mlp_bias", "bias", "use_bias", "use_qkv_bias", "qkv_bias",
    "lm_head_bias", "enable_bias", "attention_out_bias", "tie_word_embeddings",
    "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "moe_intermediate_size",
    "shared_expert_intermediate_size", "shared_intermediate_size", "decoder_sparse_step",
    "mlp_only_layers", "layer_norm_elementwise_affine", "word_embed_proj_dim", "rotary",
)  # fmt: skip


class Settings:
    """What config.json says. `defaults` are those of the class that `model_type` names."""

    def __init__(self, said: Mapping[str, object], defaults: Mapping[str, object]) -> None:
        self.said = said
        self.defaults = defaults
        self.used: set[str] = set()
        self.taken: dict[str, object] = {}  # defaults that were taken

    def get(self, key: str) -> object:
        """The value of `key`, under whichever of its names, else the default of its class. A key
        that is null counts as absent where the class has a default that is none."""
        names = _NAMES.get(key, (key,))
        self.used.update(names)
        ordered = (key, *(name for name in names if name != key))
        for name in ordered:
            if self.said.get(name) is not None:
                return self.said[name]
        for name in ordered:
            if name in self.defaults:
                # null means "none" where a key may be off, such as a window.
                if any(other in self.said for other in ordered):
                    return self.defaults[name] if name in _NEVER_NULL else None
                self.taken[name] = self.defaults[name]
                return self.defaults[name]
        return None

    def number(self, key: str) -> float | None:
        """Raises CheckpointError for what is no number."""
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise _wrong(key, value, "a number")
        if not -1e12 < value < 1e12:
            raise _wrong(key, value, "a number that can be")
        return float(value)

    def whole(self, key: str) -> int | None:
        """Raises CheckpointError for what is no whole number of at least 0."""
        value = self.number(key)
        if value is None:
            return None
        if value < 0 or not value.is_integer():
            raise _wrong(key, value, "a count")
        return int(value)

    def said_whole(self, key: str) -> int | None:
        """The same where config.json itself says it, without any default."""
        if all(self.said.get(name) is None for name in _NAMES.get(key, (key,))):
            self.used.update(_NAMES.get(key, (key,)))
            return None
        return self.whole(key)

    def flag(self, key: str) -> bool:
        """Raises CheckpointError for what is neither true nor false; absent is false."""
        value = self.get(key)
        if value is None or isinstance(value, bool):
            return bool(value)
        raise _wrong(key, value, "true or false")

    def texts(self, key: str, count: int) -> tuple[str, ...]:
        """A text for each layer, empty if there is none. Raises CheckpointError."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise _wrong(key, value, "a list of texts")
        if len(value) < count:
            raise CheckpointError(f"config.json has {len(value)} {key} for {count} layers")
        return tuple(value[:count])

    def numbers(self, key: str, count: int) -> tuple[int, ...]:
        """A number for each layer, empty if there is none. Raises CheckpointError."""
        value = self.get(key)
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            raise _wrong(key, value, "a list of numbers")
        if len(value) < count:
            raise CheckpointError(f"config.json has {len(value)} {key} for {count} layers")
        return tuple(value[:count])

    def default_words(self, model_type: str) -> list[str]:
        """One sentence on what config.json left to its class, if anything."""
        if not self.taken:
            return []
        each = [f"{name} {_short(value)}" for name, value in self.taken.items()]
        what = "default" if len(each) == 1 else "defaults"
        return [f"{listed(each)}: the {what} of {model_type}, which nothing else says"]

    def unused_words(self) -> list[str]:
        """One sentence on the keys that were not read, if any might have mattered."""
        left = [
            name
            for name, value in self.said.items()
            if value is not None
            and value is not False
            and name not in self.used
            and name not in ROPE_WORDS
            and not any(fnmatchcase(name, pattern) for pattern in _IRRELEVANT)
        ]
        if not left:
            return []
        shown = [name[:40] for name in sorted(left)[:12]]
        more = [f"{len(left) - 12} more"] if len(left) > 12 else []
        return [f"of config.json {listed(shown + more)}"]


# Sizes: null there means "as the class has it", never "off".
_NEVER_NULL = frozenset(("max_position_embeddings", "n_positions", "norm_eps", "rms_norm_eps"))


def _wrong(key: str, value: object, wanted: str) -> CheckpointError:
    return CheckpointError(f"config.json says {key} is {_short(value)}, not {wanted}")


def _short(value: object) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= 40 else text[:39] + "…"
