"""HipGPT's run directories as they are, as copying leaves them and as people rearrange them, and
weights that lie about themselves."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.info import CatalogEntry
from tui_chat.errors import CheckpointError, UsageError

TINY = Path(__file__).parent.parent / "fixtures/S3/tiny_fallback/checkpoints/tiny"
SIZES = {"vocab_size": 220, "max_seq_len": 32, "embed_dim": 32, "num_layers": 2}
HEADS, HIDDEN = 4, 64


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A copy of the run as its trainer leaves it, links included."""
    folder = tmp_path / "checkpoints" / "tiny"
    shutil.copytree(TINY, folder)
    for name, target in (
        ("latest_checkpoint.bin", "tiny_step2.bin"),
        ("latest_config.json", "tiny_step2_config.json"),
    ):
        (folder / name).unlink()
        (folder / name).symlink_to(target)
    return folder


def listed(folder: Path) -> list[CatalogEntry]:
    return [entry for found in catalog.scan([str(folder)]) for entry in found.checkpoints]


def change(path: Path, **sections: dict[str, Any]) -> None:
    said = json.loads(path.read_text())
    for section, values in sections.items():
        said[section] |= values
    path.write_text(json.dumps(said))


def test_a_run_opens_as_what_it_is(run: Path) -> None:
    info = catalog.describe(str(run))
    assert (info.format, info.run, info.step, info.dtype) == ("HipGPT", "tiny", 2, "float32")
    assert (info.spec.n_head, info.spec.n_layer, info.spec.family) == (4, 2, "hipgpt")
    assert info.spec.options == {"dropout": True} and not info.spec.final_norm
    assert info.tokenizer.kind == "hipgpt" and info.tokenizer.vocab_size == 220
    assert (info.mode, info.stop_ids, info.losses) == ("raw", (), {})
    assert any("learning_rate" in text for text in info.unused)


def test_all_steps_are_listed_once_and_the_training_ids_are_none_of_them(run: Path) -> None:
    entries = listed(run)
    assert [(e.run, e.step, e.error, os.path.basename(e.path)) for e in entries] == [
        ("tiny", 1, "", "tiny_step1.bin"),
        ("tiny", 2, "", "tiny_step2.bin"),
    ]
    assert entries[0].fingerprint != entries[1].fingerprint


def test_any_step_opens(run: Path) -> None:
    one, two = (catalog.describe(str(run), step=step) for step in (1, 2))
    assert (one.step, two.step) == (1, 2) and one.fingerprint != two.fingerprint
    with pytest.raises(CheckpointError, match="no step 3: it has 1, 2"):
        catalog.describe(str(run), step=3)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("tiny_step1.bin", 1),
        ("tiny_step1_config.json", 1),
        ("tiny_step2_config.json", 2),
        ("latest_checkpoint.bin", 2),
        ("latest_config.json", 2),
    ],
)
@pytest.mark.parametrize("links", ["live", "written out", "dead"])
def test_every_file_of_a_run_stands_for_its_weights(
    name: str, step: int, links: str, run: Path
) -> None:
    if links != "live":
        break_links(run, dead=links == "dead")
    info = catalog.describe(str(run / name))
    wanted = catalog.describe(str(run / f"tiny_step{step}.bin"))
    assert (info.format, info.run, info.step) == ("HipGPT", "tiny", step)
    assert info.fingerprint == wanted.fingerprint and info.tokenizer == wanted.tokenizer


def break_links(run: Path, *, dead: bool) -> None:
    """As an archive or a clone writes links out, or as the first versions made them."""
    for path in (run / "latest_checkpoint.bin", run / "latest_config.json"):
        target = os.readlink(path)
        path.unlink()
        if dead:
            path.symlink_to(f"checkpoints/tiny/{target}")
        else:
            path.write_text(target)


