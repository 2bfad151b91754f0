"""`tui-chat ask`: one reply, or several, from a prompt to stdout."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from tui_chat.cli import options
from tui_chat.cli.output import STOPPED, Progress, Stream, remark, write_json
from tui_chat.conversation import Mode, Turn
from tui_chat.engine.events import (
    Event,
    Finished,
    PrefillProgress,
    Prompt,
    Started,
    Step,
    Stepped,
    WindowMoved,
)
from tui_chat.errors import UsageError
from tui_chat.sampling import MAX_SEED, SamplingParams, random_seed

if TYPE_CHECKING:
    from tui_chat.checkpoint.info import CheckpointInfo
    from tui_chat.engine.api import Checkpoint

SEPARATOR = "\n---\n"  # between samples


def ask(arguments: argparse.Namespace) -> int:
    params = options.sampling(arguments)
    if arguments.n < 1:
        raise UsageError("-n takes the number of samples", f"{arguments.n} is not one")
    if arguments.logprobs is not None and not arguments.json:
        raise UsageError("--logprobs needs --json", "", "Plain text has no place for them")
    if (arguments.logprobs or 0) < 0:
        raise UsageError("--logprobs takes a number of tokens", f"{arguments.logprobs} is none")
    prompt = read_prompt(arguments)
    checkpoint = open_quietly(arguments)
    with stopping() as stopped:
        samples: list[Sample] = []
        stream = None if arguments.json else Stream()
        seed = random_seed() if params.seed is None else params.seed
        try:
            for number in range(arguments.n):
                if number and stream is not None:
                    stream(SEPARATOR)
                sample = Sample(checkpoint, prompt, stream)
                sample.make(params.with_(seed=(seed + number) % (MAX_SEED + 1)), stopped)
                samples.append(sample)
                if stopped():
                    break
        finally:
            if stream is not None and (samples or stream.begun):
                stream.end()
        # After the text, which a remark would cut in two.
        if left_out := sum(sample.left_out for sample in samples):
            remark(f"the context filled up: {left_out} tokens at the beginning were left out")
        if arguments.draft or arguments.lookup:
            tell_drafted(samples)
        if arguments.json:
            write_json(_report(checkpoint, prompt, params, samples, arguments.logprobs))
        return STOPPED if stopped() else 0


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """Make the first ctrl+c a wish that can be asked for; the second ends the program as usual."""
    pressed: list[int] = []

    def press(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, press)
    except ValueError:  # not the main thread: whoever called has the signals
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


class Sample:
    """One reply, written to `stream` while it is made; None where a JSON report follows."""

    def __init__(self, checkpoint: Checkpoint, prompt: Prompt, stream: Stream | None) -> None:
        self.checkpoint = checkpoint
        self.prompt = prompt
        self.steps: list[Step] = []
        self.started: Started | None = None
        self.finished: Finished | None = None
        self.left_out = 0  # tokens, because the context filled up while the reply was made
        self._stream = stream

    def make(self, params: SamplingParams, stopped: Callable[[], bool]) -> None:
        with Progress() as progress:

            def on_event(event: Event) -> None:
                match event:
                    case Started():
                        self.started = event
                        tell_left_out(event.note, event.dropped_tokens, event.missing)
                    case PrefillProgress() if event.total > event.done:
                        progress("reading the prompt", event.done / event.total)
                    case Stepped():
                        self.steps += event.steps
                        if event.text:
                            progress.wipe()
                            if self._stream is not None:
                                self._stream(event.text)
                    case WindowMoved():
                        self.left_out = event.dropped_tokens

            self.finished = self.checkpoint.reply(
                self.prompt, params, on_event=on_event, cancelled=stopped
            )

    def as_dict(self, logprobs: int | None) -> dict[str, object]:
        assert self.started is not None and self.finished is not None
        found: dict[str, object] = {
            "ids": list(self.finished.ids),
            "text": self.finished.text,
            "stop_reason": self.finished.reason,
            "seed": self.started.seed,
        }
        if logprobs is not None:
            found["logprobs"] = list(self._logprobs(logprobs))
        return found

    def _logprobs(self, top: int) -> Iterator[dict[str, object]]:
        """Each token, and the likeliest in its place. The cache makes this one step a token."""
        assert self.started is not None and self.finished is not None
        ids = list(self.started.prompt_ids)
        decode = self.checkpoint.decode
        for step in self.steps:
            row: dict[str, object] = {
                "id": step.id,
                "text": decode([step.id]),
                "logprob": step.logprob,
                "top": [],
            }
            if top > 0:
                logprobs = self.checkpoint.next_logits(ids).log_softmax(0)
                best = logprobs.topk(min(top, logprobs.shape[0]))
                row["top"] = [
                    {"id": id, "text": decode([id]), "logprob": value}
                    for id, value in zip(best.indices.tolist(), best.values.tolist(), strict=True)
                ]
            yield row
            ids.append(step.id)


def _report(
    checkpoint: Checkpoint,
    prompt: Prompt,
    params: SamplingParams,
    samples: list[Sample],
    logprobs: int | None,
) -> dict[str, object]:
    info, loaded = checkpoint.info, checkpoint.loaded
    stats = [sample.finished.stats for sample in samples if sample.finished is not None]
    decode_seconds = sum(one.decode_seconds for one in stats)
    new_tokens = sum(one.new_tokens for one in stats)
    first = samples[0].started
    assert first is not None
    return {
        "checkpoint": {
            "path": info.path,
            "format": info.format,
            "step": info.step,
            "fingerprint": info.fingerprint,
        },
        "mode": prompt.mode,
        "prompt_ids": list(first.prompt_ids),
        "samples": [sample.as_dict(logprobs) for sample in samples],
        "sampling": params.as_dict(),
        "dtype": loaded.dtype,
        "device": loaded.device,
        "stats": {
            "prompt_tokens": stats[0].prompt_tokens,
            "reused_tokens": sum(one.reused_tokens for one in stats),
            "prefill_seconds": sum(one.prefill_seconds for one in stats),
            "new_tokens": new_tokens,
            "decode_seconds": decode_seconds,
            "tokens_per_second": new_tokens / decode_seconds if decode_seconds > 0 else 0.0,
            "drafted_tokens": sum(one.drafted_tokens for one in stats),
            "accepted_tokens": sum(one.accepted_tokens for one in stats),
        },
    }


def tell_drafted(samples: list[Sample]) -> None:
    """Say on stderr what came of the proposals."""
    stats = [sample.finished.stats for sample in samples if sample.finished is not None]
    drafted = sum(one.drafted_tokens for one in stats)
    if not drafted:
        remark("draft: nothing was proposed")
        return
    accepted, made = sum(one.accepted_tokens for one in stats), sum(one.new_tokens for one in stats)
    remark(
        f"draft: {accepted} of {made} tokens were proposed rightly; {accepted / drafted:.0%} of "
        "what was proposed was right"
    )


# ---- shared by ask, next and score


def tell_left_out(note: str, dropped_tokens: int, missing: str) -> None:
    """Say on stderr how the model gets another prompt than was written."""
    if note:
        remark(note)
    if dropped_tokens:
        what = "token was" if dropped_tokens == 1 else f"{dropped_tokens} tokens were"
        remark(f"the prompt is too long: its first {what} left out")
    if missing:
        remark(f"the tokenizer has no id for {missing!r}: left out")


def read_prompt(arguments: argparse.Namespace) -> Prompt:
    """What to answer, text from standard input where none is given; all before torch is loaded."""
    info = described(arguments)
    if arguments.ids is not None:
        return Prompt(mode="raw", ids=options.token_ids(arguments.ids))
    mode: Mode = arguments.mode or info.mode
    if arguments.system and arguments.mode == "raw":
        raise UsageError(
            "--system needs a chat template", "--raw asks for none", "Leave out one of them"
        )
    if arguments.system and mode == "raw":
        raise UsageError(
            "--system needs a chat template",
            f"{info.label} continues text",
            "Add --chat to wrap the prompt all the same",
        )
    text = read_text(arguments.prompt)
    if mode == "raw":
        return Prompt(mode="raw", text=text)
    if not text.strip():
        raise UsageError(
            "the prompt is empty", "", "Give a message, or --raw to start from nothing"
        )
    if arguments.prompt in (None, "-"):
        text = text.removesuffix("\n")  # of `echo`; a raw text may mean it
    if not info.template.name:
        remark(
            f"tui-chat: {info.label} has no chat template: "
            'turns are written as plain "User:" and "Assistant:"'
        )
    system = (Turn("system", arguments.system),) if arguments.system else ()
    return Prompt(mode="chat", turns=(*system, Turn("user", text)))


def described(arguments: argparse.Namespace) -> CheckpointInfo:
    """The checkpoint without its weights. Raises UsageError, CheckpointError."""
    if arguments.ids is not None:
        if arguments.prompt is not None:
            raise UsageError("a prompt and --ids were given", "", "Give one of them")
        options.token_ids(arguments.ids)
    from tui_chat.checkpoint.catalog import describe

    load = options.load_options(arguments)
    return describe(
        arguments.path,
        step=load.step,
        config=load.config,
        tokenizer=load.tokenizer,
        template=load.template,
        config_file=load.config_file,
    )


def open_quietly(arguments: argparse.Namespace) -> Checkpoint:
    """Open the checkpoint, with progress on stderr; its warnings follow there."""
    from dataclasses import asdict

    from tui_chat.engine.api import open_checkpoint

    with Progress() as progress:
        load = asdict(options.load_options(arguments))
        load |= {
            name: getattr(arguments, name) for name in ("draft", "lookup") if name in arguments
        }
        checkpoint = open_checkpoint(arguments.path, progress=progress, **load)
    for warning in checkpoint.info.warnings:
        remark(f"tui-chat: {warning}")
    return checkpoint


def read_text(prompt: str | None) -> str:
    """The prompt, or all of standard input, as it is. Raises UsageError when that is no text."""
    if prompt is not None and prompt != "-":
        return prompt
    if sys.stdin is None:
        raise UsageError("there is no prompt", "standard input is closed")
    if sys.stdin.isatty():
        remark("Type the prompt and end it with ctrl+d:")
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(
            "the prompt is not UTF-8 text", f"byte {error.start} on standard input is not"
        ) from None
