"""The Frechet distance of Gaussians that are known, its error and its limit."""

import math

import pytest
import torch

from harness.metrics.fidelity import frechet_distance
from harness.metrics.frechet import (
    Gaussian,
    frechet,
    frechet_by_class,
    frechet_infinity,
    frechet_standard_error,
)

STD = torch.linspace(1, 0.3, 6, dtype=torch.float64)
REFERENCE = torch.randn(3000, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * STD
TARGET = Gaussian.fit(REFERENCE)


def true_model(shift, scale):
    return Gaussian(torch.full((6,), shift, dtype=torch.float64), torch.diag((STD * scale) ** 2))


def draws(model, count, seed):
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, 6, generator=generator, dtype=torch.float64)
    return noise @ torch.linalg.cholesky(model.covariance).T + model.mean


def test_of_commuting_covariances_it_is_the_closed_form():
    first = Gaussian(torch.tensor([1.0, 0.0]).double(), torch.diag(torch.tensor([4.0, 9.0]).double()))
    second = Gaussian(torch.tensor([0.0, 2.0]).double(), torch.diag(torch.tensor([1.0, 16.0]).double()))
    assert frechet(first, second) == pytest.approx(1 + 4 + (2 - 1) ** 2 + (3 - 4) ** 2)


@pytest.mark.parametrize("dead", [False, True])
def test_it_is_torch_fidelitys(dead):
    generator = torch.Generator().manual_seed(1)
    reference, samples = (torch.randn(500, 24, generator=generator).relu() * scale for scale in (1.0, 1.3))
    if dead:  # features that are always 0
        reference[:, 3:5], samples[:, 3:5] = 0, 0
    ours = frechet(Gaussian.fit(samples), Gaussian.fit(reference))
    assert ours == pytest.approx(frechet_distance(reference, samples), rel=1e-5)


@pytest.mark.slow
def test_the_error_is_the_spread_over_draws():
    model = true_model(0.3, 0.8)
    values, errors = torch.tensor(
        [
            (frechet(Gaussian.fit(samples), TARGET), frechet_standard_error(REFERENCE, samples))
            for samples in (draws(model, 500, seed) for seed in range(300))
        ]
    ).T
    assert float(errors.square().mean().sqrt()) == pytest.approx(float(values.std()), rel=0.12)


def test_the_error_is_that_of_leaving_out_each_sample_in_turn():
    samples = draws(true_model(0.2, 1.3), 400, seed=3)
    without = torch.tensor(
        [frechet(Gaussian.fit(samples[torch.arange(400) != left_out]), TARGET) for left_out in range(400)]
    )
    jackknife = float((399 / 400 * (without - without.mean()).square().sum()).sqrt())
    assert frechet_standard_error(REFERENCE, samples) == pytest.approx(jackknife, rel=0.03)


def test_features_that_are_always_zero_change_no_error():
    samples, padding = draws(true_model(0.1, 1.2), 200, seed=4), torch.zeros(200, 2, dtype=torch.float64)
    wider = torch.cat([samples, padding], 1)
    reference = torch.cat([REFERENCE, torch.zeros(3000, 2, dtype=torch.float64)], 1)
    expected = frechet_standard_error(REFERENCE, samples)
    assert frechet_standard_error(reference, wider) == pytest.approx(expected, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.1, 1.1)])
def test_the_limit_is_unbiased_and_within_its_interval_in_93_to_97_of_100_trials(shift, scale):
    model, trials = true_model(shift, scale), 400
    true = frechet(model, TARGET)
    limits = [frechet_infinity(REFERENCE, draws(model, 400, seed)) for seed in range(trials)]
    errors = torch.tensor([limit.value - true for limit in limits])
    assert abs(float(errors.mean())) < 3 * float(errors.std()) / math.sqrt(trials)
    assert 0.93 <= sum(limit.low <= true <= limit.high for limit in limits) / trials <= 0.97


def test_the_distance_itself_is_biased_where_its_limit_is_not():
    model = true_model(0.0, 1.0)
    true = frechet(model, TARGET)
    errors = [frechet(Gaussian.fit(draws(model, 100, seed)), TARGET) - true for seed in range(50)]
    assert min(errors) > 0.01


def test_with_fewer_samples_than_features_there_is_neither_error_nor_limit(caplog):
    assert math.isnan(frechet_standard_error(REFERENCE, REFERENCE[:6]))
    assert not math.isnan(frechet_standard_error(REFERENCE, REFERENCE[:7]))
    assert all(math.isnan(end) for end in frechet_infinity(REFERENCE, REFERENCE[:8]))
    assert "fid_infinity is NaN: 8 samples of 6 features; a Gaussian is fitted to 6 of them" in caplog.text


def test_samples_that_diverged_have_neither():
    samples = REFERENCE[:50].clone()
    samples[0, 0] = math.inf
    assert math.isnan(frechet_standard_error(REFERENCE, samples))
    assert math.isnan(frechet_infinity(REFERENCE, samples).value)
    labels = torch.zeros(50, dtype=torch.int64)
    assert math.isnan(frechet_by_class(REFERENCE, torch.zeros(3000), samples, labels)[0])


def test_each_class_is_compared_with_its_own_images():
    labels, samples = torch.arange(300) % 3, draws(true_model(0.0, 1.0), 300, seed=5)
    reference_labels = torch.arange(3000) % 4
    distances = frechet_by_class(REFERENCE, reference_labels, samples, labels)
    assert list(distances) == [0, 1, 2, 3]
    expected = frechet(Gaussian.fit(samples[1::3]), Gaussian.fit(REFERENCE[1::4]))
    assert distances[1] == pytest.approx(expected, rel=1e-12)
    assert math.isnan(distances[3])  # no samples of this class
