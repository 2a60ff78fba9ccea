"""Snapshots of power-function averages, of which those of other widths are made (harness/diffusion/power_averages.py).

    checkpoints/averages-00001000-<sha256>.pt       {"step": 1000, "averages": {"ema": {...}, "0.1": {...}}}, float16

They are written like checkpoints, but before the checkpoint of the same step. So a run that is killed may leave
snapshots that are newer than the checkpoint that it resumes from; it writes them again, with the same bits, before they
count: a synthesis at a checkpoint uses only snapshots before its step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from harness.diffusion.power_averages import exponent_of, fit
from harness.errors import CheckpointError
from harness.records.disk import snapshot_files
from harness.records.files import sync_folder
from harness.spec.averages import PowerAverages, snapshot_steps
from harness.spec.run import Train
from harness.training.checkpoints import load_file, write_temporary


def save_snapshot(folder: Path, step: int, network: Callable[[str], nn.Module], train: Train) -> Path:
    """Write a snapshot of all averages; it is durable when this returns, and replaces another of the same step.

    Args:
        network: a method's `sampling_network`.

    Raises:
        CheckpointError: the disk is full.
    """
    averages = {name: _halved(network(name).state_dict()) for name in train.averages}
    temporary, path = write_temporary(folder, "averages", step, {"step": step, "averages": averages})
    temporary.rename(path)
    sync_folder(folder)
    for stored_step, stored in snapshot_files(folder):
        if stored_step == step and stored != path:  # of an attempt under other conditions, whose bits differ
            stored.unlink()
    return path


def _halved(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights on the CPU, in float16 as in EDM2: the averages in the checkpoint keep their precision."""
    return {name: (value.half() if value.is_floating_point() else value).cpu() for name, value in weights.items()}


def synthesise(
    folder: Path, step: int, network: Callable[[str], nn.Module], train: Train, width: float
) -> dict[str, Tensor]:
    """Return the weights of the average of a width at a step, on the CPU.

    Args:
        folder: of the snapshots; those before `step` are used.
        step: of the present weights, whose averages are used as they are.
        network: a method's `sampling_network`.
        width: relative to the training time.

    Raises:
        CheckpointError: a snapshot is missing or damaged.
    """
    assert isinstance(train.ema, PowerAverages), "the spec's validation asks for them"
    files, steps = dict(snapshot_files(folder)), snapshot_steps(train.ema.every, step)
    if missing := [time for time in steps if time not in files]:
        raise CheckpointError(
            f"{folder}: the snapshot of step {missing[0]} is missing, and width {width} is made of it"
        )
    exponents = [exponent_of(stored) for stored in train.ema.power]
    coefficients, _ = fit(width, step, [(time, exponent) for time in [*steps, step] for exponent in exponents])
    newest = {name: network(name).state_dict() for name in train.averages}
    sums: dict[str, Tensor] = {
        name: torch.zeros_like(value, dtype=torch.float64, device="cpu") for name, value in newest["ema"].items()
    }
    for index, time in enumerate([*steps, step]):
        averages: Any = newest if time == step else load_file(files[time])["averages"]
        for name, coefficient in zip(train.averages, coefficients[2 * index : 2 * index + 2], strict=True):
            for key, value in averages[name].items():
                sums[key] += coefficient * value.to("cpu", torch.float64)
    return {key: sums[key].to(value.dtype) for key, value in newest["ema"].items()}
