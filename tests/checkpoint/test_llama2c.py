"""llama2.c: one model as its trainer saves it and as each of its exports, and headers that lie."""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

import tui_chat
from tui_chat.checkpoint import catalog, weights
from tui_chat.errors import CheckpointError

FIXTURES = Path(__file__).parent.parent / "fixtures/llama2c"
TRAINED = FIXTURES / "ckpt-and-v0/out/ckpt.pt"
LEGACY = FIXTURES / "ckpt-and-v0/out/model.bin"
INT8 = FIXTURES / "v2-int8/model_q80.bin"
SIZES = (64, 192, 3, 4, 2, 384, 128)  # dim, hidden, layers, heads, kv heads, ids, context
MAGIC = 0x616B3432
ORDER = [
    *(f"attention.{name}" for name in ("wq", "wk", "wv", "wo")),
    *(f"feed_forward.{name}" for name in ("w1", "w2", "w3")),
]

Weights = dict[str, torch.Tensor]


def trained() -> Weights:
    root = torch.load(TRAINED, weights_only=True)
    found: Weights = root["model"]
    return found


def header(
    version: int, sizes: tuple[int, ...] = SIZES, *, shared: int = 1, group: int = 0
) -> bytes:
    return struct.pack("<Ii7iBi", MAGIC, version, *sizes, shared, group).ljust(256, b"\0")


def raw(tensor: torch.Tensor) -> bytes:
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())


def version_1(found: Weights, *, shared: bool = True) -> bytes:
    """As export.py's version1_export writes a model."""
    names = [
        f"layers.{i}.{norm}.weight" for norm in ("attention_norm", "ffn_norm") for i in range(3)
    ]
    names += ["norm.weight", "tok_embeddings.weight"]
    names += [f"layers.{i}.{name}.weight" for name in ORDER for i in range(3)]
    names += [] if shared else ["output.weight"]
    return header(1, shared=int(shared)) + b"".join(raw(found[name]) for name in names)


def same_weights(path: Path, wanted: Path = TRAINED) -> bool:
    found, expected = (weights.load(catalog.describe(str(p))) for p in (path, wanted))
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in found
    )


def test_the_trainers_file_and_its_export_hold_the_same_model() -> None:
    file, export = (catalog.describe(str(path)) for path in (TRAINED, LEGACY))
    assert file.spec == export.spec and file.format == export.format == "llama2.c"
    assert (file.spec.n_kv_head, file.spec.head_dim, file.spec.rope_layout) == (
        2,
        16,
        "interleaved",
    )
    assert (file.step, file.losses) == (1000, {"val": 1.5}) and export.step is None
    assert same_weights(LEGACY)


def test_the_run_lists_both_but_no_tokenizer() -> None:
    (run,) = catalog.scan([str(FIXTURES / "ckpt-and-v0")])
    assert [Path(entry.path).name for entry in run.checkpoints] == ["model.bin", "ckpt.pt"]
    assert not any(entry.error for entry in run.checkpoints)


def test_a_version_1_export_has_another_order_and_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "v1.bin").write_bytes(version_1(trained()))
    assert same_weights(tmp_path / "v1.bin")


def test_an_output_matrix_of_its_own_is_read(tmp_path: Path) -> None:
    found = trained() | {"output.weight": torch.randn(384, 64)}
    (tmp_path / "v1.bin").write_bytes(version_1(found, shared=False))
    sizes = struct.pack("<7i", *SIZES[:5], -SIZES[5], SIZES[6])
    legacy = sizes + LEGACY.read_bytes()[28:] + raw(found["output.weight"])
    (tmp_path / "v0.bin").write_bytes(legacy)
    torch.save({"model": found, "model_args": _args()}, tmp_path / "ckpt.pt")
    for name in ("v0.bin", "v1.bin", "ckpt.pt"):
        head = weights.load(catalog.describe(str(tmp_path / name)))["head.weight"]
        assert torch.equal(head, found["output.weight"]), name


