from __future__ import annotations

import pytest

from tui_chat.checkpoint.names import (
    Recipe,
    Table,
    cat,
    count,
    match,
    needed,
    optional,
    strip,
    transpose,
)
from tui_chat.checkpoint.tensors import Storage, TensorRef, contiguous
from tui_chat.errors import CheckpointError
from tui_chat.model.spec import ModelSpec

SPEC = ModelSpec(vocab_size=10, n_layer=2, n_head=2, n_embd=4, context_length=8)
TABLE: Table = {
    "embed": "wte",
    "position": "wpe",
    "blocks.{i}.attn.qkv": cat("h.{i}.{h}.q", "h.{i}.{h}.k", "h.{i}.{h}.v"),
    "blocks.{i}.attn.out": "h.{i}.out",
    "blocks.{i}.mlp.up": transpose("h.{i}.up"),
    "blocks.{i}.mlp.down": "h.{i}.down",
    "head": optional("head"),
}


def ref(*shape: int, dtype: str = "float32") -> TensorRef:
    return TensorRef(dtype, shape, contiguous(shape), 0, Storage("f", 0, 4096))


def tensors() -> dict[str, object]:
    found: dict[str, object] = {"wte.weight": ref(10, 4), "wpe.weight": ref(8, 4)}
    for i in range(2):
        for h in range(2):
            found |= {f"h.{i}.{h}.{part}.weight": ref(2, 4) for part in "qkv"}
        found |= {f"h.{i}.out.weight": ref(4, 4), f"h.{i}.out.bias": ref(4)}
        found |= {f"h.{i}.up.weight": ref(4, 12), f"h.{i}.up.bias": ref(12)}
        found[f"h.{i}.down.weight"] = ref(4, 12)
    return found


def test_a_table_gives_every_canonical_tensor_its_parts() -> None:
    source = tensors()
    found = match(SPEC, source, TABLE)
    parts = [source[f"h.1.{h}.{part}.weight"] for part in "qkv" for h in range(2)]
    assert list(found["blocks.1.attn.qkv.weight"].parts) == parts
    assert found["blocks.0.mlp.up.weight"] == Recipe((source["h.0.up.weight"],), transposed=True)  # type: ignore[arg-type]
    assert found["blocks.0.mlp.up.weight"].shape == (12, 4)
    assert not found["blocks.0.mlp.up.bias"].transposed
    assert set(needed(SPEC)) <= found.keys() and "head.weight" not in found


def test_every_tensor_is_used_or_ignored_or_named() -> None:
    source = tensors() | {"h.0.mask": ref(8, 8), "extra.weight": ref(2)}
    with pytest.raises(CheckpointError, match=r"left over: extra\.weight\.$"):
        _raised(source, ("*.mask",))


def _raised(source: dict[str, object], ignored: tuple[str, ...] = ()) -> None:
    try:
        match(SPEC, source, TABLE, ignored)
    except CheckpointError as error:
        raise CheckpointError(error.found) from None


def test_missing_left_over_and_wrong_shapes_are_listed_together() -> None:
    source = tensors()
    del source["h.1.1.k.weight"]
    source["wpe.weight"] = ref(9, 4)
    source["other"] = ref(1)
    with pytest.raises(CheckpointError) as caught:
        match(SPEC, source, TABLE)
    assert "missing: h.1.1.k.weight" in caught.value.found
    assert "position.weight is 9 x 4, not 8 x 4" in caught.value.found
    assert caught.value.found.endswith("left over: other")


def test_what_one_layer_has_every_layer_must_have() -> None:
    source = tensors()
    del source["h.1.out.bias"]
    with pytest.raises(CheckpointError, match=r"missing: h\.1\.out\.bias"):
        _raised(source)


@pytest.mark.parametrize("value", [ref(4, 12, dtype="int64"), "text", ref(4), ref()])
def test_what_cannot_be_a_weight_is_named(value: object) -> None:
    source = tensors() | {"h.0.down.weight": value}
    with pytest.raises(CheckpointError, match=r"(h\.0\.down|blocks\.0\.mlp\.down)"):
        _raised(source)


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("module._orig_mod.h.0.w", "h.0.w"),
        ("_orig_mod.module.module.h.0.w", "h.0.w"),
        ("h.0._orig_mod.w", "h.0.w"),
        ("h.0.w", "h.0.w"),
        ("h.module.w", "h.module.w"),
        ("module", "module"),
    ],
)
def test_wrappers_are_taken_off_in_any_order(name: str, bare: str) -> None:
    found, removed = strip({name: 1}, ("module",))
    assert list(found) == [bare] and bool(removed) == (name != bare)


def test_two_tensors_that_become_one_name_are_refused() -> None:
    with pytest.raises(CheckpointError, match="told apart"):
        strip({"module.w": 1, "w": 2}, ("module",))


def test_counting_layers_notices_a_gap() -> None:
    assert count(["h.0.w", "h.1.w", "x.7.w"], "h.{n}.") == 2
    assert count([], "h.{n}.") == 0
    with pytest.raises(CheckpointError, match=r"h\.1\."):
        try:
            count(["h.0.w", "h.2.w"], "h.{n}.")
        except CheckpointError as error:
            raise CheckpointError(error.found) from None
