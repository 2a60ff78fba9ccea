"""FID of the x_0 that is predicted along the reverse process (DDPM, figures 6 and 10)."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.diffusion.process import Denoised
from harness.evaluation.context import EvaluationContext
from harness.evaluation.parts.fidelity import extractor_protocol
from harness.evaluation.result import PartResult
from harness.metrics.fidelity import frechet_distance
from harness.spec.evaluation import Progressive
from harness.spec.metrics import progressive_name, trajectory_frames


def progressive(context: EvaluationContext, part: Progressive) -> PartResult:
    """Measure FID of the prediction after some of the steps; after the last one the samples are measured.

    Features are extracted as the chain runs, so that the images of one batch alone are held.
    """
    assert part.num_steps is not None, "resolved"
    num_steps = part.num_steps
    extractor = context.extractor(part.extractor)
    features: dict[int, list[Tensor]] = {made: [] for made in trajectory_frames(num_steps, part.num_frames)}

    def on_step(t: int, x: Tensor, denoised: Denoised) -> None:
        made = num_steps - 1 - t  # before this step
        if made in features:
            features[made].append(context.features(extractor, denoised.x_0.cpu()))

    samples = context.sample(part.sampler, num_steps, part.num_samples, on_step=on_step)
    features[num_steps] = [context.features(extractor, samples)]
    reference = context.reference(extractor, part.reference)
    curve = [(made, frechet_distance(reference, torch.cat(batches))) for made, batches in features.items()]
    name = progressive_name(extractor.name, part.num_samples, part.sampler.name, num_steps)
    return PartResult(curves={name: curve}, protocol=extractor_protocol(extractor))
