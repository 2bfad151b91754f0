"""Step and draw of fixed shape, written down once and done again, against the decoder's own step
and the sampler: on a CPU, with a tape in place of CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tui_chat.knobs import SamplingParams
from tui_chat.model import mixture
from tui_chat.model.cuda import step
from tui_chat.model.cuda.draw import Kind
from tui_chat.model.cuda.pipeline import Pipeline, Unsupported
from tui_chat.model.cuda.recorder import EagerRecorder, Recorder
from tui_chat.model.cuda.step import bucket
from tui_chat.model.decoder import Decoder
from tui_chat.model.spec import ModelSpec

from .tape import TapeRecorder, Writer
from .tiny import ROPE, SMALL, SPECS, random_weights, weights_of

torch.set_num_threads(1)

GREEDY = SamplingParams(temperature=0.0)
TOLERANCE = {"atol": 1e-4, "rtol": 1e-4}


@pytest.fixture(autouse=True)
def picking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts as on a GPU: the other way asks which they are."""
    monkeypatch.setattr(mixture, "ASKING", ())


class Written:
    """Tokens written by a pipeline, each held against a decoder that steps by itself."""

    def __init__(self, model: Decoder, recorder: Recorder, ids: Sequence[int]) -> None:
        self.model = model
        self.pipeline = Pipeline(model.parts, model.spec.vocab_size, recorder)
        self.ids = list(ids)
        self.cache, self.other = model.new_cache(), model.new_cache()
        self.drawn = 0
        self._first(model.forward(ids, self.cache))
        self.expected = model.forward(ids, self.other)

    def _first(self, logits: Tensor) -> None:
        self.pipeline.first(logits, self.cache, self.ids, GREEDY, 0.5, self.drawn)

    def go_on(self, count: int) -> None:
        for _ in range(count):
            choice = self.pipeline.wait(self.drawn)
            assert choice.id == int(self.expected.argmax())
            self.drawn += 1
            self.pipeline.next(self.cache, self.ids, GREEDY, 0.5, self.drawn)
            self.cache.append((choice.id,))
            self.ids.append(choice.id)
            self.expected = self.model.forward((choice.id,), self.other)
            found = self.pipeline._inputs.logits
            torch.testing.assert_close(found, self.expected, **TOLERANCE)

    def cut(self, length: int, ids: Sequence[int]) -> None:
        """Go on from the first tokens of the text and others."""
        self.drawn += 1  # the one that is under way counts for nothing
        for cache in (self.cache, self.other):
            cache.truncate(length)
        self.ids = [*self.ids[: len(self.cache)], *ids]
        self._first(self.model.forward(self.ids[len(self.cache) :], self.cache))
        self.expected = self.model.forward(self.ids[len(self.other) :], self.other)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_a_step_done_again_gives_the_logits_of_the_decoder(name: str) -> None:
    recorder = TapeRecorder()
    written = Written(Decoder(SPECS[name], weights_of(name)), recorder, [5, 9, 31, 2, 44])
    written.go_on(30)
    written.cut(20, [7, 7, 8])
    written.go_on(20)
    assert written.ids[:20] == written.cache.tokens[:20]
    assert recorder.recorded == 2  # a step and a draw, for all 50 tokens
    assert recorder.replayed == 100


LONG = {**SMALL, "context_length": 4096}


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(**LONG),
        ModelSpec(**LONG, **ROPE, n_kv_head=2, window=(0, 100)),
        ModelSpec(**LONG, **ROPE, window=(40, 40)),
    ],
    ids=["all", "a window", "windows"],
)
@pytest.mark.parametrize("start", [250, 505, 1018])
def test_buckets_follow_one_another(spec: ModelSpec, start: int) -> None:
    model = Decoder(spec, random_weights(spec))
    recorder = TapeRecorder()
    written = Written(model, recorder, [(7 * at + 3) % 61 for at in range(start)])
    written.go_on(20)
    assert recorder.recorded == 3  # two buckets and a draw
    written.cut(start - 40, [1, 2])
    written.go_on(10)


def test_a_window_whose_rows_move_up_is_followed() -> None:
    spec = ModelSpec(**LONG, **ROPE, window=(40, 0))
    model = Decoder(spec, random_weights(spec))
    written = Written(model, TapeRecorder(), [(7 * at + 3) % 61 for at in range(1050)])
    assert written.cache.layers[0].origin == 0
    written.go_on(40)
    assert written.cache.layers[0].origin > 0


def test_numbers_that_are_none_behind_the_text_change_nothing() -> None:
    spec = SPECS["gemma2-like"]
    model = Decoder(spec, weights_of("gemma2-like"))
    written = Written(model, TapeRecorder(), [5, 9, 31])
    written.go_on(4)
    with torch.inference_mode():
        for layer in written.cache.layers:
            layer.data[..., len(written.cache) :, :] = float("nan")
    written.cut(len(written.cache), [4])
    written.go_on(8)


def test_lanes_of_one_model_do_not_disturb_each_other() -> None:
    model = Decoder(SPECS["gqa-qk-norm"], weights_of("gqa-qk-norm"))
    lanes = [Written(model, TapeRecorder(), ids) for ids in ([5, 9, 31], [4] * 11)]
    for _ in range(20):
        for lane in lanes:
            lane.go_on(1)


@pytest.mark.parametrize("name", sorted(SPECS))
def test_no_step_waits_for_the_device_or_reads_from_the_host(name: str) -> None:
    # On "meta" there are no numbers to wait for, and no mixing with tensors of the host.
    spec = SPECS[name]
    weights = {key: tensor.to("meta") for key, tensor in weights_of(name).items()}
    with torch.inference_mode():
        model = Decoder(spec, weights)
        cache = model.new_cache()
        cache.reserve(9)
        pipeline = Pipeline(model.parts, spec.vocab_size, EagerRecorder())
        run = step.fixed_step(model.parts, step.PLAIN, cache, pipeline._inputs, 256)
        with Writer() as writer:
            run()
            for kind in [(False, False, True), (True, False, False), (True, True, True)]:
                pipeline._drawing.run(Kind(*kind))
    tensors = [
        value
        for _, args, kwargs, made in writer.lines
        for value in torch.utils._pytree.tree_leaves((args, kwargs, made))
        if isinstance(value, Tensor)
    ]
    assert len(tensors) > 100
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_bucket_reads_at_most_a_third_in_vain_once_reading_costs() -> None:
    sizes = [bucket(length) for length in range(1, 40_000)]
    assert sizes == sorted(sizes)
    assert all(size >= length for length, size in enumerate(sizes, 1))
    assert all(size - length <= size / 3 for length, size in enumerate(sizes, 1) if length > 4096)
    assert len(set(sizes)) < 13


def test_what_was_recorded_is_let_go_when_the_cache_moves() -> None:
    spec = ModelSpec(**LONG)
    recorder = TapeRecorder()
    written = Written(Decoder(spec, random_weights(spec)), recorder, [3] * 10)
    written.go_on(5)
    written.cache.reserve(1000)
    written.go_on(5)
    assert recorder.recorded == 3


def test_a_quantised_cache_is_refused_by_name() -> None:
    model = Decoder(SPECS["gpt"], weights_of("gpt"), quantised_cache=True)
    with pytest.raises(Unsupported, match="8 bits"):
        Written(model, EagerRecorder(), [1, 2, 3])
