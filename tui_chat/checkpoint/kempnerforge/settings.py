"""What a KempnerForge model's settings say, and what its tensors show, held against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from tui_chat.checkpoint.kempnerforge.training_toml import Training
from tui_chat.checkpoint.names import count
from tui_chat.checkpoint.tensors import Pieces, TensorRef
from tui_chat.checkpoint.words import listed
from tui_chat.errors import CheckpointError

# Settings that the checkpoint opens by; all others are for training, or say what shapes show.
_READ = frozenset(
    (
        "dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "ffn_hidden_dim",
        "ffn_dim_multiplier", "norm_type", "norm_eps", "activation", "max_seq_len", "rope_theta",
        "tie_embeddings", "qk_norm", "model_type", "num_experts", "moe_top_k", "moe_frequency",
        "moe_router", "moe_shared_experts", "moe_capacity_factor", "moe_packed_experts",
        "moe_expert_ffn_multiplier",
    )
)  # fmt: skip
# Those whose names ModelSpec has too are overridden under its meaning.
_SHARED = frozenset(("head_dim", "vocab_size", "norm_eps", "activation", "rope_theta"))
_PATH = "tokenizer_path"


class Settings:
    """The [model] table of a training with the user's overrides; keeps account of defaults."""

    def __init__(self, training: Training, own: Mapping[str, object]) -> None:
        self.known = bool(training.path)
        self.model = {**training.model, **{k: v for k, v in own.items() if k != _PATH}}
        self.defaults: list[str] = []

    @staticmethod
    def taken_from(config: dict[str, object]) -> dict[str, object]:
        """The overrides in KempnerForge's own words ("n_heads", "model.rope_theta",
        "data.tokenizer_path"), taken out of `config`."""
        own: dict[str, object] = {}
        for name in list(config):
            section, _, key = name.rpartition(".")
            mine = section == "model" or (not section and key in _READ - _SHARED)
            if key == "qk_norm" and not section and not isinstance(config[name], bool):
                mine = False  # ModelSpec's, which says where it stands
            if mine or (key == _PATH and section in ("", "data")):
                own[key] = config.pop(name)
        return own

    def get(self, key: str) -> object:
        """What is said, None where nothing is."""
        return self.model.get(key)

    def number(self, key: str, default: float) -> float:
        """A number; raises CheckpointError for anything else."""
        value = self._said(key, f"{default:g}")
        found = float(default) if value is None else _number(value)
        if found is None:
            raise _unusable(key, value)
        return found

    def whole(self, key: str, default: int) -> int:
        """A whole number; raises CheckpointError for anything else."""
        found = self.number(key, default)
        if not found.is_integer():
            raise _unusable(key, found)
        return int(found)

    def word(self, key: str, default: str) -> str:
        """A text."""
        value = self._said(key, default)
        return default if value is None else str(value)

    def _said(self, key: str, default: str) -> object:
        value = self.model.get(key)
        if value is None:
            self.defaults.append(f"{key} {default}")
        return value

    def activation(self, shown: Shown, overrides: Mapping[str, object], warnings: list[str]) -> str:
        """The activation of the MLP. Raises CheckpointError where nothing tells it."""
        said = self.get("activation")
        if shown.gated:
            if said not in (None, "silu"):
                warnings.append(f"activation {str(said)[:20]!r} is not used: its MLP is gated")
            return "silu"
        if said in ("gelu", "relu"):
            return str(said)
        if "activation" in overrides:
            return ""  # the user's goes before it
        raise CheckpointError(
            "nothing says which activation its MLP has",
            "without a gate it is gelu or relu",
            "Name the TOML it was trained with by --config-file, or give --config activation=gelu",
        )

    def unused(self) -> list[str]:
        """The settings that were left out, for they tell nothing of how the model speaks."""
        return [f"model.{str(key)[:40]}" for key in self.model if key not in _READ]


