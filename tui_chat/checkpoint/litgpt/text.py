"""What stands around a text for litgpt: Hugging Face's tokenizer, its own rule for the
begin-of-text token, and its prompt style as the chat template."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace

from tui_chat.checkpoint.description import Description
from tui_chat.checkpoint.hf_tokenizer import hf_tokenizer, token_id
from tui_chat.checkpoint.info import TemplateHint
from tui_chat.checkpoint.litgpt.prompt_styles import STYLES, style_hint, style_of
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import read_json
from tui_chat.checkpoint.yaml_file import read_yaml
from tui_chat.conversation import Mode


def describe_text(folder: str, model: str, rows: int, found: Description) -> None:
    """Tokenizer, begin-of-text, template and stops into the description. `model` is its name in
    the config, `rows` the number of rows of the output. Raises CheckpointError."""
    tokenizer = hf_tokenizer(folder)
    found.warnings += tokenizer.warnings
    found.stop_ids = tokenizer.stop_ids
    if tokenizer.hint.kind == "none":
        found.tokenizer = replace(tokenizer.hint, vocab_size=rows)
        found.warnings.append(
            f"no tokenizer found for {rows} ids: put the tokenizer.json of the training beside the "
            "weights, or name it with --tokenizer; until then only ids are shown"
        )
        return
    found.tokenizer = tokenizer.hint
    said = _tokens(folder)
    bos, eos = _named(said, "bos_token"), _named(said, "eos_token")
    add_bos = _adds_bos(folder, said)
    if add_bos:
        token = token_id(folder, bos or "<s>")
        found.text_start = () if token is None else (token,)
        if token is None:
            found.warnings.append("its tokenizer_config.json asks for a begin-of-text token that "
                                  "its tokenizer does not have")  # fmt: skip
    found.template, found.mode = _template(
        folder, model, tokenizer.template, found.warnings, (bos, eos, add_bos)
    )


def _tokens(folder: str) -> Mapping[str, object]:
    path = os.path.join(folder, "tokenizer_config.json")
    return mapping(read_json(path)) if os.path.isfile(path) else {}


def _named(said: Mapping[str, object], word: str) -> str:
    value = said.get(word)
    text = mapping(value).get("content") if isinstance(value, dict) else value
    return text if isinstance(text, str) else ""


def _adds_bos(folder: str, said: Mapping[str, object]) -> bool:
    """litgpt's rule; where it says no, a begin-of-text token that the tokenizer adds is taken
    away."""
    name = os.path.basename(folder)
    if not said:
        return False
    if name.startswith(("Meta-Llama-3", "Llama-3")):
        return True
    if name.startswith("SmolLM2") and name.endswith("Instruct"):
        return True
    if "add_bos_token" in said:
        return said["add_bos_token"] is True
    return said.get("tokenizer_class") == "LlamaTokenizer"


def _template(
    folder: str,
    name: str,
    other: TemplateHint,
    warnings: list[str],
    tokens: tuple[str, str, bool],
) -> tuple[TemplateHint, Mode]:
    """The prompt style as a template. A plain style leaves `other`, the tokenizer's own, for who
    asks for it."""
    path = os.path.join(folder, "prompt_style.yaml")
    if os.path.isfile(path):
        said = mapping(read_yaml(path)).get("class_path")
        module, _, style = said.rpartition(".") if isinstance(said, str) else ("", "", "")
        source = "prompt_style.yaml"
        known = module == "litgpt.prompts" and (style in STYLES or style == "Default")
    else:
        style, source = style_of(name), f"the model's name {name[:60]!r}"
        known = style in STYLES or style == "Default"
    if not known:
        warnings.append(
            f"its prompt style {(style or 'without a name')[:60]} ({source}) is none that is known "
            "here: it is opened without a template"
        )
    if not known or style == "Default":
        return other, "raw"
    bos, eos, add_bos = tokens
    return style_hint(style, source, bos=bos, add_bos=add_bos, eos=eos), "chat"
