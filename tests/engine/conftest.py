"""Checkpoint files shared by the tests of the engine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tui_chat.model.native import ready
from tui_chat.settings import Paths

from ..model.tiny import random_weights
from .small import alphabet_weights, save_nanogpt, spec


@pytest.fixture(scope="session", autouse=True)
def _compiled() -> None:
    """The compiled step is there from the first test on, or what is said would depend on when it
    came."""
    ready.start(Paths.find().cache)
    ready.wait(300)


@pytest.fixture(scope="session")
def alphabet(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint that says the alphabet."""
    return save_nanogpt(tmp_path_factory.mktemp("alphabet"), alphabet_weights())


@pytest.fixture(scope="session")
def noise(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint with random weights: what it says depends on everything before."""
    return save_nanogpt(tmp_path_factory.mktemp("noise"), random_weights(spec()))


@pytest.fixture(scope="session")
def long_noise(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Random weights with a context of 1,024 tokens."""
    folder: Path = tmp_path_factory.mktemp("long")
    return save_nanogpt(folder, random_weights(spec(1024)), 1024)
