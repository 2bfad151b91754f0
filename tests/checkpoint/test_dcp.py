"""torch's distributed checkpoints read as data: equal to what was saved, whatever way it was cut;
nothing runs, and what lies about the files is refused in one sentence."""

from __future__ import annotations

import io
import os
import pickle
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.checkpoint.kempner import Model, logits_of, save_sharded, save_step, weights_of
from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.dcp import Dcp, read_dcp, turned
from tui_chat.checkpoint.names import Recipe
from tui_chat.checkpoint.plan import WeightPlan
from tui_chat.checkpoint.tensors import Pieces, TensorRef
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

FIXTURES = Path(__file__).parent.parent / "fixtures/S2"
HOSTILE = Path(__file__).parent.parent / "hostile"


def everything(folder: Path) -> Dcp:
    return read_dcp(str(folder), lambda name: True)


def numbers(dcp: Dcp, name: str) -> torch.Tensor:
    """A tensor of a directory, read with its checksums."""
    value = dcp.tensors[name]
    assert isinstance(value, (TensorRef, Pieces))
    recipe = Recipe.below([value], transposed=False)
    assert recipe is not None
    stamps = {archive.path: archive.stamp for archive in dcp.archives}
    return weights.read(WeightPlan(recipes={name: recipe}, stamps=stamps))[name]


def test_gives_what_was_saved(tmp_path: Path) -> None:
    held = {
        "a": torch.randn(5, 7),
        "b.c": torch.randn(3).to(torch.bfloat16),
        "turned": torch.randn(4, 6).t(),
        "view": torch.randn(9, 9)[2:5, 1:4],
        "deep": torch.randn(2, 3, 4).double(),
        "half": torch.randn(6, 2).half(),
    }
    dcp = everything(save_step(tmp_path / "step_1", held, optimizer=False))
    assert set(dcp.names) == {f"model.{name}" for name in held}
    for name, tensor in held.items():
        assert torch.equal(numbers(dcp, f"model.{name}"), tensor), name


@pytest.mark.parametrize("cuts", [(1,), (4,), (1, 3), (3, 2), (7, 5)])
def test_pieces_of_any_cut_make_the_tensor(cuts: tuple[int, ...], tmp_path: Path) -> None:
    tensor = torch.randn(7, 5)
    dcp = everything(save_sharded(tmp_path, {"w": tensor}, {"w": cuts}, ranks=3))
    assert torch.equal(numbers(dcp, "w"), tensor)


@pytest.mark.parametrize("cuts", [(1,), (3,), (1, 2), (1, 1, 2), (2, 3, 2)])
def test_a_stack_is_taken_apart_and_turned(cuts: tuple[int, ...], tmp_path: Path) -> None:
    stack = torch.randn(3, 4, 6)
    dcp = everything(save_sharded(tmp_path, {"w": stack}, {"w": cuts}))
    value = dcp.tensors["w"]
    assert isinstance(value, (TensorRef, Pieces))
    for expert in range(3):
        one = Dcp((), {"one": turned(value, expert)}, dcp.archives)
        assert torch.equal(numbers(one, "one"), stack[expert].t())


def test_only_what_is_wanted_is_opened(tmp_path: Path) -> None:
    held = {"model.w": torch.ones(2, 2), "optimizer.w": torch.ones(2, 2)}
    save_sharded(tmp_path, held, {}, ranks=2)
    (tmp_path / "__1_0.distcp").unlink()
    dcp = read_dcp(str(tmp_path), lambda name: name.startswith("model."))
    assert set(dcp.names) == set(held) and set(dcp.tensors) == {"model.w"}
    assert [Path(archive.path).name for archive in dcp.archives] == [".metadata", "__0_0.distcp"]


def test_a_mesh_of_two_by_two_ranks_gives_the_logits() -> None:
    """Saved by four processes with fully_shard over one dimension of the mesh and tensor
    parallelism over the other: rows in strided order, matrices in a grid, an odd vocabulary."""
    model = Model(
        n_heads=6, head_dim=4, vocab_size=41, ffn_hidden_dim=36, qk_norm=True, norm_eps=1e-5
    )
    info = catalog.describe(str(FIXTURES / "mesh_two_by_two/ckpt"))
    assert info.plan is not None
    assert info.plan.recipes["blocks.0.attn.out.weight"].corners == (
        (0, 0),
        (0, 12),
        (12, 0),
        (12, 12),
    )
    ready = build(info.spec, weights.load(info))
    ids = [3, 40, 17, 0, 22, 8]
    got = ready.forward_all(ids, ready.new_cache()).double()
    torch.testing.assert_close(got, logits_of(model, weights_of(model), ids), atol=1e-4, rtol=1e-4)


