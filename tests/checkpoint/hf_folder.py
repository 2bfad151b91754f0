"""A Hugging Face directory that a test may change, and whether it still gives its own logits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.safetensors_file import read_safetensors, write_safetensors
from tui_chat.checkpoint import weights
from tui_chat.checkpoint.catalog import describe
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

FIXTURES = Path(__file__).parents[1] / "fixtures"
MODELS = FIXTURES / "hf-families"
Tensors = dict[str, torch.Tensor]


def first_case(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((MODELS / name / "logits.json").read_text("utf-8"))
    case: dict[str, Any] = found["cases"][1]
    return case


def gives_the_logits_of(name: str, path: Path, **options: Any) -> bool:
    info = describe(str(path), **options)
    model = build(info.spec, weights.load(info, dtype="float32"))
    case = first_case(name)
    got = model.forward(case["prompt_ids"], model.new_cache())
    want = torch.tensor(case["logits"])
    return bool((got - want).abs().max() <= 1e-4 * want.abs().max())


class Folder:
    """A copy of a model that can be changed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / "config.json").read_text("utf-8"))
        return found

    def say(self, config: dict[str, Any]) -> Folder:
        (self.path / "config.json").write_text(json.dumps(config), "utf-8")
        return self

    def change(self, **said: Any) -> Folder:
        """Set keys of config.json; None stands for null, ... for absent."""
        config = self.config | said
        return self.say({key: value for key, value in config.items() if value is not ...})

    @property
    def tensors(self) -> Tensors:
        return read_safetensors(self.path / "model.safetensors")

    def keep(self, tensors: Tensors, name: str = "model.safetensors") -> Folder:
        write_safetensors(self.path / name, tensors)
        return self

    def fails(self, **options: Any) -> str:
        with pytest.raises(CheckpointError) as failed:
            describe(str(self.path), **options)
        return f"{failed.value} {failed.value.remedy}"


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The config as version 4 of the library wrote it."""
    said = dict(config)
    table = said.pop("rope_parameters", None)
    said["torch_dtype"] = said.pop("dtype", None)
    said["transformers_version"] = "4.45.0"
    if table is None:
        return said
    if "sliding_attention" in table:
        local = table["sliding_attention"]["rope_theta"]
        table = dict(table["full_attention"])
        if said["model_type"] == "gemma3_text":
            said["rope_local_base_freq"] = local
    said["rope_theta"] = table.pop("rope_theta")
    part = table.pop("partial_rotary_factor", None)
    kind = table.pop("rope_type")
    if said["model_type"] == "gpt_neox":
        said["rotary_pct"], said["rotary_emb_base"] = part, said.pop("rope_theta")
    elif part is not None:
        said["partial_rotary_factor"] = part
    # `type` is the oldest word for the kind.
    said["rope_scaling"] = None if kind == "default" else {"type": kind, **table}
    return said
