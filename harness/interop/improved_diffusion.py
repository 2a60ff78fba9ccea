"""Import published checkpoints of openai/improved-diffusion as runs, and export weights in its format.

An imported run is a run like any other: its spec says how the weights were trained, as far as the README documents it,
and from which file they come. The file's sha256 is part of the identity, so it is never taken for a training of ours.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import torch
import yaml

from harness.errors import CheckpointError
from harness.evaluation.sampling import load_method
from harness.interop.openai_checkpoint import load_published, published, save_published
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.plugins import read_spec
from harness.records.status import Status
from harness.registry import make_method
from harness.spec.base import SCHEMA_VERSION
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.training.checkpoints import Checkpoints
from harness.training.loop import Training, save

STUDY = "imported"


def published_spec(name: str, sha256: str | None = None) -> RunSpec:
    """Return the spec of a published checkpoint, from the flags in its README.

    Args:
        name: a key of PUBLISHED, or the file's stem.
        sha256: of the file; None for a new training with these flags.

    Raises:
        CheckpointError: no such name.
        pydantic.ValidationError: the upsampler without a file; it can be sampled, not trained.
    """
    entry = published(name)
    network, diffusion, training = entry.network, entry.diffusion, entry.training
    size, num_timesteps = entry.image_size, diffusion["num_timesteps"]
    data: dict[str, Any] | None = {64: {"name": "imagenet64"}, 32: {"name": "cifar10"}}.get(size)
    if data is None:
        num_classes = network.get("num_classes")
        folder = "imagenet" if num_classes else "lsun_bedroom"
        data = {"name": "image_folder", "path": folder, "image_size": size, "num_classes": num_classes}
    lambda_vlb = 0.001 if diffusion["rescale_learned_sigmas"] else 1 / num_timesteps
    resampled = training["schedule_sampler"] == "loss-second-moment"
    steps = re.search(r"_(\d+)K", entry.file)
    assert steps, "every published file's name ends in its number of steps"
    return RunSpec.model_validate(
        {
            "imported_sha256": sha256,
            "data": data,
            "diffusion": {
                "num_timesteps": num_timesteps,
                "schedule": diffusion["schedule"],
                "var_type": "learned_range",
            },
            "objective": "vlb" if diffusion["use_kl"] else {"name": "hybrid", "lambda_vlb": lambda_vlb},
            "timestep_sampler": "loss_second_moment" if resampled else "uniform",
            "model": {
                "name": "unet",
                "channels": network["model_channels"],
                "channel_mult": tuple(network["channel_mult"]),
                "num_res_blocks": network["num_res_blocks"],
                "attention_resolutions": tuple(size // factor for factor in network["attention_resolutions"]),
                "num_heads": network["num_heads"],
                "dropout": network.get("dropout", 0.0),
                "use_scale_shift_norm": network["use_scale_shift_norm"],
                "class_cond": network.get("num_classes") is not None,
                "rescale_timesteps": diffusion["rescale_timesteps"],
                "low_res_size": entry.low_res_size,
            },
            "optim": {"lr": training["lr"]},
            "train": {"steps": 1000 * int(steps[1]), "batch_size": training["batch_size"]},
        }
    )


def import_checkpoint(path: Path, name: str, runs_folder: Path) -> RunDirectory:
    """Create a finished run from a file in the published format; importing it again changes nothing.

    The weights are stored both as the EMA, which the published files contain, and as the raw weights.

    Raises:
        CheckpointError: the file is not the named checkpoint.
    """
    state = load_published(path, name)
    with path.open("rb") as file:
        spec = published_spec(name, hashlib.file_digest(file, "sha256").hexdigest())
    directory = RunDirectory(runs_folder / spec.run_key)
    directory.create(spec.model_dump(mode="json"), SCHEMA_VERSION)
    directory.add_to_study(STUDY, {"arm": published(name).file, "replicate": 0, "overrides": {}, "evaluations": []})
    study = {"study": f"{STUDY}-{published(name).file}", **spec.model_dump(mode="json")}
    replace_file(directory.path / "study.yaml", yaml.safe_dump(study, sort_keys=False), durable=False)
    if directory.status().state == "done":
        return directory
    cpu = torch.device("cpu")
    training = Training(spec, make_method(spec, spec.data.facts, Resources(), cpu), cpu)
    for weights in ("raw", "ema"):
        training.method.sampling_network(weights).load_state_dict(state)
    training.step = spec.train.steps
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.event("imported", file=path.name, sha256=spec.imported_sha256)
        save(training, journal, Checkpoints(directory.checkpoints_folder))
        steps = spec.train.steps
        directory.set_status(Status("done", step=steps, num_steps=steps, attempt=journal.attempt))
    return directory


def export_checkpoint(run_folder: Path, path: Path, *, weights: str = "ema", step: int | None = None) -> int:
    """Write a run's weights as a file in the published format.

    Args:
        weights: "ema", as the published files are, or "raw".
        step: of a kept checkpoint; None for the newest.

    Returns:
        the step of the weights.

    Raises:
        RecordError: the run has no checkpoint yet.
        CheckpointError: the run has no such checkpoint or no U-Net, or the file cannot be written.
    """
    run_directory = RunDirectory(run_folder)
    if run_directory.spec()["model"]["name"] != "unet":
        raise CheckpointError(f"run {run_directory.key} has no U-Net; the published format has no other network")
    spec = read_spec(run_directory.path, run_directory.spec())
    method, step = load_method(run_directory.path, spec, spec.data.facts, device=torch.device("cpu"), step=step)
    save_published(method.sampling_network(weights).state_dict(), path)
    return step
