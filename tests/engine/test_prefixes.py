"""What lanes of one checkpoint share: read once, branched, come back to, and said truthfully."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from tui_chat.engine.engine import Lane
from tui_chat.engine.events import Finished, Prompt, Started
from tui_chat.engine.prefixes import LEAST, Prefixes
from tui_chat.engine.schedule import Schedule, side_by_side
from tui_chat.model.cache import KVCache
from tui_chat.model.decoder import Decoder
from tui_chat.model.spec import ModelSpec
from tui_chat.sampling import SamplingParams

from ..model.tiny import SMALL, SPECS, random_weights
from .small import GREEDY, opened, run

BOLD = SamplingParams(temperature=1.3, max_new_tokens=24)


def text(seed: int, count: int) -> tuple[int, ...]:
    """So many ids, from the first one other ones than any other seed gives."""
    draw = torch.Generator().manual_seed(seed)
    return (seed, *torch.randint(39, (count - 1,), generator=draw).tolist())


def ids(*parts: Sequence[int]) -> Prompt:
    return Prompt(mode="raw", ids=tuple(token for part in parts for token in part))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], int]]:
    """How many ids have been run through a decoder since it was asked last."""
    count = 0
    reading, forward = Decoder.reading, Decoder.forward

    def counted_reading(
        self: Decoder, piece: Sequence[int], cache: KVCache, *, logits: bool
    ) -> object:
        nonlocal count
        count += len(piece)
        return reading(self, piece, cache, logits=logits)

    def counted(self: Decoder, piece: Sequence[int], cache: KVCache) -> Tensor:
        nonlocal count
        count += len(piece)
        return forward(self, piece, cache)

    def since() -> int:
        nonlocal count
        so_far, count = count, 0
        return so_far

    monkeypatch.setattr(Decoder, "reading", counted_reading)
    monkeypatch.setattr(Decoder, "forward", counted)
    yield since


def test_a_lane_takes_over_what_another_has_read(long_noise: str, read: Callable[[], int]) -> None:
    loaded = opened(long_noise)
    shared = text(1, 300)
    one, other = Lane(loaded), Lane(loaded)
    run(one, ids(shared, text(2, 40)), GREEDY)
    read()
    ran = run(other, ids(shared, text(3, 20)), GREEDY.with_(max_new_tokens=1))
    assert ran.started.reused_tokens == ran.finished.stats.reused_tokens == 300
    assert read() == 20
    alone = run(Lane(opened(long_noise)), ids(shared, text(3, 20)), GREEDY)
    assert run(other, ids(shared, text(3, 20)), GREEDY).finished.ids == alone.finished.ids


def test_a_lane_that_is_gone_holds_nothing(long_noise: str) -> None:
    loaded = opened(long_noise)
    one = Lane(loaded)
    run(one, ids(text(1, 300)), GREEDY)
    one.writer = None  # lanes and replies know each other
    del one
    assert run(Lane(loaded), ids(text(1, 300))).started.reused_tokens == 0


def test_a_retry_an_edit_and_the_way_back_read_only_what_is_new(
    long_noise: str, read: Callable[[], int]
) -> None:
    lane = Lane(opened(long_noise))
    few = GREEDY.with_(max_new_tokens=1)
    history, first, second = text(1, 200), text(2, 100), text(3, 100)
    run(lane, ids(history, first), few)
    read()
    assert run(lane, ids(history, second), few).started.reused_tokens == 200  # an edit
    assert read() == 100
    back = run(lane, ids(history, first, (5, 6)), few)
    assert back.started.reused_tokens == 300  # and back, going on there
    assert read() == 2
    assert run(lane, ids(history, second), few).started.reused_tokens == 299
    assert read() == 1
    earlier = text(4, 50)
    run(lane, ids(history[:80], earlier), few)  # an edit before that
    read()
    last = run(lane, ids(history, first, (5, 6, 7)), few)  # from two branches, one behind the other
    assert last.started.reused_tokens == 302
    assert read() == 1


def test_what_comes_back_says_what_a_fresh_lane_says(long_noise: str) -> None:
    lane = Lane(opened(long_noise))
    history, prompts = text(1, 150), [text(2, 60), text(3, 60), text(4, 60)]
    said = [run(lane, ids(history, p), BOLD.with_(seed=7)).finished.ids for p in prompts]
    assert len(set(said)) == 3
    for prompt, before in zip(prompts, said, strict=True):
        again = run(lane, ids(history, prompt), BOLD.with_(seed=7))
        fresh = run(Lane(opened(long_noise)), ids(history, prompt), BOLD.with_(seed=7))
        assert again.started.reused_tokens == 209
        assert again.finished.ids == before == fresh.finished.ids


def test_branches_stay_within_their_bytes_and_the_oldest_goes_first() -> None:
    model = Decoder(spec := ModelSpec(**{**SMALL, "context_length": 400}), random_weights(spec))
    cache, kept = model.new_cache(), Prefixes()
    row = 2 * spec.n_layer * spec.n_kv_head * spec.head_dim * 4

    def branch(seed: int) -> list[int]:
        return list(text(seed, 100))

    for seed in (1, 2, 3, 2, 4):
        cache.truncate(0)
        model.forward(branch(seed), cache)
        kept.put_aside(cache, 0, budget=350 * row)
        assert kept.nbytes <= 350 * row
    found = {}
    for seed in (1, 2, 3, 4):
        fresh = model.new_cache()
        found[seed] = kept.extend(fresh, [*branch(seed), 0])
    assert found == {1: 0, 2: 100, 3: 100, 4: 100}
    kept.put_aside(cache, len(cache) - LEAST + 1, budget=350 * row)
    assert len(kept._branches) == 3  # too little to be worth anything
    kept.clear()
    assert kept.nbytes == 0


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize(
    "name", ["gpt", "llama-half", "gqa-qk-norm", "nanochat-like", "gemma2-like"]
)
def test_copied_rows_give_the_logits_of_read_ones(name: str, quantised: bool) -> None:
    spec = SPECS[name]
    model = Decoder(spec, random_weights(spec), quantised_cache=quantised)
    tokens = list(text(1, 40))
    cache, kept = model.new_cache(), Prefixes()
    expected = model.forward(tokens, model.new_cache())
    model.forward(tokens[:39], cache)
    kept.put_aside(cache, 10, budget=10**9)
    fresh = model.new_cache()
    model.forward(tokens[:12], fresh)
    assert kept.extend(fresh, tokens) == 27
    assert fresh.tokens == tokens[:39]
    close = 0.05 if quantised else 1e-4
    torch.testing.assert_close(model.forward(tokens[39:], fresh), expected, atol=close, rtol=close)


def test_eight_forks_write_as_one_batch_what_each_says_alone(
    long_noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    together = Decoder.forward_each

    def counted(model: Decoder, tokens: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        batches.append(len(tokens))
        return together(model, tokens, caches)

    monkeypatch.setattr(Decoder, "forward_each", counted)
    prompt = ids(text(1, 200))
    lane = Lane(opened(long_noise))
    run(lane, prompt, BOLD.with_(seed=0))
    forks = [lane.fork(f"sample {seed}") for seed in range(8)]
    replies = [
        fork.reply(prompt, BOLD.with_(seed=seed), fork.name) for seed, fork in enumerate(forks)
    ]
    events = list(side_by_side(replies))
    ended = {event.lane: event for event in events if isinstance(event, Finished)}
    assert all(e.reused_tokens == 199 for e in events if isinstance(e, Started))
    # The last token of the prompt and each of the reply but the last, which nothing follows.
    assert batches == [8] * 24
    for seed, fork in enumerate(forks):
        alone = run(Lane(opened(long_noise)), prompt, BOLD.with_(seed=seed))
        assert ended[fork.name].ids == alone.finished.ids
    assert len({event.ids for event in ended.values()}) > 4


def test_a_fork_goes_its_own_way(long_noise: str) -> None:
    lane = Lane(opened(long_noise))
    run(lane, ids(text(1, 50)), GREEDY)
    before = list(lane.cache.tokens)
    fork = lane.fork("other")
    run(fork, ids(text(1, 50), text(2, 30)), GREEDY)
    assert lane.cache.tokens == before != fork.cache.tokens


def test_a_prompt_that_several_want_is_read_once(long_noise: str, read: Callable[[], int]) -> None:
    loaded = opened(long_noise)
    shared = text(1, 700)
    replies = [
        Lane(loaded, str(n)).reply(ids(shared, text(2 + n, 10)), GREEDY, str(n)) for n in range(4)
    ]
    list(side_by_side(replies))
    # Every reply's own ids, but for those of the last steps, which are run for all at once.
    assert 700 < read() <= 700 + 4 * (10 + GREEDY.max_new_tokens)
    for n, reply in enumerate(replies):
        alone = run(Lane(opened(long_noise)), ids(shared, text(2 + n, 10)), GREEDY)
        assert reply.ids == list(alone.finished.ids)


def test_when_the_one_that_reads_is_stopped_the_next_goes_on_where_it_was(
    long_noise: str, read: Callable[[], int]
) -> None:
    loaded = opened(long_noise)
    prompt = ids(text(1, 700))
    lanes = [Lane(loaded, name) for name in "abc"]
    replies = [lane.reply(prompt, GREEDY, lane.name) for lane in lanes]
    ended: dict[str, Finished] = {}

    def emit(event: object) -> None:
        if isinstance(event, Finished):
            ended[event.lane] = event

    def blame(lane: str, request_id: str, error: BaseException) -> None:
        raise error

    schedule = Schedule(emit, blame)
    for reply in replies:
        schedule.add(reply.lane.name, reply)
    while len(lanes[0].cache) < 256:
        schedule.turn()
    schedule.stop("a")
    while len(schedule):
        schedule.turn()
    assert {name: event.reason for name, event in ended.items()} == {
        "a": "cancelled", "b": "length", "c": "length",
    }  # fmt: skip
    assert read() < 700 + 2 * 256
    alone = run(Lane(opened(long_noise)), prompt, GREEDY).finished
    assert ended["b"].ids == ended["c"].ids == alone.ids
    assert ended["b"].stats.reused_tokens >= 256


def test_a_reply_that_waits_for_another_lane_does_not_need_it_to_go_on(long_noise: str) -> None:
    """A program may drive one of two replies and forget the other."""
    loaded = opened(long_noise)
    prompt = ids(text(1, 700))
    forgotten = Lane(loaded).reply(prompt, GREEDY).events()
    next(forgotten)
    next(forgotten)
    assert run(Lane(loaded), prompt, GREEDY).finished.reason == "length"