def _number(value: object) -> float | None:
    """A number, also as text, which KempnerForge takes for one."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**53:
        return float(value)
    return None


def _unusable(key: str, value: object) -> CheckpointError:
    return CheckpointError("its settings cannot be used", f"{key} is {str(value)[:40]!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What the tensors show. `hidden` is the inner width of a dense layer's MLP (0: there is none),
    `qk_norm` the size of the norm of queries (0: none), `expert_parts` how many experts a layer
    holds."""

    vocab_size: int
    dim: int
    n_layers: int
    q_rows: int
    k_rows: int
    hidden: int
    gated: bool
    norm_bias: bool
    qk_norm: int
    experts: int
    expert_parts: int
    router_bias: bool

    def clash(self, model: Mapping[str, object]) -> str:
        """How a table of settings differs from the tensors, "" where it does not. What it does not
        say is KempnerForge's default."""

        def said(key: str, default: int) -> int:
            value = _number(model.get(key))
            return default if value is None else int(value)

        dim, heads = said("dim", 4096), said("n_heads", 32)
        dense = said("ffn_hidden_dim", 0)
        if not dense:
            stretch = _number(model.get("ffn_dim_multiplier"))
            raw = int(4 * dim * (2 / 3) * (1.0 if stretch is None else stretch))
            dense = 256 * ceil(raw / 256)
        rows = [
            ("dim", dim, self.dim),
            ("n_layers", said("n_layers", 32), self.n_layers),
            ("vocab_size", said("vocab_size", 32000), self.vocab_size),
            ("num_experts", said("num_experts", 0), self.experts),
        ]
        if self.hidden:
            rows.append(("ffn_hidden_dim", dense, self.hidden))
        head_dim = said("head_dim", 0) or dim // max(heads, 1)
        rows.append(("n_heads x head_dim", heads * head_dim, self.q_rows))
        if self.qk_norm:
            rows.append(("head_dim", head_dim, self.qk_norm))
        if model.get("n_kv_heads") is not None:
            rows.append(("n_kv_heads x head_dim", said("n_kv_heads", 0) * head_dim, self.k_rows))
        wrong = [
            f"{name} {in_file} instead of {here}" for name, in_file, here in rows if in_file != here
        ]
        return listed(wrong[:3])


def shown_of(tensors: Mapping[str, object]) -> Shown:
    """What the tensors (experts one by one) show. Raises CheckpointError where those are missing
    that every model has."""

    def shape(name: str, rank: int) -> tuple[int, ...]:
        ref = tensors.get(name)
        if not isinstance(ref, (TensorRef, Pieces)) or len(ref.shape) != rank:
            raise CheckpointError("the tensors do not fit the format", f"{name} is missing or odd")
        return ref.shape

    rows, dim = shape("token_embedding.embedding.weight", 2)
    first = "layers.0.attention"
    layers = count(tensors, "layers.{n}.")
    dense = [f"layers.{i}.mlp.up_proj.weight" for i in range(layers)]
    routers = [f"layers.{i}.mlp.router.gate.weight" for i in range(layers)]
    hidden = next((shape(name, 2)[0] for name in dense if name in tensors), 0)
    router = next((name for name in routers if name in tensors), "")
    parts = router.replace("router.gate.weight", "experts.{n}.")
    normed = f"{first}.q_norm.weight"
    return Shown(
        vocab_size=rows,
        dim=dim,
        n_layers=layers,
        q_rows=shape(f"{first}.q_proj.weight", 2)[0],
        k_rows=shape(f"{first}.k_proj.weight", 2)[0],
        hidden=hidden,
        gated=any(name.endswith(".gate_proj.weight") for name in tensors),
        norm_bias="layers.0.attention_norm.bias" in tensors,
        qk_norm=shape(normed, 1)[0] if normed in tensors else 0,
        experts=shape(router, 2)[0] if router else 0,
        expert_parts=count(tensors, parts) if router else 0,
        router_bias=router.replace("weight", "bias") in tensors,
    )


def heads_of(
    said: Settings, shown: Shown, overrides: Mapping[str, object], inferred: list[str]
) -> tuple[int, int, int]:
    """Number of heads, of key heads, and numbers of a head. Raises CheckpointError where nothing
    tells them, or what is said cannot be."""
    heads = _count(overrides.get("n_head"), said.get("n_heads"))
    size = shown.qk_norm or _count(overrides.get("head_dim"), said.get("head_dim"))
    if heads is None and size:
        heads = shown.q_rows // size
        inferred.append(f"n_heads {heads}: q_proj has {shown.q_rows} rows, a head {size} numbers")
    if heads is None and said.known:
        heads = 32
        said.defaults.append("n_heads 32")
    if heads is None:
        raise CheckpointError(
            "nothing says how many heads it has",
            f"q_proj has {shown.q_rows} rows, k_proj {shown.k_rows}, and no TOML of the training "
            "lies beside it",
            "Name that with --config-file FILE, or give --config n_head=N",
        )
    fits = heads > 0 and shown.q_rows % heads == 0
    size = shown.q_rows // heads if fits else 0
    if not fits or shown.k_rows % size or shown.qk_norm not in (0, size):
        norms = f", norms of {shown.qk_norm} numbers" if shown.qk_norm else ""
        raise CheckpointError(
            "its settings do not fit its tensors",
            f"{heads} heads, but q_proj has {shown.q_rows} rows, k_proj {shown.k_rows}{norms}",
            "Give the right number with --config n_head=N",
        )
    kv_heads = shown.k_rows // size
    if said.get("n_kv_heads") is None:
        inferred.append(f"n_kv_heads {kv_heads}: k_proj has {shown.k_rows} rows")
    return heads, kv_heads, size


def _count(*values: object) -> int | None:
    """The first that is a number."""
    found = next((n for value in values if (n := _number(value)) is not None), None)
    return None if found is None or not found.is_integer() else int(found)
