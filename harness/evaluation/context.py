"""The context shared by the parts of an evaluation: weights, data, protocol, and cached results."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Split, to_uint8
from harness.diffusion.process import Denoised, GaussianDiffusion
from harness.diffusion.respacing import space_timesteps
from harness.diffusion.samplers import Denoise, OnStep, skip_fraction
from harness.evaluation.keeping import (
    BATCHES_AT_ONCE,
    SAMPLING_VERSION,
    VALUES_VERSION,
    Draw,
    Evaluate,
    Keeping,
    KeptValues,
    array_digest,
    weights_digest,
)
from harness.methods.base import HasLikelihood, Method, Predict
from harness.metrics.features import Extractor, load_extractor
from harness.metrics.fidelity import reference_features
from harness.metrics.reference import read_reference
from harness.randomness import Streams, derive_seed
from harness.records.kept import KeptArrays
from harness.registry import implementation, make_process, parameters
from harness.spec.averages import average_name
from harness.spec.evaluation import AnySampler, Evaluation, extractor_name, section_counts
from harness.spec.metrics import classifier_is_poor
from harness.spec.parts import plugins_of
from harness.spec.run import RunSpec

logger = logging.getLogger(__name__)

ProgressCallback = Callable[[str, int, int], None]
"""on_progress(what is being done, amount done, total amount)."""


@dataclass
class EvaluationContext:
    """One set of weights under one protocol.

    Args:
        method: with the weights that are measured; newly initialised for a protocol on untrained weights.
        data: a `Dataset`; for samples alone the declared `DatasetFacts` will do.
        prefix: of the metrics' names; the evaluation's name unless another protocol uses it.
        keeping: where samples and features are kept; None keeps nothing.
        only_class: of all samples of a class-conditional model; None takes the classes in turn.

    Attributes:
        samples: [N, C, H, W], those that FID was measured on; None before, and where their features had been kept.
    """

    method: Method
    spec: RunSpec
    data: Any
    evaluation: Evaluation
    device: torch.device
    prefix: str = "eval"
    on_progress: ProgressCallback = lambda task, done, total: None
    keeping: Keeping | None = None
    only_class: int | None = None
    samples: Tensor | None = field(default=None, repr=False)
    _draws: dict[str, Draw] = field(default_factory=dict, repr=False)
    _kept_values: list[KeptValues] = field(default_factory=list, repr=False)
    _extractors: dict[str, Extractor] = field(default_factory=dict, repr=False)
    _references: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

    def sampling_seed(self, index: int, count: int) -> EvaluationContext:
        """Return this context with one of several sampling seeds; the first draws what an only seed draws.

        Args:
            index: 0 .. count - 1.
            count: of sampling seeds; progress is reported over all of them.
        """
        if count == 1:
            return self
        report = self.on_progress

        def on_progress(task: str, done: int, total: int) -> None:
            report(task, index * total + done, count * total)

        if index == 0:
            return replace(self, on_progress=on_progress)
        seed = derive_seed(self.evaluation.seed, f"sampling seed {index}")
        # A plugin's metrics read the samples of the first seed alone.
        evaluation = self.evaluation.model_copy(update={"seed": seed, "metrics": ()})
        return replace(self, evaluation=evaluation, on_progress=on_progress)

    # -- the weights

    def process(self, decoder: Literal["tanh", "exact"] = "tanh") -> GaussianDiffusion:
        """Return the chain with the fixed variance that this protocol chooses."""
        fixed = self.evaluation.fixed_variance
        process = make_process(self.spec.diffusion, self.data.levels, fixed_variance=fixed, decoder=decoder)
        return process.to(self.device)

    @property
    def weights(self) -> str:
        """Which weights of the method are measured: "ema", "raw" or the name of a further average."""
        if isinstance(self.evaluation.ema, float):
            return average_name(self.evaluation.ema)
        return "raw" if self.evaluation.weights == "untrained" else self.evaluation.weights

    @property
    def predict(self) -> Predict:
        """The network, network(x_t, t of the original chain, y) -> output, of a method that has a likelihood."""
        assert isinstance(self.method, HasLikelihood), "the spec's validation asks for one"
        return self.method.predict(self.weights)

    def sample(
        self,
        sampler: AnySampler,
        num_steps: int,
        num_samples: int,
        *,
        skipped: float = 0.0,
        low_res: Tensor | None = None,
        only_first: int | None = None,
        on_noise: Callable[[Tensor], None] | None = None,
        on_step: OnStep | None = None,
    ) -> Tensor:
        """Draw samples, [N, C, H, W] on the CPU; class-conditional models cycle through the classes.

        Args:
            skipped: fraction of the chain's start that is skipped, in [0, 1).
            low_res: [N, C, h, w], in [-1, 1], what an upsampler enlarges.
            only_first: return this many of the num_samples, and draw no batch beyond them.
            on_noise: called with x_T of each batch, on the CPU.
            on_step: called after every step of each batch, as by a sampler.
        """
        options: dict[str, Any] = {"skipped": skipped, "low_res": low_res, "on_noise": on_noise, "on_step": on_step}
        batches = self.batches(sampler, num_steps, num_samples, only_first=only_first, **options)
        return torch.cat(list(batches))[:only_first]

    def batches(
        self,
        sampler: AnySampler,
        num_steps: int,
        num_samples: int,
        *,
        skipped: float = 0.0,
        low_res: Tensor | None = None,
        only_first: int | None = None,
        on_noise: Callable[[Tensor], None] | None = None,
        on_step: OnStep | None = None,
    ) -> Iterator[Tensor]:
        """Draw samples as `sample` does, and yield each batch.

        Batches are kept as soon as they are drawn, and those that were kept before are not drawn again, unless
        somebody watches the steps.
        """
        kept = space_timesteps(self.spec.diffusion.num_timesteps, section_counts(sampler, num_steps))
        process = self.process().respaced(kept)
        streams = Streams(self.evaluation.seed, self.device)
        options = {key: value for key, value in parameters(sampler).items() if key != "spacing"}
        batch_size = self.evaluation.batch_size
        first = skip_fraction(process, skipped)
        returned = num_samples if only_first is None else min(only_first, num_samples)
        total = num_samples * (first + 1)
        draw = None if on_noise or on_step else self._draw(sampler, num_steps, skipped, low_res)
        for batch, start in enumerate(range(0, returned, batch_size)):
            count = min(batch_size, num_samples - start)
            if draw and (stored := draw.read(batch, count)) is not None:
                yield stored
                continue
            x_T = streams.normal("x_T", batch, (count, self.data.channels, *[self.data.image_size] * 2))
            if on_noise:
                on_noise(x_T.cpu())

            def after_step(t: int, x: Tensor, denoised: Denoised, start: int = start, count: int = count) -> None:
                self.on_progress("sampling", start * (first + 1) + count * (first + 1 - t), total)
                if on_step:
                    on_step(t, x, denoised)

            generator = streams.generator("sampling", batch)
            denoise = self.method.denoiser(
                self.weights,
                process,
                y=self.labels(start, count),
                generator=generator,
                clip=self.data.levels is not None,
                guidance=self.evaluation.guidance,
                low_res=None if low_res is None else low_res[start : start + count].to(self.device),
            )
            x_0 = implementation("sampler", sampler)(
                denoise,
                x_T,
                process,
                generator=generator,
                start=first,
                on_step=after_step,
                **options,
            ).cpu()
            if draw:
                draw.write(batch, x_0)
            yield x_0

    def denoiser(
        self, process: GaussianDiffusion, generator: torch.Generator, y: Tensor | None = None, *, clip: bool = True
    ) -> Denoise:
        """Return what a sampler needs of the measured weights.

        Args:
            y: [B], classes where the network takes them.
            clip: clamp the predicted x_0 to [-1, 1] where the data are images.
        """
        return self.method.denoiser(
            self.weights,
            process,
            y=y,
            generator=generator,
            clip=clip and self.data.levels is not None,
            guidance=self.evaluation.guidance,
        )

    def labels(self, start: int, count: int) -> Tensor | None:
        """Return the classes of samples start .. start + count - 1, [count]; None where the network takes none."""
        if not self.spec.model.class_cond:
            return None
        if self.only_class is not None:
            return torch.full((count,), self.only_class, device=self.device)
        return torch.arange(start, start + count, device=self.device) % self.data.num_classes

    # -- what is kept

    def _draw(
        self, sampler: AnySampler, num_steps: int, skipped: float = 0.0, low_res: Tensor | None = None
    ) -> Draw | None:
        """Return what is kept of the samples that these settings give; None if nothing is."""
        if self.keeping is None:
            return None
        settings = self.draw_settings(sampler, num_steps, skipped, low_res)
        arrays = KeptArrays(self.keeping.folder, settings)
        exact = self.data.levels is None or bool(self.evaluation.metrics)  # a plugin's metric may read the samples
        return self._draws.setdefault(arrays.folder.name, Draw(arrays, exact=exact))

    def draw_settings(
        self, sampler: AnySampler, num_steps: int, skipped: float = 0.0, low_res: Tensor | None = None
    ) -> dict[str, Any]:
        """Return all that samples depend on beside their number, as plain values."""
        settings = {
            "version": SAMPLING_VERSION,
            "run_key": self.spec.run_key,
            "weights": self.evaluation.weights,
            "weights_sha256": self._weights_digest,
            "sampler": sampler.model_dump(mode="json"),
            "plugins": plugins_of(sampler),
            "num_steps": num_steps,
            "skipped": skipped,
            "seed": self.evaluation.seed,
            "batch_size": self.evaluation.batch_size,
            "guidance": self.evaluation.guidance,
            "fixed_variance": self.evaluation.fixed_variance,
            "class": self.only_class,
            "device": self.device.type,  # CPU and CUDA draw different numbers
        }
        settings |= self._ensemble
        return settings if low_res is None else settings | {"low_res_sha256": array_digest(low_res.numpy())}

    def kept_values(self, part: str) -> KeptValues:
        """Return what is kept of the values that a part computes batch by batch on this data."""
        if self.keeping is None:
            return KeptValues(None)
        settings = {
            "version": VALUES_VERSION,
            "run_key": self.spec.run_key,
            "weights": self.evaluation.weights,
            "weights_sha256": self._weights_digest,
            "part": part,
            "settings": getattr(self.evaluation, part).model_dump(mode="json"),
            "data_digest": self.data.digest,
            "split": self.evaluation.split,
            "seed": self.evaluation.seed,
            "batch_size": self.evaluation.batch_size,
            "guidance": self.evaluation.guidance,
            "fixed_variance": self.evaluation.fixed_variance,
            "device": self.device.type,
            **self._ensemble,
        }
        values = KeptValues(KeptArrays(self.keeping.folder, settings))
        self._kept_values.append(values)
        return values

    def keep_calls(self, part: str) -> Callable[[Evaluate], Evaluate]:
        """Return how a part keeps what the network gives: by whole batches, so that no bit depends on a kill."""
        return partial(self.kept_values(part).of_calls, rows_at_once=BATCHES_AT_ONCE * self.evaluation.batch_size)

    @property
    def _ensemble(self) -> dict[str, Any]:
        ensemble = self.evaluation.ensemble
        return {"ensemble": ensemble.model_dump(mode="json")} if ensemble else {}

    @cached_property
    def _weights_digest(self) -> str:
        return weights_digest(self.method.sampling_network(self.weights).state_dict())

    def release(self) -> None:
        """Remove the kept batches when the evaluation has been recorded; those of samples unless they are to stay."""
        for values in self._kept_values:
            values.release()
        for draw in self._draws.values() if self.keeping and not self.keeping.samples else ():
            draw.arrays.remove_batches()

    # -- the data

    def choose_images(self, num_images: int | None) -> tuple[Split, np.ndarray, Tensor, Tensor | None]:
        """Choose images of the protocol's split: the same for every arm and replicate.

        Returns:
            the split, the rows chosen, x_0 in [-1, 1], and y where the network takes classes.
        """
        split = self.data.test if self.evaluation.split == "test" else self.data.train
        count = min(num_images or len(split), len(split))
        rows = np.sort(np.random.default_rng(self.evaluation.seed).permutation(len(split))[:count])
        return split, rows, *self.load_images(split, rows)

    def load_images(self, split: Split, rows: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Return rows of a split on the device: x_0 in [-1, 1], and y where the network takes classes."""
        x_0 = self.data.to_unit(split.images[rows]).to(self.device)
        if not self.spec.model.class_cond:
            return x_0, None
        assert split.labels is not None, "the spec's validation asks for labels"
        return x_0, torch.from_numpy(split.labels[rows]).to(self.device)

    # -- features

    def to_images(self, samples: Tensor) -> Tensor:
        """Convert samples to an extractor's input: uint8, or the values themselves where data are continuous."""
        return samples if self.data.levels is None else to_uint8(samples)

    def extractor(self, resolved: str) -> Extractor:
        """Return a feature extractor by its name in a protocol; loaded once."""
        if resolved not in self._extractors:
            name = None if resolved == "auto" else extractor_name(resolved, self.data.name, self.data.digest)
            extractor = load_extractor(name, self.data, device=self.device)
            if extractor.accuracy is not None and classifier_is_poor(extractor.accuracy, extractor.majority_share or 0):
                logger.warning(
                    "%s labels only %.1f %% of the test images correctly: its FID, precision and recall say little",
                    extractor.name,
                    100 * extractor.accuracy,
                )
            self._extractors[resolved] = extractor
        return self._extractors[resolved]

    def reference(self, extractor: Extractor, source: str) -> Tensor:
        """Return the features of a whole split, or of the file that the protocol names, [N, F]; made once."""
        key = (extractor.name, source)
        if key not in self._references:
            if source in ("train", "test"):
                self._references[key] = reference_features(extractor, self.data, split=source)
            else:
                self._references[key] = self._file_reference(extractor, Path(source))
        return self._references[key]

    def _file_reference(self, extractor: Extractor, path: Path) -> Tensor:
        part = self.evaluation.fidelity
        reference = read_reference(path, part.reference_sha256 if part else None)
        reference.require_extractor(extractor, path)
        return reference.points

    def features(self, extractor: Extractor, samples: Tensor) -> Tensor:
        """Return the features of samples, [N, F]; NaN for a sample that diverged."""
        features = extractor.features(self.to_images(samples))
        # uint8 has no NaN: a diverged sample would become some shade of grey.
        diverged = ~samples.flatten(1).isfinite().all(1)
        return features.masked_fill(diverged.unsqueeze(1), torch.nan)

    def sampled_features(
        self, extractor: Extractor, sampler: AnySampler, num_steps: int, num_samples: int, *, with_samples: bool = False
    ) -> Tensor:
        """Return the features of samples, [N, F]; those that were kept, where they were, and then nothing is sampled.

        Args:
            with_samples: set `samples` too; else it is set only where the features had not been kept.
        """
        draw = self._draw(sampler, num_steps)
        kept = draw.read_features(extractor, num_samples) if draw else None
        if kept is None or with_samples or self.evaluation.metrics:  # a plugin's metric may read the samples
            self.samples = self.sample(sampler, num_steps, num_samples)
        if kept is not None:
            return kept
        assert self.samples is not None
        features = self.features(extractor, self.samples)
        if draw and self.keeping:
            draw.write_features(extractor, features, self.keeping.features_mib)
        return features

    def count(self, task: str) -> Callable[[int, int], None]:
        """Return a callback (done, total) that reports the progress of one part."""
        return partial(self.on_progress, task)
