"""The likelihood against closed forms, and the honesty of the estimator's interval."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from harness.diffusion import SCHEDULES, GaussianDiffusion
from harness.metrics.likelihood import bound_terms, counter_noise, full_nll, gaussian_baseline_bpd, stratified_nll
from harness.metrics.stratified import Pilot, curve_timesteps, draw_strata, make_strata, run_pilot


def model(toy):
    return toy.process, toy.predict, toy.x_0


def exact_total(toy):
    return toy.L_t_bpd.sum(1).mean() + float(toy.process.prior_bpd(toy.x_0).mean())


# -- the full sum


def test_the_full_sum_meets_the_closed_form_within_its_standard_error(short_chain, long_chain):
    for toy in (short_chain, long_chain):
        found = full_nll(*model(toy), seed=0, batch_size=4096, clip=False)
        assert abs(found.total_bpd - exact_total(toy)) < 3 * found.standard_error_bpd
        assert found.decoder_bpd == found.L_t_bpd[0]
        assert found.image_bpd.mean() == pytest.approx(found.total_bpd)
        num_images, num_timesteps = toy.L_t_bpd.shape
        assert (found.estimator, found.num_images) == ("full", num_images)
        assert found.num_evaluations == (num_images + 16) * num_timesteps
        for some in np.array_split(np.arange(1, num_timesteps), 4):  # a quarter of the chain is sure to a few percent
            assert found.L_t_bpd[some].sum() == pytest.approx(toy.L_t_bpd.mean(0)[some].sum(), rel=0.05)


@pytest.mark.slow
def test_the_full_sums_standard_error_is_the_spread_over_seeds(short_chain):
    process, predict, x_0 = model(short_chain)
    runs = [full_nll(process, predict, x_0[:40], seed=seed, batch_size=4096, clip=False) for seed in range(200)]
    spread = np.std([run.total_bpd for run in runs])
    stated = math.sqrt(np.mean([run.standard_error_bpd**2 for run in runs]))
    assert stated == pytest.approx(spread, rel=0.15)  # the spread of 200 values is itself known to 5 %


def test_the_batch_size_changes_nothing_but_rounding(short_chain):
    process, predict, x_0 = model(short_chain)
    for estimate in (full_nll, stratified_nll):
        one, other = (estimate(process, predict, x_0[:20], seed=3, batch_size=b, clip=False) for b in (7, 1000))
        np.testing.assert_allclose(one.image_bpd, other.image_bpd, rtol=1e-6)


def test_the_images_error_leaves_the_monte_carlo_out_and_is_nan_for_one_image(short_chain):
    process, predict, x_0 = model(short_chain)
    exact = short_chain.L_t_bpd.sum(1).std(ddof=1) / math.sqrt(300)
    for budget in (4, 40):  # the coarser estimate of each image must not widen the interval over images
        found = stratified_nll(process, predict, x_0, seed=0, batch_size=300, clip=False, evaluations_per_image=budget)
        assert found.images_standard_error_bpd == pytest.approx(exact, rel=0.1)
    alone = full_nll(process, predict, x_0[:1], seed=0, batch_size=8)
    assert math.isnan(alone.images_standard_error_bpd) and alone.standard_error_bpd > 0


def test_a_network_is_asked_about_the_original_chains_t_and_each_images_own_class():
    process = GaussianDiffusion(SCHEDULES["linear"](40), mean_type="x_0", var_type="fixed_small")
    respaced, seen = process.respaced([3, 20, 39]), []

    def predict(x_t, t, y):
        seen.append(torch.stack([t, y]))
        return torch.zeros_like(x_t)

    full_nll(respaced, predict, torch.zeros(2, 1, 2, 2), torch.tensor([5, 7]), seed=0, batch_size=4)
    assert torch.cat(seen, 1).T.tolist()[:6] == [[t, y] for y in (5, 7) for t in (3, 20, 39)]


def test_a_chain_of_one_step_has_a_bound():
    process = GaussianDiffusion(SCHEDULES["linear"](1000), mean_type="x_0", var_type="fixed_large").respaced([999])
    found = stratified_nll(
        process, lambda x_t, t, y: torch.zeros_like(x_t), torch.zeros(3, 1, 2, 2), seed=0, batch_size=4
    )
    assert found.total_bpd == pytest.approx(found.decoder_bpd + found.prior_bpd) and found.num_evaluations == 6


# -- the stratified estimate


def table_of(toy_terms, num_images, num_timesteps, draws=8):
    """Store L_t under so many draws of noise: [N, T, draws]."""
    image, t, draw = (axis.ravel() for axis in np.indices((num_images, num_timesteps, draws)))
    return toy_terms(image, t, draw * num_timesteps + t).reshape(num_images, num_timesteps, draws)


def replays(table, evaluations_per_image, count):
    """Estimate a stored table's full sum again and again, ten times a pilot: errors / standard errors, and errors."""
    num_images, num_timesteps, draws = table.shape
    errors, standard_errors = [], []
    for seed in range(count):
        choose = np.random.default_rng([seed, 99])

        def terms(image, t, draw, choose=choose):
            return table[image, t, choose.integers(draws, size=len(t))]

        if seed % 10 == 0:
            pilot = run_pilot(terms, num_images, num_timesteps, evaluations_per_image, seed=seed)
            strata = make_strata(pilot, num_timesteps, evaluations_per_image)
        drawn = draw_strata(terms, num_images, strata, seed=seed)
        errors.append(drawn.mean - table.mean(2).sum(1).mean())
        standard_errors.append(drawn.standard_error)
    return np.array(errors) / np.array(standard_errors), np.array(errors)


