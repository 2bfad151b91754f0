"""A HipGPT run in the real app: what dropout leaves of it, and a text that outgrows its window."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Open

pytestmark = pytest.mark.e2e

TINY = Path(__file__).parent.parent / "fixtures/S3/tiny_fallback/checkpoints/tiny"


def test_a_run_writes_on_past_its_window_and_says_what_dropout_leaves(open_app: Open) -> None:
    app = open_app(TINY)
    app.wait_for("tiny/2")
    app.wait_for("only the last token counts")
    app.type("/set temperature 0")
    app.press("enter")
    app.wait_for("greedy")
    app.type("First Citizen: speak")
    app.press("enter")
    # What its own program prints for these words, and on past its window of 32 tokens.
    app.wait_for("speak Oknouras olf Oknouras olf Oknouras olf Oknouras olf")
    app.wait_for("cut at max new · 256 tok")
    app.wait_for("no longer sent to the model")
