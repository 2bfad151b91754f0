"""What torch compiles in the background is taken up between replies, and only if it is right."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tui_chat.engine import overlap
from tui_chat.engine.events import LoadOptions, Stepped
from tui_chat.engine.lane import Lane
from tui_chat.engine.load import load_checkpoint
from tui_chat.knobs import SamplingParams
from tui_chat.model import mixture
from tui_chat.model.cuda.compiled import Compilation, by_torch
from tui_chat.model.cuda.pipeline import Pipeline
from tui_chat.model.cuda.recorder import EagerRecorder
from tui_chat.model.cuda.step import PLAIN
from tui_chat.model.decoder import Decoder

from ..model.tape import TapeRecorder
from ..model.tiny import POST_NORMS, SPECS, random_weights
from .small import opened, raw, run

BOLD = SamplingParams(temperature=1.5, top_k=0, seed=11, max_new_tokens=20)
WAIT = 120.0


@pytest.fixture(autouse=True)
def forgetful() -> Iterator[None]:
    yield
    torch._dynamo.reset()  # type: ignore[no-untyped-call]


def traced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiled as far as torch can without a compiler for the processor."""
    return torch.compile(function, fullgraph=True, dynamic=False, backend="aot_eager")


def compiling(lane: Lane, compiler: Callable[..., Any]) -> Compilation:
    model = lane.checkpoint.model
    assert isinstance(model, Decoder)
    made = Compilation(model.parts, model.new_cache, compiler=compiler)
    lane.pipeline = Pipeline(model.parts, lane.checkpoint.offered, TapeRecorder(), made)
    return made


@pytest.mark.parametrize("name", sorted(SPECS))
def test_every_kind_of_model_can_be_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mixture, "ASKING", ())
    spec = SPECS[name]
    longer = dataclasses.replace(
        spec, n_layer=6, window=spec.window * 3, layer_rope=spec.layer_rope * 3
    )
    weights = random_weights(
        longer,
        bias=spec.norm == "layernorm",
        wide_qk_norm=name == "olmo2-like",
        post_norms=name in POST_NORMS,
    )
    model = Decoder(longer, weights)
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    def compiler(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, dynamic=False, backend=backend)

    made = Compilation(model.parts, model.new_cache, compiler=compiler)
    assert made.wait(WAIT)
    assert made.ready is not None, made.remark
    assert graphs <= 5  # not one for each of six layers


def test_it_is_taken_up_between_two_replies(noise: str) -> None:
    lane, let = Lane(opened(noise)), threading.Event()

    def slow(function: Callable[..., Any]) -> Callable[..., Any]:
        assert let.wait(WAIT)
        return traced(function)

    made = compiling(lane, slow)
    expected = run(Lane(opened(noise)), raw("hello"), BOLD).finished.ids
    assert lane.pipeline is not None
    reply = lane.reply(raw("hello"), BOLD)
    for event in reply.events():
        if isinstance(event, Stepped) and len(reply.ids) == 3:
            let.set()
            assert made.wait(WAIT)
        assert lane.pipeline._stages is PLAIN  # not within a reply
    assert tuple(reply.ids) == expected
    second = run(lane, raw("hello"), BOLD)
    assert lane.pipeline._stages is made.ready is not None
    assert second.finished.ids == expected
    third = run(lane, raw("hello"), BOLD)
    assert third.started.note.startswith("compiled in")
    assert third.finished.ids == expected
    assert run(lane, raw("hello"), BOLD).started.note == ""


def test_a_cache_of_another_size_compiles_nothing_anew(long_noise: str) -> None:
    lane, graphs = Lane(opened(long_noise)), 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return graph.forward

    made = compiling(
        lane, lambda f: torch.compile(f, fullgraph=True, dynamic=False, backend=backend)
    )
    assert made.wait(WAIT)
    assert made.ready is not None, made.remark
    at_first = graphs
    run(lane, raw("hello"), BOLD)
    run(lane, raw("hello" * 60), BOLD.with_(max_new_tokens=300))
    assert lane.pipeline is not None
    assert lane.pipeline._stages is made.ready
    assert graphs == at_first


def breaks(function: Callable[..., Any]) -> Callable[..., Any]:
    raise ImportError("there is no compiler\nhere")


def is_wrong(function: Callable[..., Any]) -> Callable[..., Any]:
    def other(*given: Any) -> Any:
        made = function(*given)
        return made + 0.2 * made.abs().max() if isinstance(made, torch.Tensor) else made

    return other


def is_nan(function: Callable[..., Any]) -> Callable[..., Any]:
    def other(*given: Any) -> Any:
        made = function(*given)
        return made * torch.nan if isinstance(made, torch.Tensor) else made

    return other


@pytest.mark.parametrize(
    ("compiler", "why"),
    [(breaks, "there is no compiler"), (is_wrong, "off by"), (is_nan, "off by nan")],
)
def test_what_fails_or_is_wrong_changes_nothing(
    noise: str, compiler: Callable[..., Any], why: str
) -> None:
    lane = Lane(opened(noise))
    made = compiling(lane, compiler)
    assert made.wait(WAIT)
    assert made.ready is None
    expected = run(Lane(opened(noise)), raw("hello"), BOLD).finished.ids
    assert run(lane, raw("hello"), BOLD).finished.ids == expected
    note = run(lane, raw("hello"), BOLD).started.note
    assert note.startswith("the model could not be compiled")
    assert why in note
    assert "here" not in note.split()


def test_the_option_compiles_for_a_gpu_and_says_so_elsewhere(
    noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_checkpoint(noise, LoadOptions(device="cpu", compile=True))
    lane = Lane(loaded)
    note = run(lane, raw("hello"), BOLD).started.note
    assert note == "--compile does nothing for this model on cpu"
    assert run(lane, raw("hello"), BOLD).started.note == ""
    monkeypatch.setitem(overlap.RECORDERS, "cpu", lambda device: EagerRecorder())
    monkeypatch.setattr(Compilation.__init__, "__defaults__", (1, traced))
    lanes = [Lane(loaded), Lane(loaded)]
    assert loaded.compilation is not None
    assert loaded.compilation.wait(WAIT)
    for lane in lanes:
        run(lane, raw("hello"), BOLD)
        assert lane.pipeline is not None
        assert lane.pipeline._stages is loaded.compilation.ready is not None


def test_torch_is_asked_for_whole_functions_of_one_shape() -> None:
    seen: dict[str, Any] = {}

    def compile_(function: Any, **given: Any) -> Any:
        seen.update(given)
        return function

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", compile_)
        by_torch(len)
    assert seen == {"fullgraph": True, "dynamic": False}
