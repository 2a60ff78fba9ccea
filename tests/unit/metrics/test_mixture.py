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


def test_one_gaussian_with_the_moments_of_the_data_is_perfect_by_moments_and_has_few_samples_of_high_quality():
    data = mog().train.images[:, :, 0, 0].astype(np.float64)
    generator = np.random.default_rng(0)
    blob = generator.multivariate_normal(data.mean(0), np.cov(data.T), 50_000)
    assert frechet_distance(torch.from_numpy(data), torch.from_numpy(blob)) < 1e-3
    assert abs(mixture.mmd2(data, blob)) < 0.01
    assert mixture.modes(data, modes(), RADIUS).high_quality > 0.98
    by_chance = mixture.modes(blob, modes(), RADIUS)
    assert by_chance.high_quality < 0.15 and by_chance.covered == 25  # so that neither is read without the other


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


def test_the_log_density_of_one_gaussian_and_of_modes_that_are_far_apart_is_the_closed_form():
    points = np.array([[0.0, 0.0], [0.3, -0.4]])
    alone = mixture.log_density(points, np.zeros((1, 2)), 0.5)
    assert alone == pytest.approx([-np.log(2 * np.pi * 0.25), -np.log(2 * np.pi * 0.25) - 0.25 / 0.5])
    far = mixture.log_density(points, np.array([[0.0, 0.0], [100.0, 0.0]]), 0.5)
    assert far == pytest.approx(alone - np.log(2))
    middle = mixture.log_density(np.zeros((1, 2)), np.array([[-1.0, 0.0], [1.0, 0.0]]), 0.5)
    assert middle == pytest.approx(-np.log(2 * np.pi * 0.25) - 2)


def test_the_mean_log_density_of_a_mixture_s_own_points_is_its_negative_entropy():
    points = modes()[np.repeat(np.arange(25), 8000)] + np.random.default_rng(2).normal(size=(200_000, 2)) / 3 / SCALE
    entropy = np.log(25) + 1 + np.log(2 * np.pi / (3 * SCALE) ** 2)  # modes that do not overlap
    values = mixture.log_density(points, modes(), 1 / 3 / SCALE)
    assert values.mean() == pytest.approx(-entropy, abs=4 * values.std() / np.sqrt(len(values)))


def test_a_point_far_from_all_modes_has_a_finite_log_density_and_one_that_is_no_number_has_none():
    values = mixture.log_density(np.array([[1e4, 0], [np.nan, 0], [0, np.inf]], np.float32), modes(), 1 / 33)
    assert np.isfinite(values).tolist() == [True, False, False] and np.isnan(values[1:]).all()
