import math

import numpy as np
import pytest
import torch

from harness.errors import DataError
from harness.metrics.fidelity import fidelity


def gaussian(mean, std, count=400):
    """Points of exactly this mean and these (uncorrelated) standard deviations, [count, D] float64."""
    draws = np.random.default_rng(0).standard_normal((count, len(mean)))
    draws -= draws.mean(0)
    whiten = np.linalg.cholesky(np.linalg.inv(np.cov(draws, rowvar=False)))
    return torch.from_numpy(draws @ whiten * std + mean)


def test_the_distance_of_two_known_gaussians_is_exact():
    first = gaussian(mean=[1.0, -2.0, 0.0], std=[1.0, 2.0, 0.5])
    second = gaussian(mean=[0.0, 1.0, 0.5], std=[3.0, 2.0, 1.0])
    # |mu_1 - mu_2|^2 + sum of (sigma_1 - sigma_2)^2 for diagonal covariances
    expected = (1.0 + 9.0 + 0.25) + (4.0 + 0.0 + 0.25)
    assert fidelity(first, second, k=3)["fid"] == pytest.approx(expected, rel=1e-12)
    assert fidelity(second, first, k=3)["fid"] == pytest.approx(expected, rel=1e-12)


def test_equal_sets_have_distance_zero_and_precision_and_recall_one():
    features = torch.from_numpy(np.random.default_rng(1).standard_normal((300, 8)).astype(np.float32))
    for k in (1, 5):
        found = fidelity(features, features, k)
        assert abs(found["fid"]) < 1e-6
        assert (found["precision"], found["recall"]) == (1, 1)


def test_precision_is_of_the_samples_and_recall_of_the_reference():
    on_a_line = torch.tensor([[1.0, 0.0]])
    reference = torch.tensor([[0.0], [1.0], [2.0], [100.0]]) * on_a_line  # radii for k = 1: 1, 1, 1, 98
    samples = torch.tensor([[0.5], [0.6], [1.5], [-50.0], [-50.1]]) * on_a_line  # radii: 0.1, 0.1, 0.9, 0.1, 0.1
    found = fidelity(reference, samples, k=1)
    # The three samples near 1 are inside balls of the reference; only 1 and 2 are inside a ball (1.5's) of the samples.
    assert (found["precision"], found["recall"]) == pytest.approx((3 / 5, 2 / 4))


def test_the_number_of_neighbours_counts():
    draws = np.random.default_rng(2).standard_normal((2, 200, 4)).astype(np.float32)
    reference, samples = torch.from_numpy(draws)
    shares = [fidelity(reference, samples + 1, k) for k in (1, 3, 5)]
    assert shares[0]["precision"] < shares[1]["precision"] < shares[2]["precision"]
    assert shares[0]["recall"] < shares[1]["recall"] < shares[2]["recall"]


def test_too_few_images_for_k_neighbours_are_refused():
    with pytest.raises(DataError, match="k = 5 need more than 5 images on each side; got 9 reference images and 5 sam"):
        fidelity(torch.zeros(9, 2), torch.zeros(5, 2), k=5)


def test_samples_that_diverged_have_no_distance():
    samples = torch.zeros(9, 2)
    samples[3, 0] = math.nan
    assert all(math.isnan(value) for value in fidelity(torch.zeros(9, 2), samples, k=3).values())