@pytest.mark.slow
def test_over_1000_replays_the_interval_covers_the_full_sum_in_95_of_100(long_chain):
    terms = bound_terms(*model(long_chain), seed=0, batch_size=8192, clip=False)
    z, errors = replays(table_of(terms, 12, 4000), 40, 1000)
    assert 0.93 <= np.mean(np.abs(z) < 1.96) <= 0.97
    assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(1000)


def test_a_small_budget_on_a_short_chain_is_as_honest(short_chain):
    process, predict, x_0 = model(short_chain)
    terms = bound_terms(process, predict, x_0[:100], seed=0, batch_size=8192, clip=False)
    z, errors = replays(table_of(terms, 100, 100), 20, 1000)
    assert 0.93 <= np.mean(np.abs(z) < 1.96) <= 0.97
    assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(1000)


@pytest.mark.slow
def test_with_fresh_noise_the_interval_covers_the_closed_form(long_chain):
    truth = exact_total(long_chain)
    runs = [stratified_nll(*model(long_chain), seed=seed, batch_size=4096, clip=False) for seed in range(300)]
    z = np.array([(run.total_bpd - truth) / run.standard_error_bpd for run in runs])
    assert abs(z.mean()) < 3 / math.sqrt(300) and z.std() == pytest.approx(1, abs=0.13)


def test_it_costs_a_hundredth_and_errs_at_most_as_draws_spread_evenly_would_with_ten_times_as_many(long_chain):
    found = stratified_nll(*model(long_chain), seed=0, batch_size=4096, clip=False)
    spread = 4000 * long_chain.L_t_bpd.std(1)  # of one t drawn evenly, even without noise
    assert found.standard_error_bpd < math.sqrt((spread**2).mean() / 24 / 400)
    assert found.num_evaluations - found.pilot.values.size == 24 * 4000 / 100


def test_pilot_draws_steer_the_strata_and_stay_out_of_the_estimate(long_chain):
    process, predict, x_0 = model(long_chain)
    terms = bound_terms(process, predict, x_0, seed=0, batch_size=8192, clip=False)

    def loud_pilot(image, t, draw):  # a thousandfold in the pilot: the same shape, so the same strata
        return terms(image, t, draw) * np.where(draw < 0, 1000, 1)

    sums = []
    for these in (terms, loud_pilot):
        strata = make_strata(run_pilot(these, 24, 4000, 40, seed=0), 4000, 40)
        sums.append(draw_strata(these, 24, strata, seed=0).image_sum)
    np.testing.assert_allclose(sums[0], sums[1], rtol=1e-9)


@given(
    num_timesteps=st.integers(5, 3000),
    budget=st.integers(4, 90),
    steepness=st.floats(-3, 6),
    damage=st.sampled_from([None, math.nan, math.inf, 0.0, -1e-9]),
    seed=st.integers(0, 99),
)
def test_strata_are_sound_whatever_the_pilot_saw(num_timesteps, budget, steepness, damage, seed):
    timesteps = curve_timesteps(num_timesteps)
    noise = np.random.default_rng(seed).gamma(2.0, size=(3, len(timesteps), 2))
    values = noise * (1.0 + timesteps[:, None]) ** -steepness
    if damage is not None:
        values[:, seed % len(timesteps) :] = damage
    edges, draws, density = make_strata(Pilot(timesteps, values), num_timesteps, budget)
    assert edges[0] == 0 and edges[1] == 1 and edges[-1] == num_timesteps  # t = 0 is a stratum of its own
    assert (np.diff(edges) > 0).all() and (draws >= 2).all() and draws.sum() == budget
    np.testing.assert_allclose(np.add.reduceat(density, edges[:-1]), 1.0, rtol=1e-12)
    assert (density >= 0.0999 / np.repeat(np.diff(edges), np.diff(edges))).all()


