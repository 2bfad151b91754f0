"""From a path to something that can talk: the weights on their device, the tokenizer, the
template.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch

from tui_chat.checkpoint import catalog
from tui_chat.checkpoint.info import CheckpointInfo, TemplateHint
from tui_chat.checkpoint.patience import patiently
from tui_chat.checkpoint.weights import LoadCancelled
from tui_chat.checkpoint.weights import load as load_weights
from tui_chat.engine.events import LoadOptions
from tui_chat.engine.generate import Pieces
from tui_chat.engine.prefixes import Prefixes
from tui_chat.engine.warm import warm_up
from tui_chat.errors import UsageError
from tui_chat.model.build import Model, build
from tui_chat.model.cuda.compiled import Compilation
from tui_chat.model.decoder import Decoder
from tui_chat.model.linear import Precision
from tui_chat.model.native import ready
from tui_chat.model.parts import lies_turned
from tui_chat.settings import Paths
from tui_chat.templates.base import Template
from tui_chat.templates.open import open_template
from tui_chat.tokenizers.base import Tokenizer
from tui_chat.tokenizers.open import open_tokenizer

Progress = Callable[[str, float], None]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HELD: tuple[Precision, ...] = ("int8", "float16", "bfloat16")  # on a CPU, see model.linear

# Control tokens by which tokenizers of the field end a document or a turn.
END_TOKENS = (
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|im_end|>",
    "<|end|>",
    "<|assistant_end|>",
    "<end_of_turn>",
    "<eos>",
    "</s>",
)

SINGLE_THREAD_BELOW = 5_000_000  # parameters: a second thread costs more than it brings


@dataclass(frozen=True, eq=False)
class LoadedCheckpoint:
    """A checkpoint ready to run. Shared by all lanes that use it; each lane has a cache of its
    own.
    """

    info: CheckpointInfo  # stop_ids complete
    model: Model
    tokenizer: Tokenizer
    template: Template | None
    device: str
    dtype: str
    threads: int
    seconds: float
    template_variables: Mapping[str, object] = field(default_factory=dict)
    compile: bool = False  # asked for

    @property
    def offered(self) -> int:
        """How many ids can be drawn: rows of the output layer beyond the tokenizer are padding."""
        return min(self.tokenizer.vocab_size, self.model.spec.vocab_size)

    @property
    def context_length(self) -> int:
        return self.model.spec.context_length

    @property
    def cache_bytes_per_token(self) -> int:
        """Of a full context, of which layers with a window keep only that."""
        return -(-self.cache_bytes(self.context_length) // self.context_length)

    def cache_bytes(self, tokens: int) -> int:
        """What so many tokens take in a cache of this model, with the room it keeps ready."""
        return self.model.new_cache().cache_bytes(tokens)

    @property
    def start_ids(self) -> list[int]:
        """What a text from nothing begins with: what every text does, else the end of a document
        before, else a new line.
        """
        if self.info.text_start:
            return list(self.info.text_start)
        special = self.tokenizer.special
        ends = [special[text] for text in END_TOKENS if text in special]
        return ends[:1] or list(self.info.stop_ids[:1]) or self.tokenizer.encode("\n")

    @functools.cached_property
    def compilation(self) -> Compilation | None:
        """The model being compiled, from the moment this is asked for; None if nobody wants it."""
        if not self.compile or not isinstance(self.model, Decoder):
            return None
        return Compilation(self.model.parts, self.model.new_cache, self.threads)

    @functools.cached_property
    def prefixes(self) -> Prefixes:
        """What its lanes share of what they have read."""
        return Prefixes()

    @functools.cached_property
    def pieces(self) -> Pieces:
        """In what pieces it reads prompts."""
        return Pieces(self.model)

    @functools.cached_property
    def chat_template(self) -> Template:
        """The checkpoint's template, or plain "User:" and "Assistant:" lines where it has none."""
        if self.template is not None:
            return self.template
        plain = open_template(
            TemplateHint(name="plain"), self.tokenizer, text_start=self.info.text_start
        )
        assert plain is not None
        return plain


def load_checkpoint(
    path: str,
    options: LoadOptions,
    progress: Progress = lambda stage, done: None,
    cancelled: Callable[[], bool] = lambda: False,
    info: CheckpointInfo | None = None,
) -> LoadedCheckpoint:
    """Open `path` (`info`: as it has just been described). Raises CheckpointError, UsageError,
    or LoadCancelled once `cancelled()` says so.
    """
    began = time.perf_counter()
    device = choose_device(options.device)
    dtype, precision = choose_dtype(options.dtype, device)
    quantised_cache = choose_cache(options.kv_cache)
    described = [] if info is None else [info]

    def check() -> None:
        if cancelled():
            raise LoadCancelled("loading was cancelled")

    def opened() -> tuple[CheckpointInfo, dict[str, torch.Tensor]]:
        # What was described before holds once: a file that is saved meanwhile is looked at anew.
        if not described:
            progress("reading", 0.0)
        found = described.pop() if described else describe(path, options)
        check()
        progress("loading weights", 0.0)
        if device.type == "cpu" and ready.suits(found.spec):
            ready.start(Paths.find().cache)
        tensors = read_weights(
            found, dtype, device, lambda done: progress("loading weights", done), cancelled
        )
        return found, tensors

    check()
    info, tensors = patiently(os.path.expanduser(path), opened, cancelled)
    check()
    progress("tokenizer", 0.0)
    tokenizer = open_tokenizer(info.tokenizer, info.spec)
    template = open_template(info.template, tokenizer, options.template, text_start=info.text_start)
    check()
    progress("warming up", 0.0)
    model = build(info.spec, tensors, precision, quantised_cache=quantised_cache)
    warm_up(model)
    return assemble(
        info,
        model,
        tokenizer,
        template,
        dtype=precision if precision != "dense" else "",
        template_variables=options.template_variables,
        compile=options.compile,
        seconds=time.perf_counter() - began,
    )


