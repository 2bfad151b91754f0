"""What trainers with GPT-2's tokenizer have in common: weights under a known key, a matrix whose
shape tells, a number that may be a tensor. No format of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tui_chat.checkpoint.info import TokenizerHint
from tui_chat.checkpoint.names import strip
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.source import Source
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import CheckpointError

END = "<|endoftext|>"
GPT2_IDS = 50257
GPT2_END = 50256
GPT2_MOST = 51200  # 50257 padded to a round number
HEAD_DIM = 64  # of every GPT-2, and of nearly every model of its size

_WEIGHTS = ("model", "model_state_dict", "state_dict")


def stripped(
    source: Source, prefixes: Iterable[str] = ("module", "model")
) -> tuple[dict[str, object], list[str]]:
    """The weights without what wrappers put before their names, and what was removed."""
    if source.is_dir:
        return {}, []
    for key in _WEIGHTS:
        weights = mapping(source.root.get(key))
        if any(isinstance(value, TensorRef) for value in weights.values()):
            return strip(weights, prefixes)
    return strip({k: v for k, v in source.root.items() if isinstance(v, TensorRef)}, prefixes)


def weight_keys(source: Source) -> set[str]:
    """The keys of the file that `stripped` takes the weights from."""
    for key in _WEIGHTS:
        if any(isinstance(value, TensorRef) for value in mapping(source.root.get(key)).values()):
            return {key}
    return {key for key, value in source.root.items() if isinstance(value, TensorRef)}


def matrix(tensors: Mapping[str, object], name: str) -> TensorRef:
    """The tensor `name`, which has rows and columns. Raises CheckpointError."""
    ref = tensors.get(name)
    if not isinstance(ref, TensorRef) or len(ref.shape) != 2:
        raise CheckpointError(
            "the tensors do not fit the format", f"{name} is missing or no matrix"
        )
    return ref


def untied(tensors: Mapping[str, object], head: str, embed: str) -> dict[str, object]:
    """The tensors without the output matrix where it holds the numbers of the embedding."""
    table, output = tensors.get(embed), tensors.get(head)
    tied = (
        isinstance(table, TensorRef)
        and isinstance(output, TensorRef)
        and output.same_numbers(table)
    )
    return {name: value for name, value in tensors.items() if not (tied and name == head)}


def step(source: Source, *keys: str) -> int | None:
    """The first of the values that can be a number of steps."""
    for key in keys:
        number = source.archive.scalar(source.root.get(key))
        if number is not None and 0 <= number < 2**53:
            return int(number)
    return None


def loss(source: Source, name: str, *keys: str) -> dict[str, float]:
    """The first of the values that can be a loss, under `name`; empty where none can."""
    for key in keys:
        number = source.archive.scalar(source.root.get(key))
        if number is not None and abs(number) < 1e8:
            return {name: number}
    return {}


def gpt2_tokenizer(rows: int, warnings: list[str], *, raw_end: bool) -> TokenizerHint:
    """GPT-2's pieces where the embedding has room for them, else ids alone and a warning.

    `raw_end`: the trainer's own sampler reads `<|endoftext|>` in a prompt as the control token.
    """
    if GPT2_IDS <= rows <= GPT2_MOST:
        return TokenizerHint(
            kind="tiktoken",
            name="gpt2",
            source="the trainer's own",
            vocab_size=GPT2_IDS,
            text_specials=(END,) if raw_end else (),
        )
    warnings.append(
        f"the trainer's tokenizer (gpt2) has {GPT2_IDS} ids, the model {rows}: "
        "name the one it was trained with by --tokenizer; until then only ids are shown"
    )
    return TokenizerHint(kind="none", source="the vocabulary is not the trainer's", vocab_size=rows)


def heads_of_64(width: int, overrides: Mapping[str, object], inferred: list[str]) -> int | None:
    """The number of heads where only GPT-2's habit tells it, said in `inferred`; None where even
    that does not."""
    if width % HEAD_DIM or "n_head" in overrides:
        return None
    heads = width // HEAD_DIM
    inferred.append(
        f"the file does not say the number of heads: {heads} is width {width} / {HEAD_DIM}, as in "
        "GPT-2; if the text is broken, give it with --config n_head=N"
    )
    return heads
