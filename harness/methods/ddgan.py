"""Denoising Diffusion GANs (Xiao et al. 2021): a generator denoises in few steps, a discriminator judges pairs.

The generator predicts x_0 from x_{t+1}, t and a latent z; x_t is then drawn from the posterior. The discriminator sees
(x_t, x_{t+1}, t), from data or from the generator.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from harness.diffusion.adversarial import discriminator_loss_fake, discriminator_loss_real, generator_loss, r1_penalty
from harness.diffusion.pairs import posterior_sample, q_sample_pair
from harness.diffusion.process import GaussianDiffusion


@dataclass(frozen=True)
class Draws:
    """The random numbers of one half of a step.

    Attributes:
        t: [B], in 0 .. T-1.
        noise: of x_t, like x_0.
        noise_next: from x_t to x_{t+1}.
        z: [B, nz], latents.
        posterior_noise: of the generated x_t.
    """

    t: Tensor
    noise: Tensor
    noise_next: Tensor
    z: Tensor
    posterior_noise: Tensor


class DenoisingGan:
    """The two networks, their optimizers and the generator's EMA, and how one step trains them.

    Args:
        generator: called as generator(x_{t+1}, t, z) -> x_0.
        discriminator: called as discriminator(x_t, t, x_{t+1}) -> [B, 1], logits.
        process: T large steps.
        generator_optimizer, discriminator_optimizer: over their parameters.
        learning_rates: of the generator and the discriminator, each a function of the step, counted from 0.
        r1_gamma: weight of the R1 penalty.
        r1_every: steps from one penalty to the next; its weight is not multiplied by them, as in DDGAN's code.
        ema_rate: the EMA starts at the weights after the first step, as in DDGAN's code.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminator: nn.Module,
        process: GaussianDiffusion,
        generator_optimizer: torch.optim.Optimizer,
        discriminator_optimizer: torch.optim.Optimizer,
        *,
        learning_rates: tuple[Callable[[int], float], Callable[[int], float]],
        r1_gamma: float,
        r1_every: int = 1,
        ema_rate: float,
    ):
        self.generator, self.discriminator, self.process = generator, discriminator, process
        self.optimizers = {"generator": generator_optimizer, "discriminator": discriminator_optimizer}
        self.ema = copy.deepcopy(generator).requires_grad_(False).eval()
        self._learning_rates = dict(zip(self.optimizers, learning_rates, strict=True))
        self._r1_gamma, self._r1_every = r1_gamma, r1_every
        self._average = get_ema_multi_avg_fn(ema_rate)

    def update(self, step: int, x_0: Tensor, first: Draws, second: Draws) -> dict[str, Tensor]:
        """Move the discriminator by one step, then the generator and its EMA.

        Args:
            step: counted from 0.
            x_0: [B, ...], data; both halves see the same.
            first, second: the random numbers of the discriminator's half and of the generator's.

        Returns:
            d_loss_real, d_loss_fake, r1_penalty (0 where it was not applied) and g_loss: scalars, detached.
        """
        losses = self._update_discriminator(step, x_0, first)
        losses["g_loss"] = self._update_generator(step, x_0, second)
        weights = list(self.generator.parameters())
        with torch.no_grad():
            if step == 0:
                for average, weight in zip(self.ema.parameters(), weights, strict=True):
                    average.copy_(weight)
            else:
                self._average(list(self.ema.parameters()), weights, step)
        return {name: loss.detach() for name, loss in losses.items()}

    def _update_discriminator(self, step: int, x_0: Tensor, draws: Draws) -> dict[str, Tensor]:
        x_t, x_next = q_sample_pair(self.process, x_0, draws.t, draws.noise, draws.noise_next)
        x_t = x_t.detach().requires_grad_()
        logits = self.discriminator(x_t, draws.t, x_next)
        losses = {"d_loss_real": discriminator_loss_real(logits), "r1_penalty": logits.new_zeros(())}
        if step % self._r1_every == 0:
            losses["r1_penalty"] = r1_penalty(logits, x_t, self._r1_gamma)
        with torch.no_grad():
            fake = self._generate(x_next, draws)
        losses["d_loss_fake"] = discriminator_loss_fake(self.discriminator(fake, draws.t, x_next))
        self._descend("discriminator", step, torch.stack(list(losses.values())).sum())
        return losses

    def _update_generator(self, step: int, x_0: Tensor, draws: Draws) -> Tensor:
        _, x_next = q_sample_pair(self.process, x_0, draws.t, draws.noise, draws.noise_next)
        self.discriminator.requires_grad_(False)
        loss = generator_loss(self.discriminator(self._generate(x_next, draws), draws.t, x_next))
        self._descend("generator", step, loss)
        self.discriminator.requires_grad_(True)
        return loss

    def _generate(self, x_next: Tensor, draws: Draws) -> Tensor:
        """Draw x_t from the posterior of the generator's prediction."""
        x_0 = self.generator(x_next, draws.t, draws.z)
        return posterior_sample(self.process, x_0, x_next, draws.t, draws.posterior_noise)

    def _descend(self, name: str, step: int, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        for group in optimizer.param_groups:
            group["lr"] = self._learning_rates[name](step)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()


def cosine_decay(peak: float, num_steps: int, floor: float = 1e-5) -> Callable[[int], float]:
    """Return a learning rate that falls from `peak` to `floor` by half a cosine over `num_steps` (DDGAN's code)."""
    return lambda step: floor + (peak - floor) * (1 + math.cos(math.pi * step / num_steps)) / 2
