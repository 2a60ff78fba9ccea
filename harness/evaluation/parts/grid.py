"""A grid of samples: those that FID was measured on if there are enough, else new ones."""

from __future__ import annotations

from harness.data.base import to_uint8
from harness.evaluation.context import EvaluationContext
from harness.evaluation.images import image_grid
from harness.evaluation.result import PartResult
from harness.spec.evaluation import Fidelity


def grid(context: EvaluationContext, count: int) -> PartResult:
    """Keep the first `count` samples, and a picture of them if they are images."""
    samples = context.samples
    if samples is None or len(samples) < count:
        fidelity = context.evaluation.fidelity or Fidelity(num_steps=None)
        num_steps = fidelity.num_steps or context.spec.diffusion.num_timesteps
        # Of as many samples as FID was measured on, since the last of a batch depend on its size.
        num_samples = max(count, fidelity.num_samples) if context.evaluation.fidelity else count
        samples = context.sample(fidelity.sampler, num_steps, num_samples, only_first=count)
    result = PartResult(arrays={"samples": {"samples": context.to_images(samples[:count]).numpy()}})
    if context.data.levels is not None:
        result.pictures["samples"] = image_grid(to_uint8(samples[:count]).numpy())
    return result
