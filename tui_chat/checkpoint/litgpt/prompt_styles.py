"""litgpt's prompt styles as data, and as chat templates.

A style renders one prompt; litgpt's chat has no history. For a conversation the template here goes
on in the natural way: a reply ends as the style's own turns do, or with the end-of-text token, and
the next prompt follows without the instructions at the top.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tui_chat.checkpoint.info import TemplateHint

_EOS = "\0eos"  # stands for the tokenizer's end-of-text token


@dataclass(frozen=True, slots=True)
class Style:
    """What stands around each text. `system` is said where the user says nothing; without
    `system_before` and `system_after` (None) the style has no place for one. `lead` opens the
    whole, `reply_after` ends a reply in a conversation, `stop` names tokens that end one."""

    before: str = ""
    after: str = ""
    system: str = ""
    around_system: tuple[str, str] | None = None
    reply_after: str = _EOS
    lead: str = ""
    stop: tuple[str, ...] = ()


_TASK = "Below is an instruction that describes a task"
_PAIRED = ", paired with an input that provides further context"
_WRITE = ". Write a response that appropriately completes the request.\n\n"
_INSTRUCTION = ("### Instruction:\n", "\n\n### Response:\n")
_SAFE = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, "
    "while being safe.  Your answers should not include any harmful, unethical, racist, sexist, "
    "toxic, dangerous, or illegal content. Please ensure that your responses are socially unbiased "
    "and positive in nature.\n\nIf a question does not make any sense, or is not factually "
    "coherent, explain why instead of answering something not correct. If you don't know the "
    "answer to a question, please don't share false information."
)
_HELPFUL = "You are a helpful assistant."


def _instruct(system: str) -> Style:
    return Style(*_INSTRUCTION, system=system, around_system=("", ""))


def _chatml(system: str) -> Style:
    return Style(
        "<|im_start|>user\n",
        "<|im_end|>\n<|im_start|>assistant\n",
        system,
        ("<|im_start|>system\n", "<|im_end|>\n"),
        "<|im_end|>\n",
        stop=("<|im_end|>",),
    )


_HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"

STYLES = {
    "Alpaca": _instruct(_TASK + _WRITE),
    "FLAN": _instruct(_TASK + _WRITE),
    "Longform": _instruct(_TASK + _PAIRED + _WRITE),
    "StableLMZephyr": Style("<|user|>\n", "<|endoftext|>\n<|assistant|>\n"),
    "Falcon": Style("", "\nAnswer:", stop=("\nUser", "User:")),
    "Falcon3": Style("<|user|>\n", "<|endoftext|>\n<|assistant|>\n", stop=("<|endoftext|>",)),
    "Llama2": Style("[INST] ", " [/INST] ", _SAFE, ("<<SYS>>\n", "\n<</SYS>>\n\n ")),
    "Llama3": Style(
        _HEADER.format("user"),
        "<|eot_id|>" + _HEADER.format("assistant"),
        _HELPFUL,
        (_HEADER.format("system"), "<|eot_id|>"),
        "<|eot_id|>",
        lead="<|begin_of_text|>",
        stop=("<|eot_id|>",),
    ),
    "R1Base": Style(
        "<｜User｜>",
        "<｜Assistant｜>",
        "",
        ("", ""),
        "<｜end▁of▁sentence｜>",
        stop=("<｜end▁of▁sentence｜>",),
    ),
    "FreeWilly2": Style(
        "### User:\n",
        "\n\n### Assistant:\n",
        "This is a system prompt, please behave and help the user.",
        ("### System:\n", "\n\n"),
    ),
    "Platypus": Style("### Instruction:\n\n", "\n\n### Response:\n"),
    "StableCode": Style("###Instruction\n", "###Response\n"),
    "CodeLlama": Style("[INST] ", " [/INST]", "", ("<<SYS>>\n", "\n<</SYS>>\n\n")),
    "Phi1": Style("", "\n\nAnswer:", stop=("Answer:",)),
    "Phi2": Style("Instruct: ", "\nOutput:"),
    "Phi3": Style(
        "<|user|>\n",
        "<|end|>\n<|assistant|>\n",
        _HELPFUL,
        ("<|system|>\n", "<|end|>\n"),
        "<|end|>\n",
        stop=("<|end|>",),
    ),
    "Phi4": Style(
        "<|im_start|>user<|im_sep|>",
        "<|im_end|><|im_start|>assistant<|im_sep|>",
        "",
        ("<|im_start|>system<|im_sep|>", "<|im_end|>"),
        "<|im_end|>",
        stop=("<|im_end|>",),
    ),
    "Phi4Mini": Style("<|user|>", "<|end|><|assistant|>", "", ("<|system|>", "<|end|>"), "<|end|>"),
    "Phi4MiniReasoning": Style(
        "<|user|>",
        "<|end|><|assistant|>",
        "Your name is Phi, an AI math expert developed by Microsoft.",
        ("<|system|>", "<|end|>"),
        "<|end|>",
    ),
    "TinyLlama": Style(
        "<|user|>\n",
        "</s>\n<|assistant|>\n",
        "You are a friendly chatbot who always gives helpful, detailed, and polite answers.",
        ("<|system|>\n", "</s>\n"),
        "</s>\n",
    ),
    "Gemma": Style(
        "<start_of_turn>user\n",
        "<end_of_turn>\n<start_of_turn>model\n",
        reply_after="<end_of_turn>\n",
        stop=("<end_of_turn>",),
    ),
    "OLMo": Style("<|user|>\n", "\n<|assistant|>\n", lead="<|endoftext|>"),
    "ChatML": _chatml(""),
    "Qwen2_5": _chatml(
        "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
    ),
    "Qwen2_5_Math": _chatml(
        "Please reason step by step, and put your final answer within \\boxed{}."
    ),
    "QwQ": _chatml(
        "You are a helpful and harmless assistant. You are Qwen developed by Alibaba. "
        "You should think step-by-step."
    ),
    "Qwen3": _chatml(""),
    "SmolLM2": _chatml(
        "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    ),
    # Of earlier releases.
    "Vicuna": Style(
        "USER: ",
        " ASSISTANT:",
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.",
        ("", " "),
    ),
    "TogetherComputerChat": Style("<human>: ", "\n<bot>:", stop=("<human>", "<bot>")),
    "TogetherComputerInstruct": Style("Q: ", "\nA:", stop=("\nQ:",)),
    "NousResearch": Style(*_INSTRUCTION),
    "H2Oai": Style("<|prompt|>", "</s><|answer|>"),
}
"""Class of `litgpt.prompts` -> style. `Default` renders the text as it is and is no template."""

# The style by the model's name, where no file says it; the first that is found counts.
_BY_NAME = (
    ("stablelm-tuned-alpha", "StableLMAlpha"),
    ("stablelm-zephyr-3b", "StableLMZephyr"),
    ("stablecode-instruct", "StableCode"),
    ("Falcon3.*-Instruct", "Falcon3"),
    ("falcon.*-instruct", "Falcon"),
    ("Llama-2-7b-chat-hf-function-calling-v2", "Llama2FunctionCalling"),
    ("Llama-2.*-chat", "Llama2"),
    ("Llama-3.*-Instruct", "Llama3"),
    ("OLMo-2.*-(Instruct|SFT|DPO)", "Llama3"),
    ("R1", "R1Base"),
    ("FreeWilly2", "FreeWilly2"),
    ("Platypus", "Platypus"),
    ("CodeLlama|Mi[sx]tral.*Instruct", "CodeLlama"),
    ("phi-1", "Phi1"),
    ("phi-2", "Phi2"),
    ("Phi-3", "Phi3"),
    ("Phi-4-reasoning", "Phi4Reasoning"),
    ("Phi-4-mini-reasoning", "Phi4MiniReasoning"),
    ("Phi-4-mini", "Phi4Mini"),
    ("phi-4", "Phi4"),
    ("tiny-llama.*chat", "TinyLlama"),
    ("(Code)?Gemma.*-it", "Gemma"),
    ("OLMo.*-hf", "OLMo"),
    (r"Qwen2\.5-Math-.*", "Qwen2_5_Math"),
    (r"Qwen2\.5-.*", "Qwen2_5"),
    ("QwQ-.*", "QwQ"),
    ("Qwen3-.*", "Qwen3"),
    ("SmolLM2.*-Instruct", "SmolLM2"),
    ("salamandra-.*-instruct", "Salamandra"),
)


def style_of(name: str) -> str:
    """The style that litgpt takes for a model of this name, "Default" for most; it may be none of
    STYLES."""
    found = (style for pattern, style in _BY_NAME if re.search(pattern, name[:200]))
    return next(found, "Default")


def style_hint(name: str, source: str, *, bos: str, add_bos: bool, eos: str) -> TemplateHint:
    """The style `name` of STYLES as a chat template.

    litgpt's tokenizer takes a leading `bos` away, or puts it there where `add_bos`, whatever the
    style says. `bos` and `eos` are the tokenizer's tokens, "" where it has none.
    """
    style = STYLES[name]
    lead = style.lead if style.lead != bos else ""
    if add_bos and style.lead != bos:
        lead = bos + lead
    elif add_bos:
        lead = bos
    return TemplateHint(
        name=f"litgpt {name}",
        source=source,
        jinja=_jinja(style, lead, eos or "\n\n"),
        stop=style.stop,
    )


def _jinja(style: Style, lead: str, eos: str) -> str:
    """The style as a template in Jinja's language."""
    ends = style.reply_after.replace(_EOS, eos)
    opening = f"{{%- set system = messages[0]['content'] if messages and messages[0]['role'] == " \
              f"'system' else {_literal(style.system)} -%}}"  # fmt: skip
    before, after = style.around_system or ("", "")
    told = f"{_said(before)}{{{{- system -}}}}{_said(after)}"
    inside = style is STYLES["Llama2"] or style is STYLES["CodeLlama"]
    if style.around_system is None:
        told = "{{- raise_exception('this prompt style has no place for a system text') -}}"
    told = f"{{%- if system -%}}{told}{{%- endif -%}}"
    parts = [opening, _said(lead)]
    if not inside:
        parts.append(told)
    parts += [
        "{%- set turn = namespace(first=true) -%}",
        "{%- for message in messages -%}",
        "{%- if message['role'] == 'user' -%}",
        _said(style.before),
        f"{{%- if turn.first -%}}{told}{{%- endif -%}}" if inside else "",
        "{%- set turn.first = false -%}",
        "{{- message['content'] -}}",
        _said(style.after),
        "{%- elif message['role'] == 'assistant' -%}",
        "{{- message['content'] -}}",
        _said(ends),
        "{%- elif message['role'] != 'system' or not loop.first -%}",
        "{{- raise_exception('a conversation has user and assistant turns') -}}",
        "{%- endif -%}{%- endfor -%}",
    ]
    return "".join(parts)


def _said(text: str) -> str:
    return f"{{{{- {_literal(text)} -}}}}" if text else ""


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n")
    return f"'{escaped}'"
