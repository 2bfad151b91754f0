"""The settings of a GGUF file, by their names without the architecture in front."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tui_chat.errors import CheckpointError

# Keys that say nothing of how the model computes or speaks.
_ASIDE = ("general.", "split.", "quantize.", "imatrix.", "tokenizer.ggml.", "tokenizer.chat")
_SHOWN_BY_TENSORS = frozenset(
    (
        "vocab_size",
        "feed_forward_length",
        "expert_feed_forward_length",
        "expert_shared_feed_forward_length",
        "expert_shared_count",
        "leading_dense_block_count",
        "tensor_data_layout",
        "rope.scaling.finetuned",
        "attention.key_length_swa",
        "attention.value_length_swa",
        "rope.dimension_count_swa",
        "interleave_moe_layer_step",
        "rope.scaling.attn_factor",
        "moe_every_n_layers",
    )
)


@dataclass(slots=True)
class Keys:
    """`get("context_length")` reads `llama.context_length` of a file of the architecture llama;
    names with a known family in front, such as `general.name`, are read as they are."""

    said: Mapping[str, object]
    architecture: str
    asked: set[str] = field(default_factory=set)
    defaults: list[str] = field(default_factory=list)
    fallback: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, said: Mapping[str, object]) -> Keys:
        name = said.get("general.architecture")
        return cls(said, name if isinstance(name, str) else "")

    def defaults_of(self, values: Mapping[str, float]) -> None:
        """What llama.cpp takes for keys that this architecture may leave out."""
        for key, value in values.items():
            if self.get(key) is None:
                self.fallback[key] = value
                self.defaults.append(f"{key} {value:g}: the file does not say it")

    def get(self, key: str) -> object:
        full = key if key.startswith(("general.", "split.", "tokenizer.")) else self.full(key)
        self.asked.add(full)
        value = self.said.get(full)
        return self.fallback.get(key) if value is None else value

    def full(self, key: str) -> str:
        return f"{self.architecture}.{key}"

    def text(self, key: str) -> str:
        value = self.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str, default: float) -> float:
        """A number, a truth value as 1 or 0, or `default` where there is none."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or not abs(value) < 1e18:
            raise _wrong(key, value)
        return float(value)

    def whole(self, key: str, default: int) -> int:
        """A whole number that is not negative. One for each layer will do if all are the same."""
        value = self.get(key)
        if isinstance(value, list) and value and all(entry == value[0] for entry in value):
            value = value[0]
        if value is None:
            return default
        if isinstance(value, list):
            raise CheckpointError(
                "its architecture cannot be computed", f"{key} differs from layer to layer"
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise _wrong(key, value)
        return value

    def count(self, key: str, default: int = 0) -> int:
        """A whole number above 0. Raises CheckpointError where it is missing and has no
        `default`."""
        value = self.whole(key, default)
        if value:
            return value
        raise CheckpointError(f"the file does not say {key}")

    def unread(self) -> list[str]:
        """The keys that nobody asked for, in a few words each."""
        known = self.asked | {self.full(key) for key in _SHOWN_BY_TENSORS}
        return [
            f"the key {name[:60]}"
            for name in self.said
            if name not in known and not name.startswith(_ASIDE)
        ]


def _wrong(key: str, value: object) -> CheckpointError:
    return CheckpointError("its settings cannot be used", f"{key} is {str(value)[:40]!r}")
