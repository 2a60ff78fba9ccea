"""KID, MIND and the Inception Score against torch-fidelity's functions and plain NumPy."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import wasserstein_distance

from harness.metrics.divergences import inception_score, kernel_distance, monge_distance
from harness.metrics.torchvision_compat import torch_fidelity


def draws(seed, count, dim=12, scale=1.0, shift=0.0):
    values = np.random.default_rng(seed).standard_normal((count, dim)) * scale + shift
    return torch.from_numpy(values.astype(np.float32))


def kernel(first, second):
    return (first @ second.T / first.shape[1] + 1) ** 3


def kid_by_numpy(reference, samples):
    """Binkowski et al. (2018), eq. 4, with the whole matrices."""
    x, y = samples.double().numpy(), reference.double().numpy()
    xx, yy = kernel(x, x), kernel(y, y)
    np.fill_diagonal(xx, 0), np.fill_diagonal(yy, 0)
    n, m = len(x), len(y)
    return xx.sum() / (n * (n - 1)) + yy.sum() / (m * (m - 1)) - 2 * kernel(x, y).mean()


class TestKid:
    def test_on_one_subset_of_everything_it_is_torch_fidelitys(self):
        reference, samples = draws(0, 300).relu(), draws(1, 300, scale=1.3).relu()
        theirs = torch_fidelity().metric_kid.kid_features_to_metric(
            samples.double(), reference.double(), kid_subsets=1, kid_subset_size=300, verbose=False
        )
        ours = kernel_distance(reference, samples).value
        assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], abs=1e-12)

    def test_sets_of_different_size_are_compared_whole_and_by_blocks(self, monkeypatch):
        reference, samples = draws(0, 211), draws(1, 97, shift=0.3)
        monkeypatch.setattr("harness.metrics.divergences._BLOCK", 50)
        assert kernel_distance(reference, samples).value == pytest.approx(kid_by_numpy(reference, samples), abs=1e-12)

    def test_the_error_is_the_jackknife_with_each_sample_left_out(self):
        reference, samples = draws(0, 40), draws(1, 30, shift=0.2)
        without = [kid_by_numpy(reference, samples[torch.arange(30) != left_out]) for left_out in range(30)]
        expected = math.sqrt(29 / 30 * np.square(np.array(without) - np.mean(without)).sum())
        assert kernel_distance(reference, samples).standard_error == pytest.approx(expected, rel=1e-9)

    @pytest.mark.slow
    def test_it_is_unbiased_and_its_error_is_the_spread_over_draws(self):
        reference = draws(0, 400)
        estimates = [kernel_distance(reference, draws(seed, 100, shift=0.2)) for seed in range(1, 301)]
        values, errors = np.array(estimates).T
        large = kernel_distance(reference, draws(999, 4000, shift=0.2)).value
        assert abs(values.mean() - large) < 3 * values.std() * math.sqrt(1 / 300 + 1 / 40)
        assert np.sqrt(np.square(errors).mean()) == pytest.approx(values.std(), rel=0.12)


class TestMind:
    def test_it_is_that_of_an_independent_computation(self):
        reference, samples = draws(0, 80), draws(1, 80, scale=1.4, shift=0.5)
        directions = torch.randn(1000, 12, generator=torch.Generator().manual_seed(2020)).double().numpy()
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        x, y = samples.double().numpy() @ directions.T, reference.double().numpy() @ directions.T
        expected = 3 * 12 * np.square(np.sort(x, 0) - np.sort(y, 0)).mean()
        assert monge_distance(reference, samples) == pytest.approx(expected, rel=1e-5)

    def test_of_a_shift_it_is_three_times_the_squared_distance_up_to_the_choice_of_directions(self):
        # u' shift has mean square |shift|^2 / D over directions u, and the factor is 3 D.
        samples = draws(0, 200)
        assert monge_distance(samples + 0.5, samples) == pytest.approx(3 * 12 * 0.25, rel=0.1)

    def test_in_one_dimension_it_is_the_wasserstein_distance(self):
        reference, samples = draws(0, 50, dim=1), draws(1, 50, dim=1, shift=20.0)
        first_order = wasserstein_distance(reference.flatten().numpy(), samples.flatten().numpy())
        ordered = samples.flatten().sort().values - reference.flatten().sort().values
        assert float(ordered.mean()) == pytest.approx(first_order, rel=1e-5)
        assert monge_distance(reference, samples) == pytest.approx(3 * float(ordered.square().mean()), rel=1e-5)

    def test_of_the_larger_set_as_many_are_taken_as_the_smaller_has(self):
        reference, samples = draws(0, 500), draws(1, 100)
        rows = torch.randperm(500, generator=torch.Generator().manual_seed(2020))[:100]
        some = monge_distance(reference, samples)
        assert some != monge_distance(reference[:100], samples)
        assert some == pytest.approx(monge_distance(reference[rows], samples), rel=0.1)  # other directions follow


class TestInceptionScore:
    @pytest.mark.parametrize("count", [200, 207])
    def test_it_is_torch_fidelitys(self, count):
        logits = draws(0, count, dim=10, scale=3.0)
        theirs = torch_fidelity().metric_isc.isc_features_to_metric(logits)
        assert tuple(inception_score(logits)) == pytest.approx(tuple(theirs.values()), abs=1e-9)

    def test_of_certain_and_evenly_spread_classes_it_is_their_number(self):
        logits = 100.0 * torch.eye(5).repeat(400, 1)
        assert inception_score(logits).value == pytest.approx(5, rel=0.02)  # a split has not exactly as many of each

    def test_of_no_knowledge_it_is_one(self):
        assert tuple(inception_score(torch.zeros(50, 7))) == pytest.approx((1, 0))


def test_samples_that_diverged_have_none_of_them():
    samples = draws(0, 30)
    samples[3, 2] = math.nan
    values = [*kernel_distance(draws(1, 30), samples), monge_distance(draws(1, 30), samples), *inception_score(samples)]
    assert all(math.isnan(value) for value in values)
