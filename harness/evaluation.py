"""Measure a run's weights by a protocol: sample once, extract features once, then every metric.

What is measured is decided by `spec.Evaluation`; everything here is a function of the weights and that protocol, so it
can be done inside the job, later from a checkpoint, or twice with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data import Dataset, to_uint8
from harness.diffusion import SAMPLERS, Denoised, GaussianDiffusion, denoiser, space_timesteps
from harness.errors import RecordError, SpecError
from harness.methods.gaussian import Predict
from harness.metrics import likelihood
from harness.randomness import Streams
from harness.records import RunDirectory
from harness.registry import make_dataset, make_method, make_process, parameters
from harness.spec import (
    Ancestral,
    Ddim,
    DpmSolverPP,
    Evaluation,
    Fidelity,
    Nll,
    Resources,
    RunSpec,
    Sweep,
    section_counts,
)
from harness.spec import extractor_name as name_of_extractor

Told = Callable[[str, int, int], None]
"""Hears of progress: what is being done, how much of it, of how much."""


@dataclass
class Measured:
    """What an evaluation gives.

    Attributes:
        metrics: name -> value, at the training step.
        curves: name -> [(MLflow step, value)], where the step is t or a number of sampling steps.
        arrays: file name -> arrays, whole.
        pictures: file name -> uint8 [H, W] or [H, W, 3].
        protocol: what must be said with the numbers, beyond the spec.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    arrays: dict[str, dict[str, np.ndarray]] = field(default_factory=dict)
    pictures: dict[str, np.ndarray] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluator:
    """One network under one protocol.

    Args:
        predict: network(x_t, t of the original chain, y) -> output.
        prefix: of the metrics' names, usually "eval".
    """

    predict: Predict
    spec: RunSpec
    data: Dataset
    evaluation: Evaluation
    device: torch.device
    prefix: str = "eval"
    told: Told = lambda what, done, total: None

    def measure(self, *, only_likelihood: bool = False) -> Measured:
        """Measure everything that the protocol asks for (or the likelihood alone, as during training)."""
        measured, wanted = Measured(), self.evaluation
        with torch.inference_mode():
            if wanted.nll:
                self._likelihood(wanted.nll, measured, with_curve=not only_likelihood)
            if only_likelihood:
                return measured
            samples = None
            if wanted.fidelity:
                samples = self._fidelity(wanted.fidelity, measured)
            if wanted.grid:
                self._grid(wanted.grid, samples, measured)
            if wanted.sweep:
                self._sweep(wanted.sweep, measured)
        return measured

    def process(self, decoder: str = "tanh") -> GaussianDiffusion:
        """Return the chain as this protocol reads it, its fixed variance decided."""
        fixed = self.evaluation.fixed_variance
        process = make_process(self.spec.diffusion, self.data.levels, fixed_variance=fixed, decoder=decoder)
        return process.to(self.device)

    # -- likelihood

    def _likelihood(self, nll: Nll, measured: Measured, *, with_curve: bool) -> None:
        split = self.data.test if self.evaluation.split == "test" else self.data.train
        count = min(nll.num_images or len(split), len(split))
        # A fixed choice of images, spread over the split: the same for every arm and replicate.
        rows = np.sort(np.random.default_rng(self.evaluation.seed).permutation(len(split))[:count])
        x_0 = self.data.to_unit(split.images[rows]).to(self.device)
        y = torch.from_numpy(split.labels[rows]).to(self.device) if self.spec.model.class_cond else None
        options: dict[str, Any] = {"seed": self.evaluation.seed, "batch_size": self.evaluation.batch_size}
        if nll.estimator == "stratified":
            options["evaluations_per_image"] = nll.evaluations_per_image
        estimate = {"full": likelihood.full_nll, "stratified": likelihood.stratified_nll}[nll.estimator]
        found = estimate(
            self.process(nll.decoder),
            self.predict,
            x_0,
            y,
            clip=nll.clip,
            progress=lambda done, total: self.told("likelihood", done, total),
            **options,
        )
        prefix = self.prefix
        measured.metrics |= {
            f"{prefix}/nll_bpd": found.total_bpd,
            f"{prefix}/nll_standard_error_bpd": found.standard_error_bpd,
            f"{prefix}/nll_images_standard_error_bpd": found.images_standard_error_bpd,
            f"{prefix}/L_0_bpd": found.decoder_bpd,
            f"{prefix}/L_T_bpd": found.prior_bpd,
        }
        if not with_curve:
            return
        curve = [(int(t), float(found.L_t_bpd[t])) for t in likelihood.curve_timesteps(len(found.L_t_bpd))]
        measured.curves[f"{prefix}/L_t_bpd"] = [(t, value) for t, value in curve if not np.isnan(value)]
        measured.arrays[f"{prefix}_likelihood.npz"] = {
            "L_t_bpd": found.L_t_bpd,
            "prior_bpd": np.array(found.prior_bpd),
            "image_index": rows,
        }
        measured.protocol["likelihood"] = {
            "estimator": found.estimator,
            "num_images": found.num_images,
            "num_evaluations": found.num_evaluations,
            "clip": nll.clip,
            "decoder": nll.decoder,
            "levels": self.data.levels,
            "denominator_dimensions": self.data.channels * self.data.image_size**2,
            "padded_share": self.data.padded_share,
        }
        if self.data.levels is not None:
            gaussian = likelihood.gaussian_baseline_bpd(self.data.train.images[:], split.images[rows], self.data.levels)
            measured.metrics[f"{prefix}/gaussian_baseline_bpd"] = gaussian

    # -- samples

    def sample(self, sampler: Ancestral | Ddim | DpmSolverPP, num_steps: int, num_samples: int) -> Tensor:
        """Draw samples, [N, C, H, W] on the CPU; class-conditional models take the classes in turn."""
        kept = space_timesteps(self.spec.diffusion.num_timesteps, section_counts(sampler, num_steps))
        process = self.process().respaced(kept)
        streams = Streams(self.evaluation.seed, self.device)
        options = {key: value for key, value in parameters(sampler).items() if key != "spacing"}
        batch, samples = self.evaluation.batch_size, []
        total = num_samples * len(kept)
        for chunk, start in enumerate(range(0, num_samples, batch)):
            count = min(batch, num_samples - start)
            x_T = streams.normal("x_T", chunk, (count, self.data.channels, *[self.data.image_size] * 2))
            label = None
            if self.spec.model.class_cond:
                label = torch.arange(start, start + count, device=self.device) % self.data.num_classes

            def network(x_t: Tensor, t: Tensor, label: Tensor | None = label) -> Tensor:
                return self.predict(x_t, t, label)

            def on_step(t: int, x: Tensor, denoised: Denoised, start: int = start, count: int = count) -> None:
                self.told("sampling", start * len(kept) + count * (len(kept) - t), total)

            x_0 = SAMPLERS[sampler.name](
                denoiser(process, network, clip=self.data.levels is not None),
                x_T,
                process,
                generator=streams.generator("sampling", chunk),
                on_step=on_step,
                **options,
            )
            samples.append(x_0.cpu())
        return torch.cat(samples)

    def pictures(self, samples: Tensor) -> Tensor:
        """Turn samples into what an extractor sees: uint8, or the values themselves where data are continuous."""
        return samples if self.data.levels is None else to_uint8(samples)

    def _fidelity(self, wanted: Fidelity, measured: Measured) -> Tensor:
        from harness.metrics.fidelity import frechet_distance, precision_recall, reference_features, spread

        extractor = self._extractor(wanted.extractor, measured)
        samples = self.sample(wanted.sampler, wanted.num_steps, wanted.num_samples)
        features = self._features(extractor, samples)
        reference = reference_features(extractor, self.data, split=wanted.reference)
        near = reference[spread(len(reference), wanted.prc_reference)]
        found = {
            "fid": frechet_distance(reference, features),
            **precision_recall(near, features, wanted.k, device=self.device),
        }
        how = f"{extractor.name}_{wanted.num_samples}_{wanted.sampler.name}{wanted.num_steps}"
        measured.metrics |= {f"{self.prefix}/{name}_{how}": value for name, value in found.items()}
        measured.protocol["fidelity"] = {
            "reference_images": len(reference),
            "reference": wanted.reference,
            "prc_reference_images": len(near),
            "k": wanted.k,
        }
        return samples

    def _sweep(self, wanted: Sweep, measured: Measured) -> None:
        from harness.metrics.fidelity import frechet_distance, reference_features

        extractor = self._extractor(wanted.extractor, measured)
        reference = reference_features(extractor, self.data, split=wanted.reference)
        prefix = "sweep" if self.prefix == "eval" else f"sweep_{self.prefix.removeprefix('eval_')}"
        for sampler in wanted.samplers:
            curve = measured.curves[f"{prefix}/fid_{extractor.name}_{wanted.num_samples}_{sampler.name}"] = []
            for num_steps in sorted(wanted.num_steps):
                features = self._features(extractor, self.sample(sampler, num_steps, wanted.num_samples))
                curve.append((num_steps, frechet_distance(reference, features)))

    def _features(self, extractor: Any, samples: Tensor) -> Tensor:
        features = extractor.features(self.pictures(samples))
        # uint8 knows no NaN: a sample that diverged would pass for some shade of grey.
        diverged = ~samples.flatten(1).isfinite().all(1)
        return features.masked_fill(diverged.unsqueeze(1), torch.nan)

    def _extractor(self, resolved: str, measured: Measured) -> Any:
        from harness.metrics.features import load_extractor

        extractor = load_extractor(name_of_extractor(resolved, self.data.name), self.data, device=self.device)
        measured.protocol["extractor"] = {
            "name": extractor.name,
            "weights_sha256": extractor.digest,
            "test_accuracy": extractor.accuracy,
            "official_weights": extractor.official,
        }
        return extractor

    def _grid(self, count: int, samples: Tensor | None, measured: Measured) -> None:
        if samples is None or len(samples) < count:
            wanted = self.evaluation.fidelity or Fidelity(num_steps=self.spec.diffusion.num_timesteps)
            samples = self.sample(wanted.sampler, wanted.num_steps, count)
        measured.arrays[f"{self.prefix}_samples.npz"] = {"samples": self.pictures(samples[:count]).numpy()}
        if self.data.levels is not None:
            measured.pictures[f"{self.prefix}_samples.png"] = image_grid(to_uint8(samples[:count]).numpy())


