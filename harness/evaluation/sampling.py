"""Sample from a run's checkpoint. Needs no flags, since the checkpoint contains its spec."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Dataset
from harness.data.facts import DatasetFacts
from harness.diffusion.respacing import space_timesteps
from harness.errors import CheckpointError, DataError, RecordError, SpecError
from harness.evaluation.context import EvaluationContext, ProgressCallback
from harness.evaluation.images import image_grid, save_png
from harness.evaluation.keeping import Keeping
from harness.evaluation.measured import with_width
from harness.methods.base import Method
from harness.metrics.weights import require_finite
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.plugins import read_spec
from harness.records.reading import read_json
from harness.registry import make_method
from harness.spec.averages import EmaOfWidth, average_of
from harness.spec.evaluation import AnySampler, Evaluation, section_counts
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.text import harness_command
from harness.training.checkpoints import Checkpoints


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
    method = make_method(spec, data, Resources(), device)
    checkpoints = Checkpoints(RunDirectory(run_folder).checkpoints_folder)
    checkpoint = checkpoints.latest(device) if step is None else (step, checkpoints.load(step, device))
    if checkpoint is None:
        status = harness_command("status", runs_folder=run_folder.parent)
        raise RecordError(f"run {run_folder.name} has no checkpoint yet; `{status}` shows its progress")
    method.load_state_dict(checkpoint[1])
    for weights in ("raw", "ema"):
        name = f"run {run_folder.name}, checkpoint of step {checkpoint[0]}, {weights} weights"
        try:
            require_finite(method.sampling_network(weights).state_dict(), name)
        except DataError as error:
            raise CheckpointError(str(error)) from error
    return method, checkpoint[0]


@dataclass(frozen=True)
class SampleSettings:
    """What is drawn from a checkpoint of a run.

    Attributes:
        step: of a kept checkpoint; None for the newest.
        only_class: of all samples; None takes the classes of a class-conditional model in turn.
        ema: the average of the weights that is meant, as its rate or, where the run keeps snapshots, its width.
        low_res: npz of the small images that an upsampler enlarges, uint8 [N, C, h, w] or [N, h, w, C], the first
            array of the file; there are then at most N samples.
    """

    sampler: AnySampler
    num_steps: int
    num_samples: int
    seed: int = 0
    weights: str = "ema"
    step: int | None = None
    only_class: int | None = None
    guidance: float = 1.0
    low_res: Path | None = None
    ema: float | None = None


def sample_run(
    run_folder: Path,
    settings: SampleSettings,
    *,
    on_progress: ProgressCallback = lambda task, done, total: None,
) -> Path:
    """Draw samples from a checkpoint of a run, finished or not.

    Returns:
        the PNG of the grid; the uint8 images lie beside it as npz. Points of the plane have only the npz.

    Raises:
        RecordError: the run has no checkpoint yet.
        SpecError: the chain has no such number of steps, an upsampler has no input images, the network takes no
            classes or no guidance, or the run does not keep the average.
    """
    context, settings, small, _ = _prepare(run_folder, settings, on_progress)
    with torch.inference_mode():
        samples = context.sample(settings.sampler, settings.num_steps, settings.num_samples, low_res=small)
    images = context.to_images(samples).numpy()
    folder = RunDirectory(run_folder).samples_folder
    folder.mkdir(exist_ok=True)
    stem = f"{settings.sampler.name}{settings.num_steps}_seed{settings.seed}_{settings.weights}"
    stem += "" if settings.ema is None else f"{settings.ema:g}"
    stem += "" if settings.step is None else f"_step{settings.step}"
    stem += "" if settings.only_class is None else f"_class{settings.only_class}"
    stem += "" if settings.guidance == 1 else f"_guidance{settings.guidance:g}"
    np.savez(folder / f"{stem}.npz", samples=images)
    if context.data.levels is None:
        return folder / f"{stem}.npz"
    save_png(folder / f"{stem}.png", image_grid(images))
    return folder / f"{stem}.png"


def write_samples(
    run_folder: Path,
    settings: SampleSettings,
    out: Path,
    *,
    code_version: str,
    on_progress: ProgressCallback = lambda task, done, total: None,
) -> Path:
    """Draw samples into a file in the layout of openai/guided-diffusion, and describe them in a JSON file beside it.

    `arr_0` is uint8 [N, H, W, C], and `arr_1` [N] the classes where the network takes them; points are float32. What a
    kill interrupts goes on where it was when it is called again.

    Args:
        out: ends in .npz; one that is there already is complete, and is left as it is if it is of these samples.
        code_version: for the description.

    Returns:
        the description's file.

    Raises:
        RecordError: the run has no checkpoint yet, or the file cannot be written, or is of other samples.
        SpecError: as in `sample_run`.
    """
    if out.suffix != ".npz":
        raise SpecError(f"--out {out}: a file that ends in .npz is needed")
    context, settings, small, step = _prepare(run_folder, settings, on_progress)
    drawn = context.draw_settings(settings.sampler, settings.num_steps, low_res=small)
    average = {} if settings.ema is None else {"ema": settings.ema}
    manifest = {"num_samples": settings.num_samples, "step": step} | average | drawn
    described, parts = out.with_suffix(".json"), out.with_name(f".{out.name}.parts")
    if out.exists():
        if _description(described) != manifest:
            raise RecordError(f"{out} is there already, and not of these samples: remove it, or give another --out")
        return described
    context.keeping = Keeping(parts)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with torch.inference_mode():
            batches = context.batches(settings.sampler, settings.num_steps, settings.num_samples, low_res=small)
            images = np.concatenate([context.to_images(batch).numpy() for batch in batches])
        arrays = {"arr_0": images.transpose(0, 2, 3, 1)}  # [N, H, W, C]
        if (labels := context.labels(0, len(images))) is not None:
            arrays["arr_1"] = labels.cpu().numpy()
        text = json.dumps(manifest | {"harness": code_version}, indent=1)
        replace_file(described, text + "\n", durable=True)
        temporary = out.with_name(f".{out.name}.{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        temporary.replace(out)  # last, because its name means that it is complete
    except OSError as error:
        raise RecordError(f"{out}: cannot be written: {error.strerror}") from error
    shutil.rmtree(parts, ignore_errors=True)
    return described


def _description(path: Path) -> dict[str, Any] | None:
    """Return what was written of a file of samples, but for the version of the code; None if it cannot be read."""
    try:
        stored = read_json(path)
    except (FileNotFoundError, RecordError):
        return None
    return {key: value for key, value in stored.items() if key != "harness"} if isinstance(stored, dict) else None


def _prepare(
    run_folder: Path, settings: SampleSettings, on_progress: ProgressCallback
) -> tuple[EvaluationContext, SampleSettings, Tensor | None, int | None]:
    """Load what is sampled from; return it with the settings, an upsampler's small images, and the weights' step."""
    run_directory = RunDirectory(run_folder)
    spec = read_spec(run_directory.path, run_directory.spec())
    try:
        space_timesteps(spec.diffusion.num_timesteps, section_counts(settings.sampler, settings.num_steps))
    except ValueError as error:
        raise SpecError(f"--num-steps {settings.num_steps}: {error}") from None
    _require_conditions(spec, settings)
    small = _small_images(spec, settings.low_res)
    if small is not None:
        settings = replace(settings, num_samples=min(settings.num_samples, len(small)))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data, step = spec.data.facts, None  # the data set itself is not needed
    if settings.weights == "untrained":
        method = make_method(spec, data, Resources(), device)
    else:
        method, step = load_method(run_directory.path, spec, data, device=device, step=settings.step)
    ema = _average(spec, settings)
    if isinstance(ema, EmaOfWidth):
        assert step is not None, "of weights that are trained"
        checkpoints = Checkpoints(run_directory.checkpoints_folder)
        method = with_width(method, spec, data, device, checkpoints, step, ema.width)
    shared: dict[str, Any] = {"seed": settings.seed, "weights": settings.weights, "guidance": settings.guidance}
    evaluation = Evaluation(name="samples", ema=ema, **shared)
    context = EvaluationContext(method, spec, data, evaluation, device, on_progress=on_progress)
    context.only_class = settings.only_class
    return context, settings, small, step


def _average(spec: RunSpec, settings: SampleSettings) -> float | EmaOfWidth | None:
    """Return the average that is sampled with, None for the first."""
    if settings.ema is None:
        return None
    if settings.weights != "ema":
        raise SpecError(f"--ema chooses among averages of the weights, but --weights {settings.weights} are sampled")
    try:
        return average_of(settings.ema, spec.train)
    except ValueError as error:
        raise SpecError(f"--ema {settings.ema:g}: {error}") from None


def _require_conditions(spec: RunSpec, settings: SampleSettings) -> None:
    """Raise SpecError for a class or a guidance that the network cannot be given."""
    if settings.only_class is not None:
        num_classes = spec.data.facts.num_classes
        if not spec.model.class_cond:
            raise SpecError(f"--class {settings.only_class}: this run's network takes no classes (model.class_cond)")
        if num_classes is not None and settings.only_class >= num_classes:
            raise SpecError(f"--class {settings.only_class}: the classes are 0 to {num_classes - 1}")
    if settings.guidance != 1 and not spec.model.label_dropout:
        raise SpecError(
            f"--guidance {settings.guidance:g}: guidance requires a network that was trained with model.label_dropout"
        )


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
