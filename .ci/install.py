"""Install tui-chat into the environment this runs in: python .ci/install.py app|dev

torch is chosen first. A plain `pip install torch` on Linux may bring a CUDA build of several
gigabytes; on a machine without an NVIDIA driver the small CPU build is fetched instead. A torch
that is installed already is kept.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / ".ci" / "constraints.txt"


def say(text: str) -> None:
    print(text, flush=True)


def pip(*arguments: str) -> int:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, check=False).returncode


def has_nvidia_driver() -> bool:
    return bool(shutil.which("nvidia-smi")) or any(
        Path(path).exists() for path in ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")
    )


def would_bring_cuda() -> bool:
    """Ask pip, without installing, whether torch would come with NVIDIA's libraries."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        status = pip(
            "install",
            "--quiet",
            "--dry-run",
            "--report",
            str(report),
            "-c",
            str(CONSTRAINTS),
            "torch",
        )
        if status != 0 or not report.exists():
            return False
        items = json.loads(report.read_text())["install"]
    return any(item["metadata"]["name"].lower().startswith(("nvidia-", "cuda-")) for item in items)


def install_torch() -> int:
    if importlib.util.find_spec("torch") is not None:
        return 0
    if sys.platform == "linux" and not has_nvidia_driver():
        say("No NVIDIA driver here: looking for the CPU build of torch …")
        if would_bring_cuda():
            say("Fetching it with uv, which knows where the CPU build lies …")
            uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
            if (
                pip("install", "--quiet", "uv") == 0
                and subprocess.run(
                    [*uv, "--torch-backend=cpu", "-c", str(CONSTRAINTS), "torch"], check=False
                ).returncode
                == 0
            ):
                return 0
            say("That did not work; taking the build that pip finds (about 3 GB).")
    say("Installing torch (about 200 MB to fetch, or 3 GB with CUDA) …")
    return pip("install", "--quiet", "-c", str(CONSTRAINTS), "torch")


def main() -> int:
    kind = sys.argv[1] if len(sys.argv) > 1 else "app"
    if kind == "app":
        say("Installing tui-chat; this takes a minute or two and happens once.")
        if install_torch() != 0:
            say("torch could not be installed. Check the network, then run the same command again.")
            return 1
        say("Installing the app …")
        target = str(ROOT)
    else:
        say("Installing what the tests need …")
        target = f"{ROOT}[dev]"
    status = pip("install", "--quiet", "-c", str(CONSTRAINTS), "-e", target)
    if status != 0:
        say("The installation failed, see above. Check the network, then run the command again.")
        return 1
    say("Ready.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
