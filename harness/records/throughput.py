"""Measured cost of a training step by device: written by trainings and by `calibrate`, read by `plan`.

    runs/.throughput/<cost_key>-<digest of device, processes, runs a GPU and kernels>.json

Each device has its own measurements, so an hour of a laptop never counts as an hour of a cluster's GPU. No torch.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import replace_file
from harness.records.layout import THROUGHPUT
from harness.records.reading import Fields, read_json

logger = logging.getLogger(__name__)

RUNS_PER_GPU = "HARNESS_RUNS_PER_GPU"
"""The variable by which a job of several runs tells each of them how many share its GPU."""


@dataclass(frozen=True)
class Throughput:
    """The measured cost of a step of one cost class (`RunSpec.cost_key`)."""

    cost_key: str
    seconds_per_step: float
    device: str  # cpu or cuda
    device_name: str
    threads: int  # of each process
    num_processes: int = 1
    runs_per_gpu: int = 1  # that shared the GPU, as the runs of a pack do
    precision: str = "fp32"
    kernels: str = "reference"  # as those of earlier versions were
    checkpoint_bytes: int | None = None
    checkpoint_seconds: float | None = None  # the longest of the last training
    measured_seconds: float = field(
        default=0.0, compare=False
    )  # Unix time, set when written; 0 in files of earlier versions


def record(runs_folder: Path, measured: Throughput) -> None:
    """Store a measurement; it replaces the previous one of this cost class on this device."""
    folder = runs_folder / THROUGHPUT
    folder.mkdir(parents=True, exist_ok=True)
    device = f"{measured.device_name} x {measured.num_processes}"
    if measured.runs_per_gpu > 1:
        device += f" / {measured.runs_per_gpu}"
    if measured.kernels != "reference":
        device += f", {measured.kernels}"
    device_digest = hashlib.sha256(device.encode()).hexdigest()[:8]
    text = json.dumps(asdict(measured) | {"measured_seconds": time.time()}, indent=1)
    replace_file(folder / f"{measured.cost_key}-{device_digest}.json", text, durable=False)


def load(runs_folder: Path) -> dict[str, list[Throughput]]:
    """Return all measurements by cost_key, the newest first."""
    # Files without the time are older than the others; among themselves they are ordered by their files' times.
    paths = sorted((runs_folder / THROUGHPUT).glob("[!.]*.json"), key=lambda path: -path.stat().st_mtime_ns)
    by_cost_key = defaultdict(list)
    for path in paths:
        try:
            measured = _measured(read_json(path), path)
        except (FileNotFoundError, RecordError) as error:
            logger.warning(f"{error}; this measurement is left out")
            continue
        by_cost_key[measured.cost_key].append(measured)
    for of_one_class in by_cost_key.values():
        of_one_class.sort(key=lambda measured: -measured.measured_seconds)
    return dict(by_cost_key)


def _measured(stored: Any, path: Path) -> Throughput:
    fields = Fields(stored, str(path))
    device = fields.line("device")
    return Throughput(
        # Version 0.1 named the kind of device alone, and the cost_key by the file.
        cost_key=fields.line("cost_key", path.stem),
        seconds_per_step=fields.finite("seconds_per_step", low=0),
        device=device,
        device_name=fields.line("device_name", device),
        threads=fields.integer("threads"),
        num_processes=fields.integer("num_processes", 1, low=1),
        runs_per_gpu=fields.integer("runs_per_gpu", 1, low=1),
        precision=fields.line("precision", "fp32"),
        kernels=fields.line("kernels", "reference"),
        checkpoint_bytes=None if fields.get("checkpoint_bytes") is None else fields.integer("checkpoint_bytes"),
        checkpoint_seconds=fields.optional_finite("checkpoint_seconds", low=0),
        measured_seconds=fields.seconds("measured_seconds", 0.0),
    )


def runs_sharing_gpu() -> int:
    """Return how many runs share this process's GPU, as its job has told it."""
    told = os.environ.get(RUNS_PER_GPU, "")
    return max(1, int(told)) if told.isdecimal() else 1


def cpu_name() -> str:
    """Return the processor's model name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
