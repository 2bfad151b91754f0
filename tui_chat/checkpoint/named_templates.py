"""The chat templates that have a name: what stands around the text of each role, as data, and in
Jinja where a system prompt has no turn of its own.

A begin-of-text token is not part of them: it comes from the tokenizer. What is a control token in
them becomes one where the tokenizer has it, and is ordinary text elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping

from tui_chat.checkpoint.info import TemplateHint

Turns = Mapping[str, tuple[str, str]]


def _same(before: str, after: str, roles: tuple[str, str, str]) -> dict[str, tuple[str, str]]:
    """The same around every role but for its word."""
    names = ("system", "user", "assistant")
    return {name: (before.format(role), after) for name, role in zip(names, roles, strict=True)}


_PLAIN = ("system", "user", "assistant")

# name -> what stands around each role's text, and what ends a reply
ROLES: Mapping[str, tuple[Turns, tuple[str, ...]]] = {
    "chatml": (_same("<|im_start|>{}\n", "<|im_end|>\n", _PLAIN), ("<|im_end|>",)),
    "llama3": (
        _same("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>", _PLAIN),
        ("<|eot_id|>",),
    ),
    "phi3": (_same("<|{}|>\n", "<|end|>\n", _PLAIN), ("<|end|>",)),
    "zephyr": (_same("<|{}|>\n", "</s>\n", _PLAIN), ("</s>",)),
    "alpaca": (
        {
            "system": ("", "\n\n"),
            "user": ("### Instruction:\n", "\n\n"),
            "assistant": ("### Response:\n", "\n\n"),
        },
        ("\n\n### Instruction:", "</s>"),
    ),
    "vicuna": (
        {
            "system": ("", "\n\n"),
            "user": ("USER: ", " "),
            "assistant": ("ASSISTANT:", "</s>"),
        },
        ("USER:", "</s>"),
    ),
}  # fmt: skip

# The system prompt stands in the first user's turn. Roles are told apart by `system` being set.
_SYSTEM = (
    "{%- set system = messages[0]['content'] if messages[0]['role'] == 'system' else '' -%}"
    "{%- for message in messages if message['role'] != 'system' -%}"
    "{%- set told = system if loop.first else '' -%}"
)
JINJA: Mapping[str, str] = {
    "llama2": _SYSTEM + "{%- if message['role'] == 'user' -%}"
    "{{- bos_token + '[INST] ' -}}"
    "{%- if told -%}{{- '<<SYS>>\\n' + told + '\\n<</SYS>>\\n\\n' -}}{%- endif -%}"
    "{{- message['content'] | trim + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + message['content'] | trim + ' ' + eos_token -}}{%- endif -%}"
    "{%- endfor -%}",
    "mistral": "{{- bos_token -}}" + _SYSTEM + "{%- if message['role'] == 'user' -%}"
    "{{- '[INST] ' -}}{%- if told -%}{{- told + '\\n\\n' -}}{%- endif -%}"
    "{{- message['content'] + ' [/INST]' -}}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}{%- endfor -%}",
    "gemma": "{{- bos_token -}}" + _SYSTEM + "{{- '<start_of_turn>' -}}"
    "{{- 'model' if message['role'] == 'assistant' else 'user' -}}{{- '\\n' -}}"
    "{%- if told -%}{{- told + '\\n\\n' -}}{%- endif -%}"
    "{{- message['content'] | trim + '<end_of_turn>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}",
}
_ENDS = {"llama2": ("</s>",), "mistral": ("</s>",), "gemma": ("<end_of_turn>",)}

NAMES = (*ROLES, *JINJA)


def named_template(name: str, source: str, tokens: Mapping[str, str]) -> TemplateHint:
    """The template called `name`, one of NAMES. `tokens` are the tokenizer's bos_token and so on,
    as far as the files say."""
    if name in ROLES:
        turns, stop = ROLES[name]
        return TemplateHint(name=name, source=source, turns=turns, stop=stop)
    return TemplateHint(
        name=name, source=source, jinja=JINJA[name], tokens=tokens, stop=_ENDS[name]
    )