# ---- what lies


Edit = Callable[[Any, Path], None]


def edited(folder: Path, change: Edit) -> Path:
    """A sharded directory with its `.metadata` changed through torch's own classes."""
    held = {"w": torch.randn(6, 4), "v": torch.randn(6, 4)}
    save_sharded(folder, held, {"w": (2,), "v": (1, 2)})
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    change(metadata, folder)
    path.write_bytes(pickle.dumps(metadata))
    return folder


def places(metadata: Any) -> list[Any]:
    return list(metadata.storage_data.values())


def chunks(metadata: Any, name: str = "w") -> list[Any]:
    found: list[Any] = metadata.state_dict_metadata[name].chunks
    return found


def point_to(target: str) -> Edit:
    def change(metadata: Any, folder: Path) -> None:
        shutil.copy(folder / "__0_0.distcp", folder.parent / "outside.distcp")
        places(metadata)[0].relative_path = target.replace("HERE", str(folder))

    return change


def place(**values: int) -> Edit:
    def change(metadata: Any, folder: Path) -> None:
        for name, value in values.items():
            setattr(places(metadata)[0], name, value)

    return change


def sizes(*shape: int) -> Edit:
    def change(metadata: Any, folder: Path) -> None:
        chunks(metadata)[0].sizes = torch.Size(shape)

    return change


def whole(*shape: int) -> Edit:
    def change(metadata: Any, folder: Path) -> None:
        metadata.state_dict_metadata["w"].size = torch.Size(shape)

    return change


def dtype(wanted: object) -> Edit:
    def change(metadata: Any, folder: Path) -> None:
        metadata.state_dict_metadata["w"].properties.dtype = wanted

    return change


def one_place_for_all(metadata: Any, folder: Path) -> None:
    first, second = (where for at, where in metadata.storage_data.items() if at.fqn == "w")
    second.relative_path = first.relative_path
    second.offset, second.length = first.offset, first.length


def drop_a_chunk(metadata: Any, folder: Path) -> None:
    del chunks(metadata)[1]


def drop_a_place(metadata: Any, folder: Path) -> None:
    metadata.storage_data.pop(next(iter(metadata.storage_data)))


def overlapping(metadata: Any, folder: Path) -> None:
    second = chunks(metadata, "v")[1]
    second.offsets = torch.Size((0, 1))


def packed(metadata: Any, folder: Path) -> None:
    places(metadata)[0].transform_descriptors = ["zstd"]


def no_places(metadata: Any, folder: Path) -> None:
    metadata.storage_data = None


def no_entries(metadata: Any, folder: Path) -> None:
    metadata.state_dict_metadata = [1, 2]


def missing_shard(metadata: Any, folder: Path) -> None:
    (folder / "__1_0.distcp").unlink()


def shard_is_a_pipe(metadata: Any, folder: Path) -> None:
    (folder / "__1_0.distcp").unlink()
    os.mkfifo(folder / "__1_0.distcp")


