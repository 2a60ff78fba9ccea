"""A model whose bound is known in closed form, and an Inception without its training."""

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.diffusion import SCHEDULES, GaussianDiffusion


class LinearDenoiser(NamedTuple):
    """Continuous data of differing contrast under the denoiser of one contrast, with a bias.

    Attributes:
        predict: x_0 = gain_t x_t + offset_t.
        x_0: [N, 1, 4, 4].
        L_t_bpd: [N, T], each term's exact expectation over the noise.
        mse: [N, T], likewise, of the predicted x_0.
    """

    process: GaussianDiffusion
    predict: Any
    x_0: Tensor
    L_t_bpd: np.ndarray
    mse: np.ndarray


def linear_denoiser(num_timesteps: int, num_images: int, contrast: float = 0.3, bias: float = 0.02) -> LinearDenoiser:
    process = GaussianDiffusion(
        SCHEDULES["cosine"](num_timesteps), mean_type="x_0", var_type="fixed_large", levels=None
    )
    generator = torch.Generator().manual_seed(0)
    spread = torch.linspace(0.1, 0.6, num_images).view(-1, 1, 1, 1)
    x_0 = spread * torch.randn(num_images, 1, 4, 4, generator=generator)

    abar = process.alphas_cumprod
    gain = contrast**2 * np.sqrt(abar) / (contrast**2 * abar + 1 - abar)
    offset = bias * np.sqrt(1 - abar)

    def predict(x_t: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        gain_t, offset_t = (torch.from_numpy(table).float()[t].view(-1, 1, 1, 1) for table in (gain, offset))
        return gain_t * x_t + offset_t

    # x_0 - gain x_t - offset = (1 - gain sqrt(abar)) x_0 - offset - gain sqrt(1 - abar) noise
    pixels = x_0.flatten(1).double().numpy()[:, None]  # [N, 1, D]
    systematic = (1 - gain * np.sqrt(abar))[:, None] * pixels - offset[:, None]
    mse = (systematic**2).mean(2) + gain**2 * (1 - abar)

    log_variance = np.log(np.append(process.posterior_variance[1], process.betas[1:]))
    log_ratio = process.posterior_log_variance_clipped - log_variance
    nats = 0.5 * (-1 - log_ratio + np.exp(log_ratio) + process.posterior_mean_coef1**2 * mse / np.exp(log_variance))
    nats[:, 0] = 0.5 * (np.log(2 * np.pi) + log_variance[0] + mse[:, 0] / np.exp(log_variance[0]))
    return LinearDenoiser(process, predict, x_0, nats / np.log(2), mse)


@pytest.fixture(scope="session")
def long_chain() -> LinearDenoiser:
    return linear_denoiser(num_timesteps=4000, num_images=24)


@pytest.fixture(scope="session")
def short_chain() -> LinearDenoiser:
    return linear_denoiser(num_timesteps=100, num_images=300)
