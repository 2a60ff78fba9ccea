"""Power-function averages against their closed forms, and against averages that were tracked step by step."""

import numpy as np
import pytest

from harness.diffusion.power_averages import _inner_products, exponent_of, fit, weight_of_newest, width_of


def tracked(width: float, values: np.ndarray) -> np.ndarray:
    """Return the average after each step, [steps, ...]."""
    average, averages = np.zeros_like(values[0]), []
    for time, value in enumerate(values, 1):
        weight = weight_of_newest(exponent_of(width), time)
        average = (1 - weight) * average + weight * value
        averages.append(average)
    return np.stack(averages)


@pytest.mark.parametrize("width", [0.005, 0.05, 0.1, 0.28])
def test_the_width_of_the_exponent_of_a_width_is_that_width(width):
    assert width_of(exponent_of(width)) == pytest.approx(width, rel=1e-12)


def test_the_exponents_are_the_papers():
    assert [round(exponent_of(width), 2) for width in (0.05, 0.10)] == [16.97, 6.94]  # EDM2, section 3.1


def test_the_average_of_a_known_function_of_time_is_its_integral():
    steps, exponent = 4000, exponent_of(0.1)
    times = np.arange(1, steps + 1, dtype=float)
    # integral of s^2 (gamma + 1) s^gamma / t^(gamma + 1) ds from 0 to t
    expected = (exponent + 1) / (exponent + 3) * steps**2
    assert tracked(0.1, times**2)[-1] == pytest.approx(expected, rel=1e-3)


def test_a_constant_is_its_own_average_from_the_first_step_on():
    np.testing.assert_allclose(tracked(0.05, np.full(50, 3.0)), 3.0, rtol=1e-12)


def test_the_width_is_the_standard_deviation_of_the_profile():
    steps, exponent = 5000, exponent_of(0.15)
    s = (np.arange(steps) + 0.5) / steps
    p = (exponent + 1) * s**exponent / steps
    assert np.sqrt((p * s**2).sum() - (p * s).sum() ** 2) == pytest.approx(0.15, rel=1e-4)


def test_inner_products_are_those_of_the_profiles():
    s = (np.arange(100_000) + 0.5) / 100
    for (t_a, a), (t_b, b) in [((300.0, 2.0), (1000.0, 7.0)), ((1000.0, 7.0), (300.0, 2.0)), ((500.0, 3.0),) * 2]:
        p_a = np.where(s <= t_a, (a + 1) * s**a / t_a ** (a + 1), 0)
        p_b = np.where(s <= t_b, (b + 1) * s**b / t_b ** (b + 1), 0)
        product = _inner_products(*map(np.float64, (t_a, a, t_b, b)))
        assert product == pytest.approx((p_a * p_b).sum() / 100, rel=1e-3)


@pytest.mark.parametrize("width", [0.05, 0.1])
def test_a_stored_width_is_the_stored_average(width):
    stored = [(time, exponent_of(each)) for time in (250, 500, 750, 1000) for each in (0.05, 0.1)]
    coefficients, error = fit(width, 1000, stored)
    expected = [0.0] * 6 + ([1.0, 0.0] if width == 0.05 else [0.0, 1.0])
    np.testing.assert_allclose(coefficients, expected, atol=1e-6)
    assert error < 1e-6


def test_more_snapshots_bring_the_combination_nearer():
    def error(every: int) -> float:
        return fit(0.15, 1000, [(t, exponent_of(w)) for t in range(every, 1001, every) for w in (0.05, 0.1)])[1]

    errors = [error(every) for every in (500, 250, 100, 50)]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1 and errors[-1] < 0.01


@pytest.mark.parametrize(("width", "bound"), [(0.07, 0.002), (0.15, 0.006), (0.2, 0.02)])
def test_of_a_random_walk_another_width_is_what_tracking_it_gives(width, bound):
    walk = np.random.default_rng(0).standard_normal((2000, 200)).cumsum(0)
    stored = {each: tracked(each, walk) for each in (0.05, 0.1)}
    profiles = [(time, each) for time in range(100, 2001, 100) for each in (0.05, 0.1)]
    coefficients, _ = fit(width, 2000, [(time, exponent_of(each)) for time, each in profiles])
    combined = sum(c * stored[each][time - 1] for c, (time, each) in zip(coefficients, profiles, strict=True))
    expected = tracked(width, walk)[-1]
    distance = np.linalg.norm(combined - expected) / np.linalg.norm(expected - walk[-1])
    assert distance < bound
    nearest = min(np.linalg.norm(values[-1] - expected) for values in stored.values())
    assert np.linalg.norm(combined - expected) < nearest / 10
