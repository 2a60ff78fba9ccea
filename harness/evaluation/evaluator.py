"""Measure a run's weights by a protocol: sample once, extract features once, then every metric.

What is measured is decided by `spec.Evaluation`; everything here is a function of the weights and that protocol, so it
can be done inside the job, later from a checkpoint, or twice with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Split, spread, to_uint8
from harness.diffusion.process import Denoised, GaussianDiffusion
from harness.diffusion.respacing import space_timesteps
from harness.diffusion.samplers import SAMPLERS, Network, denoiser, guided, skip_fraction
from harness.diffusion.timesteps import UniformSampler
from harness.evaluation.images import image_grid
from harness.methods.gaussian import GaussianMethod, Predict
from harness.metrics import likelihood
from harness.randomness import Permutations, Streams
from harness.registry import make_process, parameters
from harness.spec.evaluation import (
    Ancestral,
    Ddim,
    DpmSolverPP,
    Evaluation,
    Fidelity,
    Nll,
    NoiseScale,
    RateDistortion,
    Skip,
    Sweep,
    section_counts,
)
from harness.spec.evaluation import extractor_name as name_of_extractor
from harness.spec.run import RunSpec

ProgressCallback = Callable[[str, int, int], None]
"""Hears of progress: what is being done, how much of it, of how much."""


BASELINE_IMAGES = 50_000  # that the Gaussian baseline is fitted to; all of ImageNet would not fit into memory


@dataclass
class EvaluationResult:
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
        told: hears of progress.
        method, timesteps: of the training, for what is measured on its gradients.
    """

    predict: Predict
    spec: RunSpec
    data: Any  # Dataset; for samples alone the declared DatasetFacts will do
    evaluation: Evaluation
    device: torch.device
    prefix: str = "eval"
    told: ProgressCallback = lambda what, done, total: None
    method: GaussianMethod | None = None
    timesteps: UniformSampler | None = None

    def measure(self, *, only_likelihood: bool = False) -> EvaluationResult:
        """Measure everything that the protocol asks for (or the likelihood alone, as during training)."""
        measured, wanted = EvaluationResult(), self.evaluation
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
            if wanted.skip:
                self._skip(wanted.skip, measured)
            if wanted.rate_distortion:
                self._rate_distortion(wanted.rate_distortion, measured)
        if wanted.noise_scale:
            self._noise_scale(wanted.noise_scale, measured)
        return measured

    def process(self, decoder: str = "tanh") -> GaussianDiffusion:
        """Return the chain as this protocol reads it, its fixed variance decided."""
        fixed = self.evaluation.fixed_variance
        process = make_process(self.spec.diffusion, self.data.levels, fixed_variance=fixed, decoder=decoder)
        return process.to(self.device)

    # -- likelihood

    def _likelihood(self, nll: Nll, measured: EvaluationResult, *, with_curve: bool) -> None:
        split, rows, x_0, y = self._images(nll.num_images)
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
            known = self.data.train.images[spread(len(self.data.train), BASELINE_IMAGES)]
            gaussian = likelihood.gaussian_baseline_bpd(known, split.images[rows], self.data.levels)
            measured.metrics[f"{prefix}/gaussian_baseline_bpd"] = gaussian

    def _images(self, num_images: int | None) -> tuple[Split, np.ndarray, Tensor, Tensor | None]:
        """Choose images of the protocol's split: the same for every arm and replicate."""
        split = self.data.test if self.evaluation.split == "test" else self.data.train
        count = min(num_images or len(split), len(split))
        rows = np.sort(np.random.default_rng(self.evaluation.seed).permutation(len(split))[:count])
        x_0 = self.data.to_unit(split.images[rows]).to(self.device)
        y = torch.from_numpy(split.labels[rows]).to(self.device) if self.spec.model.class_cond else None
        return split, rows, x_0, y

    def _rate_distortion(self, wanted: RateDistortion, measured: EvaluationResult) -> None:
        from harness.metrics.rate_distortion import rate_distortion

        assert wanted.num_steps is not None, "resolved"
        _, rows, x_0, y = self._images(wanted.num_images)
        found = rate_distortion(
            self.process().respaced(space_timesteps(self.spec.diffusion.num_timesteps, str(wanted.num_steps))),
            self.predict,
            x_0,
            y,
            seed=self.evaluation.seed,
            batch_size=self.evaluation.batch_size,
            clip=wanted.clip,
            progress=lambda done, total: self.told("rate-distortion", done, total),
        )
        measured.metrics |= {
            f"{self.prefix}/rate_bpd": float(found.rate_bpd[-1]),
            f"{self.prefix}/distortion_rmse": float(found.distortion_rmse[-1]),
        }
        measured.arrays[f"{self.prefix}_rate_distortion.npz"] = {
            "reverse_steps": found.reverse_steps,
            "rate_bpd": found.rate_bpd,
            "distortion_rmse": found.distortion_rmse,
            "image_index": rows,
        }

    def _noise_scale(self, wanted: NoiseScale, measured: EvaluationResult) -> None:
        """Measure on fresh batches of the training split, t drawn as training would draw it now."""
        from harness.metrics.noise_scale import measure_noise_scale

        assert self.method is not None and self.timesteps is not None, "only within a job"
        method, timesteps, train = self.method, self.timesteps, self.data.train
        streams = Streams(self.evaluation.seed, self.device)
        order = Permutations(len(train), self.evaluation.seed)

        def losses() -> Iterator[Tensor]:
            for batch in range(wanted.num_big * wanted.small_per_big):
                self.told("gradient noise", batch, wanted.num_big * wanted.small_per_big)
                rows = order.batch(batch, wanted.batch_size).numpy()
                x_0 = self.data.to_unit(train.images[rows]).to(self.device)
                y = torch.from_numpy(train.labels[rows]).to(self.device) if self.spec.model.class_cond else None
                t, weight = timesteps.at(streams.uniform("noise_scale_t", batch, len(rows)))
                noise = streams.normal("noise_scale", batch, tuple(x_0.shape))
                yield (method.terms(x_0, y, t, noise)["loss"] * weight).mean()

        method.network.eval()
        scale = measure_noise_scale(
            list(method.network.parameters()),
            losses(),
            batch_size=wanted.batch_size,
            small_per_big=wanted.small_per_big,
        )
        measured.metrics[f"{self.prefix}/gradient_noise_scale"] = scale

    # -- samples

    def sample(
        self,
        sampler: Ancestral | Ddim | DpmSolverPP,
        num_steps: int,
        num_samples: int,
        *,
        skipped: float = 0.0,
        low_res: Tensor | None = None,
    ) -> Tensor:
        """Draw samples, [N, C, H, W] on the CPU; class-conditional models take the classes in turn.

        Args:
            skipped: fraction of the chain's start that is left out, in [0, 1).
            low_res: [N, C, h, w], in [-1, 1], what an upsampler enlarges.
        """
        kept = space_timesteps(self.spec.diffusion.num_timesteps, section_counts(sampler, num_steps))
        process = self.process().respaced(kept)
        streams = Streams(self.evaluation.seed, self.device)
        options = {key: value for key, value in parameters(sampler).items() if key != "spacing"}
        batch, samples = self.evaluation.batch_size, []
        first = skip_fraction(process, skipped)
        total = num_samples * (first + 1)
        hidden = self.data.num_classes  # the class that means "not told"
        for chunk, start in enumerate(range(0, num_samples, batch)):
            count = min(batch, num_samples - start)
            x_T = streams.normal("x_T", chunk, (count, self.data.channels, *[self.data.image_size] * 2))
            label = None
            if self.spec.model.class_cond:
                label = torch.arange(start, start + count, device=self.device) % self.data.num_classes

            given = {} if low_res is None else {"low_res": low_res[start : start + count].to(self.device)}
            network: Network = partial(self._network, label, **given)
            if self.evaluation.guidance != 1 and label is not None:
                free = partial(self._network, torch.full_like(label, hidden), **given)
                network = guided(network, free, self.evaluation.guidance)

            def on_step(t: int, x: Tensor, denoised: Denoised, start: int = start, count: int = count) -> None:
                self.told("sampling", start * (first + 1) + count * (first + 1 - t), total)

            x_0 = SAMPLERS[sampler.name](
                denoiser(process, network, clip=self.data.levels is not None),
                x_T,
                process,
                generator=streams.generator("sampling", chunk),
                start=first,
                on_step=on_step,
                **options,
            )
            samples.append(x_0.cpu())
        return torch.cat(samples)

    def _network(self, label: Tensor | None, x_t: Tensor, t: Tensor, **given: Tensor) -> Tensor:
        return self.predict(x_t, t, label, **given)

    def pictures(self, samples: Tensor) -> Tensor:
        """Turn samples into what an extractor sees: uint8, or the values themselves where data are continuous."""
        return samples if self.data.levels is None else to_uint8(samples)

    def _fidelity(self, wanted: Fidelity, measured: EvaluationResult) -> Tensor:
        from harness.metrics.fidelity import frechet_distance, precision_recall, reference_features

        extractor = self._extractor(wanted.extractor, measured)
        assert wanted.num_steps is not None, "resolved"
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

    def _sweep(self, wanted: Sweep, measured: EvaluationResult) -> None:
        from harness.metrics.fidelity import frechet_distance, reference_features

        extractor = self._extractor(wanted.extractor, measured)
        reference = reference_features(extractor, self.data, split=wanted.reference)
        prefix = "sweep" if self.prefix == "eval" else f"sweep_{self.prefix.removeprefix('eval_')}"
        for sampler in wanted.samplers:
            curve = measured.curves[f"{prefix}/fid_{extractor.name}_{wanted.num_samples}_{sampler.name}"] = []
            for num_steps in sorted(wanted.num_steps):
                features = self._features(extractor, self.sample(sampler, num_steps, wanted.num_samples))
                curve.append((num_steps, frechet_distance(reference, features)))

    def _skip(self, wanted: Skip, measured: EvaluationResult) -> None:
        from harness.metrics.fidelity import frechet_distance, reference_features

        assert wanted.num_steps is not None, "resolved"
        extractor = self._extractor(wanted.extractor, measured)
        reference = reference_features(extractor, self.data, split=wanted.reference)
        how = f"{extractor.name}_{wanted.num_samples}_{wanted.sampler.name}{wanted.num_steps}"
        curve = measured.curves[f"{self.prefix}/fid_{how}_by_skipped_percent"] = []
        for fraction in sorted(wanted.fractions):
            samples = self.sample(wanted.sampler, wanted.num_steps, wanted.num_samples, skipped=fraction)
            curve.append((round(100 * fraction), frechet_distance(reference, self._features(extractor, samples))))

    def _features(self, extractor: Any, samples: Tensor) -> Tensor:
        features = extractor.features(self.pictures(samples))
        # uint8 knows no NaN: a sample that diverged would pass for some shade of grey.
        diverged = ~samples.flatten(1).isfinite().all(1)
        return features.masked_fill(diverged.unsqueeze(1), torch.nan)

    def _extractor(self, resolved: str, measured: EvaluationResult) -> Any:
        from harness.metrics.features import load_extractor

        extractor = load_extractor(name_of_extractor(resolved, self.data.name), self.data, device=self.device)
        measured.protocol["extractor"] = {
            "name": extractor.name,
            "weights_sha256": extractor.digest,
            "test_accuracy": extractor.accuracy,
            "official_weights": extractor.official,
        }
        return extractor

    def _grid(self, count: int, samples: Tensor | None, measured: EvaluationResult) -> None:
        if samples is None or len(samples) < count:
            wanted = self.evaluation.fidelity or Fidelity(num_steps=None)
            samples = self.sample(wanted.sampler, wanted.num_steps or self.spec.diffusion.num_timesteps, count)
        measured.arrays[f"{self.prefix}_samples.npz"] = {"samples": self.pictures(samples[:count]).numpy()}
        if self.data.levels is not None:
            measured.pictures[f"{self.prefix}_samples.png"] = image_grid(to_uint8(samples[:count]).numpy())
