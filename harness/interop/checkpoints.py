"""Import published checkpoints as runs, and export a run's weights in the published formats.

An imported run is a run like any other: its spec says how the weights were trained, as far as their authors document
it, and from which file they come. The file's sha256 is part of the identity, so it is never taken for a training of
ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from torch import Tensor, nn

from harness.errors import CheckpointError
from harness.evaluation.sampling import load_method
from harness.interop import ddgan, improved_diffusion
from harness.interop.files import Entry, look_up
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


@dataclass(frozen=True)
class Family:
    """The checkpoints of one publication, and its file format.

    Attributes:
        entries: by name.
        model: the spec's name of the network that its files hold.
        spec: (name, sha256 of the file) -> how the weights were trained.
        read: (path, name) -> the sampling network's state dict.
        write: (sampling network, path) writes a file.
        left_initial: networks of the run that no file holds; they keep their initial weights.
    """

    entries: Mapping[str, Entry]
    model: str
    spec: Callable[[str, str], RunSpec]
    read: Callable[[Path, str], dict[str, Tensor]]
    write: Callable[[nn.Module, Path], None]
    left_initial: tuple[str, ...] = ()


def _write_unet(network: nn.Module, path: Path) -> None:
    """Write a U-Net for improved-diffusion, which knows none with a latent."""
    if getattr(network, "latent", None) is not None:
        raise CheckpointError("a U-Net that takes a latent cannot be exported: no published one does")
    improved_diffusion.save_published(network.state_dict(), path)


FAMILIES = (
    Family(
        improved_diffusion.PUBLISHED,
        "unet",
        improved_diffusion.published_spec,
        improved_diffusion.load_published,
        _write_unet,
    ),
    Family(
        ddgan.PUBLISHED,
        "ncsnpp",
        ddgan.published_spec,
        ddgan.load_published,
        ddgan.save_published,
        left_initial=("discriminator",),
    ),
)


def published(name: str) -> tuple[Family, str, Entry]:
    """Look up a published checkpoint by its name or its file's: (family, name, entry).

    Raises:
        CheckpointError: no such name.
    """
    name, entry = look_up(name, {key: entry for family in FAMILIES for key, entry in family.entries.items()})
    return next(family for family in FAMILIES if name in family.entries), name, entry


def import_checkpoint(path: Path, name: str, runs_folder: Path) -> RunDirectory:
    """Create a finished run from a file in a published format; importing it again changes nothing.

    The weights are stored both as the EMA, which the published files contain, and as the raw weights.

    Raises:
        CheckpointError: the file is not the named checkpoint.
    """
    family, name, entry = published(name)
    state = family.read(path, name)
    with path.open("rb") as file:
        spec = family.spec(name, hashlib.file_digest(file, "sha256").hexdigest())
    directory = RunDirectory(runs_folder / spec.run_key)
    directory.create(spec.model_dump(mode="json"), SCHEMA_VERSION)
    directory.add_to_study(STUDY, {"arm": entry.arm, "replicate": 0, "overrides": {}, "evaluations": []})
    study = {"study": f"{STUDY}-{entry.arm}", **spec.model_dump(mode="json")}
    replace_file(directory.path / "study.yaml", yaml.safe_dump(study, sort_keys=False), durable=False)
    if directory.status().state == "done":
        return directory
    cpu = torch.device("cpu")
    training = Training(spec, make_method(spec, spec.data.facts, Resources(), cpu), cpu)
    for weights in ("raw", "ema"):
        training.method.sampling_network(weights).load_state_dict(state)
    training.step = spec.train.steps
    left_initial = {"left_initial": list(family.left_initial)} if family.left_initial else {}
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.event("imported", file=path.name, sha256=spec.imported_sha256, **left_initial)
        save(training, journal, Checkpoints(directory.checkpoints_folder))
        steps = spec.train.steps
        directory.set_status(Status("done", step=steps, num_steps=steps, attempt=journal.attempt))
    return directory


def export_checkpoint(run_folder: Path, path: Path, *, weights: str = "ema", step: int | None = None) -> int:
    """Write a run's weights as a file in the published format of its network.

    Args:
        weights: "ema", as the published files are, or "raw".
        step: of a kept checkpoint; None for the newest.

    Returns:
        the step of the weights.

    Raises:
        RecordError: the run has no checkpoint yet.
        CheckpointError: the run has no such checkpoint, no published format has its network, or the file cannot be
            written.
    """
    run_directory = RunDirectory(run_folder)
    model = run_directory.spec()["model"]["name"]
    family = next((family for family in FAMILIES if family.model == model), None)
    if family is None:
        raise CheckpointError(
            f"run {run_directory.key} has a network {model}; the published formats have "
            f"{' and '.join(family.model for family in FAMILIES)} alone"
        )
    spec = read_spec(run_directory.path, run_directory.spec())
    method, step = load_method(run_directory.path, spec, spec.data.facts, device=torch.device("cpu"), step=step)
    family.write(method.sampling_network(weights), path)
    return step
