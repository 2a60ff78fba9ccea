"""The device that a job computes on, and the conditions that its bits depend on."""

from __future__ import annotations

import getpass
import logging
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from harness import PACKAGE_ROOT, __version__
from harness.data.base import Dataset
from harness.errors import HarnessError
from harness.records import snapshot
from harness.records.directory import RunDirectory
from harness.spec.resources import Resources
from harness.training.distributed import ProcessGroup, RankInfo

logger = logging.getLogger(__name__)

# Conditions beyond the spec on which bits depend: with another value of one of these the bits may differ.
BITS_DEPEND_ON = (
    "torch",
    "device",
    "cpu_capability",
    "threads",
    "num_processes",
    "microbatch",
    "deterministic",
    "tf32",
    "kernels",
    "data_digest",
)

ORIGINAL_TF32 = {"matmul": False, "convolutions": True}
"""TF32 in runs that an earlier version began, whose environment has no `tf32`: what torch allows by default."""


def code_version() -> str:
    """Return the version with the commit of the code, marked as dirty when files differ from it."""
    root = PACKAGE_ROOT
    if frozen := snapshot.find(
        root.parent, root.name
    ):  # git would report on the work tree that contains the runs folder
        origin = frozen.manifest["git"]
        return f"{__version__}+g{origin['commit'][:12]}{'-dirty' * origin['dirty']}" if origin else __version__
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        description = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__  # installed from an archive, or no git here
    return f"{__version__}+g{description}"


def describe_environment(
    device: torch.device, data: Dataset, group: ProcessGroup, resources: Resources
) -> dict[str, Any]:
    """Return the code, the machine and the conditions of an attempt."""
    return {
        "harness": __version__,
        "code_version": code_version(),
        "code_snapshot": snapshot.current(),
        "git": _git_origin(),
        "user": _user(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "host": platform.node(),
        "num_processes": group.size,
        "hosts": list(group.hosts),  # of the processes, by rank
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "microbatch": resources.microbatch,
        "deterministic": resources.deterministic,
        "tf32": tf32(),
        "kernels": resources.kernels,
        "data_digest": data.digest,
        "data_files": dict(data.files),
        "data_account": dict(data.account),
        "data_padded_share": data.padded_share,
    }


def _git_origin() -> dict[str, Any] | None:
    """Return the commit and branch of the code, and whether it had uncommitted changes; None if that is not known."""
    try:
        return snapshot.origin(PACKAGE_ROOT)["git"]
    except HarnessError:  # git cannot read the work tree; a job is no place to stop for that
        return None


def _user() -> str:
    """Return this user's name; the number where there is no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def set_tf32(precision: str, environments: Sequence[Mapping[str, Any]]) -> None:
    """Allow or forbid TF32, on GPUs that have it, in matrix products and convolutions: for all but `fp32`.

    `fp32` meant torch's default before, which is TF32 in convolutions. A run that was begun so goes on so.

    Args:
        environments: of the run's attempts so far.
    """
    old = bool(environments) and "tf32" not in environments[0]
    allowed = ORIGINAL_TF32 if old else dict.fromkeys(ORIGINAL_TF32, precision != "fp32")
    torch.backends.cuda.matmul.allow_tf32 = allowed["matmul"]
    torch.backends.cudnn.allow_tf32 = allowed["convolutions"]


def tf32() -> str:
    """Return where TF32 is allowed now: `matmul, convolutions`, one of the two, or `nowhere`."""
    allowed = {"matmul": torch.backends.cuda.matmul.allow_tf32, "convolutions": torch.backends.cudnn.allow_tf32}
    return ", ".join(name for name, is_allowed in allowed.items() if is_allowed) or "nowhere"


def changed_conditions(directory: RunDirectory, environment: dict[str, Any]) -> list[str]:
    """Return each condition that changed since the training's newest checkpoint, as `name old -> new`.

    A run without a checkpoint has none.
    """
    checkpoints = [event for event in directory.events("checkpoint") if not event.superseded]
    by_attempt = {earlier["attempt"]: earlier for earlier in directory.environments()}
    old = by_attempt.get(checkpoints[-1].attempt, {}) if checkpoints else {}
    return [
        f"{name} {old[name]} -> {environment[name]}"
        for name in BITS_DEPEND_ON
        if name in old and old[name] != environment[name]
    ]


def choose_device(name: str, rank_info: RankInfo = RankInfo()) -> torch.device:  # noqa: B008 (it is frozen)
    """Return the device that a process computes on; `auto` takes a CUDA device if there is one.

    The processes on a node take its devices in turn; SLURM may have assigned each process one of its own.

    Raises:
        HarnessError: cuda is requested but not available.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise HarnessError("resources.device: cuda, but torch sees no CUDA device; use auto or cpu")
    if name == "cuda" and rank_info.size > 1:
        torch.cuda.set_device(rank_info.local_rank % torch.cuda.device_count())
        return torch.device(name, torch.cuda.current_device())
    return torch.device(name)


def gpu_gauges(device: torch.device) -> Callable[[], dict[str, float]] | None:
    """Return a function that reads the GPU's gauges, None for a CPU.

    How busy the GPU is and how much of its memory all processes take is known where `nvidia-ml-py` is installed.
    """
    if device.type != "cuda":
        return None
    allocated = {"gpu_memory_gib": lambda: torch.cuda.memory_allocated(device) / 2**30}
    of_driver: dict[str, Callable[[], float]] = {
        "gpu_utilization_percent": lambda: float(torch.cuda.utilization(device)),
        "gpu_memory_used_gib": lambda: torch.cuda.device_memory_used(device) / 2**30,
    }
    gauges = allocated | {name: read for name, read in of_driver.items() if _can_be_read(name, read)}
    return lambda: {name: read() for name, read in gauges.items()}


def _can_be_read(name: str, read: Callable[[], float]) -> bool:
    try:
        read()
    except Exception as error:  # no nvidia-ml-py, a driver without it, or a GPU that does not tell, such as a MIG slice
        logger.info(f"no system/{name}: {error}")
        return False
    return True
