"""GGUF files: every architecture against the logits of the model it was converted from, packed and
split ones, and headers that lie."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from tui_chat.checkpoint import catalog, quantised, weights
from tui_chat.checkpoint.archive import read_archive
from tui_chat.checkpoint.gguf.reader import LongList, entry_of, read_list
from tui_chat.checkpoint.info import CheckpointInfo
from tui_chat.errors import CheckpointError
from tui_chat.model.build import build

MODELS = Path(__file__).parents[1] / "fixtures" / "gguf-models"
GIVEN = Path(__file__).parents[1] / "fixtures" / "gguf" / "llama-arch"
NAMES = sorted(path.stem for path in MODELS.glob("*.gguf"))
Q = gguf.GGMLQuantizationType
Edit = Callable[[dict[str, Any], dict[str, Any]], None]


def gives(info: CheckpointInfo, name: str) -> bool:
    """Whether the logits are those of the converted model, at once and one token at a time."""
    wanted = json.loads((MODELS / f"{name}.json").read_text("utf-8"))
    model = build(info.spec, weights.load(info, dtype="float32"))
    whole = model.forward_all(wanted["ids"], model.new_cache())
    cache = model.new_cache()
    model.forward(wanted["ids"][:-8], cache)
    for token in wanted["ids"][-8:]:
        last = model.forward([token], cache)
    far = max(float((whole[int(n)] - torch.tensor(row)).abs().max())
              for n, row in wanted["after"].items())  # fmt: skip
    return far < 2e-4 and bool(torch.allclose(whole[-1], last, atol=1e-4))


def rewritten(
    source: Path, target: Path, edit: Edit = lambda keys, tensors: None, **how: Any
) -> str:
    """The file written anew by gguf's own writer, its keys and tensors changed by `edit`. A tensor
    may be a pair of raw bytes and their type."""
    read = gguf.GGUFReader(source)
    keys = {n: f.contents() for n, f in read.fields.items() if not n.startswith("GGUF.")}
    types = {n: f.types for n, f in read.fields.items()}
    tensors: dict[str, Any] = {t.name: np.array(t.data) for t in read.tensors}
    edit(keys, tensors)
    writer = gguf.GGUFWriter(str(target), keys.pop("general.architecture"), **how)
    for name, value in keys.items():
        kind = types.get(name, [_kind(value)])
        if name == "general.alignment":
            writer.add_custom_alignment(value)
        elif isinstance(value, list) and not kind[1:]:
            writer.add_array(name, value)
        else:
            writer.add_key_value(name, value, kind[0], kind[-1] if kind[1:] else None)
    for name, value in tensors.items():
        if isinstance(value, tuple):
            writer.add_tensor(name, value[0], raw_dtype=value[1])
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return str(target)


def _kind(value: object) -> Any:
    kinds = gguf.GGUFValueType
    if isinstance(value, bool):
        return kinds.BOOL
    named = {str: kinds.STRING, float: kinds.FLOAT32, int: kinds.UINT32, list: kinds.ARRAY}
    return named[type(value)]


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_gives_the_logits_of_its_own_code(name: str) -> None:
    info = catalog.describe(str(MODELS / f"{name}.gguf"))
    assert info.format == "GGUF" and not info.unused and not info.defaults
    assert any("as llama.cpp computes" in text for text in info.inferred)
    assert gives(info, name)


def test_q8_0_gives_the_logits_of_the_floats_it_stands_for() -> None:
    cases = json.loads((GIVEN / "reference.json").read_text())["other_files"]["tiny-q8_0.gguf"]
    info = catalog.describe(str(GIVEN / "tiny-q8_0.gguf"))
    model = build(info.spec, weights.load(info, dtype="float32"))
    for case in cases:
        logits = model.forward(case["prompt_ids"], model.new_cache())
        assert float((logits - torch.tensor(case["last_logits"])).abs().max()) < 3e-3
    assert any("rounds the activations" in text for text in info.warnings)


# ---- packed types


def packed(kind: Any) -> Edit:
    def edit(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            if value.ndim > 1 and "gate_inp" not in name:
                tensors[name] = (gguf.quants.quantize(value.astype(np.float32), kind), kind)

    return edit


def unpacked(kind: Any) -> Edit:
    """What the packed numbers stand for, as floats."""

    def edit(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        for name, value in tensors.items():
            if value.ndim > 1 and "gate_inp" not in name:
                blocks = gguf.quants.quantize(value.astype(np.float32), kind)
                tensors[name] = gguf.quants.dequantize(blocks, kind).astype(np.float32)

    return edit


@pytest.mark.parametrize("kind", [Q.BF16, Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1])
@pytest.mark.parametrize("name", ["qwen2", "mixtral"])
def test_packed_weights_compute_as_the_floats_they_stand_for(
    kind: Any, name: str, tmp_path: Path
) -> None:
    source = MODELS / f"{name}.gguf"
    small = catalog.describe(rewritten(source, tmp_path / "small.gguf", packed(kind)))
    large = catalog.describe(rewritten(source, tmp_path / "large.gguf", unpacked(kind)))
    got, want = (weights.load(info, dtype="float32") for info in (small, large))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[tensor], want[tensor]) for tensor in want)
    assert small.fingerprint != large.fingerprint


def test_q6_k_is_unpacked_as_its_bits_say(tmp_path: Path) -> None:
    """256 numbers: low four bits, high two bits, a scale for each sixteen, one scale for all."""
    random = np.random.default_rng(1)
    width, rows = 256, 3
    raw = random.integers(0, 256, (rows, 210), dtype=np.uint8)
    raw[:, 208:] = np.frombuffer(np.float16([0.01, -0.02, 0.5]).tobytes(), np.uint8).reshape(3, 2)
    want = torch.zeros(rows, width)
    for row in range(rows):
        low, high, scales = raw[row, :128], raw[row, 128:192], raw[row, 192:208].view(np.int8)
        every = float(raw[row, 208:].view(np.float16)[0])
        for n in range(width):
            half, place = divmod(n, 128)
            part, at = divmod(place, 32)
            nibble = int(low[64 * half + 32 * (part % 2) + at]) >> (4 if part > 1 else 0) & 15
            top = int(high[32 * half + at]) >> (2 * part) & 3
            scale = int(scales[8 * half + place // 16])
            want[row, n] = every * scale * ((nibble | top << 4) - 32)
    got = quantised.decoded("Q6_K", torch.from_numpy(raw.reshape(-1).copy()), (rows, width))
    assert torch.allclose(got, want)


def test_packed_weights_without_the_package_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = rewritten(MODELS / "qwen2.gguf", tmp_path / "m.gguf", packed(Q.Q4_0))
    monkeypatch.setattr(quantised.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match="Q4_0") as failed:
        catalog.describe(path)
    assert "tui-chat[gguf]" in failed.value.remedy
    catalog.describe(str(GIVEN / "tiny-q8_0.gguf"))  # needs no package


def test_a_type_that_nobody_unpacks_is_refused_by_name(tmp_path: Path) -> None:
    def edit(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        tensors["output_norm.weight"] = np.zeros(32, np.int8)

    with pytest.raises(CheckpointError, match="int8"):
        catalog.describe(rewritten(MODELS / "llama.gguf", tmp_path / "m.gguf", edit))
    path = patched(tmp_path, b"output_norm.weight" + struct.pack("<IQ", 1, 32), 4, 9)
    with pytest.raises(CheckpointError, match="Q8_1"):
        catalog.describe(path)


def patched(tmp_path: Path, after: bytes, size: int, value: int) -> str:
    """llama.gguf with the number that follows the bytes `after` changed."""
    raw = bytearray((MODELS / "llama.gguf").read_bytes())
    at = raw.index(after) + len(after)
    raw[at : at + size] = value.to_bytes(size, "little")
    (tmp_path / "patched.gguf").write_bytes(raw)
    return str(tmp_path / "patched.gguf")


# ---- files


def test_version_2_is_read_and_others_are_refused(tmp_path: Path) -> None:
    raw = (MODELS / "llama.gguf").read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(raw[:4] + struct.pack("<I", 2) + raw[8:])
    assert gives(catalog.describe(str(path)), "llama")
    path.write_bytes(raw[:4] + struct.pack("<I", 1) + raw[8:])
    with pytest.raises(CheckpointError, match="version 1"):
        catalog.describe(str(path))
    big = rewritten(MODELS / "llama.gguf", tmp_path / "big.gguf", endianess=gguf.GGUFEndian.BIG)
    with pytest.raises(CheckpointError, match="big-endian"):
        catalog.describe(big)


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_the_numbers_begin_at_the_files_own_alignment(alignment: int, tmp_path: Path) -> None:
    def edit(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        keys["general.alignment"] = alignment

    path = rewritten(MODELS / "llama.gguf", tmp_path / "m.gguf", edit)
    assert gives(catalog.describe(path), "llama")


def test_a_model_in_several_files_opens_by_any_of_them(tmp_path: Path) -> None:
    for n in (1, 2):

        def edit(keys: dict[str, Any], tensors: dict[str, Any], n: int = n) -> None:
            keys |= {"split.no": n - 1, "split.count": 2, "split.tensors.count": len(tensors)}
            for name in [t for t in tensors if ("blk.0." in t) is (n == 1)]:
                del tensors[name]
            if n == 2:  # only the first file has the settings
                for key in [k for k in keys if k.startswith("llama.")]:
                    del keys[key]

        rewritten(MODELS / "llama.gguf", tmp_path / f"m-{n:05d}-of-00002.gguf", edit)
    first, second = (str(tmp_path / f"m-{n:05d}-of-00002.gguf") for n in (1, 2))
    assert gives(catalog.describe(first), "llama")
    assert gives(catalog.describe(second), "llama")
    os.rename(second, tmp_path / "gone.gguf")
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        catalog.describe(first)
    with pytest.raises(CheckpointError, match="one of 2 files"):
        catalog.describe(str(tmp_path / "gone.gguf"))


def test_a_renamed_file_is_known_by_its_first_bytes(tmp_path: Path) -> None:
    shutil.copy(MODELS / "llama.gguf", tmp_path / "model.bin")
    assert catalog.describe(str(tmp_path / "model.bin")).format == "GGUF"


HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def header(keys: bytes = b"", count: int = 0, tensors: bytes = b"", many: int = 0) -> bytes:
    return HEAD + struct.pack("<QQ", many, count) + keys + tensors


ARCH = text("general.architecture") + struct.pack("<I", 8) + text("llama")
TENSOR = text("a") + struct.pack("<IQIQ", 1, 8, 0, 0)
LIES = {
    "ends in its head": HEAD + b"\x01",
    "a trillion keys": HEAD + struct.pack("<QQ", 0, 2**40),
    "a trillion tensors": HEAD + struct.pack("<QQ", 2**40, 0),
    "a key of a terabyte": header(struct.pack("<Q", 2**40) + b"abc", 1),
    "a text of a terabyte": header(text("a") + struct.pack("<IQ", 8, 2**40), 1),
    "a value of no type": header(text("a") + struct.pack("<I", 99), 1),
    "a list of a terabyte": header(text("a") + struct.pack("<IIQ", 9, 4, 2**40), 1),
    "a list of lists": header(text("a") + struct.pack("<IIQ", 9, 9, 1), 1),
    "a list of long texts": header(
        text("a") + struct.pack("<IIQ", 9, 8, 100) + struct.pack("<Q", 2**62) * 100, 1
    ),
    "a key twice": header(ARCH * 2, 2),
    "a text that is none": header(text("a") + struct.pack("<IQ", 8, 2) + b"\xff\xfe", 1),
    "no alignment": header(text("general.alignment") + struct.pack("<II", 4, 0), 1),
    "an odd alignment": header(text("general.alignment") + struct.pack("<II", 4, 3), 1),
    "a tensor beyond the file": header(ARCH, 1, TENSOR, 1),
    "a tensor of nothing": header(ARCH, 1, text("a") + struct.pack("<IQIQ", 1, 0, 0, 0), 1),
    "a tensor of nine dimensions": header(
        ARCH, 1, text("a") + struct.pack("<I9QIQ", 9, *[1] * 9, 0, 0), 1
    ),
    "sizes whose product overflows": header(
        ARCH, 1, text("a") + struct.pack("<I4QIQ", 4, *[2**16] * 4, 0, 0), 1
    ),
    "half a block": header(ARCH, 1, text("a") + struct.pack("<IQIQ", 1, 33, 8, 0), 1) + bytes(256),
    "a tensor off the alignment": header(
        ARCH, 1, text("a") + struct.pack("<IQIQ", 1, 8, 0, 4), 1
    ) + bytes(256),
    "a tensor twice": header(ARCH, 1, TENSOR * 2, 2) + bytes(256),
    "tensors that overlap": header(
        ARCH, 1, TENSOR + text("b") + struct.pack("<IQIQ", 1, 64, 0, 0), 2
    ) + bytes(512),
}  # fmt: skip


@pytest.mark.parametrize("raw", LIES.values(), ids=LIES.keys())
def test_a_header_that_lies_is_refused_in_a_sentence(raw: bytes, tmp_path: Path) -> None:
    path = tmp_path / "lie.gguf"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as failed:
        read_archive(str(path))
    assert failed.value.found.startswith(("it", "its", "a ", "the "))


def test_no_cut_of_a_file_opens_or_fails_otherwise(tmp_path: Path) -> None:
    raw = (MODELS / "gpt2.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for end in [*range(4, 1500, 37), *range(1500, len(raw) - 1, 4001), len(raw) - 1]:
        path.write_bytes(raw[:end])
        with pytest.raises(CheckpointError):
            catalog.describe(str(path))


def test_long_lists_are_read_when_they_are_asked_for() -> None:
    path = str(GIVEN / "tiny-f16.gguf")
    keys: Mapping[str, Any] = read_archive(path).root["keys"]  # type: ignore[index]
    tokens = keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, LongList) and tokens.count == 384
    whole = read_list(path, tokens)
    assert len(whole) == 384
    assert [entry_of(path, tokens, n) for n in (0, 17, 383)] == [whole[n] for n in (0, 17, 383)]


# ---- settings


def changed(tmp_path: Path, name: str = "llama", **keys: Any) -> str:
    def edit(said: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key, value in keys.items():
            full = key.replace("__", ".")
            if value is None:
                del said[full]
            else:
                said[full] = value

    return rewritten(MODELS / f"{name}.gguf", tmp_path / "changed.gguf", edit)


@pytest.mark.parametrize(
    ("keys", "what"),
    [
        ({"general__architecture": "mamba"}, "mamba"),
        ({"general__type": "adapter"}, "adapter"),
        ({"llama__attention__max_alibi_bias": 8.0}, "ALiBi"),
        ({"llama__attention__causal": False}, "not causal"),
        ({"llama__attention__value_length": 4}, "value_length"),
        ({"llama__block_count": 3}, "3 layers"),
        ({"llama__block_count": None}, "block_count"),
        ({"llama__context_length": None}, "context_length"),
        ({"llama__attention__head_count": 8}, "rotary"),
        ({"llama__attention__key_length": 16}, "attn.qkv"),
        ({"llama__rope__scaling__type": "spiral"}, "spiral"),
    ],
)
def test_settings_that_cannot_be_computed_are_refused_by_name(
    keys: dict[str, Any], what: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as failed:
        catalog.describe(changed(tmp_path, **keys))
    assert what in f"{failed.value} {failed.value.found}"


@pytest.mark.parametrize(
    ("name", "tensor", "named"),
    [
        ("llama", "blk.1.ffn_norm.weight", "blk.1.ffn_norm"),
        ("llama", "output_norm.weight", "output_norm"),
        ("llama", "blk.1.attn_v.weight", "blk.1.attn_v"),
        ("phi2", "blk.0.attn_norm.weight", "blk.0.attn_norm"),
        ("stablelm", "blk.1.ffn_norm.weight", "blk.1.ffn_norm"),
        ("qwen3moe", "blk.1.ffn_up_exps.weight", "blk.1.ffn_up"),
        ("qwen3moe", "blk.1.ffn_down_exps.weight", "blocks.1.mlp.experts.down"),
        ("gpt2", "position_embd.weight", "position"),
    ],
)
def test_a_tensor_that_is_missing_is_named(
    name: str, tensor: str, named: str, tmp_path: Path
) -> None:
    def edit(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        del tensors[tensor]

    path = rewritten(MODELS / f"{name}.gguf", tmp_path / "m.gguf", edit)
    with pytest.raises(CheckpointError) as failed:
        catalog.describe(path)
    assert named in failed.value.found


def test_a_norm_that_no_layer_has_is_missed_where_the_architecture_needs_it(tmp_path: Path) -> None:
    def edit(keys: dict[str, Any], tensors: dict[str, Any]) -> None:
        for n in (0, 1):
            del tensors[f"blk.{n}.ffn_norm.weight"]

    with pytest.raises(CheckpointError) as failed:
        catalog.describe(rewritten(MODELS / "llama.gguf", tmp_path / "m.gguf", edit))
    assert "blk.0.ffn_norm.weight" in failed.value.found


def test_what_a_file_leaves_out_is_filled_in_and_said(tmp_path: Path) -> None:
    path = changed(
        tmp_path, "gemma2", gemma2__attention__sliding_window=None,
        gemma2__attn_logit_softcapping=None, gemma2__own__key=3,
    )  # fmt: skip
    info = catalog.describe(path)
    assert info.spec.window == (4096, 0) and info.spec.attention_softcap == 50.0
    assert "attention.sliding_window 4096: the file does not say it" in info.defaults
    assert info.unused == ("the key gemma2.own.key",)


def test_numbers_for_each_layer_do_where_they_are_the_same(tmp_path: Path) -> None:
    path = changed(tmp_path, llama__attention__head_count_kv=[2, 2])
    assert gives(catalog.describe(path), "llama")
    path = changed(tmp_path, llama__attention__head_count_kv=[2, 4])
    with pytest.raises(CheckpointError, match="from layer to layer"):
        catalog.describe(path)


def test_windows_follow_the_files_own_pattern(tmp_path: Path) -> None:
    info = catalog.describe(str(MODELS / "gemma3.gguf"))
    assert info.spec.window == (6, 6, 6, 6, 6, 0, 6)
    assert info.spec.layer_rope == ("local",) * 5 + ("main", "local")
    path = changed(tmp_path, "gemma3", gemma3__attention__sliding_window_pattern=2)
    assert catalog.describe(path).spec.window == (6, 0, 6, 0, 6, 0, 6)
    info = catalog.describe(changed(tmp_path, llama__attention__sliding_window=5))
    assert info.spec.window == (5, 5)


# ---- the text


def test_tokenizer_template_and_ends_are_those_in_the_file() -> None:
    info = catalog.describe(str(GIVEN / "tiny-f16.gguf"))
    assert (info.tokenizer.kind, info.tokenizer.vocab_size) == ("gguf", 384)
    assert (info.stop_ids, info.text_start, info.mode) == ((383,), (), "chat")
    assert info.template.tokens == {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>"}
    assert "messages" in info.template.jinja


@pytest.mark.parametrize(
    ("keys", "begins"),
    [({"add_bos_token": True}, True), ({"add_bos_token": False}, False)]
    + [({"add_bos_token": None, "pre": pre}, pre == "llama-bpe") for pre in ("qwen2", "llama-bpe")],
)
def test_texts_begin_as_the_file_says_or_its_kind_does(
    keys: dict[str, Any], begins: bool, tmp_path: Path
) -> None:
    def edit(said: dict[str, Any], tensors: dict[str, Any]) -> None:
        for key, value in keys.items():
            said[f"tokenizer.ggml.{key}"] = value
        for key in [key for key, value in said.items() if value is None]:
            del said[key]

    info = catalog.describe(rewritten(GIVEN / "tiny-f16.gguf", tmp_path / "m.gguf", edit))
    assert info.text_start == ((381,) if begins else ())


@pytest.mark.parametrize(
    ("key", "value", "kind", "what"),
    [
        ("pre", "my-own", "gguf", "'my-own'"),
        ("model", "t5", "none", "'t5'"),
        ("model", "none", "none", "no tokenizer in it"),
    ],
)
def test_a_tokenizer_that_is_not_known_leaves_a_warning(
    key: str, value: str, kind: str, what: str, tmp_path: Path
) -> None:
    def edit(said: dict[str, Any], tensors: dict[str, Any]) -> None:
        said[f"tokenizer.ggml.{key}"] = value

    info = catalog.describe(rewritten(GIVEN / "tiny-f16.gguf", tmp_path / "m.gguf", edit))
    assert info.tokenizer.kind == kind
    assert any(what in text for text in info.warnings)
