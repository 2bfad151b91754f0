"""Experts with a capacity: what a position gets depends on the call it is read in, so a prompt is
read at once, and a reply token by token, as KempnerForge itself does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tui_chat
from tests.checkpoint.kempner import Model, Weights, logits_of, save_step, weights_of

MODEL = Model(num_experts=4, moe_capacity_factor=0.4, max_seq_len=400)


@pytest.fixture(scope="module")
def held() -> Weights:
    return weights_of(MODEL)


@pytest.fixture(scope="module")
def step(held: Weights, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("capacity")
    (folder / "train.toml").write_text(MODEL.toml())
    return str(save_step(Path(folder) / "step_1", held))


def prompt(count: int) -> list[int]:
    draw = torch.Generator().manual_seed(5)
    return torch.randint(MODEL.vocab_size, (count,), generator=draw).tolist()


@pytest.mark.parametrize("count", [12, 300])
def test_a_prompt_is_read_in_one_call_whatever_the_cache_holds(
    count: int, step: str, held: Weights
) -> None:
    checkpoint = tui_chat.open(step, dtype="float32")
    ids = prompt(count)
    expected = logits_of(MODEL, held, ids)[-1]
    for warm in (ids, ids[: count // 2], [*ids, 3, 4]):
        checkpoint.next_logits(warm)
        got = checkpoint.next_logits(ids).double()
        torch.testing.assert_close(got, expected, atol=2e-4, rtol=2e-4)


def test_a_reply_is_written_token_by_token(step: str, held: Weights) -> None:
    checkpoint = tui_chat.open(step, dtype="float32")
    ids = prompt(12)
    checkpoint.next_logits(ids)
    made = [s.id for s in checkpoint.generate(ids, temperature=0.0, max_new_tokens=6)]
    whole = list(ids)
    for number in range(6):
        calls = (12,) + (1,) * number
        whole.append(int(logits_of(MODEL, held, whole, calls=calls)[-1].argmax()))
    assert made == whole[12:]


def test_a_text_is_scored_in_one_call(step: str, held: Weights) -> None:
    checkpoint = tui_chat.open(step, dtype="float32")
    ids = prompt(300)
    # The last id is scored, not read.
    expected = logits_of(MODEL, held, ids[:-1]).log_softmax(-1)
    expected = expected[torch.arange(299), torch.tensor(ids[1:])]
    got = torch.tensor(checkpoint.score(ids)[1:], dtype=torch.float64)
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-3)
