"""The interface between a method and everything around it: the training step, and the denoiser for sampling.

The loop owns data, records and checkpoints; a method owns its networks, their optimizers and averages, how t and noise
are drawn, and the order of updates. The loop, the records, the evaluation and the figures do not depend on a
particular method:

    output = method.step(step, batches(step, rows), streams, group)
    window.add(step, output)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.samplers import Denoise
from harness.randomness import Streams

Predict = Callable[..., Tensor]  # (x_t, t of the original chain, y or None; an upsampler also low_res=) -> output


@dataclass(frozen=True)
class Batch:
    """One process's share of a step's training examples.

    Attributes:
        x_0: [rows, C, H, W], in [-1, 1].
        y: [rows], labels, or None.
        size: number of examples of the global batch, over all processes.
        rows: the slice of the global batch that these examples are.
    """

    x_0: Tensor
    y: Tensor | None
    size: int
    rows: slice

    @classmethod
    def whole(cls, x_0: Tensor, y: Tensor | None = None) -> Batch:
        """Return the batch of a single process."""
        return cls(x_0, y, len(x_0), slice(0, len(x_0)))


@dataclass(frozen=True)
class StepOutput:
    """The result of one training step for the records: of the global batch, detached, the same on every process.

    Attributes:
        t: [size], integers in [0, T).
        loss: [size], weighted: `train/loss` is its mean, and it must be finite.
        terms: name -> [size], unweighted; logged as means, and by quartile of t. One called "loss" is logged by
            quartile alone, since `train/loss` is the weighted mean.
        scalars: name -> scalar, logged as means over steps; they must be finite.
    """

    t: Tensor
    loss: Tensor
    terms: Mapping[str, Tensor] = field(default_factory=dict)
    scalars: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainedNetwork:
    """A network that a method trains, with what is needed to count its FLOPs.

    Attributes:
        module: the network.
        inputs: x_0 [B, C, H, W] -> arguments of the network, on the device of x_0, which may be meta.
        passes: forward and backward passes through it that a step makes for each example; a forward pass alone is a
            third of one.
    """

    module: nn.Module
    inputs: Callable[[Tensor], tuple[Tensor, ...]]
    passes: float = 1


class Group(Protocol):
    """The processes that train a run together."""

    rank: int
    size: int

    def gather(self, terms: dict[str, Tensor], rows: slice, batch_size: int) -> dict[str, Tensor]:
        """Gather the terms of all rows: [rows] each -> [batch_size] each; scalars are unchanged."""
        ...


class Method(Protocol):
    """A method to train denoising networks.

    Attributes:
        terms_logged: names of the terms that every step returns.
        scalars_logged: names of the scalars that every step returns.
    """

    terms_logged: tuple[str, ...]
    scalars_logged: tuple[str, ...]

    def step(self, step: int, batch: Batch, streams: Streams, group: Group) -> StepOutput:
        """Take one training step, counted from 0.

        Random numbers are drawn from `streams` for the whole global batch, in the order of the examples' index in it,
        so that any number of processes draws the same; dropout's generators have been seeded for the step. Nothing
        here waits for the device.
        """
        ...

    def denoiser(
        self,
        weights: str,
        process: GaussianDiffusion,
        *,
        y: Tensor | None,
        generator: torch.Generator,
        clip: bool,
        guidance: float = 1.0,
        low_res: Tensor | None = None,
    ) -> Denoise:
        """Return the model as samplers use it: denoise(x_t, t) -> Denoised.

        Args:
            weights: "ema" or "raw"; or one of the names of `train.ema`, where the method's spec keeps such averages.
            process: the chain to sample from; possibly respaced, see `process.original_t`.
            y: [B], labels, or None.
            generator: for random numbers of the method; the sampler draws from it too.
            clip: clamp the predicted x_0 to [-1, 1].
            guidance: strength of classifier-free guidance; 1 is the conditional model alone.
            low_res: [B, C, h, w], in [-1, 1], what an upsampler enlarges.
        """
        ...

    def sampling_network(self, weights: str) -> nn.Module:
        """Return the network used for sampling, with weights as in `denoiser`; import and export use it too."""
        ...

    def networks(self) -> Mapping[str, TrainedNetwork]:
        """Return every trained network by name."""
        ...

    def learning_rates(self) -> Mapping[str, float]:
        """Return the learning rates of the last step by name; logged as `train/<name>`."""
        ...

    def events(self) -> list[tuple[str, dict[str, Any]]]:
        """Return new events for the journal, each once: (name, fields). May synchronise with the device; called when
        something is logged.
        """
        ...

    def distribute(self, num_processes: int) -> None:
        """Train with the other processes of torch's default group from now on, or alone again (1)."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next step depends on, as entries of the checkpoint: {"method": {...}, ...}.

        Tensors and plain values, nested in dicts, lists and tuples. The loop's own entries are `schema_version`,
        `spec`, `step` and `window`.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load the entries of `state_dict`, which may be among others; strict in names and shapes."""
        ...


@runtime_checkable
class HasLikelihood(Protocol):
    """A method whose network defines p(x_{t-1} | x_t): its bound and its rate-distortion can be measured."""

    def predict(self, weights: str) -> Predict:
        """Return the network with the chosen weights ("ema" or "raw"), in eval mode, on the original chain's t."""
        ...


@runtime_checkable
class HasGradientNoise(Protocol):
    """A method that minimises one loss of one network: the noise scale of its gradient can be measured."""

    network: nn.Module

    def weighted_loss(self, x_0: Tensor, y: Tensor | None, u: Tensor, noise: Tensor) -> Tensor:
        """Return what training minimises, [B], with a graph; `u` in [0, 1), [B], float64, decides t."""
        ...
