"""Chooses the chat template that a hint or the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tui_chat.checkpoint.hints import template_hint
from tui_chat.checkpoint.info import TemplateHint
from tui_chat.templates.base import Template
from tui_chat.templates.nanochat import NanoChatTemplate
from tui_chat.templates.plain import PlainTemplate
from tui_chat.templates.roles import RoleTemplate
from tui_chat.tokenizers.base import Tokenizer

_BEGINS = ("<|begin_of_text|>", "<s>", "<bos>", "<|bos|>", "<|startoftext|>", "<|endoftext|>")
_ENDS = ("<|eot_id|>", "<|im_end|>", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>")


def open_template(
    hint: TemplateHint,
    tokenizer: Tokenizer,
    name: str = "",
    *,
    text_start: Sequence[int] = (),
) -> Template | None:
    """The template of a checkpoint, or what the user called `name` (a name or a file); None where
    there is none. `text_start` is what every text of the model begins with, for templates that do
    not write it themselves.

    Raises UsageError for a name that is not known, CheckpointError for a template that cannot be
    used.
    """
    if name and name != hint.name and not (hint.source == "given by the user" and hint.name):
        hint = template_hint(name, hint)
    wanted = "none" if name == "none" else hint.name
    if wanted in ("", "none"):
        return None
    if wanted == "plain":
        return PlainTemplate(tokenizer, text_start)
    if wanted == NanoChatTemplate.name:
        if not name and not tokenizer.special:  # ids alone: there is no text to wrap
            return None
        return NanoChatTemplate(tokenizer)
    if hint.jinja:
        from tui_chat.templates.jinja import JinjaTemplate

        tokens = hint.tokens or _tokens(tokenizer)
        return JinjaTemplate(wanted, hint.jinja, tokenizer, tokens, hint.stop)
    return RoleTemplate(wanted, tokenizer, hint.turns, hint.stop, text_start)


def _tokens(tokenizer: Tokenizer) -> Mapping[str, str]:
    """bos_token and eos_token by their usual names, for a template whose files do not say them."""
    found = {}
    for part, names in (("bos_token", _BEGINS), ("eos_token", _ENDS)):
        for text in names:
            if text in tokenizer.special:
                found[part] = text
                break
    return found
