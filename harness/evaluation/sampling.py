"""Sample from a run's checkpoint. Needs no flags, since the checkpoint contains its spec."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Dataset
from harness.data.facts import DatasetFacts
from harness.diffusion.respacing import space_timesteps
from harness.errors import CheckpointError, DataError, RecordError, SpecError
from harness.evaluation.context import EvaluationContext, ProgressCallback
from harness.evaluation.images import image_grid, save_png
from harness.methods.base import Method
from harness.metrics.weights import require_finite
from harness.records.directory import RunDirectory
from harness.records.plugins import read_spec
from harness.registry import make_method
from harness.spec.evaluation import AnySampler, Evaluation, section_counts
from harness.spec.resources import Resources
from harness.spec.run import RunSpec


def load_method(
    run_folder: Path,
    spec: RunSpec,
    data: Dataset | DatasetFacts,
    *,
    device: torch.device,
    step: int | None = None,
) -> tuple[Method, int]:
    """Load a run's method from a checkpoint (the newest by default); return it with the checkpoint's step.

    Raises:
        RecordError: the run has no checkpoint yet.
        CheckpointError: the weights that are sampled with are not all finite numbers.
    """
    from harness.training.checkpoints import Checkpoints

    method = make_method(spec, data, Resources(), device)
    checkpoints = Checkpoints(RunDirectory(run_folder).checkpoints_folder)
    checkpoint = checkpoints.latest(device) if step is None else (step, checkpoints.load(step, device))
    if checkpoint is None:
        raise RecordError(f"run {run_folder.name} has no checkpoint yet; `harness status` shows its progress")
    method.load_state_dict(checkpoint[1])
    for weights in ("raw", "ema"):
        name = f"run {run_folder.name}, checkpoint of step {checkpoint[0]}, {weights} weights"
        try:
            require_finite(method.sampling_network(weights).state_dict(), name)
        except DataError as error:
            raise CheckpointError(str(error)) from error
    return method, checkpoint[0]


def sample_run(
    run_folder: Path,
    *,
    sampler: AnySampler,
    num_steps: int,
    num_samples: int,
    seed: int = 0,
    weights: str = "ema",
    step: int | None = None,
    low_res: Path | None = None,
    on_progress: ProgressCallback = lambda task, done, total: None,
) -> Path:
    """Draw samples from a checkpoint of a run, finished or not.

    Args:
        step: of a kept checkpoint; None for the newest.
        low_res: npz of the small images that an upsampler enlarges, uint8 [N, C, h, w] or [N, h, w, C], the first
            array of the file; there are then at most N samples.

    Returns:
        the PNG of the grid; the uint8 images lie beside it as npz. Points of the plane have only the npz.

    Raises:
        RecordError: the run has no checkpoint yet.
        SpecError: the chain has no such number of steps, or an upsampler has no input images.
    """
    run_directory = RunDirectory(run_folder)
    spec = read_spec(run_directory.path, run_directory.spec())
    try:
        space_timesteps(spec.diffusion.num_timesteps, section_counts(sampler, num_steps))
    except ValueError as error:
        raise SpecError(f"--num-steps {num_steps}: {error}") from None
    small = _small_images(spec, low_res)
    num_samples = num_samples if small is None else min(num_samples, len(small))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = spec.data.facts  # the data set itself is not needed
    if weights == "untrained":
        method = make_method(spec, data, Resources(), device)
    else:
        method, _ = load_method(run_directory.path, spec, data, device=device, step=step)
    evaluation = Evaluation(name="samples", seed=seed, weights=weights)
    context = EvaluationContext(method, spec, data, evaluation, device, on_progress=on_progress)
    with torch.inference_mode():
        samples = context.to_images(context.sample(sampler, num_steps, num_samples, low_res=small)).numpy()
    folder = run_directory.samples_folder
    folder.mkdir(exist_ok=True)
    stem = f"{sampler.name}{num_steps}_seed{seed}_{weights}" + ("" if step is None else f"_step{step}")
    np.savez(folder / f"{stem}.npz", samples=samples)
    if data.levels is None:
        return folder / f"{stem}.npz"
    save_png(folder / f"{stem}.png", image_grid(samples))
    return folder / f"{stem}.png"


def _small_images(spec: RunSpec, path: Path | None) -> Tensor | None:
    """Read an upsampler's input images, scaled to [-1, 1]; None for other models."""
    size = getattr(spec.model, "low_res_size", None)
    if not size:
        if path is not None:
            raise SpecError("--low-res: this run is not an upsampler")
        return None
    if path is None:
        raise SpecError(f"this run is an upsampler: give it images of {size} pixels with --low-res FILE.npz")
    try:
        with np.load(path, allow_pickle=False) as file:
            images = file[file.files[0]]
    except (OSError, ValueError, IndexError, zipfile.BadZipFile) as error:
        raise SpecError(f"--low-res {path}: cannot be read as npz: {error}") from None
    if images.ndim == 4 and images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if images.dtype != np.uint8 or images.shape[1:] != (3, size, size):
        raise SpecError(
            f"--low-res {path}: uint8 images of 3x{size}x{size} are needed, not {images.dtype} {list(images.shape)}"
        )
    return torch.from_numpy(images.copy()).float() / 127.5 - 1
