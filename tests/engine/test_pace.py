"""How much is drafted, on a clock of its own: a step takes a second."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from tui_chat.engine.pace import COUNTS, Pace


class Machine:
    """Writes tokens as fast as `pace` has it do. `check` and `draft` are steps, for so many ids;
    each id is right with the chance `right`.
    """

    def __init__(
        self,
        pace: Pace,
        *,
        check: Callable[[int], float],
        draft: float = 0.0,
        right: float,
        seed: int = 1,
    ) -> None:
        self.pace, self.check, self.draft, self.right = pace, check, draft, right
        self.random = random.Random(seed)
        self.held_up = 0.0  # how often a call takes 30 steps more
        self.seconds = 0.0
        self.tokens = 0
        self.drafts: list[int] = []

    def write(self, tokens: int, most: int = 100) -> float:
        """Tokens a second."""
        began, until = self.seconds, self.tokens + tokens
        first = self.tokens
        while self.tokens < until:
            count = self.pace.count("g", most)
            self.drafts.append(count)
            if not count:
                noise = self.random.uniform(0.9, 1.2)
                self.pace.stepped(noise)
                self.seconds += noise
                self.tokens += 1
                continue
            accepted = 0
            while accepted < count and self.random.random() < self.right:
                accepted += 1
            noise = self.random.uniform(0.9, 1.2)
            check, drafting = noise * self.check(count), noise * self.draft * count
            check += 30 * (self.random.random() < self.held_up)
            self.pace.drafted("g", count, accepted, drafting, check)
            self.seconds += check + drafting
            self.tokens += accepted + 1
        return (self.tokens - first) / (self.seconds - began)


PLAIN = 1 / 1.05  # tokens a second, with the noise


@pytest.mark.parametrize("cost", [1.2, 3.0, 10.0])
def test_drafts_that_are_never_right_cost_a_small_share(cost: float) -> None:
    machine = Machine(Pace({"g": 0.9}), check=lambda count: cost + 0.1 * count, right=0.0)
    machine.write(100)  # until it is known
    assert machine.write(5000) > 0.965 * PLAIN


def test_drafts_that_are_right_more_than_double_the_speed() -> None:
    machine = Machine(Pace({"g": 0.4}), check=lambda count: 1.1 + 0.03 * count, right=0.97)
    assert machine.write(1000) > 5 * PLAIN
    assert max(machine.drafts) == 15


def test_a_call_that_was_kept_waiting_now_and_then_does_not_end_it() -> None:
    machine = Machine(Pace({"g": 0.4}), check=lambda count: 1.1 + 0.03 * count, right=0.97)
    machine.held_up = 0.05
    machine.write(2000)
    assert machine.drafts[-100:].count(15) > 80


def test_as_many_are_drafted_as_pay() -> None:
    machine = Machine(Pace({"g": 0.4}), check=lambda count: 1.05 + 0.05 * count, right=0.6)
    machine.write(2000)
    often = max(COUNTS, key=machine.drafts[-500:].count)
    assert often in (1, 3)
    assert machine.write(1000) > 1.3 * PLAIN


def test_a_drafter_as_slow_as_the_model_is_given_up_however_right_it_is() -> None:
    machine = Machine(Pace({"g": 0.6}), check=lambda count: 1.2, draft=1.0, right=0.95)
    machine.write(100)
    assert machine.write(2000) > 0.96 * PLAIN


def test_what_did_not_pay_is_tried_again_and_found_to_pay() -> None:
    machine = Machine(Pace({"g": 0.6}), check=lambda count: 1.5, right=0.0)
    machine.write(2000)
    machine.right = 0.95
    machine.write(500)
    assert machine.write(500) > 3 * PLAIN


def test_no_more_is_drafted_than_there_is_room_for() -> None:
    machine = Machine(Pace({"g": 0.9}), check=lambda count: 1.1, right=1.0)
    machine.write(200, most=5)
    assert max(machine.drafts) == 3
    machine.drafts.clear()
    machine.write(20, most=0)
    assert max(machine.drafts) == 0


def test_nothing_is_drafted_before_a_step_has_been_timed() -> None:
    pace = Pace({"g": 1.0})
    assert pace.count("g", 15) == 0
    pace.stepped(1.0)
    pace.stepped(1.0)
    assert pace.count("g", 15) > 0


def test_where_replies_are_faster_in_another_way_few_are_drafted() -> None:
    def drafted(drafting: float, other: float, replies: int = 80) -> int:
        pace, count = Pace({"g": 0.5}), 0
        for _ in range(replies):
            drafts = pace.take_reply()
            count += drafts
            pace.replied(drafts, 100, 100 * (drafting if drafts else other))
        return count

    assert drafted(drafting=1.0, other=0.2) < 15
    assert drafted(drafting=0.2, other=1.0) > 65


def test_short_replies_tell_nothing_of_their_speed() -> None:
    pace = Pace({"g": 0.5})
    for _ in range(5):
        assert pace.take_reply()
        pace.replied(True, 3, 1.0)
