"""What a training measures of itself: how long a step and a checkpoint take, and its compute."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from harness.data.base import Dataset
from harness.job.compute import training_compute
from harness.records import throughput
from harness.records.directory import RunDirectory
from harness.records.journal import Journal
from harness.records.throughput import Throughput, cpu_name, runs_sharing_gpu
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.loop import Training

logger = logging.getLogger(__name__)

SLOW_CHECKPOINT_SECONDS = 10.0
"""A checkpoint that takes longer is recorded at once, since its job may not live until the end of the training."""


def record_throughput(
    path: Path,
    spec: RunSpec,
    resources: Resources,
    seconds_per_step: float,
    device: torch.device,
    checkpoint_seconds: float | None,
) -> None:
    """Record the duration of a step, and the duration and size of a checkpoint, for `plan` and `submit`.

    Args:
        path: of the run directory.
        checkpoint_seconds: of the slowest one.
    """
    checkpoints = path.glob("checkpoints/step-*.pt")
    measured = Throughput(
        spec.cost_key,
        seconds_per_step,
        device=device.type,
        device_name=cpu_name() if device.type == "cpu" else torch.cuda.get_device_name(device),
        threads=torch.get_num_threads(),
        num_processes=resources.num_processes,
        runs_per_gpu=runs_sharing_gpu() if device.type == "cuda" else 1,
        precision=spec.train.precision,
        kernels=resources.kernels,
        checkpoint_bytes=max((checkpoint.stat().st_size for checkpoint in checkpoints), default=None),
        checkpoint_seconds=checkpoint_seconds,
    )
    throughput.record(path.parent, measured)


def record_compute(
    directory: RunDirectory, journal: Journal, resources: Resources, training: Training, data: Dataset
) -> None:
    """Record the compute of the whole training, for the scaling figures, unless an earlier attempt did."""
    if directory.history("compute/parameters")[0]:
        return
    spec = training.spec
    compute, reason = training_compute(spec, resources, training.method, data)
    if reason:
        logger.warning(f"run {directory.key}: the arithmetic of its training {reason}")
        journal.event("compute_not_counted", step=training.step, reason=reason)
    journal.metrics(spec.train.steps, compute)
