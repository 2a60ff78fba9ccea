"""Progressive lossy coding (DDPM, figure 5)."""

from __future__ import annotations

from harness.diffusion.respacing import space_timesteps
from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.metrics import rate_distortion as metric
from harness.spec.evaluation import RateDistortion


def rate_distortion(context: EvaluationContext, part: RateDistortion) -> PartResult:
    """Measure rate and distortion after each reverse step, and at the end."""
    assert part.num_steps is not None, "resolved"
    _, rows, x_0, y = context.choose_images(part.num_images)
    kept = space_timesteps(context.spec.diffusion.num_timesteps, str(part.num_steps))
    panels = metric.rate_distortion(
        context.process().respaced(kept),
        context.predict,
        x_0,
        y,
        seed=context.evaluation.seed,
        batch_size=context.evaluation.batch_size,
        clip=part.clip,
        keep=context.keep_calls("rate_distortion"),
        progress=context.count("rate-distortion"),
    )
    return PartResult(
        {"rate_bpd": float(panels.rate_bpd[-1]), "distortion_rmse": float(panels.distortion_rmse[-1])},
        arrays={
            "rate_distortion": {
                "reverse_steps": panels.reverse_steps,
                "rate_bpd": panels.rate_bpd,
                "distortion_rmse": panels.distortion_rmse,
                "image_index": rows,
            }
        },
    )
