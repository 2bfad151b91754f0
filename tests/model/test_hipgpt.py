"""HipGPT's forward pass against the same thing written down step by step in float64, and its
dropout against 32-bit arithmetic."""

from __future__ import annotations

import functools
import math
import struct
from typing import Any

import pytest
import torch
from torch import Tensor

from tui_chat.model.build import build
from tui_chat.model.constant_dropout import passes
from tui_chat.model.families.hipgpt import HipGPT
from tui_chat.model.spec import ModelSpec

Weights = dict[str, Tensor]


def spec(*, dropout: bool = True, **sizes: Any) -> ModelSpec:
    return ModelSpec(
        family="hipgpt", final_norm=False, activation="relu", options={"dropout": dropout}, **sizes
    )


def random_weights(of: ModelSpec, hidden: int = 24) -> Weights:
    torch.manual_seed(11)
    width = of.n_embd
    shapes: dict[str, tuple[int, ...]] = {
        "embed.weight": (of.vocab_size, width),
        "position.weight": (of.context_length, width),
        "head.weight": (of.vocab_size, width),
    }
    matrices = {
        "attn.qkv": (3 * width, width),
        "attn.out": (width, width),
        "mlp.up": (hidden, width),
        "mlp.down": (width, hidden),
    }
    for i in range(of.n_layer):
        for name, shape in matrices.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
        for name in ("attn_norm", "mlp_norm"):
            shapes[f"blocks.{i}.{name}.weight"] = (width,)
            shapes[f"blocks.{i}.{name}.bias"] = (width,)
    return {
        name: torch.randn(shape) * (3 / math.sqrt(width) if "blocks" in name else 1.0)
        for name, shape in shapes.items()
    }


def float32(value: float) -> float:
    found: float = struct.unpack("<f", struct.pack("<f", value))[0]
    return found


def drawn(place: int) -> float:
    """The number between 0 and 1 that the kernel draws for a place, in 32-bit arithmetic."""
    block, word = place // 256, 0xFFFFFFFF
    state_a, state_d = (place + 1) & word, (place * block + 1) & word
    t = state_d ^ (state_d >> 2)
    t = (t ^ (t << 1)) & word
    t = (t ^ state_a ^ (state_a << 4)) & word
    return float32(float32((t + 1) & word) / float32(word))


@functools.cache
def all_dropped(count: int) -> list[bool]:
    return [drawn(place) < float32(0.1) for place in range(count)]


def by_hand(of: ModelSpec, w: Weights, ids: list[int], *, dropout: bool) -> Tensor:
    """Logits after `ids`, every number computed, in float64."""
    w = {name: tensor.double() for name, tensor in w.items()}
    length, width = of.context_length, of.n_embd
    dim = width // of.n_head
    window = ([0] * length + ids)[-length:]
    x = torch.stack([w["embed.weight"][t] + w["position.weight"][p] for p, t in enumerate(window)])
    dropped = torch.zeros(length, width, dtype=torch.bool)
    if dropout:
        dropped = torch.tensor(all_dropped(length * width)).view(length, width)

    def norm(x: Tensor, at: str) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(1, keepdim=True) + 1e-5)
        return scaled * w[f"{at}.weight"] + w[f"{at}.bias"]

    def linear(x: Tensor, at: str) -> Tensor:
        return x @ w[f"{at}.weight"].T + w[f"{at}.bias"]

    def drop(x: Tensor) -> Tensor:
        return torch.where(dropped, 0.0, x / 0.9) if dropout else x

    for i in range(of.n_layer):
        at = f"blocks.{i}"
        buffer = linear(norm(x, f"{at}.attn_norm"), f"{at}.attn.qkv").flatten()
        third = length * width
        q, k, v = (
            buffer[n * third : (n + 1) * third].view(length, width).clone() for n in range(3)
        )
        heads = []
        for h in range(of.n_head):
            part = slice(h * dim, (h + 1) * dim)
            scores = q[:, part] @ k[:, part].T / math.sqrt(dim)
            heads.append(torch.softmax(scores, dim=1) @ v[:, part])
        x = x + drop(linear(torch.cat(heads, 1), f"{at}.attn.out"))
        inner = torch.relu(linear(norm(x, f"{at}.mlp_norm"), f"{at}.mlp.up"))
        x = x + drop(linear(inner, f"{at}.mlp.down"))
    return w["head.weight"] @ x[-1]


def made(of: ModelSpec, w: Weights) -> HipGPT:
    model = build(of, dict(w))
    assert isinstance(model, HipGPT)
    return model


