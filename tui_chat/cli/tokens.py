"""`tui-chat next` and `tui-chat score`: what the model makes of a text, token by token."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tui_chat.cli import options
from tui_chat.cli.generate import (
    described,
    open_quietly,
    read_prompt,
    read_text,
    tell_left_out,
)
from tui_chat.cli.output import Progress, table, write_json, write_line
from tui_chat.errors import UsageError
from tui_chat.sampling import chain

if TYPE_CHECKING:
    from tui_chat.engine.api import Checkpoint
    from tui_chat.engine.events import Prompt


def next_tokens(arguments: argparse.Namespace) -> int:
    """Which tokens may come next: the model's own odds, and what the knobs leave of them."""
    params = options.sampling(arguments)
    if arguments.top < 0:
        raise UsageError("--top takes a number of rows", f"{arguments.top} is none")
    prompt = read_prompt(arguments)
    checkpoint = open_quietly(arguments)
    ids = _read(checkpoint, prompt)
    with Progress() as progress:
        progress("reading the prompt")
        logits, explained = checkpoint.explain(ids, params)
    logprobs = logits.double().log_softmax(0)
    entropy = float(-(logprobs.exp() * logprobs).nan_to_num(0.0).sum()) / math.log(2)
    size = logprobs.shape[0]
    best = logprobs.topk(min(arguments.top or size, size))
    shown = _shown(checkpoint)
    rows = [
        {
            "id": id,
            "text": shown(id),
            "logit": float(logits[id]),
            "logprob": logprob,
            "kept_prob": float(explained.kept_probs[id]),
            "cut_by": explained.cut_by[id],
        }
        for id, logprob in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
    if arguments.json:
        write_json({"prompt_ids": list(ids), "entropy_bits": entropy, "tokens": rows})
        return 0
    write_line(
        table(
            [
                [
                    f"{row['id']}",
                    quoted(str(row["text"])),
                    f"{row['logit']:.3f}",
                    f"{row['logprob']:.3f}",
                    f"{math.exp(row['logprob']):.2%}",
                    f"{row['kept_prob']:.2%}" if row["cut_by"] is None else "-",
                    str(row["cut_by"] or ""),
                ]
                for row in rows
            ],
            head=("id", "token", "logit", "logprob", "prob", "kept", "cut by"),
            right=(0, 2, 3, 4, 5),
        )
    )
    write_line(f"\n{_tokens(len(ids))} before · entropy {entropy:.2f} bits · {chain(params)}")
    return 0


def _read(checkpoint: Checkpoint, prompt: Prompt) -> list[int]:
    """The ids of the prompt, the last that the context holds where there are more; a remark says
    what that leaves out. Raises UsageError for what cannot be read."""
    lane = checkpoint.lane
    sent = lane.window.fit(prompt, 1)
    ids, left_out = sent.ids, sent.dropped_tokens
    if left_out and (prompt.ids is not None or prompt.mode == "raw"):
        # What is fitted leaves room for a reply, which never comes here.
        whole = lane.window.whole(prompt)
        ids = whole[-checkpoint.loaded.context_length :]
        left_out = len(whole) - len(ids)
    tell_left_out(sent.note, left_out, lane.missing(prompt))
    return ids


def score(arguments: argparse.Namespace) -> int:
    """How likely the text is: nll in nats over all tokens but the first, which has none before."""
    described(arguments)
    text = read_text(arguments.prompt) if arguments.ids is None else ""
    checkpoint = open_quietly(arguments)
    if arguments.ids is not None:
        ids = list(options.token_ids(arguments.ids))
    else:
        ids = checkpoint.encode(text)
        tell_left_out("", 0, checkpoint.loaded.tokenizer.missing(text))
        ids = [*checkpoint.info.text_start, *ids] if ids else ids
    if len(ids) < 2:
        why = "the tokenizer has no id for any of it" if text else "the text is empty"
        raise UsageError(
            "there is nothing to score",
            "the text has only one token" if ids else why,
            "Give at least two tokens: the first has none before it",
        )
    with Progress() as progress:
        progress("reading the text")
        logprobs = checkpoint.score(ids)
    known = [value for value in logprobs if value is not None]
    nll = -math.fsum(known)
    shown = _shown(checkpoint)
    tokenizer = checkpoint.loaded.tokenizer
    # Without a tokenizer an id is shown as a number, which is no text.
    known_text = checkpoint.info.tokenizer.kind != "none"
    size = sum(len(tokenizer.token_bytes(id)) for id in ids[1:]) if known_text else 0
    mean = nll / len(known)
    perplexity = math.exp(mean) if mean < 700 else None  # JSON knows no infinity
    bits = nll / math.log(2) / size if size else None
    report = {
        "ids": ids,
        "logprobs": logprobs,
        "nll": nll,
        "perplexity": perplexity,
        "bits_per_byte": bits,
    }
    if arguments.json:
        write_json(report)
        return 0
    write_line(
        table(
            [
                [f"{id}", quoted(shown(id)), "" if p is None else f"{p:.3f}"]
                for id, p in zip(ids, logprobs, strict=True)
            ],
            head=("id", "token", "logprob"),
            right=(0, 2),
        )
    )
    parts = [f"{_tokens(len(known))} scored", f"nll {nll:.3f} nats"]
    parts += [] if perplexity is None else [f"perplexity {perplexity:.2f}"]
    parts += [] if bits is None else [f"{bits:.3f} bits a byte"]
    write_line("\n" + " · ".join(parts))
    return 0


def quoted(text: str) -> str:
    """A token between quotes, with spaces and line breaks that can be told apart."""
    return '"' + text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t") + '"'


def _tokens(number: int) -> str:
    return f"{number} token" if number == 1 else f"{number} tokens"


def _shown(checkpoint: Checkpoint) -> Callable[[int], str]:
    """The text of one token in the middle of others, with the space that may stand before it."""
    tokenizer = checkpoint.loaded.tokenizer
    return lambda id: tokenizer.token_bytes(id).decode("utf-8", "replace")
