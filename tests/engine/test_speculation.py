"""Replies whose next tokens are drafted say what they would say without: the same ids for the same
seed, the same ends, and a cache that holds what was said and no more.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from pathlib import Path

import pytest
import torch

from tui_chat.engine import overlap
from tui_chat.engine.drafters import DraftModel, PromptLookup
from tui_chat.engine.engine import Lane
from tui_chat.engine.events import (
    DraftSet,
    Failed,
    Finished,
    LoadOptions,
    SetDraft,
    Stepped,
    Unload,
)
from tui_chat.engine.load import LoadedCheckpoint, load_checkpoint
from tui_chat.engine.pace import COUNTS, Pace
from tui_chat.engine.speculate import Drafting
from tui_chat.model.cuda.recorder import EagerRecorder
from tui_chat.sampling import SamplingParams, explain

from ..model.tiny import random_weights
from .small import LETTERS, Ran, alphabet_weights, chat, opened, raw, run, save_nanogpt, spec
from .test_worker import Driver, ask

ROOT = Path(__file__).parent.parent.parent
DEMO = ROOT / "checkpoints/demo-base"
PURE = SamplingParams(temperature=1.0, top_k=0, max_new_tokens=40)


class Always(Pace):
    """Drafts wherever something can be proposed, whether it pays or not; each time another
    number.
    """

    def __init__(self) -> None:
        super().__init__({})
        self.calls = 0

    def count(self, grade: Hashable, most: int) -> int:
        self.calls += 1
        wanted = (7, 3, 1, 15)[self.calls % 4]
        return max((count for count in COUNTS if count <= min(most, wanted)), default=0)

    def drafted(self, *found: object) -> None:
        pass


Way = Callable[[LoadedCheckpoint], Lane]


def looking(target: LoadedCheckpoint) -> Lane:
    lane = Lane(target)
    lane.drafting = Drafting("lookup", "lookup", PromptLookup(), Always())
    return lane


def drafted_by(source: LoadedCheckpoint) -> Way:
    def way(target: LoadedCheckpoint) -> Lane:
        lane = Lane(target)
        lane.drafting = Drafting("draft", "draft", DraftModel(source, target), Always())
        return lane

    return way


@pytest.fixture(scope="module")
def noisy(noise: str) -> LoadedCheckpoint:
    return opened(noise)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> LoadedCheckpoint:
    """Nearly the weights of `noise`, as those of an earlier step are."""
    weights = random_weights(spec())
    shaken = torch.Generator().manual_seed(3)
    for tensor in weights.values():
        tensor += 0.05 * torch.randn(tensor.shape, generator=shaken)
    return opened(save_nanogpt(tmp_path_factory.mktemp("other"), weights))


@pytest.fixture(scope="module")
def ways(other: LoadedCheckpoint) -> dict[str, Way]:
    return {"lookup": looking, "draft": drafted_by(other)}


WAYS = pytest.mark.parametrize("way", ["lookup", "draft"])

KNOBS = {
    "greedy": SamplingParams(temperature=0.0),
    "default": SamplingParams(),
    "pure": PURE,
    "nucleus": SamplingParams(temperature=1.2, top_k=0, top_p=0.8),
    "min-p": SamplingParams(temperature=1.5, top_k=0, min_p=0.05),
    "repetition": SamplingParams(repetition_penalty=1.3, repetition_window=16),
}


def same(plain: Ran, drafted: Ran) -> None:
    one, two = plain.finished, drafted.finished
    assert (two.ids, two.text, two.reason, two.detail) == (
        one.ids,
        one.text,
        one.reason,
        one.detail,
    )
    assert drafted.shown == plain.shown
    pieces = [event for event in drafted.events if isinstance(event, Stepped)]
    assert [step.id for piece in pieces for step in piece.steps] == list(one.ids)


# ---- the same ids


@WAYS
@pytest.mark.parametrize("knobs", KNOBS)
def test_the_same_seed_gives_the_same_reply(
    way: str, knobs: str, ways: dict[str, Way], noisy: LoadedCheckpoint
) -> None:
    plain, drafted = Lane(noisy), ways[way](noisy)
    accepted = refused = 0
    for seed in range(8):
        params = KNOBS[knobs].with_(seed=seed, max_new_tokens=60)
        for prompt in (raw("abc abc abc ab"), raw("the end.\nthe" + "xy" * seed)):
            again = run(drafted, prompt, params)
            same(run(plain, prompt, params), again)
            accepted += again.finished.stats.accepted_tokens
            refused += again.finished.stats.drafted_tokens - again.finished.stats.accepted_tokens
            assert drafted.cache.tokens == plain.cache.tokens
    assert refused > 20
    assert accepted > (20 if way == "draft" or knobs == "greedy" else -1)


@pytest.mark.skipif(not DEMO.is_dir(), reason="the demo is not there")
@pytest.mark.parametrize("knobs", ["greedy", "default", "pure"])
def test_the_demo_says_the_same(knobs: str) -> None:
    target, early = (
        load_checkpoint(str(DEMO / f"step_{step:06}.safetensors"), LoadOptions(device="cpu"))
        for step in (585, 263)
    )
    plain, lanes = Lane(target), [looking(target), drafted_by(early)(target)]
    accepted = [0, 0]
    for seed, text in enumerate(("The king", "O, speak again, speak again, sp", "My lord,\n")):
        params = KNOBS[knobs].with_(seed=seed, max_new_tokens=80)
        expected = run(plain, raw(text), params)
        for at, lane in enumerate(lanes):
            again = run(lane, raw(text), params)
            same(expected, again)
            accepted[at] += again.finished.stats.accepted_tokens
    assert accepted[0] > 0 and accepted[1] > 50


def test_a_draft_by_the_same_weights_is_always_right_under_sampling(
    noisy: LoadedCheckpoint,
) -> None:
    lane = drafted_by(noisy)(noisy)
    for seed in range(5):
        stats = run(lane, raw("abc"), PURE.with_(seed=seed)).finished.stats
        assert stats.drafted_tokens == stats.accepted_tokens > 25


@WAYS
def test_what_is_drawn_is_distributed_as_the_model_says(
    way: str, ways: dict[str, Way], noisy: LoadedCheckpoint
) -> None:
    # The third token after a beginning: by then proposals have been accepted and refused. Its
    # distribution given the two before it is the model's own, and the counts must be its.
    lane, model = ways[way](noisy), Lane(noisy)
    start = "abcabcabcabc"
    first = run(model, raw(start), PURE.with_(temperature=0.0, max_new_tokens=3)).finished.ids
    params = SamplingParams(temperature=0.6, top_k=6, max_new_tokens=3)
    found: Counter[tuple[int, int, int]] = Counter()
    draws = 4000
    for seed in range(draws):
        a, b, c = run(lane, raw(start), params.with_(seed=seed)).finished.ids
        found[a, b, c] += 1
    ids = noisy.tokenizer.encode(start)

    def chances(before: tuple[int, ...]) -> dict[int, float]:
        history = [*ids, *before]
        kept = explain(model.next_logits(history), params, history).kept_probs
        return {token: p for token, p in enumerate(kept.tolist()) if p > 0}

    expected: dict[tuple[int, int, int], float] = {}
    for a, p in chances(()).items():
        for b, q in chances((a,)).items():
            for c, r in chances((a, b)).items():
                expected[a, b, c] = p * q * r * draws
    assert set(found) <= set(expected) and len(first) == 3
    cells = [(found[key], value) for key, value in expected.items() if value >= 5]
    rest = draws - sum(seen for seen, _ in cells), draws - sum(value for _, value in cells)
    cells.append(rest)
    chi2 = sum((seen - value) ** 2 / value for seen, value in cells)
    freedom = len(cells) - 1
    # Wilson and Hilferty's approximation of the normal deviate.
    deviate = ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / math.sqrt(2 / (9 * freedom))
    assert freedom > 30 and abs(deviate) < 3.5
    assert lane.drafting is not None


# ---- the same ends


@WAYS
def test_stop_ids_end_a_reply_in_the_middle_of_a_proposal(way: str, noise: str) -> None:
    target = opened(noise, stop_ids=(LETTERS.index("e"), LETTERS.index("t")))
    lane = looking(target) if way == "lookup" else drafted_by(target)(target)
    ends = 0
    for seed in range(12):
        params = PURE.with_(seed=seed)
        plain = run(Lane(target), raw("abcabcabc"), params)
        same(plain, run(lane, raw("abcabcabc"), params))
        ends += plain.finished.reason == "stop"
    assert ends > 6


@WAYS
def test_stop_strings_end_a_reply_in_the_middle_of_a_proposal(
    way: str, alphabet: str, ways: dict[str, Way]
) -> None:
    target = opened(alphabet)
    lane = looking(target) if way == "lookup" else drafted_by(target)(target)
    for stop in ("lm", "lmn", "z.", "q"):
        params = SamplingParams(temperature=0.0, max_new_tokens=50, stop=(stop,))
        plain = run(Lane(target), raw("abcdefghijklmnopqrstuvwxyz.:\n UAS0123456ab"), params)
        again = run(lane, raw("abcdefghijklmnopqrstuvwxyz.:\n UAS0123456ab"), params)
        same(plain, again)
        assert plain.finished.reason == "stop"
        assert again.finished.stats.accepted_tokens > 2


@WAYS
@pytest.mark.parametrize("most", range(1, 12))
def test_a_reply_is_as_long_as_was_allowed(
    most: int, way: str, ways: dict[str, Way], noisy: LoadedCheckpoint
) -> None:
    params = SamplingParams(temperature=0.0, max_new_tokens=most)
    lane = ways[way](noisy)
    again = run(lane, raw("abcabcabcabc"), params)
    same(run(Lane(noisy), raw("abcabcabcabc"), params), again)
    assert len(lane.cache) == 12 + most - 1


@WAYS
def test_a_context_that_fills_up_moves_as_ever(
    way: str, ways: dict[str, Way], noisy: LoadedCheckpoint
) -> None:
    params = SamplingParams(seed=4, max_new_tokens=200)
    same(run(Lane(noisy), raw("abcabc"), params), run(ways[way](noisy), raw("abcabc"), params))


@WAYS
@pytest.mark.parametrize("after", range(1, 14))
def test_knobs_turned_in_the_middle_of_a_proposal_count_from_the_next_token(
    after: int, way: str, ways: dict[str, Way], noisy: LoadedCheckpoint
) -> None:
    def turned(lane: Lane) -> tuple[int, ...]:
        params = SamplingParams(temperature=0.3, seed=6, max_new_tokens=30)
        reply, made = lane.reply(raw("abcabcabc"), params), 0
        for event in reply.events():
            made += isinstance(event, Stepped)
            if made == after:
                reply.params = params.with_(temperature=1.4, top_k=0, repetition_penalty=1.2)
            if isinstance(event, Finished):
                return event.ids
        raise AssertionError("it did not finish")

    assert turned(ways[way](noisy)) == turned(Lane(noisy))


# ---- what the cache holds


@WAYS
@pytest.mark.parametrize("after", range(1, 14))
def test_a_reply_stopped_in_the_middle_of_a_proposal_leaves_what_was_said(
    after: int, way: str, ways: dict[str, Way], noisy: LoadedCheckpoint
) -> None:
    lane = ways[way](noisy)
    reply, made = lane.reply(raw("abcabcabc"), PURE.with_(seed=2)), 0
    for event in reply.events():
        made += isinstance(event, Stepped)
        if made == after:
            reply.cancel()
    assert isinstance(event, Finished) and event.reason == "cancelled"
    said = [*noisy.tokenizer.encode("abcabcabc"), *event.ids]
    assert lane.cache.tokens == said[: len(lane.cache)] and len(lane.cache) >= len(said) - 1
    assert 0 <= event.stats.accepted_tokens <= event.stats.drafted_tokens
    # The next reply goes on from there.
    again = Ran(lane.reply(raw("abcabcabc" + event.text), PURE.with_(seed=3)))
    assert again.started.reused_tokens >= len(said) - 1
    same(Ran(Lane(noisy).reply(raw("abcabcabc" + event.text), PURE.with_(seed=3))), again)


@WAYS
def test_the_next_turn_reuses_all_that_was_said(way: str, ways: dict[str, Way], noise: str) -> None:
    target = opened(noise, chat=True)
    plain, drafted = Lane(target), ways[way](target)
    turns, said = ["abcabc"], 0
    for seed in range(3):
        params = SamplingParams(seed=seed, max_new_tokens=9)
        one, two = run(plain, chat(*turns), params), run(drafted, chat(*turns), params)
        same(one, two)
        # All but the last token of the turn before, which has not been run.
        assert two.started.reused_tokens >= said - 1
        said = len(two.started.prompt_ids) + len(two.finished.ids)
        turns += [one.finished.text, "bcd"]


def test_two_replies_may_take_turns_in_a_lane(noisy: LoadedCheckpoint) -> None:
    def both(lane: Lane) -> list[tuple[int, ...]]:
        replies = [
            lane.reply(raw(text), SamplingParams(seed=1, max_new_tokens=20))
            for text in ("abcabcabc", "xyzxyzxyz")
        ]
        running = [reply.events() for reply in replies]
        while running:
            running = [one for one in running if next(one, None) is not None]
        return [tuple(reply.ids) for reply in replies]

    assert both(looking(noisy)) == both(Lane(noisy))


def test_proposals_that_the_model_has_no_numbers_for_harm_nothing(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    weights = alphabet_weights()
    weights["embed.weight"][LETTERS.index("m")] = float("nan")
    target = opened(save_nanogpt(tmp_path_factory.mktemp("damaged"), weights))
    lane = looking(target)
    # "k" was followed by the letter that cannot be read; the reply says "l" there, and ends before
    # it comes to "m" itself.
    prompt = raw("hijkm"[:4] + "lh")
    params = SamplingParams(temperature=0.0, max_new_tokens=4)
    same(run(Lane(target), prompt, params), run(lane, prompt, params))
    lane.drafting = lane.drafting and lane.drafting._replace(drafter=Proposing("m"))
    same(run(Lane(target), prompt, params), run(lane, prompt, params))
    longer = params.with_(max_new_tokens=20)
    failed = [list(one.reply(prompt, longer).events())[-1] for one in (Lane(target), lane)]
    assert all(isinstance(event, Failed) for event in failed)


class Proposing(PromptLookup):
    """Always the same letter."""

    def __init__(self, letter: str) -> None:
        super().__init__()
        self._token = LETTERS.index(letter)

    def grade(self, ids: list[int]) -> int | None:
        return 1

    def propose(self, ids: list[int], count: int, sampler: object) -> list[int]:
        return [self._token] * count


def test_replies_of_both_kinds_say_the_same_where_a_device_writes_ahead(
    noisy: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(overlap.RECORDERS, "cpu", lambda device: EagerRecorder())
    plain, lane = Lane(noisy), Lane(noisy)
    plain.pipeline = None
    assert lane.pipeline is not None
    lane.drafting = Drafting("lookup", "lookup", PromptLookup(), Always())
    kinds = set()
    for seed in range(20):
        params = SamplingParams(seed=seed, max_new_tokens=30)
        one, two = (run(each, raw("abcabcabc"), params) for each in (plain, lane))
        same(one, two)
        kinds.add(two.finished.stats.drafted_tokens > 0)
    assert kinds == {True, False}


# ---- counts


def test_what_was_proposed_and_what_was_drawn_are_counted(alphabet: str) -> None:
    lane = looking(opened(alphabet))
    start = "abcdefghijkxx"
    ran = run(lane, raw(start + "abc"), SamplingParams(temperature=0.0, max_new_tokens=14))
    assert ran.finished.text == "defghijklmnopq"
    stats = ran.finished.stats
    # Drafted are "efg", "i", and after "j" what once came then: "kxx", of which one is right.
    assert (stats.drafted_tokens, stats.accepted_tokens) == (7, 5)
    last = list(ran.of(Stepped))[-1]
    assert isinstance(last, Stepped)
    assert last.drafted_tokens <= stats.drafted_tokens
    assert run(Lane(lane.checkpoint), raw(start)).finished.stats.drafted_tokens == 0


# ---- in the worker


def test_a_draft_is_set_while_a_reply_runs_and_taken_away(
    driver: Driver, long_noise: str, alphabet: str
) -> None:
    params = SamplingParams(seed=5, max_new_tokens=400)
    driver.open("a", long_noise)
    driver.open("a/draft", long_noise)
    driver.send(ask("abc", params, request_id="plain"))
    plain = driver.finished("plain")
    assert plain.stats.drafted_tokens == 0

    def react(event: object) -> None:
        made = len([e for e in driver.of(Stepped) if e.request_id == "r"])
        if isinstance(event, Stepped) and event.request_id == "r":
            if made == 20:
                driver.send(SetDraft(lane="a", by="a/draft"))
            if made == 200:
                driver.send(Unload(lane="a/draft"))

    driver.react = react
    driver.send(ask("abc", params))
    drafted = driver.finished("r")
    assert drafted.ids == plain.ids
    assert drafted.stats.accepted_tokens == drafted.stats.drafted_tokens > 0
    [answer] = driver.of(DraftSet)
    assert (answer.kind, answer.error) == ("draft", None) and answer.label
    driver.react = lambda event: None
    driver.send(ask("abc", params, request_id="after"))
    assert driver.finished("after").stats.drafted_tokens == 0


def test_a_draft_that_does_not_fit_is_refused_in_a_sentence(
    driver: Driver, noise: str, tmp_path: Path
) -> None:
    driver.send(SetDraft(lane="a", lookup=True))
    driver.until(lambda: driver.of(DraftSet))
    assert "no checkpoint to draft for" in str(driver.of(DraftSet)[-1].error)
    driver.open("a", noise)
    driver.send(SetDraft(lane="a", by="a/draft"))
    driver.until(lambda: len(driver.of(DraftSet)) == 2)
    assert "no checkpoint that could draft" in str(driver.of(DraftSet)[-1].error)
    driver.send(SetDraft(lane="a", lookup=True), SetDraft(lane="a"))
    driver.until(lambda: len(driver.of(DraftSet)) == 4)
    assert [event.kind for event in driver.of(DraftSet)[2:]] == ["lookup", ""]


def test_replies_in_step_are_not_kept_waiting_by_one_that_drafts(
    driver: Driver, long_noise: str
) -> None:
    params = SamplingParams(seed=8, max_new_tokens=300)
    for lane in ("a", "b"):
        driver.open(lane, long_noise)
    driver.send(ask("abc", params, lane="a", request_id="alone"))
    alone = driver.finished("alone")
    driver.send(SetDraft(lane="a", lookup=True))
    driver.send(ask("abc", params, lane="a", request_id="x"))
    driver.send(ask("abc", params.with_(seed=9), lane="b", request_id="y"))
    driver.finished("x")
    driver.finished("y")
    order = [event.request_id for event in driver.of(Stepped) if event.request_id in "xy"]
    assert abs(order[:300].count("x") - order[:300].count("y")) < 60
    assert driver.finished("x").ids == alone.ids


@pytest.fixture
def driver() -> Iterator[Driver]:
    driver = Driver()
    driver.worker.start()
    yield driver
    assert driver.worker.close(timeout=20)
