"""Schedules and tables against the reference's vectors, the papers' numbers and closed forms."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.diffusion import SCHEDULES, tables
from harness.diffusion.schedules import cosine_alpha_bar

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "schedules.npz")


@pytest.mark.parametrize("key", GOLDEN.files)
def test_tables_are_the_references(key):
    schedule, num_timesteps, table = key.split("/")
    ours = tables(SCHEDULES[schedule](int(num_timesteps)))
    np.testing.assert_allclose(getattr(ours, table), GOLDEN[key], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [21, 100, 1000, 4000])
def test_the_posterior_mean_of_a_noiseless_path_stays_on_it(name, num_timesteps):
    t = tables(SCHEDULES[name](num_timesteps))
    on_path = t.posterior_mean_coef1 + t.sqrt_alphas_cumprod * t.posterior_mean_coef2
    rounding = 2 * np.finfo(float).eps / (1 - t.alphas_cumprod)  # of 1 - alpha-bar, by which both are divided
    assert (np.abs(on_path - np.sqrt(t.alphas_cumprod_prev)) <= np.maximum(1e-11, rounding)).all()


@pytest.mark.parametrize(
    "num_timesteps, ratios",
    [
        (100, [0, 0.2496, 0.6423, 0.8171, 0.9911]),
        (1000, [0, 0.4547, 0.7431, 0.8528, 0.9639]),
        (10000, [0, 0.4951, 0.7923, 0.8918, 0.9735]),
    ],
)
def test_the_two_fixed_variances_agree_where_iddpm_figure_1_says(num_timesteps, ratios):
    t = tables(SCHEDULES["linear"](num_timesteps))
    at = np.array([1, 2, 5, 10, 50]) - 1
    np.testing.assert_allclose((t.posterior_variance / t.betas)[at], ratios, atol=5e-5)


@pytest.mark.parametrize(
    "schedule, num_timesteps, abar",
    [
        ("linear", 1000, [0.5241, 0.07859, 0.003351, 4.04e-5]),
        ("linear", 4000, [0.5238, 0.07894, 0.003419, 4.25e-5]),
        ("cosine", 1000, [0.847, 0.4938, 0.1443, 2.4e-9]),
        ("cosine", 4000, [0.847, 0.4938, 0.1443, 1.5e-10]),
    ],
)
def test_alpha_bar_takes_the_values_of_iddpm_figure_5(schedule, num_timesteps, abar):
    at = num_timesteps * np.array([1, 2, 3, 4]) // 4 - 1
    ours = tables(SCHEDULES[schedule](num_timesteps)).alphas_cumprod[at]
    np.testing.assert_allclose(ours[:3], abar[:3], rtol=4e-4)  # to the digits printed
    np.testing.assert_allclose(ours[3], abar[3], rtol=2e-2)


@pytest.mark.parametrize("num_timesteps, first, root", [(1000, 4.128e-5, 0.006425), (4000, 9.866e-6, 0.003141)])
def test_the_cosine_schedule_starts_below_a_grey_level_and_clips_only_its_last_beta(num_timesteps, first, root):
    betas = SCHEDULES["cosine"](num_timesteps)
    assert betas[0] == pytest.approx(first, rel=2e-4)
    assert np.sqrt(betas[0]) == pytest.approx(root, rel=2e-4)
    assert list(np.flatnonzero(betas == 0.999)) == [num_timesteps - 1]


def test_the_cosine_table_follows_its_continuous_alpha_bar():
    betas = SCHEDULES["cosine"](1000, s=0.02)
    u = np.arange(1, 1000) / 1000  # the last beta is clipped
    expected = [cosine_alpha_bar(v, 0.02) / cosine_alpha_bar(0, 0.02) for v in u]
    np.testing.assert_allclose(tables(betas).alphas_cumprod[:-1], expected, rtol=1e-10)


DDGAN = dict(np.load(Path(__file__).parents[2] / "golden" / "ddgan_schedules.npz"))
DDGAN_SCHEDULES = sorted(
    {
        name.rsplit("/", 1)[0]
        for name in DDGAN
        if "float64" not in name and np.isfinite(DDGAN[name.rsplit("/", 1)[0] + "/a_s"]).all()
    }
)


@pytest.mark.parametrize("key", DDGAN_SCHEDULES)
def test_few_large_steps_are_those_of_denoising_diffusion_gan(key):
    schedule, limits, num_timesteps = key.split("/")
    ours = tables(SCHEDULES[schedule](int(num_timesteps), *map(float, limits.split(","))))
    for name, skipped in {
        "betas": 1,  # the reference's first, 1e-8, vanishes in its float32
        "alphas_cumprod": 0,
        "posterior_mean_coef1": 0,
        "posterior_mean_coef2": 0,
        "posterior_variance": 0,
    }.items():
        single, double = DDGAN[f"{key}/{name}"][skipped:], DDGAN[f"{key}/float64/{name}"][skipped:]
        low, high = np.minimum(single, double), np.maximum(single, double)
        slack = 2e-6 * np.abs(high) + 1e-7
        table = getattr(ours, name)
        assert table.shape == single.shape
        assert ((low - slack <= table) & (table <= high + slack)).all(), name


def test_few_large_steps_have_the_papers_values():
    np.testing.assert_allclose(SCHEDULES["vp"](2), [0.9213, 0.9995], atol=5e-5)
    np.testing.assert_allclose(
        tables(SCHEDULES["vp"](8)).alphas_cumprod,
        [0.8436, 0.5217, 0.2366, 0.07868, 0.01918, 0.003429, 0.0004494, 4.319e-05],
        rtol=2e-4,
    )
    assert tables(SCHEDULES["vp"](1)).alphas_cumprod == pytest.approx([4.319e-5], rel=1e-4)


@pytest.mark.parametrize(
    ("schedule", "limits", "complaint"),
    [
        ("vp", (0.0, 20.0), "needs 0 < beta_min <= beta_max, got 0.0 and 20.0"),
        ("vp", (20.0, 0.1), "needs 0 < beta_min <= beta_max"),
        ("geometric", (0.1, 20.0), "needs 0 < variance_min < variance_max < 1, got 0.1 and 20.0"),  # DDGAN's default
        ("geometric", (0.5, 0.5), "needs 0 < variance_min < variance_max < 1"),
    ],
)
def test_limits_that_leave_nothing_of_the_data_are_refused(schedule, limits, complaint):
    with pytest.raises(ValueError, match=complaint):
        SCHEDULES[schedule](4, *limits)


@pytest.mark.parametrize("num_timesteps", [1, 20])
def test_a_linear_schedule_too_short_for_its_betas_names_the_smallest_length(num_timesteps):
    with pytest.raises(ValueError, match=f"num_timesteps >= 21, got {num_timesteps}"):
        SCHEDULES["linear"](num_timesteps)
    assert tables(SCHEDULES["linear"](21)).alphas_cumprod[-1] > 0


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("num_timesteps", [0, -3, 2.5])
def test_a_length_that_is_no_count_is_refused(name, num_timesteps):
    with pytest.raises(ValueError, match="at least 1"):
        SCHEDULES[name](num_timesteps)


@pytest.mark.parametrize(
    "betas, complaint",
    [
        ([], "at least one step"),
        ([[0.1]], "vector"),
        ([0.1, np.nan], "nan at t = 1"),
        ([0.1, 1.0], "1.0 at t = 1"),
        ([0.0, 0.1], "0.0 at t = 0"),
        ([1e-20, 0.1], "1e-20 at t = 0"),
        ([0.999] * 200, "reaches 0"),
    ],
)
def test_betas_that_are_no_variances_are_refused_by_place(betas, complaint):
    with pytest.raises(ValueError, match=complaint):
        tables(np.array(betas))


def test_one_step_has_a_finite_log_variance():
    t = tables(np.array([0.3]))
    assert t.posterior_variance[0] == 0
    assert t.posterior_log_variance_clipped[0] == t.fixed_large_log_variance[0] == np.log(0.3)


@given(st.lists(st.floats(1e-6, 0.999), min_size=1, max_size=40))
def test_any_schedule_has_finite_frozen_tables_with_variances_in_order(betas):
    t = tables(np.array(betas))
    assert all(np.isfinite(table).all() and table.dtype == np.float64 and not table.flags.writeable for table in t)
    assert (t.posterior_variance >= 0).all() and (t.posterior_variance <= t.betas).all()
    assert (np.diff(t.alphas_cumprod) < 0).all()
