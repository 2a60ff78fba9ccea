"""The device that a job computes on, and the conditions that its bits depend on."""

from __future__ import annotations

import subprocess
from typing import Any

import torch

from harness import PACKAGE_ROOT, __version__
from harness.errors import HarnessError
from harness.records import snapshot
from harness.training.distributed import RankInfo

# Beyond the spec: the same run under another value of these need not end in the same bits.
BITS_DEPEND_ON = (
    "torch",
    "device",
    "cpu_capability",
    "threads",
    "num_processes",
    "microbatch",
    "deterministic",
    "data_digest",
)


def code_version() -> str:
    """Return the version with the commit that the code was run from, marked when files differ from it."""
    root = PACKAGE_ROOT
    if frozen := snapshot.find(root.parent, root.name):  # git would answer for whatever work tree the runs lie in
        origin = frozen.manifest["git"]
        return f"{__version__}+g{origin['commit'][:12]}{'-dirty' * origin['dirty']}" if origin else __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__  # installed from an archive, or no git here
    return f"{__version__}+g{found}"


def choose_device(wanted: str, place: RankInfo = RankInfo()) -> torch.device:  # noqa: B008 (it is frozen)
    """Return the device that a process computes on; `auto` takes a CUDA device where there is one.

    The processes on a node take its devices in turn; SLURM may have left each process one of its own.

    Raises:
        HarnessError: cuda is asked for and not there.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda" and not torch.cuda.is_available():
        raise HarnessError("resources.device: cuda, but torch sees no CUDA device here; take auto or cpu")
    if wanted == "cuda" and place.size > 1:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
        return torch.device(wanted, torch.cuda.current_device())
    return torch.device(wanted)


def gpu_gauges(device: torch.device) -> Any:
    if device.type != "cuda":
        return None
    return lambda: {"gpu_memory_gib": torch.cuda.memory_allocated(device) / 2**30}