def _args(**changes: object) -> dict[str, object]:
    words = ("dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "max_seq_len")
    return dict(zip(words, (64, 3, 4, 2, 384, 128), strict=True)) | changes


def test_int8_values_are_multiplied_by_the_scale_of_their_group() -> None:
    info = catalog.describe(str(INT8))
    assert info.dtype == "int8" and any("int8" in note for note in info.inferred)
    group = 32
    data = INT8.read_bytes()
    begin = 256 + 4 * 64 * (2 * info.spec.n_layer + 1)  # after header and norms
    count = info.spec.vocab_size * 64
    values = torch.frombuffer(bytearray(data[begin : begin + count]), dtype=torch.int8)
    scales = torch.frombuffer(
        bytearray(data[begin + count : begin + count + 4 * count // group]), dtype=torch.float32
    )
    wanted = (values.view(-1, group) * scales[:, None]).view(-1, 64)
    found = weights.load(info)
    assert torch.equal(found["embed.weight"], wanted)
    assert {tensor.dtype for tensor in found.values()} == {torch.float32}


def test_another_scale_is_another_fingerprint(tmp_path: Path) -> None:
    data = bytearray(INT8.read_bytes())
    (tmp_path / "a.bin").write_bytes(data)
    data[-1] ^= 0x40  # of the last scale of the last matrix
    (tmp_path / "b.bin").write_bytes(data)
    first, second = (catalog.describe(str(tmp_path / name)) for name in ("a.bin", "b.bin"))
    assert first.fingerprint == catalog.describe(str(INT8)).fingerprint != second.fingerprint


def test_compiled_and_trimmed_training_files_open(tmp_path: Path) -> None:
    found = {f"_orig_mod.{name}": tensor for name, tensor in trained().items()}
    torch.save({"model": found, "model_args": _args(norm_eps=1e-6)}, tmp_path / "ckpt.pt")
    info = catalog.describe(str(tmp_path / "ckpt.pt"))
    assert info.spec.norm_eps == 1e-6 and any("_orig_mod." in text for text in info.inferred)
    assert same_weights(tmp_path / "ckpt.pt")


def test_key_heads_that_are_not_said_are_as_many_as_query_heads(tmp_path: Path) -> None:
    found = trained()
    for i in range(3):
        for name in ("wk", "wv"):
            found[f"layers.{i}.attention.{name}.weight"] = torch.randn(64, 64)
    torch.save({"model": found, "model_args": _args(n_kv_heads=None)}, tmp_path / "ckpt.pt")
    assert catalog.describe(str(tmp_path / "ckpt.pt")).spec.n_kv_head == 4


def test_weights_alone_open_with_heads_and_length_and_tell_the_key_heads(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(trained(), path)
    given: dict[str, object] = {"n_head": 4}
    with pytest.raises(CheckpointError, match="does not say context_length"):
        catalog.describe(str(path), config=dict(given))
    info = catalog.describe(str(path), config=given | {"context_length": 64})
    wanted = catalog.describe(str(TRAINED)).spec
    assert (info.format, info.spec.n_kv_head) == ("llama2.c", wanted.n_kv_head)
    assert any(text.startswith("n_kv_head") for text in info.inferred)
    assert any("rope_theta=N" in text for text in info.warnings)


def test_settings_that_contradict_the_tensors_are_refused(tmp_path: Path) -> None:
    for changes, reason in (({"n_layers": 2}, "n_layers = 2"), ({"n_kv_heads": 4}, "wrong shape")):
        torch.save({"model": trained(), "model_args": _args(**changes)}, tmp_path / "ckpt.pt")
        with pytest.raises(CheckpointError, match=reason):
            catalog.describe(str(tmp_path / "ckpt.pt"))


# ---- the tokenizer


@pytest.mark.parametrize(
    "place", ["tokenizer.bin", "tok384.bin", "data/tok384.bin", "../tok384.bin"]
)
def test_the_vocabulary_is_found_where_people_leave_it(place: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(LEGACY, folder)
    shutil.copy(FIXTURES / "ckpt-and-v0/tokenizer.bin", folder / place)
    hint = catalog.describe(str(folder / "model.bin")).tokenizer
    assert hint.kind == "llama2c" and Path(hint.path).samefile(folder / place)


def test_the_trainers_own_vocabulary_file_does_as_well(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    shutil.copy(TRAINED, tmp_path)
    shutil.copy(FIXTURES / "ckpt-and-v0/tokenizer.model", tmp_path / "data/tok384.model")
    checkpoint = tui_chat.open(str(tmp_path / "ckpt.pt"), device="cpu", dtype="float32")
    rows = json.loads((FIXTURES / "ckpt-and-v0/reference.json").read_text())["encode"]
    for row in rows:
        assert checkpoint.encode(row["text"]) == row["ids"]
        assert checkpoint.decode(row["ids"]) == row["text"]


def test_a_vocabulary_of_another_size_is_passed_by(tmp_path: Path) -> None:
    shutil.copy(LEGACY, tmp_path)
    data = (FIXTURES / "ckpt-and-v0/tokenizer.bin").read_bytes()
    (tmp_path / "tokenizer.bin").write_bytes(data + struct.pack("<fi", 0.0, 1) + b"x")
    info = catalog.describe(str(tmp_path / "model.bin"))
    assert info.tokenizer.kind == "none" and "tok384.bin" in info.warnings[-1]


def test_a_vocabulary_can_be_named(tmp_path: Path) -> None:
    shutil.copy(LEGACY, tmp_path)
    vocabulary = str(FIXTURES / "ckpt-and-v0/tokenizer.bin")
    checkpoint = tui_chat.open(
        str(tmp_path / "model.bin"), device="cpu", dtype="float32", tokenizer=vocabulary
    )
    assert checkpoint.encode("12345") == [323, 52, 53, 54, 55, 56]


@pytest.mark.parametrize("path", [LEGACY, TRAINED, INT8], ids=["v0", "ckpt", "v2"])
def test_writes_on_from_a_text_as_the_trainers_program_does(path: Path) -> None:
    folder = path.parent if path is INT8 else path.parent.parent
    cases: list[dict[str, Any]] = json.loads((folder / "reference.json").read_text())["cases"]
    checkpoint = tui_chat.open(str(path), device="cpu", dtype="float32")
    for case in cases:
        from tui_chat.engine.events import Prompt

        fitted = checkpoint.lane.window.fit(Prompt(mode="raw", text=case["prompt_text"]), 16)
        assert fitted.ids == case["prompt_ids"]  # id 1 in front
        made = checkpoint.generate(fitted.ids, temperature=0.0, max_new_tokens=16)
        assert [step.id for step in made] == case["greedy_ids"]
    assert checkpoint.info.stop_ids == (1, 2)
    empty = checkpoint.lane.window.fit(Prompt(mode="raw", text=""), 16)
    assert empty.ids == [1]


# ---- headers that lie


def changed(at: int, value: int, source: Path) -> bytes:
    data = bytearray(source.read_bytes())
    struct.pack_into("<i", data, at, value)
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (header(1), "calls for more"),
        (header(9), "version 9"),
        (header(1, (64, 192, 2**30, 4, 2, 384, 128)), "n_layers = 1073741824"),
        (header(1, (64, 192, 3, 4, 2, -384, 128)), "vocab_size = -384"),
        (header(1, (64, 192, 3, 4, 3, 384, 128)), "3 key heads"),
        (header(1, (64, 192, 3, 64, 64, 384, 128)), "64 heads of even width"),
        (header(1, shared=7), "7 where"),
        (header(2, group=0), "groups of 0"),
        (header(2, group=48), "groups of 48"),
        (header(1)[:60], "ends at byte 60"),
        (changed(37, 2**31 - 1, INT8), "groups of"),
        (INT8.read_bytes()[:-4], "calls for more"),
        (INT8.read_bytes() + b"\0\0\0\0", "has 148,996"),
        (LEGACY.read_bytes()[:-4], "but not of one of its length"),
        (LEGACY.read_bytes() + b"\0", "but not of one of its length"),
        (changed(0, -64, LEGACY), "neither a torch file"),
        # 128 wide: its first byte is a pickle's
        (struct.pack("<7i", 128, 352, 3, 4, 2, 384, 128) + bytes(1000), "not of one of its length"),
    ],
)  # fmt: skip
def test_a_header_that_lies_is_refused(data: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=reason) as caught:
        catalog.describe(str(path))
    assert "model.bin" in str(caught.value) and "\n" not in str(caught.value)


def test_a_width_that_begins_like_a_pickle_opens(tmp_path: Path) -> None:
    sizes = (128, 16, 1, 2, 1, 3, 4)
    layer = 2 * 128 + 2 * 128 * 128 + 2 * 64 * 128 + 3 * 16 * 128
    numbers = 3 * 128 + layer + 128 + 4 * 64
    (tmp_path / "model.bin").write_bytes(struct.pack("<7i", *sizes) + bytes(4 * numbers))
    info = catalog.describe(str(tmp_path / "model.bin"))
    assert (info.spec.n_embd, info.spec.n_kv_head, info.format) == (128, 1, "llama2.c")


def test_the_first_word_of_a_text_from_nothing_has_no_space_and_later_ones_do() -> None:
    from tui_chat.engine.events import Finished, Prompt
    from tui_chat.sampling import SamplingParams

    checkpoint = tui_chat.open(str(LEGACY), device="cpu", dtype="float32")
    hello = checkpoint.encode("Hello world!")
    shown = []
    for text in ("", "a"):
        reply = checkpoint.lane.reply(Prompt(mode="raw", text=text), SamplingParams())
        shown.append("".join(reply._stream.push(token) for token in hello))
    assert shown == ["Hello world!", " Hello world!"]
    params = SamplingParams(temperature=0.0, max_new_tokens=8)
    made = list(checkpoint.lane.reply(Prompt(mode="raw", text=""), params).events())[-1]
    assert isinstance(made, Finished) and made.text == checkpoint.decode(made.ids)


def test_the_score_of_a_text_counts_its_first_token_too(capsys: pytest.CaptureFixture[str]) -> None:
    from tui_chat.cli.main import main

    assert main(["score", str(LEGACY), "Hello", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["ids"][:2] == [1, 323] and said["logprobs"][1] < 0
    assert main(["next", str(LEGACY), "Hello", "--json", "--top", "0"]) == 0
    rows = json.loads(capsys.readouterr().out)["tokens"]
    assert {row["id"]: row["text"] for row in rows}[323] == " "  # as in the middle of a text
