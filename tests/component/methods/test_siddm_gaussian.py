"""SIDDM's four AFD terms on Gaussian data with a trained C_psi: only one of them has the true generator at its minimum.

x_0 ~ N(0, V), one step of variance b, V_t = (1 - b) V + b, and a generator x'_0 = A x_1 + sqrt(V - A^2 V_t) z that has
the right marginal whatever A is. The truth is A* = sqrt(1 - b) V / V_t.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from harness.diffusion.adversarial import Verdict
from harness.diffusion.process import GaussianDiffusion
from harness.methods.averages import exponential
from harness.methods.base import Batch
from harness.methods.learning_rate import learning_rate
from harness.methods.siddm import SemiImplicit
from harness.randomness import Streams
from harness.training.distributed import ProcessGroup

V, STEPS, BATCH = 0.3, 500, 1024


class Generator(nn.Module):
    """x'_0 = A x_1 + sqrt(V - A^2 V_t) z, with A = tanh(p) sqrt(V / V_t)."""

    def __init__(self, variance_next):
        super().__init__()
        self.p, self.variance_next = nn.Parameter(torch.tensor(0.2)), variance_next

    def coefficient(self):
        return torch.tanh(self.p) * math.sqrt(V / self.variance_next)

    def forward(self, x_next, t, y, z):
        rest = (V - self.coefficient() ** 2 * self.variance_next).sqrt()
        return self.coefficient() * x_next + rest * z[:, :, None, None]


class Regression(nn.Module):
    """A discriminator that says nothing, with a linear C_psi."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.0))

    def forward(self, x_t, t, x_next=None, y=None):
        return Verdict(0 * self.weight * x_t.flatten(1), x_next=self.weight * x_t)


def trained_coefficient(beta, cross_entropy, target):
    process = GaussianDiffusion(np.array([beta]), mean_type="x_0", var_type="fixed_small", levels=None)
    generator, regression = Generator((1 - beta) * V + beta), Regression()
    rates = [partial(learning_rate, num_steps=STEPS, peak=peak, decay="cosine") for peak in (0.03, 0.1)]
    method = SemiImplicit(
        generator,
        regression,
        process,
        torch.optim.Adam(generator.parameters(), betas=(0.5, 0.9)),
        torch.optim.Adam(regression.parameters(), betas=(0.5, 0.9)),
        learning_rates=tuple(rates),
        latent_dim=1,
        averages={"ema": exponential(0.99)},
        adversarial=False,
        cross_entropy=cross_entropy,
        c_psi_target=target,
    )
    streams = Streams(0)
    for step in range(STEPS):
        x_0 = math.sqrt(V) * streams.normal("data", step, (BATCH, 1, 1, 1))
        method.step(step, Batch.whole(x_0), streams, ProcessGroup())
    return method.sampling_network("ema").coefficient().item()


@pytest.mark.slow
@pytest.mark.parametrize("beta", [0.3, 0.85])
def test_exact_with_x_t_recovers_the_true_generator_and_the_others_fail_as_derived(beta):
    variance_next = (1 - beta) * V + beta
    truth, largest = math.sqrt(1 - beta) * V / variance_next, math.sqrt(V / variance_next)
    found = {
        (form, target): trained_coefficient(beta, form, target)
        for form in ("exact", "printed")
        for target in ("x_t", "renoised")
    }
    print(f"\nbeta {beta}: truth {truth:.4f}, largest {largest:.4f}; found {found}")
    assert found["exact", "x_t"] == pytest.approx(truth, abs=0.01)
    assert found["printed", "x_t"] == pytest.approx(truth * (1 - beta / variance_next), abs=0.01)
    assert found["exact", "renoised"] > 0.95 * largest
    assert found["printed", "renoised"] > 0.95 * largest