# Below 185,385 places all is dropped. Then: the last row gets through; others, but not the last;
# the last and others with holes between them.
WINDOWS: list[dict[str, Any]] = [
    {"context_length": 17, "n_embd": 12, "n_head": 3},
    {"context_length": 512, "n_embd": 384, "n_head": 6},
    {"context_length": 512, "n_embd": 512, "n_head": 8},
    {"context_length": 512, "n_embd": 640, "n_head": 10},
]


@pytest.mark.parametrize("dropout", [True, False], ids=["as-shipped", "without-dropout"])
@pytest.mark.parametrize("window", WINDOWS, ids=lambda w: f"{w['context_length']}x{w['n_embd']}")
def test_computes_what_its_own_program_does(window: dict[str, Any], dropout: bool) -> None:
    of = spec(dropout=dropout, vocab_size=31, n_layer=2, **window)
    w = random_weights(of)
    model = made(of, w)
    length = of.context_length
    prompts = [[n % 31 for n in range(length // 2)]]
    if length < 100:
        prompts += [[5], [3, 1, 4, 1, 5], [n % 31 for n in range(length + 3)]]
    for ids in prompts:
        logits = model.forward(ids, model.new_cache())
        torch.testing.assert_close(
            logits.double(), by_hand(of, w, ids, dropout=dropout), rtol=1e-4, atol=1e-4
        )


def test_those_windows_reach_every_way_through_dropout() -> None:
    """What the windows above are there for, so that they cannot lose it unnoticed."""
    found = []
    for window in WINDOWS:
        of = spec(vocab_size=31, n_layer=2, **window)
        blocks = made(of, random_weights(of))._blocks
        found.append((len(blocks), any(isinstance(block.rows, Tensor) for block in blocks)))
    assert found == [(0, False), (2, False), (0, False), (2, True)]


def test_nothing_gets_through_dropout_before_place_185384() -> None:
    got_through = passes(torch.arange(600_000))
    assert isinstance(got_through, Tensor)
    assert int(got_through.nonzero()[0]) == 185_384


def test_dropout_in_whole_numbers_is_dropout_in_32_bit_floats() -> None:
    places = [*range(0, 5000), *range(185_000, 205_000), *range(2_000_000, 2_020_000), 2**31 - 1]
    wanted = [drawn(place) >= float32(0.1) for place in places]
    assert [bool(passes(place)) for place in places] == wanted
    assert torch.as_tensor(passes(torch.tensor(places))).tolist() == wanted
    assert 0 < sum(wanted) < len(wanted)


@pytest.mark.parametrize(
    ("length", "width", "through"),
    [(384, 512, 1), (1024, 512, 1), (512, 512, 0), (1024, 256, 0)],
)
def test_whether_the_last_row_gets_through_follows_no_rule_of_thumb(
    length: int, width: int, through: int
) -> None:
    last = passes(torch.arange((length - 1) * width, length * width))
    assert bool(torch.as_tensor(last).any()) == bool(through)


@pytest.mark.parametrize("dropout", [True, False])
def test_all_logits_at_once_are_those_one_by_one(dropout: bool) -> None:
    of = spec(dropout=dropout, vocab_size=31, n_layer=2, n_head=3, n_embd=12, context_length=9)
    model = made(of, random_weights(of))
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5]
    cache = model.new_cache()
    model.forward(ids[:2], cache)
    together = model.forward_all(ids[2:], cache)
    assert cache.tokens == ids
    for n in range(2, len(ids)):
        alone = model.forward(ids[: n + 1], model.new_cache())
        torch.testing.assert_close(together[n - 2], alone, rtol=1e-4, atol=1e-4)


def test_the_last_ids_count_when_more_came_than_the_window_shows() -> None:
    of = spec(dropout=False, vocab_size=31, n_layer=2, n_head=3, n_embd=12, context_length=9)
    model = made(of, random_weights(of))
    long = model.new_cache()
    for token in range(14):
        logits = model.forward([token], long)
    short = model.forward(list(range(5, 14)), model.new_cache())
    torch.testing.assert_close(logits, short, rtol=0, atol=0)


def test_what_is_kept_is_divided_by_nine_tenths() -> None:
    """One layer whose attention adds 0.9 everywhere it is let through."""
    of = spec(vocab_size=4, n_layer=1, n_head=6, n_embd=384, context_length=512)
    w = {name: torch.zeros_like(tensor) for name, tensor in random_weights(of).items()}
    w["blocks.0.attn.out.bias"].fill_(0.9)
    w["head.weight"][2] = 1.0
    model = made(of, w)
    through = passes(torch.arange(511 * 384, 512 * 384))
    wanted = float(torch.as_tensor(through).sum())
    assert wanted > 300
    logits = model.forward([1], model.new_cache())
    torch.testing.assert_close(logits, torch.tensor([0.0, 0.0, wanted, 0.0]), rtol=1e-6, atol=1e-3)
