"""The knobs, each filter on distributions worked out by hand, and the fast route against the
plain one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tui_chat import sampler as fast
from tui_chat.errors import EngineError, UsageError
from tui_chat.sampler import Sampler
from tui_chat.sampling import (
    KNOBS,
    PRESETS,
    SamplingParams,
    chain,
    explain,
    knob,
    penalised,
    void_reason,
)

torch.set_num_threads(1)

PURE = SamplingParams(temperature=1.0, top_k=0)


def logits_of(*probabilities: float) -> Tensor:
    return torch.tensor(probabilities).log()


def in_order(params: SamplingParams, logits: Tensor) -> tuple[list[int], Tensor]:
    """What the plain route lets through, in the order in which dice find it, and the cumulative
    share of each.
    """
    explained = explain(logits, params)
    ids = [token for token, name in enumerate(explained.cut_by) if name is None]
    if params.top_p < 1 or params.min_p > 0 or 0 < params.top_k < len(logits):
        ids.sort(key=lambda token: -float(logits[token]))  # equal ones stay in the order of ids
    return ids, explained.kept_probs[ids].cumsum(0)


def pick(params: SamplingParams, logits: Tensor, dice: float) -> tuple[int, int]:
    """The id and the number of tokens let through, by the fast route."""
    scratch = fast.Scratch(len(logits))
    with np.errstate(over="ignore"):
        chosen, count, total = fast.pick(logits.numpy(), float(logits.max()), params, dice, scratch)
    if total:
        weights = (logits.double() - logits.max()) / params.temperature
        assert math.isclose(total, float(weights.exp().sum()), rel_tol=1e-9)
    return chosen, count


def kept(params: SamplingParams, logits: Tensor) -> list[int]:
    """Ids that can be drawn, by both routes: each at the dice in the middle of its share."""
    ids, ends = in_order(params, logits)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    for token, middle in zip(ids, ((begins + ends) / 2).tolist(), strict=True):
        assert pick(params, logits, middle) == (token, len(ids))
    return sorted(ids)


def probabilities(
    params: SamplingParams, logits: Tensor, history: Sequence[int] = ()
) -> list[float]:
    return [round(p, 4) for p in explain(logits, params, history).kept_probs.tolist()]


# ---- filters, by hand


def test_temperature_raises_probabilities_to_its_inverse_power() -> None:
    # squares of .4 .3 .2 .1, normalised
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert probabilities(PURE.with_(temperature=0.5), logits) == [0.5333, 0.3, 0.1333, 0.0333]
    assert probabilities(PURE, logits) == [0.4, 0.3, 0.2, 0.1]


def test_temperature_zero_takes_the_likeliest() -> None:
    explained = explain(logits_of(0.2, 0.4, 0.3, 0.1), PURE.with_(temperature=0.0))
    assert explained.kept_probs.tolist() == [0, 1, 0, 0]
    assert explained.cut_by == ["temperature", None, "temperature", "temperature"]


def test_a_tiny_temperature_is_greedy_without_overflow() -> None:
    sampler = Sampler(PURE.with_(temperature=1e-300), seed=1)
    assert sampler(torch.tensor([100.0, -50.0, 99.0, 0.0])).id == 0


def test_top_k_keeps_k_and_renormalises() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(PURE.with_(top_k=2), logits) == [0, 1]
    assert probabilities(PURE.with_(top_k=2), logits) == [0.5714, 0.4286, 0.0, 0.0]


def test_ties_at_the_kth_place_all_stay() -> None:
    assert kept(PURE.with_(top_k=2), logits_of(0.4, 0.2, 0.2, 0.2)) == [0, 1, 2, 3]
    assert kept(PURE.with_(top_k=1), logits_of(0.4, 0.4, 0.1, 0.1)) == [0, 1]


@pytest.mark.parametrize(
    ("top_p", "ids"),
    [(0.5, [0]), (0.51, [0, 1]), (0.8, [0, 1]), (0.9, [0, 1, 2]), (0.91, [0, 1, 2, 3]), (0.0, [0])],
)
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, ids: list[int]) -> None:
    assert kept(PURE.with_(top_p=top_p), logits_of(0.5, 0.3, 0.1, 0.06, 0.04)) == ids


def test_top_p_sees_only_what_top_k_left() -> None:
    # Of .4 .3 (.571 .429 after top-k 2) the first reaches .55; of all four it would not.
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(PURE.with_(top_p=0.55), logits) == [0, 1]
    assert kept(PURE.with_(top_k=2, top_p=0.55), logits) == [0]


def test_top_p_comes_after_temperature() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(PURE.with_(top_p=0.5, temperature=0.5), logits) == [0]  # .533 alone reaches it


def test_min_p_is_a_share_of_the_likeliest() -> None:
    logits = logits_of(0.4, 0.3, 0.2, 0.1)
    assert kept(PURE.with_(min_p=0.5), logits) == [0, 1, 2]  # .2 is exactly half of .4
    assert kept(PURE.with_(min_p=0.51), logits) == [0, 1]
    assert kept(PURE.with_(min_p=1.0), logits) == [0]


def test_repetition_divides_positive_and_multiplies_negative_logits_once_each() -> None:
    logits = torch.tensor([2.0, -1.0, 3.0, 0.5])
    params = PURE.with_(repetition_penalty=2.0)
    assert penalised(logits, params, [0, 0, 1, 7]).tolist() == [1.0, -2.0, 3.0, 0.5]
    assert logits.tolist() == [2.0, -1.0, 3.0, 0.5]


def test_the_repetition_window_looks_at_the_last_tokens_only() -> None:
    logits = torch.tensor([2.0, 2.0, 2.0, 2.0])
    params = PURE.with_(repetition_penalty=2.0, repetition_window=2)
    assert penalised(logits, params, [0, 1, 2]).tolist() == [2.0, 1.0, 1.0, 2.0]


def test_each_cut_token_names_the_filter_that_cut_it() -> None:
    params = PURE.with_(top_k=4, top_p=0.9, min_p=0.3)
    cut = explain(logits_of(0.5, 0.3, 0.1, 0.06, 0.04), params).cut_by
    assert cut == [None, None, "min_p", "top_p", "top_k"]


# ---- the fast route


def made(kind: str, size: int, seed: int) -> Tensor:
    """(size,) logits."""
    source = torch.Generator().manual_seed(seed)
    flat = torch.randn(size, generator=source)
    match kind:
        case "flat":
            return flat * 0.5
        case "peaked":
            return flat * 3.0
        case "ties":
            return (flat * 2.0).round()
        case "equal":
            return torch.full((size,), -3.25)
        case "banned":
            return flat.masked_fill(torch.rand(size, generator=source) < 0.9, -math.inf).index_fill(
                0, torch.tensor([size // 2]), 0.5
            )
        case "huge":
            return flat * 1e37
    raise AssertionError(kind)


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(["flat", "peaked", "ties", "equal", "banned", "huge"]),
    size=st.sampled_from([1, 4, 65, 1000, 1025, 2048, 5000, 50_257]),
    temperature=st.sampled_from([1e-300, 1e-6, 0.3, 0.8, 1.0, 1.7, 5.0]),
    top_k=st.sampled_from([0, 1, 5, 50, 200, 5000]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.07, 0.0]),
    min_p=st.sampled_from([0.0, 1e-7, 0.02, 0.4, 1.0]),
)
def test_the_fast_route_draws_what_the_plain_one_lets_through(
    seed: int,
    kind: str,
    size: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
) -> None:
    logits = made(kind, size, seed)
    before = logits.clone()
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ids, ends = in_order(params, logits)
    shares = explain(logits, params).kept_probs
    dice = torch.rand(20, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for number in [0.0, *dice.tolist(), 1 - 2**-53]:
        chosen, count = pick(params, logits, number)
        at = min(int(torch.searchsorted(ends, number, right=True)), len(ids) - 1)
        # At the border between two tokens the last bit of a sum may decide.
        near = min(abs(number - float(ends[at])), abs(number - float(ends[at - 1])) if at else 1.0)
        assert chosen == ids[at] or near < 1e-9
        assert shares[chosen] > 0
        # A token without any weight is drawn by nobody, whether counted or not.
        assert count == len(ids) or shares[ids].count_nonzero() <= min(count, len(ids))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("size", [40, 3000, 20_000])
@pytest.mark.parametrize("kind", ["flat", "peaked", "ties"])
@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"top_k": 30},
        {"top_p": 0.9},
        {"min_p": 0.05},
        {"top_k": 30, "top_p": 0.9, "min_p": 0.05},
        {"top_k": 2900, "min_p": 0.3},
        {"top_p": 0.99, "min_p": 0.2},
    ],
)
def test_every_token_let_through_is_found_at_its_own_dice(
    size: int, kind: str, knobs: dict[str, object]
) -> None:
    params, logits = PURE.with_(**knobs), made(kind, size, 3)
    ids, ends = in_order(params, logits)
    begins = torch.cat([ends.new_zeros(1), ends[:-1]])
    middles = ((begins + ends) / 2).tolist()
    for at in {*range(min(len(ids), 60)), *range(0, len(ids), 97), len(ids) - 1}:
        assert pick(params, logits, middles[at]) == (ids[at], len(ids))


@pytest.mark.parametrize("window", [0, 1, 7, 5000])
def test_the_ids_seen_are_kept_up_to_date_token_by_token(window: int) -> None:
    """Against the penalty computed anew from the whole text, knobs turned on the way included."""
    source = torch.Generator().manual_seed(window)
    text = [-1, 3, 3, 99, 0, *torch.randint(0, 40, (2000,), generator=source).tolist()]
    params = SamplingParams(
        temperature=0.0, top_k=0, repetition_penalty=1.3, repetition_window=window
    )
    sampler = Sampler(params, 0, text)
    for at in range(60):
        sampler.params = params.with_(repetition_window=3) if 20 <= at < 25 else params
        logits = torch.randn(40, generator=source) * 0.2
        expected = penalised(logits, sampler.params, text)
        choice = sampler.ahead()(logits) if at % 2 else sampler(logits)
        assert choice.id == int(expected.argmax())
        if at % 2:
            assert sampler(logits) == choice
        assert math.isclose(choice.logprob, float(logits.log_softmax(0)[choice.id]), rel_tol=1e-5)
        text.append(choice.id)


def test_draws_follow_the_distribution() -> None:
    """Chi-square with 3 degrees of freedom: above 16.3 once in a thousand, and the seed is
    fixed.
    """
    logits, count = logits_of(0.4, 0.3, 0.2, 0.1), 4000
    sampler = Sampler(PURE, seed=7)
    seen = [0] * 4
    for _ in range(count):
        seen[sampler(logits).id] += 1
    expected = [0.4 * count, 0.3 * count, 0.2 * count, 0.1 * count]
    assert sum((s - e) ** 2 / e for s, e in zip(seen, expected, strict=True)) < 16.3


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))

    def drawn(seed: int) -> list[int]:
        sampler = Sampler(PURE, seed=seed)
        return [sampler(logits).id for _ in range(20)]

    assert drawn(5) == drawn(5)
    assert drawn(5) != drawn(6)


def test_turning_a_knob_does_not_shift_the_dice_of_later_tokens() -> None:
    logits = torch.randn(100, generator=torch.Generator().manual_seed(0))
    plain, turned = Sampler(PURE, seed=5), Sampler(PURE, seed=5)
    for at in range(10):
        turned.params = PURE.with_(temperature=0.0) if at == 4 else PURE
        one, other = plain(logits), turned(logits)
        assert at == 4 or one.id == other.id


def test_logprob_is_the_models_own_whatever_the_knobs() -> None:
    choice = Sampler(PURE.with_(temperature=0.0, top_k=1), seed=0)(logits_of(0.25, 0.5, 0.15, 0.1))
    assert choice.id == 1
    assert math.isclose(choice.logprob, math.log(0.5), rel_tol=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unusable_logits_are_an_error_in_words(bad: float) -> None:
    with pytest.raises(EngineError, match="no usable probabilities"):
        Sampler(PURE, seed=0)(torch.tensor([0.0, bad, 1.0]))
    with pytest.raises(EngineError):
        Sampler(PURE, seed=0)(torch.full((3,), -math.inf))


# ---- knobs


def test_every_knob_is_a_field_with_its_default() -> None:
    assert [k.name for k in KNOBS] == list(SamplingParams().as_dict())
    assert all(getattr(SamplingParams(), k.name) == k.default for k in KNOBS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"top_k": 1.5},
        {"top_p": "much"},
        {"max_new_tokens": 0},
        {"seed": 2**70},
        {"stop": "text"},
        {"warmth": 1},
    ],
)
def test_a_value_that_cannot_be_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        SamplingParams().with_(**wrong)


def test_knobs_move_in_their_own_steps() -> None:
    assert knob("temperature").moved(0.8, 1) == 0.85
    assert knob("temperature").moved(4.9, 1, big=True) == 5.0
    assert knob("top_k").moved(50, 1) == 100
    assert knob("top_k").moved(3, -1) == 2
    assert knob("top_k").moved(1000, 1) == 1000
    assert knob("seed").moved(None, 1) == 1
    assert knob("max_new_tokens").moved(16, -1) == 1


def test_the_chain_names_what_is_in_force() -> None:
    params = SamplingParams(temperature=0.8, top_k=50, repetition_penalty=1.1)
    assert chain(params) == "repetition 1.10 › T 0.80 › top-k 50 › sample"
    assert chain(PRESETS["greedy"]) == "greedy"
    assert chain(PURE) == "sample"


def test_a_void_knob_says_why() -> None:
    assert void_reason("top_k", PRESETS["greedy"]) == "temperature 0 is greedy"
    assert void_reason("top_k", SamplingParams()) == ""
    assert void_reason("repetition_window", SamplingParams()) == "repetition is off"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("top_p", 99.0, "top_p lies between 0 and 1: 99 does not."),
        ("top_p", 1.25, "top_p lies between 0 and 1: 1.25 does not."),
        ("repetition_penalty", 0, "repetition_penalty lies between 0.1 and 5: 0 does not."),
        ("max_new_tokens", 0, "max_new_tokens lies between 1 and 10000000: 0 does not."),
        ("seed", 2**31, "seed lies between 0 and 2147483647: 2147483648 does not."),
        ("seed", 10**400, "seed lies between 0 and 2147483647: such a number does not."),
        ("temperature", float("inf"), "temperature takes a number, not inf."),
    ],
)
def test_a_value_out_of_range_is_refused_in_numbers_that_can_be_typed(
    name: str, value: float, sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        SamplingParams(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_a_sampler_can_be_asked_what_it_would_draw_next_without_moving_its_dice() -> None:
    params = PURE.with_(repetition_penalty=1.3)
    logits = torch.randn(40, 12, generator=torch.Generator().manual_seed(5))
    asked, plain = Sampler(params, 7, [1, 2]), Sampler(params, 7, [1, 2])
    for at in range(0, 40, 4):
        foreseen = asked.ahead()
        expected = [foreseen(row).id for row in logits[at : at + 4]]
        assert [asked(row).id for row in logits[at : at + 4]] == expected
        assert [plain(row).id for row in logits[at : at + 4]] == expected
