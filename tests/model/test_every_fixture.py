"""The path that talks against the plain one, for every checkpoint in the fixtures and every spec of
tiny.py, in every dtype and with an int8 cache.

Plain: float32, the whole text in one call on an empty cache. The path that talks: a piece of a
prompt, another one, token by token, then several sequences in one step, in the dtype as a user
names it; by torch alone, then with the compiled step. Layers with a window keep so little beyond
it here that their rows move while they do.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tui_chat.checkpoint import catalog
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.engine.generate import at_once
from tui_chat.engine.load import choose_dtype, read_weights
from tui_chat.errors import UsageError
from tui_chat.model import slab
from tui_chat.model.build import Model, StepsTogether, build
from tui_chat.model.native import ready
from tui_chat.settings import Paths

from .tiny import SPECS, weights_of

torch.set_num_threads(1)

CPU = torch.device("cpu")
FIXTURES = Path(__file__).parents[1] / "fixtures"

# dtype, int8 cache -> how far logits may be off, over the spread of the plain ones. The weights are
# random or those of a short training: they have no structure to be robust by.
LIMITS: dict[tuple[str, bool], float] = {
    ("float32", False): 1e-4,
    ("bfloat16", False): 0.05,
    ("float16", False): 0.02,
    ("int8", False): 0.1,
    ("float32", True): 0.04,
}
KINDS = [pytest.param(*kind, id="-".join([kind[0], *["cache"] * kind[1]])) for kind in LIMITS]


def checkpoints() -> dict[str, tuple[Path, dict[str, object]]]:
    """Every fixture by its name: its path, and what its user has to say."""
    found: dict[str, tuple[Path, dict[str, object]]] = {}
    for path in FIXTURES.glob("*/*/reference.json"):
        wanted = json.loads(path.read_text("utf-8"))
        hints = wanted.get("hints", {})
        said = {"n_head": hints["n_heads"]} if "n_heads" in hints else {}
        found["/".join(path.parts[-3:-1])] = path.parent / wanted["checkpoint"], said
    for pattern in ("hf-families/*", "hf-lora/*", "gguf-models/*.gguf", "litgpt-models/*"):
        for path in FIXTURES.glob(pattern):
            lora = path / "final"
            found["/".join(path.parts[-2:])] = (lora if lora.exists() else path), {}
    return found


CHECKPOINTS = checkpoints()


@pytest.fixture(scope="module", autouse=True)
def compiled_step_is_there() -> None:
    ready.start(Paths.find().cache)
    assert ready.wait(300) or not ready.available()


def by_torch_alone(
    compute: Callable[[Model, list[int]], Tensor], model: Model, ids: list[int]
) -> Tensor:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ready, "_program", None)
        return compute(model, ids)


@pytest.fixture(autouse=True)
def little_is_kept() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("BACK", 1), ("SLACK", 2), ("STEP", 8)):
            patch.setattr(slab, name, value)
        yield


def opened(name: str, dtype: str, quantised: bool) -> Model:
    read, precision = choose_dtype(dtype, CPU)
    if name in SPECS:
        tensors = weights_of(name)
        if read is not None:
            tensors = {key: tensor.to(read) for key, tensor in tensors.items()}
        return build(SPECS[name], tensors, precision, quantised_cache=quantised)
    info = described(name)
    tensors = read_weights(info, read, CPU)
    return build(info.spec, tensors, precision, quantised_cache=quantised)


@functools.cache
def described(name: str) -> CheckpointInfo:
    path, said = CHECKPOINTS[name]
    return catalog.describe(str(path), config=said)


@functools.cache
def plain(name: str) -> tuple[list[int], Tensor]:
    """A text, and the logits after each of its ids."""
    model = opened(name, "float32", False)
    spec = model.spec
    ids = [(11 * n + 5) % spec.vocab_size for n in range(min(28, spec.context_length))]
    return ids, by_torch_alone(at_one_go, model, ids)


def at_one_go(model: Model, ids: list[int]) -> Tensor:
    return model.forward_all(ids, model.new_cache())


def talked(model: Model, ids: list[int]) -> Tensor:
    """The same logits by the path that talks."""
    cache = model.new_cache()
    if at_once(model):
        return model.forward_all(ids, cache)
    rows = [model.forward_all(ids[:17], cache)]  # more than the compiled step takes at once
    rows += [model.forward_all(ids[17:20], cache)]
    rows += [model.forward([token], cache)[None] for token in ids[20:-2]]
    if not isinstance(model, StepsTogether):
        return torch.cat([*rows, model.forward_all(ids[-2:], cache)])
    other = cache.fork()
    model.forward([1], other)
    rows += [model.forward_each([token, 2], [cache, other])[:1] for token in ids[-2:]]
    return torch.cat(rows)


@pytest.mark.parametrize(("dtype", "quantised"), KINDS)
@pytest.mark.parametrize("name", sorted({*CHECKPOINTS, *SPECS}))
def test_what_talks_computes_what_the_plain_path_does(
    name: str, dtype: str, quantised: bool
) -> None:
    ids, wanted = plain(name)
    try:
        model = opened(name, dtype, quantised)
    except UsageError:
        assert described(name).spec.family == "hipgpt"  # keeps nothing, and packs nothing
        return
    ways = [by_torch_alone(talked, model, ids)]
    if ready.suits(model.spec) and model.dtype == torch.float32:
        ways.append(talked(model, ids))
        assert model._program is not None  # type: ignore[attr-defined]
    for found in ways:
        rows = (found - wanted).norm(dim=1) / (wanted - wanted.mean(1, keepdim=True)).norm(dim=1)
        # A router that tips over gives a position to other experts: with them the median counts.
        off = float(rows.median() if model.spec.experts else rows.square().mean().sqrt())
        assert off <= LIMITS[dtype, quantised]


def test_there_is_a_fixture_of_every_kind() -> None:
    specs = [
        SPECS[name] if name in SPECS else described(name).spec
        for name in sorted({*CHECKPOINTS, *SPECS})
    ]
    assert len(CHECKPOINTS) > 120
    assert sum(any(spec.window) for spec in specs) > 15
    assert {spec.family for spec in specs} == {"decoder", "hipgpt", "nanochat"}
