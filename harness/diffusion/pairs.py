"""Pairs of neighbouring noisy images, and the way back through them: what adversarial denoisers are trained on.

A denoising GAN's step t goes from x_{t+1}, the noisier one, to x_t, with t in 0 .. T-1 and x_0 the clean data. In the
tables of a process, x_{t+1} has index t: `alphas_cumprod[t]`; x_t has `alphas_cumprod_prev[t]`, which is 1 at t = 0.
All noise is an argument.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from harness.diffusion.process import GaussianDiffusion

Generate = Callable[[Tensor, Tensor, Tensor], Tensor]
"""generate(x_{t+1}, t, z) -> x_0"""


def q_sample_pair(
    process: GaussianDiffusion, x_0: Tensor, t: Tensor, noise: Tensor, noise_next: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw x_t from q(x_t | x_0), then x_{t+1} from q(x_{t+1} | x_t).

        x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise,  x_{t+1} = sqrt(1 - beta) x_t + sqrt(beta) noise_next
                                                                                              (DDGAN)

    Args:
        process: of T large steps.
        x_0: [B, ...], clean data.
        t: [B], in 0 .. T-1.
        noise, noise_next: of x_0's shape.

    Returns:
        x_t, which at t = 0 is x_0 itself, and x_{t+1}.
    """
    noisy = process.q_sample(x_0, (t - 1).clamp(min=0), noise)
    x_t = torch.where(_column(t == 0, x_0), x_0, noisy)
    beta = process.extract("betas", t, _column(t, x_0).double())  # in float64: 1 - beta is small at the last steps
    return x_t, (1 - beta).sqrt().to(x_t) * x_t + beta.sqrt().to(x_t) * noise_next


def posterior_sample(process: GaussianDiffusion, x_0: Tensor, x_next: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """Draw x_t from q(x_t | x_{t+1}, x_0), mu-tilde and beta-tilde of DDPM, eq. 7; at t = 0 this is x_0.

    Args:
        x_0: [B, ...], the generator's prediction.
        x_next: x_{t+1}.
        noise: of x_0's shape; without effect at t = 0.
    """
    mean = process.q_posterior(x_0, x_next, t).mean
    return mean + process.extract("posterior_variance", t, x_0).sqrt() * noise  # the variance is 0 at t = 0


def sample_pairs(
    process: GaussianDiffusion, generate: Generate, x_T: Tensor, latents: Iterable[Tensor], noises: Iterable[Tensor]
) -> Tensor:
    """Walk from x_T to x_0: generate, then draw the next image from the posterior, T times (DDGAN).

    Args:
        generate: predicts x_0 from x_{t+1}, t and a latent.
        latents, noises: T each, in the order of use; the last noise has no effect.
    """
    x = x_T
    for step, z, noise in zip(reversed(range(process.num_timesteps)), latents, noises, strict=True):
        t = torch.full((len(x),), step, device=x.device)
        x = posterior_sample(process, generate(x, t, z), x, t, noise)
    return x


def _column(value: Tensor, x: Tensor) -> Tensor:
    """Shape a value for each example, [B], to broadcast over x, [B, ...]."""
    return value.view(-1, *[1] * (x.ndim - 1))