LIES: dict[str, tuple[Edit, str]] = {
    "a shard above the directory": (point_to("../outside.distcp"), "no shard beside it"),
    "a shard by its full path": (point_to("HERE/__0_0.distcp"), "no shard beside it"),
    "a shard of another name": (point_to("train_state.pt"), "no shard beside it"),
    "a shard with an empty name": (point_to(""), "no shard beside it"),
    "a place past the end": (place(offset=10**12), "ends at byte"),
    "a length past the end": (place(length=2**40), "ends at byte"),
    "a place before the beginning": (place(offset=-5), "cannot be"),
    "a huge number": (place(offset=2**200), "cannot be"),
    "a place in the middle of a piece": (place(offset=9), "archive"),
    "pieces larger than stored": (sizes(6, 4), "do not make up"),
    "a tensor larger than its pieces": (whole(2**40, 4), "do not make up"),
    "a tensor of other dimensions": (whole(6), "do not make up"),
    "another dtype": (dtype(torch.float16), "is not what"),
    "a missing piece": (drop_a_chunk, "do not make up"),
    "a piece without a place": (drop_a_place, "does not say where"),
    "pieces over one another": (overlapping, "do not make up"),
    "one place for many pieces": (one_place_for_all, "share the same bytes"),
    "packed pieces": (packed, "was packed"),
    "no places": (no_places, "does not say where"),
    "no entries": (no_entries, "no list of entries"),
    "a missing shard": (missing_shard, "shard __1_0.distcp is missing"),
    "a pipe for a shard": (shard_is_a_pipe, "pipe"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_refused_with_the_reason(lie: str, tmp_path: Path) -> None:
    change, reason = LIES[lie]
    folder = edited(tmp_path / "step_1", change)
    with pytest.raises(CheckpointError, match=reason) as caught:
        everything(folder)
    assert "step_1" in str(caught.value) and "\n" not in str(caught.value)


def test_an_unknown_dtype_is_kept_as_its_name(tmp_path: Path) -> None:
    folder = edited(tmp_path / "step_1", dtype(torch.complex64))
    assert "complex64" in str(everything(folder).tensors["w"])


class Payload:
    """An object whose pickle calls a function that leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.mark),)


def as_metadata(mark: Path, folder: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(mark)))


def in_metadata(mark: Path, folder: Path) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.planner_data = Payload(mark)
    metadata.storage_data["extra"] = Payload(mark)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def in_the_shard(mark: Path, folder: Path) -> None:
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    payload = io.BytesIO()
    torch.save(Payload(mark), payload)
    path = folder / "__0_0.distcp"
    end = path.stat().st_size
    path.write_bytes(path.read_bytes() + payload.getvalue())
    places(metadata)[0].offset, places(metadata)[0].length = end, len(payload.getvalue())
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


@pytest.mark.parametrize("hide", [as_metadata, in_metadata, in_the_shard])
def test_nothing_in_it_is_run(hide: Callable[[Path, Path], None], tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    folder = save_sharded(tmp_path / "step_1", {"w": torch.ones(2, 2)}, {})
    hide(mark, folder)
    with pytest.raises(CheckpointError):
        everything(folder)
    assert not mark.exists()


def test_entries_that_are_no_tensors_are_never_opened(tmp_path: Path) -> None:
    from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex

    mark = tmp_path / "ran"
    folder = save_sharded(tmp_path / "step_1", {"w": torch.ones(2, 2)}, {})
    in_the_shard(mark, folder)
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    (index,) = metadata.storage_data
    metadata.storage_data = {MetadataIndex("extra"): metadata.storage_data[index]}
    metadata.state_dict_metadata = {"extra": BytesStorageMetadata()}
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    assert everything(folder).tensors == {} and not mark.exists()


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_random_damage_is_refused_or_opens_and_never_raises_anything_else(
    name: str, tmp_path: Path
) -> None:
    folder = save_sharded(tmp_path / "step_1", {"w": torch.randn(6, 4)}, {"w": (2,)}, ranks=1)
    good = (folder / name).read_bytes()
    draw = random.Random(20_260)
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        at = draw.randrange(len(data))
        match draw.randrange(3):
            case 0:
                data[at] = draw.randrange(256)
            case 1:
                del data[at:]
            case _:
                other = draw.randrange(len(data))
                data[at : at + 24] = data[other : other + 24]
        (folder / name).write_bytes(bytes(data))
        try:
            numbers(everything(folder), "w")
        except (CheckpointError, KeyError) as error:  # KeyError: the name itself was hit
            refused += 1
            assert isinstance(error, CheckpointError) or "w" in str(error)
            assert "\n" not in str(error)
    assert refused > 30


def test_a_flipped_bit_in_the_numbers_is_noticed(tmp_path: Path) -> None:
    tensor = torch.randn(64, 64)
    folder = save_sharded(tmp_path / "step_1", {"w": tensor}, {"w": (2,)}, ranks=1)
    ref = everything(folder).tensors["w"]
    assert isinstance(ref, Pieces)
    path = folder / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[ref.parts[1].storage.begin + 100] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="checksum"):
        numbers(everything(folder), "w")


def test_the_corpus_opens_or_is_refused_as_it_says() -> None:
    dcp = everything(HOSTILE / "valid/dcp/step_5")
    assert len(dcp.tensors) == 6
    for name in ("metadata-only-exec", "no-metadata", "offset-lie"):
        step = HOSTILE / f"code/dir-dcp-{name}/step_1"
        for path in (step, step.parent):
            with pytest.raises(CheckpointError) as caught:
                catalog.describe(str(path))
            assert f"dir-dcp-{name}" in str(caught.value)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_it_reads_what_torch_reads() -> None:
    import torch.distributed.checkpoint as dcp

    for variant in ("dense_gqa", "fsdp2_two_ranks", "moe_softmax"):
        step = FIXTURES / variant / "checkpoints/step_20"
        ours = read_dcp(str(step), lambda name: name.startswith("model."))
        theirs: Mapping[str, torch.Tensor] = {
            name: torch.empty(value.shape)
            for name, value in ours.tensors.items()
            if isinstance(value, (TensorRef, Pieces))
        }
        dcp.load(dict(theirs), checkpoint_id=str(step), no_dist=True)
        for name, tensor in theirs.items():
            assert torch.equal(numbers(ours, name), tensor), name