def test_a_constant_term_is_summed_without_error():
    def terms(image, t, draw):
        return np.full(len(t), 0.25)

    strata = make_strata(Pilot(np.arange(200), np.full((2, 200, 2), 0.25)), 200, 30)
    evenly = strata._replace(density=1 / np.repeat(np.diff(strata.edges), np.diff(strata.edges)))
    drawn = draw_strata(terms, 5, evenly, seed=0)
    np.testing.assert_allclose(drawn.image_sum, 50.0, rtol=1e-12)
    np.testing.assert_allclose(drawn.image_variance, 0.0, atol=1e-20)


def test_t_zero_gets_more_draws_where_its_noise_carries_the_variance():
    noise = np.random.default_rng(0).standard_normal((4, 100, 2))
    values = np.where(np.arange(100)[:, None] == 0, 1 + 0.5 * noise, 0.01 + 1e-4 * noise)
    strata = make_strata(Pilot(np.arange(100), values), 100, 40)
    assert strata.draws[0] > 30


@pytest.mark.parametrize(("images", "budget"), [(300, 20), (300, 40), (50, 4)])
def test_a_small_budget_still_gives_the_whole_curve(short_chain, images, budget):
    process, predict, x_0 = model(short_chain)
    found = stratified_nll(
        process, predict, x_0[:images], seed=0, batch_size=300, clip=False, evaluations_per_image=budget
    )
    assert found.estimator == "stratified" and np.isfinite(found.L_t_bpd).all()
    if images == 300:
        exact, carries = short_chain.L_t_bpd.mean(0), slice(1, 50)
        assert np.median(np.abs(found.L_t_bpd[carries] / exact[carries] - 1)) < 0.1
        assert found.decoder_bpd == pytest.approx(exact[0], abs=0.05)


def test_a_long_chains_curve_has_every_t_below_50_and_hundreds_beyond(long_chain):
    found = stratified_nll(*model(long_chain), seed=0, batch_size=4096, clip=False)
    assert np.isfinite(found.L_t_bpd[curve_timesteps(4000)]).all()
    assert np.isnan(found.L_t_bpd).any()
    steps = curve_timesteps(4000)
    assert 270 <= len(steps) <= 300 and steps[-1] == 3999 and set(range(50)) <= set(steps)


def test_where_the_full_sum_is_no_dearer_it_is_taken_and_said():
    process = GaussianDiffusion(SCHEDULES["linear"](30), mean_type="x_0", var_type="fixed_large")
    x_0 = torch.zeros(4, 1, 2, 2)
    same = {"seed": 1, "batch_size": 64}
    found = stratified_nll(process, lambda x_t, t, y: 0.5 * x_t, x_0, evaluations_per_image=30, **same)
    assert found.estimator == "full"
    assert found.total_bpd == full_nll(process, lambda x_t, t, y: 0.5 * x_t, x_0, **same).total_bpd
    with pytest.raises(ValueError, match="at least 4"):
        stratified_nll(process, lambda x_t, t, y: 0.5 * x_t, x_0, evaluations_per_image=3, **same)


def test_arms_that_share_seed_and_pilot_differ_far_more_certainly(short_chain):
    process, predict, x_0 = model(short_chain)

    def other(x_t, t, y):
        return 0.97 * predict(x_t, t, y)

    apart, paired, shared = [], [], []
    for seed in range(40):
        options = {"batch_size": 4096, "clip": False, "evaluations_per_image": 20}
        first = stratified_nll(process, predict, x_0[:64], seed=seed, **options)
        for collected, change in ((apart, {"seed": seed + 1000}), (paired, {}), (shared, {"pilot": first.pilot})):
            second = stratified_nll(process, other, x_0[:64], **{"seed": seed, **options, **change})
            collected.append(second.total_bpd - first.total_bpd)
    assert np.std(shared) < 0.2 * np.std(apart) and np.std(paired) < 0.7 * np.std(apart)


