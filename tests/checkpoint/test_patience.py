"""Checkpoints that a training run saves while they are opened."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tui_chat.checkpoint import catalog, patience, weights
from tui_chat.checkpoint.files import BeingWritten
from tui_chat.checkpoint.patience import patiently
from tui_chat.checkpoint.reading import LoadCancelled
from tui_chat.errors import CheckpointError

Save = Callable[..., str]
Make = Callable[..., dict[str, torch.Tensor]]


def opened(path: str) -> dict[str, torch.Tensor]:
    return patiently(path, lambda: weights.load(catalog.describe(path)))


@contextmanager
def meanwhile(step: Callable[[], None], every: float = 0.01) -> Iterator[threading.Event]:
    """Another thread that does `step` again and again."""
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            step()
            time.sleep(every)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield end
    finally:
        end.set()
        thread.join()


def test_a_file_that_was_replaced_in_between_is_described_anew(nanogpt: Save, gpt: Make) -> None:
    path = nanogpt()
    newer = gpt()
    attempts = []

    def attempt() -> dict[str, torch.Tensor]:
        info = catalog.describe(path)
        if not attempts:
            os.replace(nanogpt(newer, "other/ckpt.pt"), path)
        attempts.append(info)
        return weights.load(info)

    found = patiently(path, attempt)
    assert len(attempts) == 2
    assert torch.equal(found["embed.weight"], newer["transformer.wte.weight"])


def test_a_file_that_is_still_being_written_is_waited_for(nanogpt: Save) -> None:
    path = nanogpt()
    whole = Path(path).read_bytes()
    written = threading.Event()

    def save() -> None:
        """Over the old file, in place and in pieces, as torch.save does to a slow disk."""
        with open(path, "wb") as file:
            for begin in range(0, len(whole), len(whole) // 8):
                file.write(whole[begin : begin + len(whole) // 8])
                file.flush()
                written.set()
                time.sleep(0.05)

    saving = threading.Thread(target=save)
    saving.start()
    written.wait()
    try:
        assert len(opened(path)) > 20
    finally:
        saving.join()


def test_a_file_that_never_comes_to_rest_is_refused_with_the_reason(
    nanogpt: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patience, "LONGEST", 0.2)
    path = nanogpt()
    raw = Path(path).read_bytes()
    Path(path).write_bytes(raw[: len(raw) // 2])
    with (
        meanwhile(lambda: os.utime(path)),
        pytest.raises(BeingWritten, match=r"being written.*[Tt]ry again"),
    ):
        opened(path)


def test_a_damaged_file_is_refused_for_what_it_is(nanogpt: Save) -> None:
    path = nanogpt()
    raw = Path(path).read_bytes()
    Path(path).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(CheckpointError) as caught:
        opened(path)
    assert not isinstance(caught.value, BeingWritten)


def test_an_old_damaged_file_costs_no_waiting(nanogpt: Save) -> None:
    path = nanogpt()
    Path(path).write_bytes(b"PK\x03\x04 and no more")
    os.utime(path, (1e9, 1e9))
    began = time.monotonic()
    with pytest.raises(CheckpointError):
        opened(path)
    assert time.monotonic() - began < patience.QUIET


def test_waiting_ends_when_it_is_cancelled(nanogpt: Save) -> None:
    path = nanogpt()
    Path(path).write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(LoadCancelled):
        patiently(path, lambda: catalog.describe(path), cancelled=lambda: True)
