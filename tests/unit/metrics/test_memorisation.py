"""The test of memorisation fires on copies of training images, and on nothing else."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from harness.metrics.memorisation import memorisation, nearest_ratios, probability_smaller


def draws(seed, count):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((count, 6)).astype(np.float32))


TRAIN, TEST = draws(0, 800), draws(1, 300)


def test_it_fires_on_copies_of_training_images():
    result = memorisation(TRAIN, TEST, TRAIN[:200] + 0.01 * draws(2, 200))
    assert result.auc.low > 0.99
    assert result.memorised_share > 0.99


def test_it_fires_on_a_fifth_of_copies():
    result = memorisation(TRAIN, TEST, torch.cat([TRAIN[:60], draws(2, 240)]))
    assert result.auc.low > 0.5
    assert result.memorised_share == pytest.approx(0.2, abs=0.03)


def test_it_does_not_fire_on_the_test_images_themselves():
    result = memorisation(TRAIN, TEST, TEST)
    assert result.auc.value == 0.5
    assert result.auc.low < 0.5 < result.auc.high
    assert result.memorised_share == pytest.approx(0.01, abs=0.003)


@pytest.mark.slow
def test_it_fires_on_new_images_as_often_as_its_interval_says():
    few = TRAIN[:200]
    intervals = [memorisation(few, draws(100 + seed, 60), draws(1000 + seed, 80)).auc for seed in range(200)]
    inside = sum(interval.low <= 0.5 <= interval.high for interval in intervals)
    assert 0.92 <= inside / 200 <= 0.98  # 95 % with a standard deviation of 1.5 %


def test_the_nearest_training_images_of_each_sample_are_named():
    result = memorisation(TRAIN, TEST, TRAIN[[7, 3, 500]] + 1e-3, num_shown=2)
    assert result.nearest.shape == (3, 2)
    assert result.nearest[:, 0].tolist() == [7, 3, 500]


def test_the_ratio_is_of_the_nearest_distance_to_the_mean_of_the_nearest_fifty():
    ratios, _ = nearest_ratios(TEST[:20], TRAIN)
    nearest = np.sort(np.linalg.norm(TEST[:20, None].numpy() - TRAIN[None].numpy(), axis=-1), 1)[:, :50]
    assert ratios.numpy() == pytest.approx(nearest[:, 0] / nearest.mean(1), rel=1e-4)


def test_points_that_are_all_the_same_have_ratio_zero():
    ratios, _ = nearest_ratios(torch.zeros(3, 2), torch.zeros(60, 2))
    assert ratios.tolist() == [0, 0, 0]


def test_the_probability_is_mann_and_whitneys_with_ties_counted_half():
    first, second = torch.tensor([1.0, 2.0, 2.0, 5.0]), torch.tensor([2.0, 3.0, 4.0])
    u = mannwhitneyu(second.numpy(), first.numpy()).statistic
    assert probability_smaller(first, second).value == pytest.approx(u / 12)
    assert probability_smaller(second, first).value == pytest.approx(1 - u / 12)


def test_the_interval_of_the_probability_is_delongs():
    first, second = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([3.0, 4.0, 7.0, 0.0])
    # P(x < y) for each x: 3/4, 3/4, 1/4; for each y: 2/3, 2/3, 1, 0
    variance = np.var([3 / 4, 3 / 4, 1 / 4], ddof=1) / 3 + np.var([2 / 3, 2 / 3, 1, 0], ddof=1) / 4
    interval = probability_smaller(first, second)
    assert interval.value == pytest.approx(7 / 12)
    assert interval.low == pytest.approx(max(0, 7 / 12 - 1.96 * math.sqrt(variance)), abs=1e-4)
    assert interval.high == 1.0


def test_samples_that_diverged_have_no_memory():
    samples = draws(2, 20)
    samples[0, 0] = math.nan
    result = memorisation(TRAIN, TEST, samples)
    assert math.isnan(result.auc.value) and math.isnan(result.memorised_share)