@pytest.mark.parametrize("links", ["live", "written out", "dead", "lost"])
def test_the_step_that_the_run_calls_its_latest_is_taken(links: str, run: Path) -> None:
    """A run begun anew under its old name leaves higher steps behind, which its program would not
    take either."""
    shutil.copy(run / "tiny_step1.bin", run / "tiny_step900.bin")
    if links == "lost":
        (run / "latest_config.json").unlink()
        (run / "latest_checkpoint.bin").unlink()
    elif links != "live":
        break_links(run, dead=links == "dead")
    assert catalog.describe(str(run)).step == (900 if links == "lost" else 2)
    assert [entry.step for entry in listed(run)] == [1, 2, 900]
    assert not any(entry.error for entry in listed(run))


def test_the_link_to_the_weights_is_enough(run: Path) -> None:
    shutil.copy(run / "tiny_step1.bin", run / "tiny_step900.bin")
    (run / "latest_config.json").unlink()
    assert catalog.describe(str(run)).step == 2


def test_a_copy_that_took_the_place_of_the_link_says_its_step(run: Path) -> None:
    (run / "latest_checkpoint.bin").unlink()
    shutil.copy(run / "tiny_step2.bin", run / "latest_checkpoint.bin")
    assert [entry.step for entry in listed(run)] == [1, 2, 2]
    assert catalog.describe(str(run / "latest_checkpoint.bin")).step == 2


def test_a_latest_step_that_was_pruned_leaves_the_highest(run: Path) -> None:
    (run / "tiny_step2.bin").unlink()
    assert catalog.describe(str(run)).step == 1
    with pytest.raises(CheckpointError, match=r"tiny_step2\.bin.*not beside it"):
        catalog.describe(str(run / "tiny_step2_config.json"))


def test_links_that_name_themselves_end(run: Path) -> None:
    for name in ("latest_checkpoint.bin", "latest_config.json"):
        (run / name).unlink()
    (run / "latest_checkpoint.bin").write_text("latest_config.json")
    (run / "latest_config.json").write_text("latest_config.json")
    assert catalog.describe(str(run)).step == 2
    with pytest.raises(CheckpointError):
        catalog.describe(str(run / "latest_config.json"))


def test_settings_with_whole_paths_are_read_by_their_last_part(run: Path) -> None:
    """As they were written until August 2025, and on Windows."""
    change(
        run / "tiny_step2_config.json",
        checkpoint={"latest": "checkpoints/tiny/tiny_step2.bin"},
        tokenizer={"path": "C:\\runs\\tiny\\tokenizer.json"},
    )
    info = catalog.describe(str(run / "latest_config.json"))
    assert info.step == 2 and info.tokenizer.kind == "hipgpt"


def test_a_name_that_climbs_out_of_the_run_is_not_followed(run: Path) -> None:
    shutil.copy(run / "tiny_step1.bin", run.parent / "other.bin")
    change(run / "tiny_step2_config.json", checkpoint={"latest": "../other.bin"})
    with pytest.raises(CheckpointError, match=r"other\.bin.*not beside it"):
        catalog.describe(str(run / "tiny_step2_config.json"))


def test_a_vocabulary_of_0_is_the_tokenizers_and_no_contradiction(run: Path) -> None:
    change(run / "tiny_step2_config.json", model={"vocab_size": 0})
    info = catalog.describe(str(run))
    assert info.spec.vocab_size == 220
    assert not any("vocab_size" in warning for warning in info.warnings)


def test_settings_that_contradict_the_weights_are_told_and_do_not_count(run: Path) -> None:
    change(run / "tiny_step2_config.json", model={"num_heads": 8})
    info = catalog.describe(str(run))
    assert info.spec.n_head == 4
    assert any("num_heads = 8, the weights 4" in warning for warning in info.warnings)