def read_weights(
    info: CheckpointInfo,
    dtype: torch.dtype | None,
    device: torch.device,
    progress: Callable[[float], None] = lambda done: None,
    cancelled: Callable[[], bool] = lambda: False,
) -> dict[str, torch.Tensor]:
    """The canonical tensors of `info` (`dtype` None: as the file has them), each lying as `build`
    wants it.
    """
    tied = info.plan is not None and "head.weight" not in info.plan
    dense = dtype == torch.float32 and device.type == "cpu"
    return load_weights(
        info,
        dtype=dtype,
        device=device,
        turned=lambda name: dense and lies_turned(info.spec, name, tied=tied),
        progress=progress,
        cancelled=cancelled,
    )


def describe_patiently(
    path: str, options: LoadOptions, cancelled: Callable[[], bool]
) -> CheckpointInfo:
    """As `describe`, waiting a moment for what a training run is just saving."""
    return patiently(os.path.expanduser(path), lambda: describe(path, options), cancelled)


def describe(path: str, options: LoadOptions) -> CheckpointInfo:
    """What is at `path`, by the options; reads no weights."""
    return catalog.describe(
        path,
        step=options.step,
        config=options.config,
        tokenizer=options.tokenizer,
        template=options.template,
        config_file=options.config_file,
    )


def assemble(
    info: CheckpointInfo,
    model: Model,
    tokenizer: Tokenizer,
    template: Template | None,
    *,
    dtype: str = "",
    template_variables: Mapping[str, object] | None = None,
    compile: bool = False,
    seconds: float = 0.0,
) -> LoadedCheckpoint:
    """Put the parts together: stop ids from file, template and tokenizer, and the number of
    threads. `dtype` names that of the weights where it is not the model's.
    """
    ends = {tokenizer.special[text] for text in END_TOKENS if text in tokenizer.special}
    stops = ends | set(info.stop_ids) | (set(template.stop_ids) if template is not None else set())
    shown = dtype or str(model.dtype).removeprefix("torch.")
    left_out = (*info.unused, *getattr(tokenizer, "notes", ()))
    return LoadedCheckpoint(
        info=replace(info, stop_ids=tuple(sorted(stops)), unused=left_out),
        model=model,
        tokenizer=tokenizer,
        template=template,
        device=str(model.device),
        dtype=f"{shown}, int8 cache" if model.new_cache().quantised else shown,
        threads=choose_threads(model),
        seconds=seconds,
        template_variables=dict(template_variables or {}),
        compile=compile,
    )


def choose_device(name: str) -> torch.device:
    """ "" takes CUDA where there is one, else the CPU. Raises UsageError for a device that is not
    there.
    """
    if not name:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = name.split(":")[0]
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(kind, False):
        known = ", ".join(known for known, present in there.items() if present)
        raise UsageError(
            "the device cannot be used", f"there is no {name!r} here", f"There is {known}"
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError("the device cannot be used", f"{name!r} is no device name") from error
    if kind == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            "the device cannot be used",
            f"there are {torch.cuda.device_count()} GPUs, and {name} is not one",
        )
    return device


def choose_dtype(name: str, device: torch.device) -> tuple[torch.dtype | None, Precision]:
    """In what the weights are read (None: as the file has them), and how matrices are then kept.

    "" takes bfloat16 on a GPU and float32 elsewhere. Raises UsageError for what is not to be had.
    """
    if not name:
        return (torch.bfloat16 if device.type == "cuda" else torch.float32), "dense"
    if device.type == "cpu":
        for precision in HELD:
            if name == precision:
                return None, precision
    if name not in DTYPES:
        there = f"There are {', '.join(sorted({*DTYPES, *HELD}))}"
        if name in HELD:
            raise UsageError(
                f"{name} is not to be had on {device}", "", "On a GPU there is bfloat16"
            )
        raise UsageError("the dtype cannot be used", f"{name[:40]!r} is not known", there)
    return DTYPES[name], "dense"


def choose_cache(name: str) -> bool:
    """Whether keys and values are kept in int8. Raises UsageError for what is not known."""
    if name not in ("", "int8"):
        raise UsageError(f"the cache cannot be kept in {name[:40]!r}", "", "There is int8")
    return name == "int8"


def choose_threads(model: Model) -> int:
    """How many threads make the next token fastest here and now.

    Measured, not taken from the number of cores: beside a busy neighbour two threads can be far
    slower than one.
    """
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    if model.device.type != "cpu" or model.parameters < SINGLE_THREAD_BELOW or cores == 1:
        torch.set_num_threads(1)
        return 1
    best, best_time = 1, float("inf")
    count = 1
    while count <= min(cores, 16):
        torch.set_num_threads(count)
        taken = _step_time(model)
        if taken < 0.9 * best_time:  # another thread has to earn its place
            best, best_time = count, taken
        elif count > 2 * best:
            break
        count *= 2
    torch.set_num_threads(best)
    return best


def _step_time(model: Model) -> float:
    """Seconds of one token, the fastest of a few; of a large model a single one must do, for the
    user waits meanwhile."""
    cache = model.new_cache()
    best, spent = float("inf"), 0.0
    while len(cache) < min(4, model.spec.context_length) and spent < 0.05:
        began = time.perf_counter()
        model.forward([0], cache)
        taken = time.perf_counter() - began
        best, spent = min(best, taken), spent + taken
    return best
