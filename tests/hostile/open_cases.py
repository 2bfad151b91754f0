"""Opens every case of the corpus in one process of its own and prints what came of each, a JSON
object a line.

    python open_cases.py CORPUS WORK [CASE-ID...]

It runs in the empty folder WORK, so that what a payload leaves is seen and nothing else.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

from tui_chat.checkpoint import catalog, weights
from tui_chat.checkpoint.archive import read_archive
from tui_chat.checkpoint.plain import mapping
from tui_chat.checkpoint.tensors import TensorRef
from tui_chat.errors import TuiChatError
from tui_chat.tokenizers.chars import open_characters

KINDS = ("torch", "pickle-meta", "safetensors", "nanogpt-dir", "auto", "llama2c", "llmc", "hipgpt")


def prepared(case: Mapping[str, object], corpus: Path, work: Path) -> Path:
    """The case's own copy of its file or folder, damaged as its recipe says."""
    folder = work / str(case["id"])
    folder.mkdir()
    recipe = case.get("recipe")
    if isinstance(recipe, dict):
        data = bytearray((corpus / recipe["base"]).read_bytes())
        if "flip" in recipe:
            byte, bit = recipe["flip"]
            data[byte] ^= 1 << bit
        if "truncate" in recipe:
            del data[recipe["truncate"] :]
        if "zero" in recipe:
            begin, count = recipe["zero"]
            data[begin : begin + count] = bytes(len(data[begin : begin + count]))
        path = folder / Path(recipe["base"]).name
        path.write_bytes(data)
        return path
    origin = corpus / str(case["file"])
    path = folder / origin.name
    if case["family"] == "valid":  # with what belongs to it
        shutil.copytree(origin.parent, folder, dirs_exist_ok=True)
    elif origin.is_dir():
        shutil.copytree(origin, path)
    else:
        shutil.copy(origin, path)
    for companion in case.get("companions", ()):  # type: ignore[attr-defined]
        shutil.copy(corpus / companion, folder)
    suffix = case.get("strip_suffix")
    if isinstance(suffix, str):
        for name in sorted(folder.rglob("*" + suffix)):
            name.rename(str(name).removesuffix(suffix))
    return path


def opened(case: Mapping[str, object], path: Path) -> int:
    """Open it as the app does, weights included. Returns how many tensors the file holds."""
    if case["opens_as"] == "pickle-meta":
        open_characters(str(path))
        return 0
    if path.is_dir():
        path = path / "ckpt.pt"
    root = mapping(read_archive(str(path)).root)
    held = next(
        (values for key in ("model", "model_state_dict") if (values := mapping(root.get(key)))),
        root,
    )
    info = catalog.describe(str(path))
    weights.load(info, dtype="float32")
    return sum(isinstance(value, TensorRef) for value in held.values())


def main() -> None:
    import torch

    torch.set_num_threads(1)
    corpus, work = Path(sys.argv[1]), Path(sys.argv[2])
    chosen = set(sys.argv[3:])
    cases = json.loads((corpus / "index.json").read_text())["cases"]
    for case in cases:
        if case["opens_as"] not in KINDS or (chosen and case["id"] not in chosen):
            continue
        path = prepared(case, corpus, work)
        if path.is_dir():
            os.chdir(path)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.perf_counter()
        row: dict[str, object] = {"id": case["id"]}
        try:
            row |= {"outcome": "open", "tensors": opened(case, path)}
        except TuiChatError as error:
            row |= {"outcome": "refuse", "message": str(error)}
        row["seconds"] = time.perf_counter() - began
        row["extra_mb"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) / 1024
        os.chdir(work)
        row["marks"] = [str(p) for p in work.rglob("PWNED")]
        row["imported"] = sorted(
            name
            for name, module in sys.modules.items()
            if str(getattr(module, "__file__", "")).startswith(str(work))
        )
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message=".*NumPy.*")
    main()
