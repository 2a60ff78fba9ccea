"""Modes and moments of points: known answers, and SIDDM's own metric on the same points."""

from pathlib import Path

import numpy as np
import pytest
import torch

from harness.data.mog import SCALE, modes, mog
from harness.metrics import mixture
from harness.metrics.fidelity import frechet_distance

GOLDEN = dict(np.load(Path(__file__).parents[2] / "golden" / "siddm_metrics.npz"))
RADIUS = 3 * (1 / 3) / SCALE  # three standard deviations of a mode


@pytest.mark.parametrize("case", ["half", "moments"])
def test_moments_are_measured_as_by_siddms_code(case):
    real, fake = GOLDEN[f"{case}/real"], GOLDEN[f"{case}/fake"]
    assert mixture.mmd2(real, fake) == pytest.approx(float(GOLDEN[f"{case}/mmd2"]), rel=1e-9)
    distance = frechet_distance(torch.from_numpy(real), torch.from_numpy(fake))
    assert distance == pytest.approx(float(GOLDEN[f"{case}/frechet"]), rel=1e-6, abs=1e-6)


def test_one_gaussian_with_the_moments_of_the_data_is_perfect_by_moments_and_has_few_good_samples():
    data = mog().train.images[:, :, 0, 0].astype(np.float64)
    generator = np.random.default_rng(0)
    blob = generator.multivariate_normal(data.mean(0), np.cov(data.T), 50_000)
    assert frechet_distance(torch.from_numpy(data), torch.from_numpy(blob)) < 1e-3
    assert abs(mixture.mmd2(data, blob)) < 0.01
    assert mixture.modes(data, modes(), RADIUS).high_quality > 0.9
    assert mixture.modes(blob, modes(), RADIUS).high_quality < 0.25


def test_the_data_cover_every_mode_alike_and_lost_modes_are_counted():
    data = mog().test.images[:, :, 0, 0]
    found = mixture.modes(data, modes(), RADIUS)
    assert found.covered == 25 and found.shares == pytest.approx(np.full(25, 1 / 25), abs=2e-3)
    few = mixture.modes(data[data[:, 0] > 0.3], modes(), RADIUS)
    assert few.covered == 10 and few.shares.sum() == pytest.approx(1)


def test_samples_that_are_far_or_no_numbers_belong_to_no_mode():
    centres = np.array([[0.0, 0.0], [1.0, 0.0]])
    samples = np.array([[0.05, 0.0], [1.0, 0.2], [np.nan, 0.0], [0.0, np.inf]])
    found = mixture.modes(samples, centres, 0.1)
    assert found.covered == 1 and found.high_quality == 0.25 and found.shares.tolist() == [1.0, 0.0]
    nothing = mixture.modes(samples[2:], centres, 0.1)
    assert nothing.covered == 0 and nothing.high_quality == 0 and nothing.shares.tolist() == [0.0, 0.0]


def test_the_kernel_s_sum_over_moments_is_the_sum_over_pairs():
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(40, 2)), 1.3 * generator.normal(size=(30, 2))
    mean, std = x.mean(), x.std()

    def kernel(a, b):
        return ((a - mean) / std @ ((b - mean) / std).T / 2 + 1) ** 2

    def within(a):
        return (kernel(a, a).sum() - np.trace(kernel(a, a))) / (len(a) * (len(a) - 1))

    assert mixture.mmd2(x, y) == pytest.approx(within(x) + within(y) - 2 * kernel(x, y).mean(), rel=1e-12)
