"""The two sources of variance, in closed form and against a simulation; errors of one run's numbers."""

import math

import numpy as np
import pytest

from harness.analysis.statistics.noise import SEEDS, TRAININGS, Components, components, of_features, shared_error


def test_the_components_are_those_of_the_mean_squares():
    # Rows 1, 3 and 5, 11: means 2 and 8; the rest is -+1 around them, so MS_rest = 4 and the variance of means 18.
    result = components([[[1.0, 3.0], [5.0, 11.0]]])
    assert result.sampling == pytest.approx((2 + 18) / 2)
    assert result.training == pytest.approx(18 - 4 / 2)
    assert result.shared == pytest.approx(10 - 4)
    assert (result.num_trainings, result.num_seeds) == (2, 2)


def test_a_seed_that_moves_all_trainings_alike_is_not_taken_off_the_spread_between_them():
    shift = np.array([0.0, 10.0, 20.0])
    result = components([[(value + shift).tolist() for value in (1.0, 2.0, 3.0)]])
    assert result.training == pytest.approx(1.0)
    assert result.sampling == result.shared == pytest.approx(100.0)
    assert shared_error([(value + shift).tolist() for value in (1.0, 2.0, 3.0)]) == pytest.approx(10 / math.sqrt(3))


@pytest.mark.parametrize("shared", [0.0, 2.0])
def test_of_simulated_gaussians_the_components_are_the_true_ones(shared):
    random, (training, rest) = np.random.default_rng(0), (1.5, 1.0)
    arms = [
        5
        + training * random.normal(size=(4, 1))
        + shared * random.normal(size=(1, 3))
        + rest * random.normal(size=(4, 3))
        for _ in range(4000)
    ]
    result = components(arms)
    assert result.training == pytest.approx(training**2, rel=0.04)
    assert result.sampling == pytest.approx(rest**2 + shared**2, rel=0.04)
    assert result.shared == pytest.approx(shared**2, rel=0.04, abs=0.04)


def test_a_component_without_repetition_is_not_known():
    single, one_seed = components([[[1.0, 2.0, 3.0]]]), components([[[1.0], [3.0]]])
    assert math.isnan(single.training) and single.sampling == pytest.approx(1.0)
    assert math.isnan(one_seed.sampling) and one_seed.training == pytest.approx(2.0)
    assert single.buy_next == one_seed.buy_next == ""
    assert math.isnan(components([]).training)


def test_a_training_that_diverged_is_not_counted():
    with_nan = components([[[1.0, 3.0], [math.nan, 2.0], [5.0, 11.0]]])
    assert with_nan == components([[[1.0, 3.0], [5.0, 11.0]]])


def test_what_trainings_share_is_not_known_of_fewer_than_three_seeds():
    assert math.isnan(shared_error([[1.0, 2.0], [2.0, 4.0], [3.0, 3.0]]))
    assert math.isnan(shared_error([[], [], []]))
    assert math.isnan(shared_error([[1.0, 2.0, 3.0], [1.0, 2.0, math.nan]]))


@pytest.mark.parametrize(("apart", "next_one"), [(10.0, TRAININGS), (0.0, SEEDS)])
def test_what_to_buy_next_is_whichever_has_the_larger_share_of_the_variance(apart, next_one):
    random = np.random.default_rng(1)
    rows = [apart * index + random.normal(size=4) for index in range(3)]
    assert components([rows]).buy_next == next_one


def test_more_trainings_do_not_help_against_what_seeds_do_to_all_of_them():
    parts = {"training": 1.0, "sampling": 3.0, "num_trainings": 4, "num_seeds": 4}
    assert Components(**parts, shared=0.0).buy_next == TRAININGS  # 1/4 against 3/16
    assert Components(**parts, shared=2.0).buy_next == SEEDS  # 1/4 against 2/4 + 1/16


def test_the_error_of_a_mean_over_seeds_falls_with_their_root_and_a_record_of_anybody_is_checked():
    assert of_features(0.6, 4).standard_error == pytest.approx(0.3)
    assert of_features(math.nan) is None
    assert of_features(-1.0) is None
    assert of_features(None) is None