def test_renamed_weights_open_alone(run: Path, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    shutil.copy(run / "tiny_step2.bin", alone / "model.weights")
    info = catalog.describe(str(alone / "model.weights"))
    assert (info.format, info.run, info.step) == ("HipGPT", "elsewhere", None)
    assert info.tokenizer.kind == "none" and info.tokenizer.vocab_size == 220
    assert any("put the run's tokenizer.json" in warning for warning in info.warnings)
    assert info.fingerprint == catalog.describe(str(run)).fingerprint


def test_renamed_weights_take_the_only_settings_of_their_size(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kept"
    folder.mkdir()
    shutil.copy(run / "tiny_step2.bin", folder / "best.bin")
    shutil.copy(run / "tiny_step2_config.json", folder / "tiny_step2_config.json")
    shutil.copy(run / "tokenizer.json", folder)
    info = catalog.describe(str(folder / "best.bin"))
    assert info.step == 2 and info.tokenizer.kind == "hipgpt"
    assert any("tiny_step2_config.json" in text for text in info.inferred)
    shutil.copy(run / "tiny_step1_config.json", folder)
    assert catalog.describe(str(folder / "best.bin")).step is None  # of two, none is chosen


def test_the_one_settings_file_of_an_early_run_says_the_step(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "early"
    folder.mkdir()
    shutil.copy(run / "tiny_step2.bin", folder / "gpt_checkpoint.bin")
    shutil.copy(run / "tiny_step2_config.json", folder / "early_config.json")
    change(
        folder / "early_config.json",
        checkpoint={"latest": "checkpoints/early/gpt_checkpoint.bin", "step": 40},
    )
    assert catalog.describe(str(folder)).step == 40


def test_the_tokenizer_is_found_where_early_runs_left_it(run: Path) -> None:
    shutil.move(run / "tokenizer.json", run.parent.parent / "tokenizer.json")
    info = catalog.describe(str(run))
    assert os.path.samefile(info.tokenizer.path, run.parent.parent / "tokenizer.json")


@pytest.mark.parametrize("count", [219, 221])
def test_a_tokenizer_of_another_size_is_told(count: int, run: Path) -> None:
    said = json.loads((run / "tokenizer.json").read_text())
    texts = said["stoi_to_token"]
    said["stoi_to_token"] = texts[:219] if count == 219 else [*texts, "one more"]
    (run / "tokenizer.json").write_text(json.dumps(said))
    info = catalog.describe(str(run))
    assert info.tokenizer.kind == ("hipgpt" if count == 219 else "none")
    assert any(f"{count} ids" in warning for warning in info.warnings)


def test_a_foreign_tokenizer_beside_the_weights_is_not_used(run: Path) -> None:
    (run / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": {"a": 0}}}))
    info = catalog.describe(str(run))
    assert info.tokenizer.kind == "none"
    assert any("tokenizer.json is not used" in warning for warning in info.warnings)


# ---- dropout


def test_says_when_dropout_leaves_nothing_of_the_layers(run: Path) -> None:
    info = catalog.describe(str(run))
    assert any("only the last token counts" in warning for warning in info.warnings)
    off = catalog.describe(str(run), config={"dropout": False})
    assert off.spec.options == {"dropout": False}
    assert not any("dropout" in warning for warning in off.warnings)
    assert any("dropout is off" in text for text in off.inferred)


@pytest.mark.parametrize("value", [0, 1, "no", 0.1, None])
def test_dropout_is_on_or_off(value: object, run: Path) -> None:
    with pytest.raises(UsageError, match="dropout is true or false"):
        catalog.describe(str(run), config={"dropout": value})


def test_other_formats_know_no_dropout(run: Path, nanogpt: Callable[..., str]) -> None:
    with pytest.raises(UsageError, match="no model setting 'dropout'"):
        catalog.describe(nanogpt(), config={"dropout": False})
    with pytest.raises(UsageError, match="There are dropout, "):
        catalog.describe(str(run), config={"drop": False})


# ---- weights that lie


def sized(rows: int, length: int, width: int, layers: int, heads: int, hidden: int) -> list[int]:
    """Bytes up to the first layer, of a layer, and behind the last."""
    layer = 3 + 4 * width * width + 2 * width * hidden + 9 * width + hidden
    return [16 + 4 * (rows + length) * width, 4 * layer, 4 * width * rows]


def header(**changes: int) -> bytes:
    return struct.pack("<4i", *(SIZES | changes).values())


def whole() -> bytes:
    return (TINY / "tiny_step2.bin").read_bytes()


RECORD = 16 + 4 * (220 + 32) * 32  # where the first layer begins
LAYER = 4 * (3 + 4 * 32 * 32 + 2 * 32 * HIDDEN + 9 * 32 + HIDDEN)


@pytest.mark.parametrize("name", list(SIZES))
@pytest.mark.parametrize("value", [-1, 0, 1, 33, 2**24 + 1, 2**31 - 1, -(2**31)])
def test_a_header_of_other_sizes_is_refused_at_once(name: str, value: int, tmp_path: Path) -> None:
    path = tmp_path / "tiny_step2.bin"
    path.write_bytes(header(**{name: value}) + whole()[16:])
    with pytest.raises(CheckpointError) as error:
        catalog.describe(str(path))
    assert "tiny_step2.bin" in str(error.value) and "\n" not in str(error.value)


def test_a_thousand_layers_of_next_to_nothing_cost_next_to_nothing(tmp_path: Path) -> None:
    before, layer, behind = sized(2, 2, 1, 1024, 1, 1)
    data = struct.pack("<4i", 2, 2, 1, 1024) + bytes(before - 16)
    data += (struct.pack("<3i", 1, 1, 1) + bytes(layer - 12)) * 1024 + bytes(behind)
    (tmp_path / "a.bin").write_bytes(data)
    began = time.process_time()
    info = catalog.describe(str(tmp_path / "a.bin"))
    assert info.spec.n_layer == 1024 and info.parameters == 4 + 2 + 1024 * 16
    assert time.process_time() - began < 5


def test_gigabytes_are_described_without_being_read(tmp_path: Path) -> None:
    before, layer, behind = sized(2**18, 1024, 4096, 1, 64, 64)
    with open(tmp_path / "a.bin", "wb") as file:
        file.write(struct.pack("<4i", 2**18, 1024, 4096, 1))
        file.seek(before)
        file.write(struct.pack("<3i", 4096, 64, 64))
        file.truncate(before + layer + behind)  # a hole of more than 8 GB
    began = time.process_time()
    assert catalog.describe(str(tmp_path / "a.bin")).spec.head_dim == 64
    assert time.process_time() - began < 2


def test_a_window_that_no_machine_could_compute_is_refused(tmp_path: Path) -> None:
    before, layer, behind = sized(2, 2**16 + 1, 1, 1, 1, 1)
    data = struct.pack("<4i", 2, 2**16 + 1, 1, 1) + bytes(before - 16)
    data += struct.pack("<3i", 1, 1, 1) + bytes(layer - 12 + behind)
    (tmp_path / "a.bin").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"a\.bin"):
        catalog.describe(str(tmp_path / "a.bin"))


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(
    "record",
    [(31, 4, 64), (32, 0, 64), (32, -4, 64), (32, 5, 64), (32, 64, 64), (32, 4, 0), (32, 4, -1),
     (32, 4, 2**31 - 1), (32, 4, 63), (32, 8, 64), (0, 0, 0), (-1, -1, -1)],
)  # fmt: skip
def test_a_layer_that_contradicts_the_others_is_refused(
    layer: int, record: tuple[int, int, int], tmp_path: Path
) -> None:
    data = bytearray(whole())
    at = RECORD + layer * LAYER
    data[at : at + 12] = struct.pack("<3i", *record)
    path = tmp_path / "tiny_step2.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as error:
        catalog.describe(str(path))
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        (0, "empty"),
        (15, "neither"),
        (16, "HipGPT model, but of one larger"),
        (RECORD + 11, "HipGPT model, but of one larger"),
        (RECORD + 12, "calls for more"),
        (RECORD + LAYER, "ends before layer 1 of 2"),
        (len(whole()) - 1, "calls for more"),
    ],
)
def test_a_copy_cut_short_is_refused_with_the_reason(
    keep: int, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "tiny_step2.bin"
    path.write_bytes(whole()[:keep])
    with pytest.raises(CheckpointError, match=reason):
        catalog.describe(str(path))


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("biased", [True, False])
def test_weights_without_output_matrices_are_called_what_they_are(
    layers: int, biased: bool, tmp_path: Path
) -> None:
    rows, length, width, hidden = 9, 5, 8, 16
    biases = 3 * width + hidden + width if biased else 0
    numbers = 3 * width * width + 2 * width * hidden + biases + 4 * width
    data = struct.pack("<4i", rows, length, width, layers) + bytes(4 * (rows + length) * width)
    data += (struct.pack("<3i", width, 2, hidden) + bytes(4 * numbers)) * layers
    (tmp_path / "gpt_checkpoint.bin").write_bytes(data + bytes(4 * width * rows))
    with pytest.raises(CheckpointError, match=r"first hours.*does not read either"):
        catalog.describe(str(tmp_path / "gpt_checkpoint.bin"))


def test_bytes_behind_the_last_tensor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiny_step2.bin"
    path.write_bytes(whole() + bytes(4))
    with pytest.raises(CheckpointError, match="the file has 128,812"):
        catalog.describe(str(path))


def test_a_cut_copy_is_listed_with_its_reason_and_the_step_before_it_is_taken(run: Path) -> None:
    (run / "tiny_step2.bin").write_bytes(whole()[: RECORD + LAYER])
    assert [entry.error[:20] for entry in listed(run)] == ["it ends before layer", ""]
    assert catalog.describe(str(run)).step == 1


def test_random_damage_opens_or_is_refused_and_never_raises_anything_else(tmp_path: Path) -> None:
    draw, refused = random.Random(8), 0
    for n in range(200):
        data = bytearray(whole())
        for _ in range(draw.randrange(1, 4)):
            # Mostly where the sizes stand.
            begin = draw.choice((0, RECORD, RECORD + LAYER, len(data) - 12))
            data[begin + draw.randrange(12)] = draw.randrange(256)
        if n % 4 == 0:
            del data[draw.randrange(len(data)) :]
        path = tmp_path / "a.bin"
        path.write_bytes(data)
        try:
            weights.load(catalog.describe(str(path)))
        except CheckpointError as error:
            refused += 1
            assert "\n" not in str(error) and len(str(error)) < 500
    assert 100 < refused < 200


@pytest.mark.parametrize("first", [128, 0x7B, 0x4B50])
def test_sizes_that_begin_like_another_kind_of_file_do_not_mislead(
    first: int, tmp_path: Path
) -> None:
    """128 rows begin with the byte of a pickle, a width of 123 stands where safetensors has its
    brace."""
    rows, length, width, hidden = first, 4, 123, 2
    layer = 4 * width * width + 2 * width * hidden + 9 * width + hidden
    data = struct.pack("<4i", rows, length, width, 1) + bytes(4 * (rows + length) * width)
    data += struct.pack("<3i", width, 3, hidden) + bytes(4 * (layer + rows * width))
    (tmp_path / "a.bin").write_bytes(data)
    info = catalog.describe(str(tmp_path / "a.bin"))
    assert (info.format, info.spec.vocab_size, info.spec.n_head) == ("HipGPT", rows, 3)


def test_training_ids_alone_are_no_checkpoint(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "tokens.bin":
            path.unlink()
    assert listed(run) == []
    with pytest.raises(CheckpointError, match="no checkpoint"):
        catalog.describe(str(run))
    with pytest.raises(CheckpointError, match=r"tokens\.bin"):
        catalog.describe(str(run / "tokens.bin"))
