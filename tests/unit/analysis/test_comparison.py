"""Paired comparisons: against closed forms, scipy's tests on the same numbers, and planted effects."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from harness.analysis.statistics.comparison import MIN_PAIRS, compare, correct, holm, sign_flip_test

OURS = [1.0, 2.0, 3.5, 4.0, 6.0]
OTHER = [1.5, 2.8, 3.9, 5.2, 6.6]


def test_the_paired_difference_has_the_t_interval_and_p_of_the_paired_t_test():
    result = compare(OURS, OTHER)
    test = stats.ttest_rel(OURS, OTHER)
    interval = test.confidence_interval()
    assert result.n == 5 and result.difference == pytest.approx(np.mean(OURS) - np.mean(OTHER))
    assert (result.t_low, result.t_high) == pytest.approx((interval.low, interval.high))
    assert result.p == result.p_holm == pytest.approx(test.pvalue)
    assert result.verdict == "better"
    assert replace(result, higher_is_better=True).verdict == "worse"


def test_the_bca_interval_is_scipys_of_the_differences():
    differences = np.subtract(OURS, OTHER)
    expected = stats.bootstrap((differences,), np.mean, method="BCa", random_state=0).confidence_interval
    result = compare(OURS, OTHER)
    assert result.bca == (expected.low, expected.high)
    assert math.isnan(compare(OURS[:3], OTHER[:3]).bca[0])


def test_hedges_g_and_the_gain_of_pairing():
    result = compare(OURS, OTHER)
    differences = np.subtract(OURS, OTHER)
    correction = math.sqrt(2 / math.pi)  # Hedges' J with 4 degrees of freedom: gamma(2) / (sqrt(2) gamma(3 / 2))
    assert result.effect_size == pytest.approx(differences.mean() / differences.std(ddof=1) * correction)
    assert result.correlation == pytest.approx(np.corrcoef(OURS, OTHER)[0, 1])


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 8])
def test_the_sign_flip_test_counts_the_ways_to_flip_signs(n):
    """All differences of one sign: only they and their mirror image are as extreme, of 2^n ways."""
    assert sign_flip_test(-np.arange(1.0, n + 1)) == pytest.approx(min(1.0, 2 / 2**n))


def test_the_sign_flip_test_of_nothing_is_one():
    assert sign_flip_test([0.0, 0.0, 0.0]) == 1.0


def test_holm_is_the_worked_example_of_four_hypotheses():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


def test_the_correction_leaves_out_what_has_no_p():
    family = correct([compare(OURS, OTHER), compare([1.0], [2.0]), compare(OTHER, OURS)])
    p = family[0].p
    assert [comparison.p_holm for comparison in family[::2]] == pytest.approx([2 * p, 2 * p])
    assert math.isnan(family[1].p_holm) and family[1].verdict == "inconclusive"


def test_below_four_pairs_nothing_is_better_or_worse_however_plain():
    for n in range(1, MIN_PAIRS):
        result = compare([1.0, 1.1, 0.9][:n], [9.0, 9.1, 8.9][:n])
        assert result.verdict == "inconclusive"
    assert compare([1.0, 1.1, 0.9, 1.0], [9.0, 9.2, 8.9, 9.0]).verdict == "better"


def test_a_difference_within_the_floor_is_equivalent_and_one_that_may_be_outside_is_open():
    ours = np.array([3.00, 3.01, 2.99, 3.00, 3.01])
    other = np.array([3.01, 3.00, 3.00, 2.99, 3.00])
    assert compare(ours, other, floor=0.05).verdict == "equivalent"
    assert compare(ours, other, floor=0.005).verdict == "inconclusive"
    assert compare(ours, other - 0.03, floor=0.05).verdict == "equivalent", "p alone calls it worse"
    assert compare(ours, other - 0.03).verdict == "worse"


def test_equal_differences_need_no_spread():
    same = compare([1.0] * 4, [1.0] * 4)
    assert (same.p, same.verdict, same.pairs_to_decide) == (1.0, "inconclusive", None)
    assert math.isnan(same.effect_size) and math.isnan(same.correlation)
    always = compare([1.0] * 4, [2.0] * 4)
    assert (always.p, always.verdict) == (0.0, "better")


def continued(differences, draw, family=1):
    """Add pairs of one possible world, whose mean and spread fit the pairs so far, until there is a verdict."""
    n, values = len(differences), list(differences)
    spread = np.std(differences, ddof=1) * math.sqrt((n - 1) / draw.chisquare(n - 1))
    mean = np.mean(differences) + spread / math.sqrt(n) * draw.standard_normal()
    while len(values) < 200:
        values.append(mean + spread * draw.standard_normal())
        if len(values) >= 4 and family * stats.ttest_1samp(values, 0).pvalue < 0.05:
            break
    return len(values)


@pytest.mark.slow
@pytest.mark.parametrize(("differences", "family"), [([0.5, -0.2, 0.9, 0.1], 1), ([0.5, -0.2, 0.9, 0.4, 0.3], 3)])
def test_the_forecast_is_the_median_of_the_worlds_that_fit_the_pairs_so_far(differences, family):
    result = compare(differences, np.zeros(len(differences)))
    result = replace(result, p_holm=family * result.p)
    draw = np.random.default_rng(0)
    quantiles = np.quantile([continued(differences, draw, family) for _ in range(300)], (0.43, 0.57))
    assert quantiles[0] <= result.pairs_to_decide <= quantiles[1]


def test_the_forecast_counts_with_the_correction_and_with_the_floor():
    alone = compare([0.5, -0.2, 0.9, 0.1], np.zeros(4))
    assert replace(alone, p_holm=10 * alone.p).pairs_to_decide > alone.pairs_to_decide
    assert replace(alone, floor=0.2).pairs_to_decide > alone.pairs_to_decide
    near_zero = compare([0.05, -0.05, 0.04, -0.03], np.zeros(4), floor=0.03)
    assert near_zero.verdict == "inconclusive"
    assert near_zero.pairs_to_decide < replace(near_zero, floor=0).pairs_to_decide  # it will be within the floor


def test_no_forecast_where_there_is_a_verdict_or_one_pair_or_no_spread():
    assert compare(OURS, OTHER).pairs_to_decide is None
    assert compare([1.0], [2.0]).pairs_to_decide is None
    assert compare(np.ones(4), np.ones(4)).pairs_to_decide is None
    assert compare([1.0, 1.0], [0.0, 0.0]).pairs_to_decide == 4  # the fewest with a verdict


def test_pairs_must_be_finite_and_of_one_length():
    for ours, other in (([], []), ([1.0], [1.0, 2.0]), ([math.nan], [1.0]), ([1.0], [math.inf])):
        with pytest.raises(ValueError):
            compare(ours, other)


@pytest.mark.parametrize("n", [3, 5, 8])
def test_planted_effects_are_called_at_their_nominal_rates(n):
    """1,000 studies: no effect is called one in 5 % of them or fewer, and the t-interval covers in 95 %."""
    draw = np.random.default_rng(n)
    wrong = covered = 0
    for _ in range(1000):
        noise = draw.standard_normal(n)
        result = compare(0.3 + noise, np.zeros(n))
        covered += result.t_low < 0.3 < result.t_high
        wrong += compare(noise, np.zeros(n)).verdict != "inconclusive"
    assert 930 <= covered <= 970  # three standard errors of a binomial: 6.9 each
    assert wrong == 0 if n < MIN_PAIRS else 30 <= wrong <= 70


@pytest.mark.slow
def test_holm_holds_over_ten_contrasts_without_an_effect():
    """1,000 studies of five seeds: any of ten contrasts is called an effect in 5 % of them or fewer."""
    draw = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        family = correct([compare(draw.standard_normal(5), np.zeros(5)) for _ in range(10)])
        wrong += any(comparison.verdict != "inconclusive" for comparison in family)
    assert 25 <= wrong <= 70


def test_p_values_are_those_of_scipy_to_the_bit():
    draw = np.random.default_rng(0)
    for n in (2, 3, 5, 12, 40):
        differences = draw.normal(0.3, 1.0, n) * 10.0 ** draw.integers(-6, 3)
        assert compare(differences, np.zeros(n)).p == stats.ttest_1samp(differences, 0).pvalue


@pytest.mark.parametrize("n", [64, 200])
def test_many_undecided_pairs_have_a_forecast_too(n):
    differences = np.random.default_rng(1).normal(0, 1, n)
    pairs = compare(differences - differences.mean() + 0.1, np.zeros(n)).pairs_to_decide
    assert pairs is not None and n < pairs <= 1000
