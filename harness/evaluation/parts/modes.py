"""Modes, quality and moments of a mixture's samples, for each number of sampling steps."""

from __future__ import annotations

import numpy as np
import torch

from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.metrics import mixture as metric
from harness.metrics.fidelity import frechet_distance
from harness.spec.evaluation import Modes
from harness.spec.metrics import modes_name


def modes(context: EvaluationContext, part: Modes) -> PartResult:
    """Draw samples for each number of steps, and keep them with each mode's share of them."""
    mixture = context.spec.data.mixture
    assert mixture is not None and part.num_steps is not None, "resolved"
    centres, radius = np.array(mixture.centres), metric.HIGH_QUALITY_STDS * mixture.std
    real, test = (split.images[:].reshape(-1, centres.shape[1]) for split in (context.data.train, context.data.test))
    result = PartResult(
        {"data_log_density_nats": float(metric.log_density(test, centres, mixture.std).mean())},
        arrays={"modes": {"centres": centres, "num_steps": np.array(part.num_steps)}},
        protocol={
            "modes": {
                "num_modes": len(centres),
                "std": mixture.std,
                "radius": radius,
                "reference": "train",
                "reference_points": len(real),
                "log_density": "of the mixture before clamping, of the test split for the data",
            }
        },
    )
    for num_steps in part.num_steps:
        points = context.sample(part.sampler, num_steps, part.num_samples).reshape(-1, centres.shape[1]).numpy()
        nearest = metric.modes(points, centres, radius)
        values = {
            "modes_covered": nearest.covered,
            "high_quality": nearest.high_quality,
            "frechet": frechet_distance(torch.from_numpy(real), torch.from_numpy(points)),
            "mmd2": metric.mmd2(real, points),
            "log_density_nats": metric.log_density(points, centres, mixture.std).mean(),
        }
        for kind, value in values.items():
            result.metrics[modes_name(kind, part.num_samples, part.sampler.name, num_steps)] = float(value)
        result.arrays["modes"] |= {f"points_{num_steps}": points, f"shares_{num_steps}": nearest.shares}
    return result
