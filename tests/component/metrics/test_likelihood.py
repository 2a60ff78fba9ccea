"""The interval of an estimate, over a network that was trained for it."""

import math

import numpy as np
import pytest
import torch

from harness.data.digits import digits
from harness.diffusion import SCHEDULES, GaussianDiffusion, training_terms
from harness.metrics.likelihood import bound_terms
from harness.metrics.stratified import draw_strata, make_strata, run_pilot
from harness.models.mlp import MLP


def table_of(toy_terms, num_images, num_timesteps, draws=8):
    """Store L_t under so many draws of noise: [N, T, draws]."""
    image, t, draw = (axis.ravel() for axis in np.indices((num_images, num_timesteps, draws)))
    return toy_terms(image, t, draw * num_timesteps + t).reshape(num_images, num_timesteps, draws)


def replays(table, evaluations_per_image, count):
    """Estimate a stored table's full sum again and again, ten times a pilot: errors / standard errors, and errors."""
    num_images, num_timesteps, draws = table.shape
    errors, standard_errors = [], []
    for seed in range(count):
        choose = np.random.default_rng([seed, 99])

        def terms(image, t, draw, choose=choose):
            return table[image, t, choose.integers(draws, size=len(t))]

        if seed % 10 == 0:
            pilot = run_pilot(terms, num_images, num_timesteps, evaluations_per_image, seed=seed)
            strata = make_strata(pilot, num_timesteps, evaluations_per_image)
        drawn = draw_strata(terms, num_images, strata, seed=seed)
        errors.append(drawn.mean - table.mean(2).sum(1).mean())
        standard_errors.append(drawn.standard_error)
    return np.array(errors) / np.array(standard_errors), np.array(errors)


@pytest.mark.slow
def test_a_trained_networks_interval_is_narrow_and_honest():
    images = torch.from_numpy(np.asarray(digits().train.images)).float().div(8).sub(1).reshape(-1, 64, 1, 1)
    test = torch.from_numpy(np.asarray(digits().test.images)).float().div(8).sub(1).reshape(-1, 64, 1, 1)
    process = GaussianDiffusion(SCHEDULES["cosine"](4000), mean_type="epsilon", var_type="learned_range", levels=17)
    torch.manual_seed(0)
    network = MLP(64, 128, width=128, depth=3)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for _ in range(1000):
        x_0, t = images[torch.randint(len(images), (128,))], torch.randint(4000, (128,))
        noise = torch.randn_like(x_0)
        x_t = process.q_sample(x_0, t, noise)
        terms = training_terms(process, network(x_t, t / 4), x_0, x_t, t, noise, learn_variance=True)
        optimizer.zero_grad()
        (terms["mse"] + 4 * terms["vb"]).mean().backward()
        optimizer.step()

    def predict(x_t, t, y):
        return network(x_t, t / 4)

    stored = table_of(bound_terms(process, predict, test[:8], seed=0, batch_size=8192), 8, 4000)
    z, errors = replays(stored, 80, 1000)  # 50 times fewer evaluations than the full sum
    assert 0.93 <= np.mean(np.abs(z) < 1.96) <= 0.97
    assert 1.96 * errors.std() * math.sqrt(8 / 1000) < 0.01  # at 1,000 images
