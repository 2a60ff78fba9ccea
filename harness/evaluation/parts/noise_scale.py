"""The gradient noise scale of the run's objective and timestep sampler (IDDPM, figure 7)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.methods.base import HasGradientNoise
from harness.metrics.noise_scale import measure_noise_scale
from harness.randomness import Permutations, Streams
from harness.spec.evaluation import NoiseScale


@torch.inference_mode(False)
def noise_scale(context: EvaluationContext, part: NoiseScale) -> PartResult:
    """Measure on fresh batches of the training split, t drawn as training would draw it now."""
    method, train = context.method, context.data.train
    assert isinstance(method, HasGradientNoise), "the spec's validation asks for one"
    streams = Streams(context.evaluation.seed, context.device)
    order = Permutations(len(train), context.evaluation.seed)
    num_batches = part.num_big * part.small_per_big

    def losses() -> Iterator[Tensor]:
        for batch in range(num_batches):
            context.on_progress("gradient noise", batch, num_batches)
            x_0, y = context.load_images(train, order.batch(batch, part.batch_size).numpy())
            u = streams.uniform("noise_scale_t", batch, len(x_0))
            noise = streams.normal("noise_scale", batch, tuple(x_0.shape))
            yield method.weighted_loss(x_0, y, u, noise).mean()

    method.network.eval()
    scale = measure_noise_scale(
        list(method.network.parameters()),
        losses(),
        batch_size=part.batch_size,
        small_per_big=part.small_per_big,
    )
    return PartResult({"gradient_noise_scale": scale})
