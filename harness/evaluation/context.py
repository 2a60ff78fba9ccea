"""The context shared by the parts of an evaluation: weights, data, protocol, and cached results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from harness.data.base import Split, to_uint8
from harness.diffusion.process import Denoised, GaussianDiffusion
from harness.diffusion.respacing import space_timesteps
from harness.diffusion.samplers import Denoise, OnStep, skip_fraction
from harness.methods.base import HasLikelihood, Method, Predict
from harness.metrics.features import Extractor, load_extractor
from harness.metrics.fidelity import reference_features
from harness.randomness import Streams
from harness.registry import implementation, make_process, parameters
from harness.spec.averages import average_name
from harness.spec.evaluation import AnySampler, Evaluation, extractor_name, section_counts
from harness.spec.run import RunSpec

ProgressCallback = Callable[[str, int, int], None]
"""on_progress(what is being done, amount done, total amount)."""


@dataclass
class EvaluationContext:
    """One set of weights under one protocol.

    Args:
        method: with the weights that are measured; newly initialised for a protocol on untrained weights.
        data: a `Dataset`; for samples alone the declared `DatasetFacts` will do.
        prefix: of the metrics' names; the evaluation's name unless another protocol uses it.

    Attributes:
        samples: [N, C, H, W], those that FID was measured on; None before.
    """

    method: Method
    spec: RunSpec
    data: Any
    evaluation: Evaluation
    device: torch.device
    prefix: str = "eval"
    on_progress: ProgressCallback = lambda task, done, total: None
    samples: Tensor | None = field(default=None, repr=False)
    _extractors: dict[str, Extractor] = field(default_factory=dict, repr=False)
    _references: dict[tuple[str, str], Tensor] = field(default_factory=dict, repr=False)

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
        on_noise: Callable[[Tensor], None] = lambda x_T: None,
        on_step: OnStep = lambda t, x, denoised: None,
    ) -> Tensor:
        """Draw samples, [N, C, H, W] on the CPU; class-conditional models cycle through the classes.

        Args:
            skipped: fraction of the chain's start that is skipped, in [0, 1).
            low_res: [N, C, h, w], in [-1, 1], what an upsampler enlarges.
            on_noise: called with x_T of each batch, on the CPU.
            on_step: called after every step of each batch, as by a sampler.
        """
        kept = space_timesteps(self.spec.diffusion.num_timesteps, section_counts(sampler, num_steps))
        process = self.process().respaced(kept)
        streams = Streams(self.evaluation.seed, self.device)
        options = {key: value for key, value in parameters(sampler).items() if key != "spacing"}
        batch_size, batches = self.evaluation.batch_size, []
        first = skip_fraction(process, skipped)
        total = num_samples * (first + 1)
        for batch, start in enumerate(range(0, num_samples, batch_size)):
            count = min(batch_size, num_samples - start)
            x_T = streams.normal("x_T", batch, (count, self.data.channels, *[self.data.image_size] * 2))

            on_noise(x_T.cpu())

            def after_step(t: int, x: Tensor, denoised: Denoised, start: int = start, count: int = count) -> None:
                self.on_progress("sampling", start * (first + 1) + count * (first + 1 - t), total)
                on_step(t, x, denoised)

            generator = streams.generator("sampling", batch)
            denoise = self.method.denoiser(
                self.weights,
                process,
                y=self._labels(start, count),
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
            )
            batches.append(x_0.cpu())
        return torch.cat(batches)

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

    def _labels(self, start: int, count: int) -> Tensor | None:
        """Return the classes of samples start .. start + count - 1, None where the network takes none."""
        if not self.spec.model.class_cond:
            return None
        return torch.arange(start, start + count, device=self.device) % self.data.num_classes

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
        """Return a feature extractor by its name in a resolved protocol; loaded once."""
        if resolved not in self._extractors:
            name = extractor_name(resolved, self.data.name)
            self._extractors[resolved] = load_extractor(name, self.data, device=self.device)
        return self._extractors[resolved]

    def reference(self, extractor: Extractor, split: str) -> Tensor:
        """Return the features of a whole split, [N, F]; extracted once."""
        key = (extractor.name, split)
        if key not in self._references:
            self._references[key] = reference_features(extractor, self.data, split=split)
        return self._references[key]

    def features(self, extractor: Extractor, samples: Tensor) -> Tensor:
        """Return the features of samples, [N, F]; NaN for a sample that diverged."""
        features = extractor.features(self.to_images(samples))
        # uint8 has no NaN: a diverged sample would become some shade of grey.
        diverged = ~samples.flatten(1).isfinite().all(1)
        return features.masked_fill(diverged.unsqueeze(1), torch.nan)

    def count(self, task: str) -> Callable[[int, int], None]:
        """Return a callback (done, total) that reports the progress of one part."""
        return partial(self.on_progress, task)
