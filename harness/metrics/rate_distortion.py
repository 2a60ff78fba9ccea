"""Progressive lossy coding: distortion against rate (DDPM, section 4.3 and figure 5)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harness.diffusion.process import GaussianDiffusion
from harness.metrics.likelihood import Keep, Predict, as_it_is, evaluate_draws, evaluate_every_t
from harness.metrics.stratified import Progress


@dataclass(frozen=True, eq=False)
class RateDistortion:
    """Rate and distortion after each number of reverse steps: arrays [T], the three panels of DDPM's figure 5.

    Attributes:
        reverse_steps: 1 .. T, network calls so far. The last gives x_1 and its prediction of x_0; the remaining
            term of the bound is L_0, the bits that make the image exact.
        rate_bpd: bits/dim received so far, cumulated, L_T included.
        distortion_rmse: of the predicted x_0, over all images and dimensions, on the scale [0, 255].
    """

    reverse_steps: np.ndarray
    rate_bpd: np.ndarray
    distortion_rmse: np.ndarray


def rate_distortion(
    process: GaussianDiffusion,
    predict: Predict,
    x_0: Tensor,
    y: Tensor | None = None,
    *,
    seed: int,
    batch_size: int,
    clip: bool = True,
    keep: Keep = as_it_is,
    progress: Progress | None = None,
) -> RateDistortion:
    """Measure, at each reverse step, the bits sent so far and the error of the x_0 that the receiver would predict.

        rate(x_t) = L_T + sum_{s > t} L_s,   distortion(x_t) = 127.5 RMSE(x_0, x_0 predicted from x_t)

    One draw of noise at every t: N T network evaluations. `process.respaced(...)` gives a cheaper curve, that of a code
    with fewer steps.

    Args:
        x_0: [N, C, H, W], in [-1, 1].
        y: [N] classes, or None.
        keep: makes a function that keeps what it is made of, so that it survives a kill.
    """

    def measure(output: Tensor, x_0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:  # [B, 2]
        predicted = process.p_mean_variance(output, x_t, t, clip=clip).x_0
        L_t = process.vb_terms_bpd(output, x_0, x_t, t, clip=clip)
        return torch.stack([L_t, ((predicted - x_0) ** 2).flatten(1).mean(1)], 1)

    evaluate = keep(evaluate_draws(process, predict, x_0, y, seed=seed, batch_size=batch_size, measure=measure))
    images, num_timesteps = np.arange(len(x_0)), process.num_timesteps
    values = evaluate_every_t(
        evaluate, images, num_timesteps, np.zeros_like(images), batch_size=batch_size, progress=progress
    )
    L_t, square = values.mean(0).T  # [T] each
    prior = float(process.prior_bpd(x_0.to(process.device)).double().mean())
    backwards = slice(None, None, -1)  # from t = T-1 down to 0
    received = np.append(
        0.0, np.cumsum(L_t[backwards])[:-1]
    )  # L_t takes x_t to x_{t-1}: not yet part of the rate at x_t
    return RateDistortion(np.arange(1, num_timesteps + 1), prior + received, 127.5 * np.sqrt(square[backwards]))
