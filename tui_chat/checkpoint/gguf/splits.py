"""How the byte-level tokenizers inside GGUF files split a text into words before merging, by the
name in `tokenizer.ggml.pre`."""

from __future__ import annotations

from dataclasses import dataclass

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"


def _modern(digits: str, symbols: str = r" ?[^\s\p{L}\p{N}]+[\r\n]*") -> str:
    """The family that begins with cl100k: `digits` is how numbers are cut."""
    return rf"{_SHORT}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}|{symbols}|{_TAIL}"


def _cased(digits: str, short: str) -> str:
    """The family that begins with o200k, which cuts where lower case ends."""
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    first = r"[^\r\n\p{L}\p{N}]?"
    words = f"{first}{upper}*{lower}+{short}|{first}{upper}+{lower}*{short}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_TAIL}"


@dataclass(frozen=True, slots=True)
class Split:
    """`patterns` are applied one after the other, each to what the last one left. `whole`: a word
    that is a piece is taken as it is, whatever the merges. `begins`: a text begins with the
    begin-of-text token where the file does not say."""

    patterns: tuple[str, ...]
    whole: bool = False
    begins: bool = False


_DIGIT = r"\p{N}"
_PLAIN = Split((_GPT2,))
_SINGLE = Split((_DIGIT, _GPT2))
_QWEN = Split((_modern(_DIGIT),))
_THREE = _modern(r"\p{N}{1,3}")
_LLAMA3 = Split((_THREE,), whole=True, begins=True)

SPLITS = {
    **dict.fromkeys(
        ("gpt-2", "phi-2", "jina-es", "jina-de", "gigachat", "mpt", "olmo", "jais", "trillion"),
        _PLAIN,
    ),
    **dict.fromkeys(
        (
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
        ),
        _SINGLE,
    ),
    **dict.fromkeys(
        ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "grok-2", "kormo"), _QWEN
    ),
    **dict.fromkeys(
        ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        _LLAMA3,
    ),
    **dict.fromkeys(("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"), Split((_THREE,))),
    "tekken": Split((_cased(_DIGIT, ""),), whole=True, begins=True),
    **dict.fromkeys(("gpt-4o", "llama4"), Split((_cased(r"\p{N}{1,3}", f"{_SHORT}?"),))),
    "seed-coder": Split((_modern(_DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+"),)),
    "falcon": Split((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
}
"""Name -> split. Of other names, GPT-2's is the best guess."""

GUESS = _PLAIN
