"""Is the GPU sound? A second before the first step: its memory, products with known results, and its links.

A GPU that computes wrong numbers, or that the driver has given up, ends every run that lands on it. So what it does
wrong is told apart from what the run does wrong: the run is interrupted, and its job goes on without that node.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch

from harness.errors import DeviceError
from harness.records.directory import RunDirectory
from harness.records.nodes import report_bad_node
from harness.training.distributed import ProcessGroup

SIZE = 4096
REPETITIONS = 8
MEMORY_BYTES = 1 << 30

FAULTS = (
    "uncorrectable ECC error",  # Xid 48, 94, 95
    "uncorrectable NVLink error",  # Xid 74
    "hardware error",
    "hardware stack error",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",  # Xid 79: it has fallen off the bus
    "GPU is lost",
    "system not yet initialized",  # its fabric manager
)
"""What CUDA says of a broken GPU; an illegal access or an assertion on the device may be the run's own."""


def sound_device(device: torch.device, group: ProcessGroup, run_directory: RunDirectory) -> torch.device:
    """Return the device of this process after a probe of those of all; on the CPU nothing is to do.

    Raises:
        DeviceError: one of them is not sound; on every process.
    """
    if device.type != "cuda":
        return device
    failure = ""
    try:
        probe(device)
        if group.size > 1:
            _probe_links(device, group)
    except (DeviceError, RuntimeError) as error:
        failure = str(error).splitlines()[0]
        report_bad_node(run_directory.path.parent, node_name(), f"{_name(device)}: {failure}")
    if group.all_reduce_max(bool(failure)):
        raise DeviceError(_describe(failure) if failure else "the device of another process failed its probe")
    return device


def probe(device: torch.device, *, size: int = SIZE, memory_bytes: int = MEMORY_BYTES) -> None:
    """Write memory and read it back, and multiply matrices of small integers, whose products are exact.

    Args:
        size: of the matrices; 64 size < 2^24, so that float32 and TF32 add without rounding.
        memory_bytes: that are written.

    Raises:
        DeviceError: a number is wrong.
        RuntimeError: CUDA reports an error.
    """
    written = torch.arange(memory_bytes // 8, device=device)
    if not bool((written + written.flip(0) == len(written) - 1).all()):
        raise DeviceError("its memory does not hold what was written")
    del written
    rows, columns = torch.arange(size, device=device)[:, None], torch.arange(size, device=device)
    first = ((7 * rows + 13 * columns) % 17 - 8).float()
    second = ((5 * rows + 3 * columns * columns) % 17 - 8).float()
    product = first @ second
    vector = (torch.arange(size) % 5 - 2).double()
    expected = first.cpu().double() @ (second.cpu().double() @ vector)
    if not torch.equal(product.cpu().double() @ vector, expected):
        raise DeviceError("a product of matrices is wrong")
    if not all(torch.equal(first @ second, product) for _ in range(REPETITIONS)):
        raise DeviceError("a product of matrices differs from one time to the next")


def _probe_links(device: torch.device, group: ProcessGroup) -> None:
    numbers = torch.arange(1 << 20, device=device) * (group.rank + 1)
    torch.distributed.all_reduce(numbers)
    if not torch.equal(numbers, torch.arange(1 << 20, device=device) * (group.size * (group.size + 1) // 2)):
        raise DeviceError("a sum over the run's processes is wrong")


def fault_of(error: BaseException, runs_folder: Path) -> str:
    """Return what is wrong with this node's device if an error says so, and record the node; empty otherwise."""
    if isinstance(error, DeviceError):
        return str(error)
    line = next((line for line in str(error).splitlines() if any(fault in line for fault in FAULTS)), "")
    if not line or not isinstance(error, RuntimeError):
        return ""
    report_bad_node(runs_folder, node_name(), line)
    return _describe(line)


def node_name() -> str:
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def _describe(failure: str) -> str:
    return f"the device of {node_name()} is not sound: {failure}"


def _name(device: torch.device) -> str:
    return f"GPU {device.index or 0}"
