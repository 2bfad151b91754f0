"""What is proposed: the place in the text that agrees best, and what another checkpoint draws."""

from __future__ import annotations

import pickle
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tui_chat
from tests.checkpoint.kempner import Model, save_step, weights_of
from tui_chat.engine.drafters import DraftModel, PromptLookup, check_draft, check_target
from tui_chat.engine.load import LoadedCheckpoint
from tui_chat.errors import UsageError
from tui_chat.sampler import Sampler
from tui_chat.sampling import SamplingParams

from ..model.tiny import random_weights
from .small import LETTERS, alphabet_weights, opened, save_nanogpt, spec

DICE = Sampler(SamplingParams(), 1)


def looked_up(ids: list[int], count: int = 4, lookup: PromptLookup | None = None) -> list[int]:
    lookup = lookup or PromptLookup()
    return [] if lookup.grade(ids) is None else lookup.propose(ids, count, DICE)


def searched(ids: list[int], count: int) -> list[list[int]]:
    """The plain way: what followed at each of the places whose ending in common is the longest."""
    lengths = []
    for at in range(len(ids) - 1):
        length = 0
        while (
            length <= at and length < PromptLookup.LONGEST and ids[at - length] == ids[-1 - length]
        ):
            length += 1
        lengths.append(length)
    if max(lengths) < PromptLookup.SHORTEST:
        return [[]]
    best = [at for at, length in enumerate(lengths) if length == max(lengths)]
    return [((ids[at + 1 :]) * count)[:count] for at in best]


def test_what_followed_the_same_words_is_proposed() -> None:
    assert looked_up([1, 2, 3, 4, 5, 9, 2, 3]) == [4, 5, 9, 2]


def test_the_longer_match_goes_before_the_later_one() -> None:
    assert looked_up([7, 1, 2, 50, 8, 1, 2, 60, 7, 1, 2], 1) == [50]
    assert looked_up([8, 1, 2, 50, 8, 1, 2, 60, 8, 1, 2], 1) == [60]


def test_nothing_is_proposed_where_two_ids_never_stood_together() -> None:
    assert looked_up([1, 2, 3, 4, 1, 3]) == []
    assert looked_up([1]) == []


def test_what_repeats_is_taken_to_go_on_repeating() -> None:
    assert looked_up([9, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


@given(st.lists(st.integers(0, 3), max_size=80), st.integers(1, 8))
def test_growing_ids_give_what_a_search_of_everything_gives(ids: list[int], pieces: int) -> None:
    lookup = PromptLookup()
    lookup.PLACES = 1000
    text: list[int] = []
    for begin in range(0, len(ids), pieces):
        text += ids[begin : begin + pieces]
        if len(text) > 2:
            assert looked_up(text, 5, lookup) in searched(text, 5)


def test_another_text_is_looked_at_from_its_beginning() -> None:
    lookup = PromptLookup()
    assert looked_up([1, 2, 3, 1, 2], 1, lookup) == [3]
    assert looked_up([1, 2, 4, 1, 2], 1, lookup) == [4]


def test_a_token_takes_as_long_in_a_long_text_as_in_a_short_one() -> None:
    def seconds(length: int) -> float:
        ids, lookup = [at * at % 97 for at in range(length)], PromptLookup()
        lookup.grade(ids)
        began = time.perf_counter()
        for at in range(500):
            ids.append(at * 7 % 97)
            lookup.grade(ids)
        return time.perf_counter() - began

    assert min(seconds(40_000) for _ in range(3)) < 5 * min(seconds(1_000) for _ in range(3))


# ---- another checkpoint


@pytest.fixture(scope="module")
def noise(noise: str) -> LoadedCheckpoint:
    return opened(noise)


def test_a_draft_draws_with_the_dice_of_the_reply(noise: LoadedCheckpoint) -> None:
    draft, sampler = DraftModel(noise, noise), Sampler(SamplingParams(), 3, [5, 6, 7])
    ids = [5, 6, 7]
    proposed = draft.propose(ids, 4, sampler)
    cache = noise.model.new_cache()
    for expected in proposed:
        ids.append(sampler(noise.model.forward(ids[len(cache) :], cache)).id)
        assert ids[-1] == expected
    # And goes on from there, having been right.
    assert draft.propose(ids, 3, sampler)[0] == sampler(noise.model.forward(ids[-1:], cache)).id


def test_a_long_text_is_read_before_anything_is_proposed(long_noise: str) -> None:
    loaded = opened(long_noise)
    draft, ids = DraftModel(loaded, loaded), [at % 40 for at in range(600)]
    tries = [draft.propose(ids, 2, DICE) for _ in range(4)]
    assert tries[:3] == [[], [], []] and len(tries[3]) == 2


def test_a_draft_with_a_shorter_context_reads_the_end(
    long_noise: str, noise: LoadedCheckpoint
) -> None:
    draft, ids = DraftModel(noise, opened(long_noise)), [at % 40 for at in range(500)]
    for _ in range(100):
        ids.append(len(ids) * 7 % 40)
        proposed = draft.propose(ids, 3, DICE)
        assert len(proposed) in (0, 3)
        assert len(draft._cache) <= 64


def test_a_draft_of_damaged_weights_is_given_up(
    noise: LoadedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = random_weights(spec())
    weights["head.weight"].fill_(float("nan"))
    broken = opened(save_nanogpt(tmp_path_factory.mktemp("broken"), weights))
    draft = DraftModel(broken, noise)
    assert draft.grade([1, 2, 3]) is not None
    assert draft.propose([1, 2, 3], 3, DICE) == []
    assert draft.grade([1, 2, 3]) is None


# ---- what cannot be


def test_a_draft_needs_the_same_tokenizer(
    noise: LoadedCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = Path(save_nanogpt(tmp_path_factory.mktemp("other"), alphabet_weights()))
    letters = LETTERS[1:] + LETTERS[:1]
    meta = {
        "vocab_size": len(letters),
        "stoi": {letter: at for at, letter in enumerate(letters)},
        "itos": dict(enumerate(letters)),
    }
    (path.parent / "meta.pkl").write_bytes(pickle.dumps(meta))
    with pytest.raises(UsageError, match="id 0 stands for another text"):
        check_draft(opened(str(path)), noise)
    check_draft(noise, noise)


def test_a_draft_needs_as_many_ids(noise: LoadedCheckpoint) -> None:
    class Fewer(LoadedCheckpoint):
        @property
        def offered(self) -> int:
            return 39

    fewer = Fewer(**{name: getattr(noise, name) for name in noise.__dataclass_fields__})
    with pytest.raises(UsageError, match=r"it knows 39 ids, and .* 40"):
        check_draft(fewer, noise)


def test_nothing_is_drafted_for_a_model_without_a_cache(noise: LoadedCheckpoint) -> None:
    tiny = Path(__file__).parent.parent / "fixtures/S3/tiny_fallback/checkpoints/tiny"
    hip = tui_chat.open(str(tiny), device="cpu").loaded
    with pytest.raises(UsageError, match="computes the whole window anew for every token"):
        check_target(hip)
    with pytest.raises(UsageError, match="computes the whole window anew for every token"):
        check_draft(hip, noise)


def test_nothing_is_drafted_where_experts_have_a_capacity(tmp_path: Path) -> None:
    model = Model(num_experts=4, moe_capacity_factor=0.4, max_seq_len=400)
    (tmp_path / "train.toml").write_text(model.toml())
    step = save_step(tmp_path / "step_1", weights_of(model))
    with pytest.raises(UsageError, match="its experts have a capacity"):
        check_target(tui_chat.open(str(step), device="cpu").loaded)