def image_grid(images: np.ndarray, min_tile_pixels: int = 48) -> np.ndarray:
    """Lay uint8 images [N, C, H, W] out in a near-square grid, small ones enlarged without smoothing.

    Returns:
        [height, width] for grey, [height, width, 3] for colour, with a thin light gap between tiles.
    """
    count, channels, size, _ = images.shape
    scale, columns = max(1, -(-min_tile_pixels // size)), int(np.ceil(np.sqrt(count)))
    tile, gap = size * scale, 2
    rows = -(-count // columns)
    canvas = np.full((rows * (tile + gap) + gap, columns * (tile + gap) + gap, channels), 255, np.uint8)
    for index, image in enumerate(images):
        top, left = (gap + (tile + gap) * place for place in divmod(index, columns))
        enlarged = image.transpose(1, 2, 0).repeat(scale, 0).repeat(scale, 1)
        canvas[top : top + tile, left : left + tile] = enlarged
    return canvas[:, :, 0] if channels == 1 else canvas


def save_png(path: Path, picture: np.ndarray) -> None:
    """Write a uint8 picture."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def load_predict(
    run_folder: Path, spec: RunSpec, data: Dataset, *, weights: str, device: torch.device, step: int | None = None
) -> Predict:
    """Load a run's network from a checkpoint (the newest by default); `untrained` needs none.

    Raises:
        RecordError: the run has no checkpoint yet.
    """
    from harness.checkpoint import Checkpoints

    method = make_method(spec, data, Resources(), device)
    if weights == "untrained":
        return method.predict("raw")
    checkpoints = Checkpoints(run_folder / "checkpoints")
    found = checkpoints.latest(device) if step is None else (step, checkpoints.load(step, device))
    if found is None:
        raise RecordError(f"run {run_folder.name} has no checkpoint yet; `harness status` tells how far it is")
    method.load_state_dict(found[1]["method"])
    return method.predict(weights)


def sample_run(
    run_folder: Path,
    *,
    sampler: Ancestral | Ddim | DpmSolverPP,
    num_steps: int,
    num_samples: int,
    seed: int = 0,
    weights: str = "ema",
    data_root: str | None = None,
    told: Told = lambda what, done, total: None,
) -> Path:
    """Draw samples from a run's newest checkpoint, whether it is finished or not.

    Returns:
        the PNG of the grid; the uint8 images lie beside it as npz. Points of the plane have the npz alone.

    Raises:
        RecordError: the run has no checkpoint yet.
        SpecError: the chain has no such number of steps.
    """
    run_directory = RunDirectory(run_folder)
    spec = RunSpec.model_validate(run_directory.spec())
    try:
        space_timesteps(spec.diffusion.num_timesteps, section_counts(sampler, num_steps))
    except ValueError as error:
        raise SpecError(f"--steps {num_steps}: {error}") from None
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = make_dataset(spec.data, data_root)
    predict = load_predict(run_directory.path, spec, data, weights=weights, device=device)
    evaluation = Evaluation(name="samples", seed=seed, weights=weights)
    evaluator = Evaluator(predict, spec, data, evaluation, device, told=told)
    with torch.inference_mode():
        samples = evaluator.pictures(evaluator.sample(sampler, num_steps, num_samples)).numpy()
    folder = run_directory.path / "samples"
    folder.mkdir(exist_ok=True)
    stem = f"{sampler.name}{num_steps}_seed{seed}_{weights}"
    np.savez(folder / f"{stem}.npz", samples=samples)
    if data.levels is None:
        return folder / f"{stem}.npz"
    save_png(folder / f"{stem}.png", image_grid(samples))
    return folder / f"{stem}.png"
