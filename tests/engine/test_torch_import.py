"""torch, imported in a fresh process the way the worker does it."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, os, sys
interval = sys.getswitchinterval()
from tui_chat.engine.torch_import import import_torch
assert "torch" not in sys.modules
torch = import_torch()
assert torch is import_torch() is sys.modules["torch"]
assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
assert sys.getswitchinterval() == interval and gc.isenabled() and gc.get_freeze_count() > 10_000
print(torch.ones(2).sum().item())
"""


def test_importing_leaves_the_process_as_it_was_and_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("2.0\n", "", 0)
