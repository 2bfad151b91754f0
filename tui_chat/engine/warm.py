"""The first calls of a model, made while it loads: on a GPU each kernel is loaded when it is first
used, libraries take their memory then, and the user would wait for all of that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from tui_chat.engine.overlap import RECORDERS
from tui_chat.model.build import Model
from tui_chat.model.cuda.pipeline import Pipeline, Unsupported
from tui_chat.model.cuda.recorder import Recorder
from tui_chat.model.decoder import Decoder
from tui_chat.sampling import SamplingParams

# Matrix libraries choose another kernel for another number of rows.
LENGTHS = (256, 128, 48, 16, 4)

# One of each kind that a reply is likely to begin with.
DRAWS = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, top_k=0),
    SamplingParams(top_p=0.9),
    SamplingParams(repetition_penalty=1.1),
)


def warm_up(model: Model) -> None:
    """Call what a reply will call. A model that cannot make its first token raises what it raises;
    what only makes tokens faster does not.
    """
    record = RECORDERS.get(model.device.type)
    if record is None or not isinstance(model, Decoder):
        model.forward([0], model.new_cache())
        return
    if model.device.type == "cuda":
        # Its plan for a new length takes longer than reading a prompt; this holds for the process.
        torch.backends.cuda.enable_cudnn_sdp(False)
    _read(model)
    with contextlib.suppress(Unsupported, RuntimeError):  # a reply finds out, and says so
        _write(model, record)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _read(model: Decoder) -> None:
    """Prompts of several lengths, on an empty cache and behind something."""
    for length in LENGTHS:
        room = model.spec.context_length
        count = max(1, min(length, room // 2))
        cache = model.new_cache()
        model.forward([0] * count, cache)
        if room > count:
            model.forward([0] * count, cache)


def _write(model: Decoder, record: Callable[[torch.device], Recorder]) -> None:
    """A few tokens of each kind, recorded and replayed."""
    pipeline = Pipeline(model.parts, model.spec.vocab_size, record(model.device))
    cache, history = model.new_cache(), [0]
    room = model.spec.context_length - 1
    logits = model.forward(history, cache)
    at = 0
    for params in DRAWS:
        pipeline.first(logits, cache, history, params, 0.5, at)
        for _ in range(min(3, room)):
            at += 1
            pipeline.next(cache, history, params, 0.5, at)
        pipeline.wait(at)
        at += 1
