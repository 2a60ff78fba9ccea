"""Pairs and the way back against denoising-diffusion-gan's own steps, and against the process's closed forms."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.diffusion import GaussianDiffusion, posterior_sample, q_sample_pair, sample_pairs
from harness.diffusion.schedules import vp

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "ddgan_steps.npz"))
CHAINS = sorted({int(name.split("/")[0]) for name in GOLDEN})
GENERATORS = {
    "half": lambda x, t, z: 0.5 * x,
    "tanh": lambda x, t, z: torch.tanh(0.5 * x + 0.1 * _column(t) - 0.2 * _column(z.mean(1))),
}


def _column(value):
    return value.view(-1, 1, 1, 1)


def process_of(num_timesteps):
    return GaussianDiffusion(vp(num_timesteps), mean_type="x_0", var_type="fixed_small", levels=None)


def golden(num_timesteps, name, dtype=torch.float32):
    value = torch.from_numpy(GOLDEN[f"{num_timesteps}/{name}"])
    return value.to(dtype) if value.is_floating_point() else value


def assert_close(ours, name, scale):
    reference = GOLDEN[name]
    np.testing.assert_allclose(ours, reference, rtol=0, atol=scale * np.abs(reference).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("T", CHAINS)
def test_pairs_and_posterior_draws_are_the_references(T, dtype):
    process = process_of(T)
    x_0, t, noise, noise_next, x_0_pred, posterior_noise = (
        golden(T, name, dtype) for name in ("x_0", "t", "noise_t", "noise_next", "x_0_pred", "posterior_noise")
    )
    x_t, x_next = q_sample_pair(process, x_0, t, noise, noise_next)
    assert x_t.dtype == x_next.dtype == dtype
    assert_close(x_t, f"{T}/x_t", 2e-6)
    assert_close(x_next, f"{T}/x_next", 2e-6)
    assert torch.equal(x_t[t == 0], x_0[t == 0])  # exactly clean
    drawn = posterior_sample(process, x_0_pred, golden(T, "x_next", dtype), t, posterior_noise)
    assert_close(drawn, f"{T}/posterior_sample", 2e-6)
    torch.testing.assert_close(drawn[t == 0], x_0_pred[t == 0], rtol=0, atol=2e-6)


@pytest.mark.parametrize("generator", GENERATORS)
@pytest.mark.parametrize("T", CHAINS)
def test_the_way_back_is_the_references(T, generator):
    calls = []

    def generate(x, t, z):
        calls.append((x, t))
        return GENERATORS[generator](x, t, z)

    x_0 = sample_pairs(process_of(T), generate, golden(T, "x_T"), golden(T, "z"), golden(T, "chain_noise"))
    assert_close(x_0, f"{T}/chain_{generator}/final", 3e-6)
    assert_close(torch.stack([x for x, _ in calls]), f"{T}/chain_{generator}/inputs", 3e-6)
    assert torch.equal(torch.stack([t for _, t in calls]), golden(T, f"chain_{generator}/t"))


def test_a_pair_has_the_process_s_own_marginals():
    process, count = process_of(4), 200_000
    generator = torch.Generator().manual_seed(0)
    noise, noise_next = torch.randn(2, count, 1, generator=generator, dtype=torch.float64)
    for step in range(4):
        t = torch.full((count,), step)
        x_t, x_next = q_sample_pair(process, torch.full((count, 1), 0.7, dtype=torch.float64), t, noise, noise_next)
        for x, abar in [(x_t, process.alphas_cumprod_prev[step]), (x_next, process.alphas_cumprod[step])]:
            assert x.mean().item() == pytest.approx(0.7 * np.sqrt(abar), abs=0.01)
            assert x.var().item() == pytest.approx(1 - abar, abs=0.01)


def test_as_many_latents_as_steps_are_needed():
    with pytest.raises(ValueError, match="shorter"):
        sample_pairs(
            process_of(4), lambda x, t, z: x, torch.ones(1, 2, 1, 1), torch.ones(3, 1, 1), torch.ones(4, 1, 2, 1, 1)
        )
