"""nanochat's family against the same arithmetic written out, and its cache against no cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tui_chat.errors import CheckpointError
from tui_chat.model.build import Model, StepsTogether, build
from tui_chat.model.linear import Precision
from tui_chat.model.spec import ModelSpec

from .nanochat_oracle import Month, Weights, logits, random_weights

torch.set_num_threads(1)

TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}
CONTEXT = 40

# name -> the trainer's tensors, and the numbers of that month's code
MONTHS: dict[str, tuple[Weights, Month]] = {
    "from March 2026 on": (
        random_weights(),
        Month(4, 2, pattern="SSL", short=6),
    ),
    "even layers, one head for keys": (
        random_weights(layers=4, n_kv_head=1, parts="lambdas values smear backout"),
        Month(4, 1, pattern="SL", short=3),
    ),
    "9 to 14 March 2026": (
        random_weights(parts="lambdas values"),
        Month(4, 2, pattern="S", short=9, qk_scale=1.15),
    ),
    "February 2026": (
        random_weights(parts="lambdas values", gate=32, n_kv_head=4),
        Month(4, 4, "SSSL", 20, 10_000.0, 1.0, 2.0, bfloat16_angles=True),
    ),
    "27 January 2026": (
        random_weights(parts="lambdas values pairs", gate=32),
        Month(4, 2, "SSSL", 20, 10_000.0, 1.0, 2.0, bfloat16_angles=True),
    ),
    "11 January 2026": (
        random_weights(parts="lambdas"),
        Month(4, 2, "SL", 20, 10_000.0, 1.0, bfloat16_angles=True),
    ),
    "October 2025": (
        random_weights(parts=""),
        Month(4, 2, "L", 0, 10_000.0, 1.0, bfloat16_angles=True),
    ),
    "smear without lambdas": (random_weights(parts="smear"), Month(4, 2)),
    "backout alone": (random_weights(parts="backout", layers=1), Month(4, 2)),
}
_MODELS: dict[str, Model] = {}


def canonical(weights: Weights) -> Weights:
    """The same tensors by the program's names."""
    found: Weights = {}
    for name, tensor in weights.items():
        bare = name.removesuffix(".weight")
        parts = bare.split(".")
        if bare == "transformer.wte":
            found["embed.weight"] = tensor.clone()
        elif bare == "lm_head":
            found["head.weight"] = tensor.clone()
        elif parts[0] == "value_embeds":
            found[f"blocks.{parts[1]}.attn.value_embed.weight"] = tensor.clone()
        elif parts[0] == "transformer":
            at, what = f"blocks.{parts[2]}", ".".join(parts[3:])
            ours = {
                "attn.c_proj": "attn.out",
                "attn.ve_gate": "attn.value_gate",
                "mlp.c_fc": "mlp.up",
                "mlp.c_proj": "mlp.down",
            }
            if what in ours:
                found[f"{at}.{ours[what]}.weight"] = tensor.clone()
            elif what == "attn.c_q":
                rows = [weights[f"transformer.h.{parts[2]}.attn.c_{x}.weight"] for x in "qkv"]
                found[f"{at}.attn.qkv.weight"] = torch.cat(rows)
        else:
            found[f"{parts[0]}.weight"] = tensor.clone()
    return found


def spec_of(weights: Weights, month: Month) -> ModelSpec:
    layers = sum(name.endswith("c_fc.weight") for name in weights)
    rows, width = weights["transformer.wte.weight"].shape
    letters = [month.pattern[i % len(month.pattern)] for i in range(layers - 1)] + ["L"]
    return ModelSpec(
        family="nanochat",
        vocab_size=rows,
        n_layer=layers,
        n_head=month.n_head,
        n_kv_head=month.n_kv_head,
        n_embd=width,
        context_length=CONTEXT,
        norm="rmsnorm",
        norm_eps=None,
        embed_norm=True,
        position="rope",
        rope_theta=month.theta,
        rope_sign=-1,
        qk_norm="after_rope",
        qk_scale=month.qk_scale,
        activation="relu2",
        window=tuple(month.short + 1 if letter == "S" else 0 for letter in letters),
        logit_softcap=month.softcap,
        options={
            "value_gate": month.gate,
            "backout_layer": layers // 2,
            "bfloat16_angles": month.bfloat16_angles,
        },
    )


def model(name: str) -> Model:
    if name not in _MODELS:
        weights, month = MONTHS[name]
        _MODELS[name] = build(spec_of(weights, month), canonical(weights))
    return _MODELS[name]


def uncached(running: Model, ids: list[int]) -> Tensor:
    return running.forward_all(ids, running.new_cache())


IDS = [(11 * n + 5) % 64 for n in range(CONTEXT)]


@pytest.mark.parametrize("name", MONTHS)
def test_every_months_model_equals_the_same_arithmetic_written_out(name: str) -> None:
    weights, month = MONTHS[name]
    found = uncached(model(name), IDS)
    torch.testing.assert_close(found, logits(weights, IDS, month).float(), **TOLERANCE)
    assert found.std() > 0.5  # or the comparison would say nothing


@pytest.mark.parametrize("name", MONTHS)
def test_one_by_one_equals_all_at_once(name: str) -> None:
    running = model(name)
    cache = running.new_cache()
    stepped = torch.stack([running.forward([token], cache) for token in IDS])
    torch.testing.assert_close(stepped, uncached(running, IDS), **TOLERANCE)


