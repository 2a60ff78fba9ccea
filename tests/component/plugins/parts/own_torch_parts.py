"""What own_parts.py names and what needs numpy or torch."""

import numpy as np
import torch

from harness.data.base import Split, build
from harness.data.facts import DatasetFacts
from harness.diffusion.timesteps import UniformSampler
from harness.spec.evaluation import Ancestral


def ring(data_root, radius):
    """Return 400 training and 100 test points, labelled by their quarter of the circle."""

    def split(count, seed):
        angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, count)
        points = radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        return Split(points.astype(np.float32).reshape(count, 2, 1, 1), (angle // (np.pi / 2)).astype(np.int64))

    return build("ring", DatasetFacts(1, 2, None, 4), split(400, 0), split(100, 1))


def stripes(data_root, size, num_classes):
    """Return 200 training and 40 test images of random offsets and contrasts, labelled by their direction."""

    def split(count, seed):
        random = np.random.default_rng(seed)
        labels = np.arange(count) % num_classes
        wave = (np.arange(size) + random.integers(0, 4, (count, 1))) % 4 < 2  # [N, size]
        images = np.repeat(wave[:, None, None, :], size, 2) * random.integers(8, 16, (count, 1, 1, 1))
        images[labels == 1] = images[labels == 1].swapaxes(2, 3)
        return Split(images.astype(np.uint8), labels)

    return build("stripes", DatasetFacts(size, 1, 16, num_classes), split(200, 0), split(40, 1))


class HalvesSampler(UniformSampler):
    """Remember the mean loss of both halves of the chain, [2], and draw t in proportion to it."""

    def __init__(self, num_timesteps, momentum, *, device="cpu"):
        super().__init__(num_timesteps, device=device)
        self.momentum = momentum
        self._loss = torch.ones(2, dtype=torch.float64, device=self.device)

    def weights(self):
        late = torch.arange(self.num_timesteps, device=self.device) >= self.num_timesteps // 2
        return self._loss[late.long()]

    def update(self, t, loss):
        half = (t >= self.num_timesteps // 2).long()
        count = torch.zeros_like(self._loss).scatter_add_(0, half, torch.ones_like(half, dtype=torch.float64))
        total = torch.zeros_like(self._loss).scatter_add_(0, half, loss.double())
        mean = torch.where(count > 0, total / count.clamp(min=1), self._loss)
        self._loss = self.momentum * self._loss + (1 - self.momentum) * mean

    def state_dict(self):
        return {"loss": self._loss.clone()}

    def load_state_dict(self, state):
        self._loss = state["loss"].clone()


def euler(denoise, x_T, process, *, generator, start=None, on_step=None, churn):
    """Walk the chain; at t = 0 the prediction is what is returned."""
    x = x_T
    for i in reversed(range(process.num_timesteps if start is None else start + 1)):
        t = torch.full(x.shape[:1], i, device=x.device)
        denoised = denoise(x, t)
        abar_prev = process.extract("alphas_cumprod_prev", t, x)
        noise = torch.randn(x.shape, generator=generator, device=generator.device).to(x.device)
        eps = (1 - churn**2) ** 0.5 * denoised.eps + churn * noise
        x = abar_prev.sqrt() * denoised.x_0 + (1 - abar_prev).sqrt() * eps
        if on_step is not None:
            on_step(i, x, denoised)
    return x


def spread(context, num_samples, num_steps):
    """Return the root mean squared distance from the mean, of samples and of data."""
    samples = context.sample(Ancestral(), num_steps, num_samples)
    _, _, x_0, _ = context.choose_images(num_samples)

    def of(x):
        return (x - x.mean(0)).square().sum((1, 2, 3)).mean().sqrt()

    return {"spread": of(samples), "spread_of_data": of(x_0.cpu())}
