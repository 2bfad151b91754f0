"""What was understood of a checkpoint, without its weights. Made without torch; shown by `inspect`
and the picker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from tui_chat.conversation import Mode
from tui_chat.model.spec import ModelSpec

if TYPE_CHECKING:
    from tui_chat.checkpoint.plan import WeightPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerHint:
    """Which tokenizer the checkpoint was trained with, and how that is known.

    `kind` chooses the reader; `path` is the file to read, if any; `source` says in words where the
    hint comes from. `drop_special` is for systems whose decoding leaves control tokens out of the
    text, `text_specials` names the control tokens that raw text may spell, for systems whose own
    sampler reads them so. `with_start`: the system's own encoding of a text begins with the
    checkpoint's `text_start`.
    """

    kind: Literal[
        "none",
        "tiktoken",
        "chars",
        "tokenizer.json",
        "llama2c",
        "llmc",
        "nanochat",
        "hipgpt",
        "gguf",
        "sentencepiece",
    ]
    name: str = ""  # tiktoken: the encoding
    path: str = ""
    source: str = ""
    vocab_size: int = 0
    drop_special: bool = False
    text_specials: tuple[str, ...] = ()
    with_start: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TemplateHint:
    """Which chat template belongs to the checkpoint. `name` "" means there is none."""

    name: str = ""
    source: str = ""
    jinja: str = ""  # the text of a Hugging Face chat template
    tokens: Mapping[str, str] = field(default_factory=dict)  # its bos_token, eos_token, ...
    # "roles" templates: what stands before and after each role's text, e.g. {"user": ("<|user|>",
    # "<|end|>")}
    turns: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One checkpoint as `inspect --json` prints it; losses are in nats a token, sizes in bytes."""

    path: str
    format: str
    spec: ModelSpec
    parameters: int
    dtype: str
    run: str
    step: int | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    tokenizer: TokenizerHint
    template: TemplateHint = field(default_factory=TemplateHint)
    stop_ids: tuple[int, ...] = ()
    text_start: tuple[int, ...] = ()  # ids before every raw text, such as Llama's begin-of-text
    mode: Mode = "raw"
    warnings: tuple[str, ...] = ()
    inferred: tuple[str, ...] = ()  # what the file does not say, and from what it was concluded
    defaults: tuple[str, ...] = ()  # what its own code takes where the file says nothing
    unused: tuple[str, ...] = ()  # settings and tensors of the file that were left out
    fingerprint: str = ""
    size: int = 0
    modified: float = 0.0  # seconds since the epoch
    description: str = ""
    plan: WeightPlan | None = field(
        default=None, repr=False, compare=False
    )  # how weights.load reads the tensors

    @property
    def label(self) -> str:
        """Run and step as people say it, e.g. "demo-chat/2400"."""
        return self.run if self.step is None else f"{self.run}/{self.step}"

    def as_dict(self) -> dict[str, object]:
        """The JSON of `inspect` (interface.md)."""
        return {
            "path": self.path,
            "format": self.format,
            "spec": self.spec.as_dict(),
            "parameters": self.parameters,
            "dtype": self.dtype,
            "run": self.run,
            "step": self.step,
            "losses": dict(self.losses),
            "tokenizer": {
                "kind": self.tokenizer.kind,
                "name": self.tokenizer.name,
                "path": self.tokenizer.path,
                "source": self.tokenizer.source,
                "vocab_size": self.tokenizer.vocab_size,
            },
            "template": {"name": self.template.name, "source": self.template.source},
            "stop_ids": list(self.stop_ids),
            "mode": self.mode,
            "warnings": list(self.warnings),
            "inferred": list(self.inferred),
            "defaults": list(self.defaults),
            "unused": list(self.unused),
            "fingerprint": self.fingerprint,
            "description": self.description,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogEntry:
    """One step of a run as the picker lists it. `error`: why the file cannot be read."""

    path: str
    format: str = ""
    run: str = ""
    step: int | None = None
    losses: Mapping[str, float] = field(default_factory=dict)
    parameters: int = 0
    dtype: str = ""
    size: int = 0
    modified: float = 0.0
    fingerprint: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The checkpoints of one training, ordered by step."""

    name: str
    path: str
    checkpoints: tuple[CatalogEntry, ...]