@pytest.mark.parametrize("name", MONTHS)
def test_several_sequences_at_once_get_what_each_gets_alone(name: str) -> None:
    running = model(name)
    assert isinstance(running, StepsTogether)
    starts = [[5], [9, 31, 2, 44, 17, 8, 1], [3] * 20, []]
    caches = [running.new_cache() for _ in starts]
    for ids, cache in zip(starts, caches, strict=True):
        if ids:
            running.forward(ids, cache)
    for tokens in ([7, 8, 9, 2], [40, 41, 42, 2], [0, 60, 30, 11]):
        found = running.forward_each(tokens, caches)
        for ids, token, row in zip(starts, tokens, found, strict=True):
            ids.append(token)
            torch.testing.assert_close(row, uncached(running, ids)[-1], **TOLERANCE)
    assert [cache.tokens for cache in caches] == starts


@settings(max_examples=60, deadline=None)
@given(data=st.data(), name=st.sampled_from(sorted(MONTHS)))
def test_a_cache_filled_in_pieces_cut_and_reused_gives_the_uncached_logits(
    data: st.DataObject, name: str
) -> None:
    running = model(name)
    ids = data.draw(st.lists(st.integers(0, 63), min_size=2, max_size=CONTEXT))
    cache = running.new_cache()
    while len(cache) < len(ids):
        end = len(cache) + data.draw(st.integers(1, len(ids) - len(cache)))
        last = running.forward(ids[len(cache) : end], cache)
        torch.testing.assert_close(last, uncached(running, ids[:end])[-1], **TOLERANCE)
    kept = data.draw(st.integers(0, len(ids) - 1))
    other = data.draw(st.lists(st.integers(0, 63), min_size=1, max_size=CONTEXT - kept))
    cache.truncate(kept)
    last = running.forward(other, cache)
    torch.testing.assert_close(last, uncached(running, ids[:kept] + other)[-1], **TOLERANCE)
    assert cache.tokens == ids[:kept] + other


@pytest.mark.parametrize("part", ["smear_lambda", "backout_lambda", "x0_lambdas", "value_embeds.2"])
def test_every_part_counts(part: str) -> None:
    weights, month = MONTHS["from March 2026 on"]
    name = part if part in weights else f"{part}.weight"
    without = weights | {name: torch.zeros_like(weights[name])}
    other = build(spec_of(weights, month), canonical(without))
    assert (uncached(other, IDS) - uncached(model("from March 2026 on"), IDS)).abs().max() > 0.1


def test_a_model_without_an_output_matrix_uses_the_embedding_as_it_is_stored() -> None:
    weights, month = MONTHS["October 2025"]
    tied = {name: tensor for name, tensor in weights.items() if name != "lm_head.weight"}
    found = uncached(build(spec_of(tied, month), canonical(tied)), IDS)
    torch.testing.assert_close(found, logits(tied, IDS, month).float(), **TOLERANCE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_stay_near_float32(dtype: torch.dtype) -> None:
    weights, month = MONTHS["from March 2026 on"]
    named = {name: tensor.to(dtype) for name, tensor in canonical(weights).items()}
    coarse = build(spec_of(weights, month), named)
    cache = coarse.new_cache()
    coarse.forward(IDS[:5], cache)
    for token in IDS[5:9]:
        found = coarse.forward([token], cache)
    assert found.dtype == torch.float32
    assert (found - uncached(model("from March 2026 on"), IDS[:9])[-1]).abs().max() < 0.7


# How far logits may be from float32's, over the size of these: random weights have no structure to
# be robust by.
LOSS: dict[Precision, float] = {"float16": 0.01, "int8": 0.1}


@pytest.mark.parametrize("precision", LOSS)
@pytest.mark.parametrize("name", MONTHS)
def test_packed_matrices_stay_near_float32(name: str, precision: Precision) -> None:
    weights, month = MONTHS[name]
    packed = build(spec_of(weights, month), canonical(weights), precision)
    assert packed.dtype == torch.float32
    assert packed.weight_bytes < 0.6 * model(name).weight_bytes
    cache = packed.new_cache()
    found = [packed.forward_all(IDS[:20], cache)]
    found += [packed.forward([token], cache)[None] for token in IDS[20:]]
    wanted = uncached(model(name), IDS)
    assert (torch.cat(found) - wanted).norm() / wanted.norm() < LOSS[precision]


@pytest.mark.parametrize("name", MONTHS)
def test_an_int8_cache_is_the_same_in_any_pieces_and_near_the_exact_one(name: str) -> None:
    weights, month = MONTHS[name]
    small = build(spec_of(weights, month), canonical(weights), quantised_cache=True)
    whole, wanted = uncached(small, IDS), uncached(model(name), IDS)
    assert 0 < (whole - wanted).norm() / wanted.norm() < 0.02
    cache = small.new_cache()
    found = [small.forward_all(IDS[:7], cache)]
    found += [small.forward([token], cache)[None] for token in IDS[7:]]
    # A number between two that can be kept may be rounded either way.
    assert (torch.cat(found) - whole).norm() / whole.norm() < 3e-3


def test_what_has_no_place_is_named() -> None:
    weights, month = MONTHS["October 2025"]
    with pytest.raises(CheckpointError, match=r"no place for the tensors gate\.weight"):
        build(spec_of(weights, month), canonical(weights) | {"gate.weight": torch.zeros(1)})
