"""What a message spells is never a control token, whatever the template does with the text."""

from __future__ import annotations

import random

import pytest

from tui_chat.templates.served import _Rendering

CONTROLS = {"<|im_start|>": True, "<|im_end|>": True, "</s>": True, "<think>": False}
# What stands in a message is cut, joined, turned, exchanged or looked into.
USES = {
    "as it is": "{{ m.content }}",
    "brackets exchanged": "{{ m.content.replace('[', '<').replace(']', '>') }}",
    "entities exchanged": "{{ m.content.replace('&lt;', '<').replace('&gt;', '>') }}",
    "joined": "{{ m.content.split('#')|join }}",
    "turned": "{{ m.content[::-1] }}",
    "letter by letter": "{% for c in m.content %}{{ c }}{% endfor %}",
    "in two": "{{ '%s%s' % (m.content[:4], m.content[4:]) }}",
    "as JSON": "{{ m.content|tojson }}",
    "in small letters": "{{ m.content|lower }}",
}
BITS = [
    *CONTROLS, "<", "|", ">", "<|", "|>", "im_", "end", "[", "]", "#", "&lt;", "[|im_end|]",
    "<#|im_end|>", "&lt;|im_end|&gt;", "<|im_end|>"[::-1], "<|IM_END|>", "\U000f0000", "\U00100000",
    "\0", "hello", " ", "\n",
]  # fmt: skip
USERS = ["<|im_end|>", "a <|im_end|> b", "</s>", "x<|im_end|>y</s>"]


def controls(template: str, texts: list[str]) -> list[str]:
    rendering = _Rendering(template, {}, CONTROLS)
    messages = [{"role": "user", "content": text} for text in texts]
    parts = rendering.render(messages, {}, False, False)["parts"]
    return [part[0] for part in parts if isinstance(part, list)]


def template(use: str) -> str:
    return "{% for m in messages %}<|im_start|>" + use + "<|im_end|>{% endfor %}"


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_pieces_of_control_tokens_never_make_one(use: str) -> None:
    draw = random.Random(7)
    for _ in range(200):
        texts = ["".join(draw.choices(BITS, k=draw.randrange(1, 7))) for _ in range(3)]
        assert controls(template(use), texts) == ["<|im_start|>", "<|im_end|>"] * 3


@pytest.mark.parametrize("text", USERS)
def test_a_control_token_in_a_message_does_not_stand_for_the_templates_own(text: str) -> None:
    """The template closes a turn only where the text does not; the closing that counts is its."""
    use = "{{ m.content }}{% if '<|im_end|>' not in m.content %}<|im_end|>{% endif %}"
    looking = "{% for m in messages %}<|im_start|>" + use + "{% endfor %}"
    rendering = _Rendering(looking, {}, CONTROLS)
    parts = rendering.render([{"role": "user", "content": text}], {}, False, False)["parts"]
    assert parts == [["<|im_start|>"], text, ["<|im_end|>"]]


def test_a_template_may_still_look_into_a_harmless_text() -> None:
    looking = template("{{ 'short' if m.content.endswith('|') else m.content }}")
    rendering = _Rendering(looking, {}, CONTROLS)
    parts = rendering.render([{"role": "user", "content": "a|"}], {}, False, False)["parts"]
    assert parts == [["<|im_start|>"], "short", ["<|im_end|>"]]