def test_a_network_that_gives_nan_has_the_bound_nan(short_chain):
    process, _, x_0 = model(short_chain)
    for estimate in (full_nll, stratified_nll):
        found = estimate(process, lambda x_t, t, y: x_t * math.nan, x_0[:10], seed=0, batch_size=64)
        assert math.isnan(found.total_bpd) and math.isnan(found.standard_error_bpd)


def test_progress_counts_network_evaluations_to_the_end(short_chain):
    process, predict, x_0 = model(short_chain)
    for estimate, total in ((full_nll, (30 + 16) * 100), (stratified_nll, 30 * 40)):
        told = []
        estimate(process, predict, x_0[:30], seed=0, batch_size=16, progress=lambda *said, told=told: told.append(said))
        assert len(told) > 1 and told == sorted(told) and told[-1] == (total, total)


# -- noise


def test_the_noises_bits_are_splitmix64s():
    # The first outputs of the reference implementation (Vigna's splitmix64.c) seeded with 0.
    from harness.metrics.likelihood import _GOLDEN_GAMMA, _splitmix64

    bits = _splitmix64(_GOLDEN_GAMMA * torch.arange(1, 4))
    assert [b % 2**64 for b in bits.tolist()] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_noise_is_standard_normal_and_independent_across_its_keys():
    image, draw = (axis.ravel() for axis in torch.meshgrid(torch.arange(30), torch.arange(-5, 25), indexing="ij"))
    noise = counter_noise(0, image, draw, (1, 9, 9)).flatten(1)  # [900, 81]
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 0.01
    other = counter_noise(1, image, draw, (1, 9, 9)).flatten(1)
    for a, b in [(noise[:-1], noise[1:]), (noise[:-30], noise[30:]), (noise[:, :-1], noise[:, 1:]), (noise, other)]:
        assert abs((a * b).mean()) < 4 / math.sqrt(a.numel())


def test_noise_belongs_to_its_seed_image_and_draw_alone():
    together = counter_noise(7, torch.tensor([4, 2, 9]), torch.tensor([1, 1, -3]), (3, 5))
    alone = counter_noise(7, torch.tensor([9]), torch.tensor([-3]), (3, 5))
    assert torch.equal(together[2:], alone)
    assert together.flatten().unique().numel() == 45


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_noise_is_the_same_on_every_device():
    keys = torch.arange(64)
    on_gpu = counter_noise(3, keys.cuda(), -keys.cuda(), (3, 32, 32)).cpu()
    torch.testing.assert_close(counter_noise(3, keys, -keys, (3, 32, 32)), on_gpu, rtol=1e-12, atol=1e-12)


# -- the baseline


def test_the_baselines_code_lengths_belong_to_a_distribution():
    train = np.random.default_rng(0).integers(0, 17, (50, 1, 1, 1)).astype(np.uint8)
    bits = [gaussian_baseline_bpd(train, np.full((1, 1, 1, 1), v, np.uint8), 17) for v in range(17)]
    assert sum(2.0**-b for b in bits) == pytest.approx(1.0, abs=1e-12)


def test_the_baseline_is_the_gaussians_mass_in_the_bins_of_256_levels():
    rng = np.random.default_rng(0)
    train, test = (rng.normal([90, 160], [20, 50], (n, 2)).round().clip(0, 255).astype(np.uint8) for n in (5000, 400))
    upper = np.where(test == 255, np.inf, test + 0.5)
    lower = np.where(test == 0, -np.inf, test - 0.5)
    gaussian = stats.norm(train.mean(0), train.std(0))
    expected = -np.log2(gaussian.cdf(upper) - gaussian.cdf(lower)).mean()
    assert gaussian_baseline_bpd(train, test, 256) == pytest.approx(expected, abs=1e-3)


def test_a_pixel_that_never_varies_costs_nothing_until_it_does():
    train = np.full((999, 1, 2, 2), 3, np.uint8)
    assert gaussian_baseline_bpd(train, train[:5], 16) == pytest.approx(0.0014, abs=1e-4)
    assert gaussian_baseline_bpd(train, train[:5] + 1, 16) == pytest.approx(math.log2(1000 * 16))


def test_the_baseline_refuses_grey_levels_that_the_data_has_not():
    with pytest.raises(ValueError, match=r"0 \.\. 16"):
        gaussian_baseline_bpd(np.zeros((2, 4), np.uint8), np.full((2, 4), 17, np.uint8), 17)
