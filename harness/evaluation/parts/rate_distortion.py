"""Progressive lossy coding (DDPM, figure 5)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from harness.diffusion.process import GaussianDiffusion
from harness.diffusion.respacing import space_timesteps
from harness.evaluation.context import EvaluationContext
from harness.evaluation.result import PartResult
from harness.methods.base import HasLikelihood
from harness.metrics import rate_distortion as metric
from harness.metrics.likelihood import counter_noise
from harness.metrics.stratified import chunks
from harness.randomness import Streams
from harness.spec.evaluation import RateDistortion


def rate_distortion(context: EvaluationContext, part: RateDistortion) -> PartResult:
    """Measure rate and distortion after each reverse step, and at the end; without a likelihood distortion alone."""
    assert part.num_steps is not None, "resolved"
    _, rows, x_0, y = context.choose_images(part.num_images)
    kept = space_timesteps(context.spec.diffusion.num_timesteps, str(part.num_steps))
    process = context.process().respaced(kept)
    if not isinstance(context.method, HasLikelihood):
        distortion_rmse = distortion(context, process, x_0, y, clip=part.clip)
        arrays: dict[str, Any] = {"reverse_steps": np.arange(1, part.num_steps + 1), "distortion_rmse": distortion_rmse}
        arrays["image_index"] = rows
        return PartResult({"distortion_rmse": float(distortion_rmse[-1])}, arrays={"rate_distortion": arrays})
    panels = metric.rate_distortion(
        process,
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


def distortion(
    context: EvaluationContext, process: GaussianDiffusion, x_0: torch.Tensor, y: torch.Tensor | None, *, clip: bool
) -> np.ndarray:
    """Measure the error of the x_0 that is predicted from x_t ~ q(x_t | x_0), as in the rate-distortion curve.

        127.5 RMSE(x_0, x_0 predicted from x_t)

    A generator draws one latent for each prediction, so the error is that of its draws and not of their mean.

    Returns:
        [T], after 1 to T reverse steps: from t = T-1 down to 0.
    """
    evaluation, num_timesteps = context.evaluation, process.num_timesteps
    streams, values = Streams(evaluation.seed, context.device), context.kept_values("rate_distortion")
    report = context.count("distortion")

    def squares(images: np.ndarray) -> np.ndarray:  # [B, T]
        image = torch.from_numpy(images).to(context.device)
        clean, label, columns = x_0[image], None if y is None else y[image], []
        for t in range(num_timesteps):
            step = torch.full_like(image, t)
            noise = counter_noise(evaluation.seed, image, step, clean.shape[1:]).to(clean.dtype)
            generator = streams.generator("distortion", int(images[0]) * num_timesteps + t)
            denoised = context.denoiser(process, generator, label, clip=clip)(
                process.q_sample(clean, step, noise), step
            )
            columns.append(((denoised.x_0 - clean) ** 2).flatten(1).mean(1))
            report(int(images[0]) * num_timesteps + len(images) * (t + 1), len(x_0) * num_timesteps)
        return torch.stack(columns, 1).double().cpu().numpy()

    batches = enumerate(chunks(len(x_0), evaluation.batch_size))
    square = np.concatenate([values.batch(number, partial(squares, images)) for number, images in batches])
    return 127.5 * np.sqrt(square.mean(0)[::-1])
