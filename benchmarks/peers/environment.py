"""The bench's own environment, over that of the harness, and a description of the machine."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
FOLDER = ROOT / ".venv-peers"
PYTHON = FOLDER / "bin" / "python"


def is_active() -> bool:
    """Whether this process runs in the bench's environment."""
    return Path(sys.prefix).resolve() == FOLDER.resolve()


def prepare() -> None:
    """Make the environment, or bring it up to date; does nothing where it is.

    It sees all packages of the environment that calls this, torch among them, and has only the peers of its own.
    """
    stamp, digest = FOLDER / "installed", hashlib.sha256(REQUIREMENTS.read_bytes() + sys.prefix.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    venv.create(FOLDER, clear=True, symlinks=True)
    own = sysconfig.get_path("purelib", vars={"base": str(FOLDER), "platbase": str(FOLDER)})
    Path(own, "harness_environment.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = (str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps")
    subprocess.run([*pip, "-r", str(REQUIREMENTS)], check=True)
    stamp.write_text(digest)


def enter(arguments: list[str]) -> int:
    """Run the bench in its environment, on one thread; return its exit status."""
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    command = [str(PYTHON), "-m", "benchmarks.peers", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | one_thread, check=False).returncode


def describe_machine() -> dict[str, Any]:
    """Describe what the figures depend on; `load` is the average of the last minute, as of now."""
    import torch

    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _cpu_model() -> str:
    """Return the processor's name, with family and model where the name is a virtual machine's general one."""
    file = Path("/proc/cpuinfo")
    if not file.is_file():
        return platform.processor() or platform.machine()
    lines = file.read_text().split("\n\n")[0].splitlines()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    name = fields.get("model name", platform.machine())
    return f"{name}, family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else name
