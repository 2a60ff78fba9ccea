"""Power laws: recovered with honest intervals, from numbers and from the records of a study."""

import math

import numpy as np
import pytest
from scipy.stats import linregress, t

from harness.analysis.figures import fig_allocation, fig_scaling
from harness.analysis.runs import load_records
from harness.analysis.statistics.log_sums import cells_of, draw_noise, interval
from harness.analysis.statistics.scaling import ASYMPTOTE, POWER, PowerLaw, fit_scaling
from harness.analysis.statistics.scaling_grid import best_size_exponent, fit_size_and_length, iso_flops
from harness.analysis.statistics.scaling_series import Series, Size, multiplier, multipliers, series_of

IDDPM_FID = PowerLaw(4.00, 2.5e-25, 0.22)  # figure 10
IDDPM_NLL = PowerLaw(3.40, 3.0e-15, 0.17)


def planted(draw, law, num_sizes, num_seeds, noise, shared=0.0, decades=2):
    """Return amounts of compute, and values on a law with noise of each run and of each seed."""
    compute = np.geomspace(1e12, 1e12 * 10**decades, num_sizes)
    seeds = shared * draw.standard_normal(num_seeds)
    logs = np.log(law(compute))[:, None] + seeds + noise * draw.standard_normal((num_sizes, num_seeds))
    return compute, [dict(enumerate(np.exp(row).tolist())) for row in logs]


def exact(law, compute):
    return fit_scaling(compute, [{0: float(value)} for value in law(np.asarray(compute))])


def test_the_papers_fit_gives_the_papers_end_point():
    # 3 x 39e9 multiply-adds x 128 images x 1.5e6 steps; the paper measured 19.2 and 3.57 there.
    compute = 3 * 39e9 * 128 * 1.5e6
    assert IDDPM_FID(compute) == pytest.approx(18.3, abs=0.05)
    assert IDDPM_NLL(compute) == pytest.approx(3.551, abs=0.0005)


@pytest.mark.parametrize("law", [IDDPM_FID, IDDPM_NLL, PowerLaw(0.0, 1e-20, 0.1)], ids=["fid", "nll", "no asymptote"])
def test_points_on_a_law_give_that_law_back(law):
    scaling = exact(law, np.geomspace(1e17, 1e21, 7))
    form = scaling.chosen
    assert form.form == (ASYMPTOTE if law.a else POWER)
    assert form.power_law.a == pytest.approx(law.a, rel=1e-4)
    assert (form.power_law.b, form.power_law.c) == pytest.approx((law.b, law.c), rel=1e-3)
    assert scaling.predict(1e22).value == pytest.approx(float(law(1e22)), rel=1e-5)
    assert form.held_out.error == pytest.approx(0, abs=1e-6)


def test_fewer_than_five_sizes_allow_no_asymptote():
    assert [fit.form for fit in exact(IDDPM_FID, np.geomspace(1e17, 1e21, 4)).fits] == [POWER]
    assert [fit.form for fit in exact(IDDPM_FID, np.geomspace(1e17, 1e21, 5)).fits] == [POWER, ASYMPTOTE]


def test_there_is_no_law_for_two_points_or_for_values_that_do_not_fall():
    def fit(compute, values):
        return fit_scaling(compute, [{0: value} for value in values])

    assert fit([1e9, 1e10], [4.0, 3.0]) is None
    assert fit([1e9, 1e9, 1e10], [4.0, 4.1, 3.0]) is None
    assert fit([1e9, 1e10, 1e11, 1e12], [3.0, 3.1, 3.2, 3.3]) is None
    assert fit([1e9, 1e10, 1e11], [3.0, 3.0, 3.0]) is None


def test_the_interval_of_a_straight_line_is_students():
    compute, values = planted(np.random.default_rng(0), PowerLaw(0, 1e-12, 0.3), 4, 1, 0.05)
    line = linregress(np.log(compute), np.log([of_size[0] for of_size in values]))
    exponent = fit_scaling(compute, values).exponent
    half_width = t.ppf(0.975, 2) * line.stderr
    assert exponent.value == pytest.approx(-line.slope)
    assert (exponent.value - exponent.low, exponent.high - exponent.value) == pytest.approx([half_width] * 2, rel=0.02)


def test_the_draws_have_their_distributions_moments():
    squares, normal = draw_noise(3, 2, 1024, seed=0)
    assert (squares.mean(), squares.var()) == pytest.approx((3, 6), rel=0.03)
    assert normal.mean(0) == pytest.approx([0, 0], abs=1e-12)
    assert normal.T @ normal / 1024 == pytest.approx(np.eye(2))


def test_an_interval_of_draws_that_are_off_to_one_side_is_shifted_back():
    draws = np.random.default_rng(0).normal(size=4000)
    assert interval(draws, 0.0) == pytest.approx([-1.96, 1.96], abs=0.12)
    low, high = interval(draws, 1.0)
    assert low > -1.0 and high > 2.5


def test_the_fit_is_deterministic():
    compute, values = planted(np.random.default_rng(0), IDDPM_FID, 5, 2, 0.01)
    first, second = (fit_scaling(compute, values) for _ in range(2))
    assert first.exponent == second.exponent and first.predict(1e15) == second.predict(1e15)


def test_sizes_may_come_in_any_order():
    compute, values = planted(np.random.default_rng(0), PowerLaw(0, 1e-12, 0.3), 4, 2, 0.01)
    backwards = fit_scaling(compute[::-1], values[::-1])
    assert backwards.exponent == fit_scaling(compute, values).exponent
    assert backwards.chosen.held_out.compute == compute[-1]


def test_what_the_runs_of_a_seed_have_in_common_widens_no_exponent():
    compute, values = planted(np.random.default_rng(0), PowerLaw(0, 1e-12, 0.3), 4, 3, 0.01)
    shifted = [{seed: value * (1 + 0.3 * seed) for seed, value in of_size.items()} for of_size in values]
    before, after = (fit_scaling(compute, by_seed).exponent for by_seed in (values, shifted))
    assert after == pytest.approx(before, rel=1e-9)


def test_seeds_that_cannot_be_told_from_sizes_stay_in():
    cells = cells_of([{0: 1.0, 1: 2.0}, {2: 3.0, 3: 4.0}])
    assert cells.lost_freedom == 0
    assert cells_of([{0: 1.0, 1: 2.0}, {0: 3.0, 1: 4.0}]).lost_freedom == 1


def test_one_run_that_went_wrong_bends_the_law_little_and_widens_its_interval():
    law = PowerLaw(0, 1e-12, 0.3)
    compute, values = planted(np.random.default_rng(0), law, 5, 3, 0.01)
    clean = fit_scaling(compute, values).fits[0].law
    values[-1][0] *= 3
    robust = fit_scaling(compute, values).fits[0].law
    x, y = np.repeat(np.log(compute), 3), np.log([value for of_size in values for value in of_size.values()])
    off_by_least_squares = abs(-linregress(x, y).slope - 0.3)
    assert abs(robust.theta[-1] - 0.3) < off_by_least_squares / 3
    assert robust.sigma > 5 * clean.sigma


def test_an_asymptote_is_ruled_in_where_the_data_show_it():
    compute, values = planted(np.random.default_rng(0), PowerLaw(0.5, 1e-12, 0.25), 6, 2, 0.005)
    scaling = fit_scaling(compute, values)
    assert scaling.asymptote_p < 0.001
    assert [fit.form for fit in scaling.possible] == [ASYMPTOTE]


def test_an_interval_covers_both_forms_where_the_data_rule_neither_out():
    compute, values = planted(np.random.default_rng(0), PowerLaw(0, 1e-12, 0.25), 5, 2, 0.02)
    scaling = fit_scaling(compute, values)
    assert scaling.chosen.form == POWER and len(scaling.possible) == 2
    both = scaling.predict(1e15)
    for each in scaling.fits:
        low, high = each.band(1e15)[:, 0]
        assert both.low <= low and high <= both.high


def test_the_largest_size_is_predicted_from_the_others():
    compute, law = np.geomspace(1e12, 1e14, 3), PowerLaw(0, 1e-12, 0.25)
    values = [{0: float(value)} for value in law(compute)]
    values[-1] = {0: values[-1][0] / 1.1}
    held_out = fit_scaling(compute, values).chosen.held_out
    assert held_out.error == pytest.approx(0.1, rel=1e-6)
    assert math.isnan(held_out.predicted.low), "two points on a line have no interval"


def test_a_single_seed_of_three_sizes_has_an_interval_with_one_degree_of_freedom():
    compute, values = planted(np.random.default_rng(0), PowerLaw(0, 1e-12, 0.25), 3, 1, 0.01)
    assert fit_scaling(compute, values).chosen.law.freedom == 1


def test_sizes_off_the_law_by_more_than_their_seeds_explain_are_said_so_and_widen_the_interval():
    compute, values = planted(np.random.default_rng(0), PowerLaw(0, 1e-12, 0.25), 4, 3, 0.002)
    straight = fit_scaling(compute, values)
    off = [
        {seed: value * factor for seed, value in of.items()}
        for of, factor in zip(values, (1, 1.05, 1, 1.05), strict=True)
    ]
    crooked = fit_scaling(compute, off)
    assert not straight.chosen.law.lacks_fit and crooked.chosen.law.lacks_fit
    assert crooked.chosen.law.freedom == 2
    assert crooked.exponent.high - crooked.exponent.low > 10 * (straight.exponent.high - straight.exponent.low)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "num_sizes", "num_seeds", "noise", "shared", "trials"),
    [
        (PowerLaw(0.0, 1e-12, 0.25), 3, 2, 0.02, 0.0, 1000),
        (PowerLaw(0.0, 1e-12, 0.25), 4, 3, 0.02, 0.04, 1000),
        (PowerLaw(0.0, 1e-12, 0.25), 5, 2, 0.02, 0.0, 100),
        (PowerLaw(0.5, 1e-12, 0.25), 5, 2, 0.005, 0.0, 100),
        (PowerLaw(0.5, 1e-12, 0.25), 8, 3, 0.01, 0.0, 100),
    ],
)
def test_planted_laws_are_within_their_intervals_in_93_of_100_trials(law, num_sizes, num_seeds, noise, shared, trials):
    draw, covered, predicted = np.random.default_rng(1), 0, 0
    for _ in range(trials):
        compute, values = planted(draw, law, num_sizes, num_seeds, noise, shared)
        scaling = fit_scaling(compute, values, num_draws=2048 if num_sizes < 5 else 512)
        covered += scaling.exponent.low <= law.c <= scaling.exponent.high
        at = scaling.predict(1e15)
        predicted += at.low <= law(1e15) <= at.high
    assert covered >= 0.93 * trials
    assert predicted >= 0.93 * trials or shared, "the level is that of the seeds that were run"


# -- compute multipliers


def series(name, law, num_sizes=5, factor=1.0, seed=0, noise=0.0, learning_rates="optim.lr = 0.1"):
    compute, values = planted(np.random.default_rng(seed), lambda x: law(np.asarray(x) * factor), num_sizes, 2, noise)
    sizes = [
        Size(f"{name} {index}", x, math.nan, 1.0, f"model {index}", learning_rates, of_size)
        for index, (x, of_size) in enumerate(zip(compute.tolist(), values, strict=True))
    ]
    return Series(name, "nll", "bits/dim", tuple(sizes))


@pytest.mark.parametrize("law", [PowerLaw(0.0, 1e-12, 0.25), PowerLaw(2.0, 1e-12, 0.25)])
def test_a_series_that_needs_less_compute_is_worth_that_factor(law):
    worth = multiplier(series("cosine", law, factor=1.7, noise=0.001), series("linear", law, seed=1, noise=0.001))
    assert worth.shared
    assert worth.factor.low < 1.7 < worth.factor.high
    assert worth.factor.value == pytest.approx(1.7, rel=0.05)
    assert worth.sentence.startswith("cosine is worth 1.7x the compute of linear, ")


def test_series_of_different_exponents_are_compared_at_a_value():
    steep, flat = PowerLaw(0.0, 1e-12, 0.5), PowerLaw(0.0, 1e-12, 0.25)
    worth = multiplier(series("steep", steep, noise=0.001), series("flat", flat, seed=1, noise=0.001))
    assert not worth.shared
    # flat reaches (100)^-0.25 at 1e14; steep where (C / 1e12)^-0.5 is that: at 1e13.
    assert worth.factor.value == pytest.approx(10, rel=0.05)
    assert worth.at_value == pytest.approx(100**-0.25, rel=0.01)
    assert f"at NLL {worth.at_value:.4g}" in worth.sentence


def test_the_baseline_is_the_series_of_the_arm_that_is_named():
    law = PowerLaw(0.0, 1e-12, 0.25)
    both = [series("linear", law, noise=0.001), series("cosine", law, factor=2, seed=1, noise=0.001)]
    assert [(each.ours, each.other) for each in multipliers(both)] == [("cosine", "linear")]
    assert [(each.ours, each.other) for each in multipliers(both, "cosine 2")] == [("linear", "cosine")]


def test_a_series_too_flat_for_its_noise_has_a_multiplier_without_an_interval():
    law = PowerLaw(0.0, 1e-12, 0.001)
    flat = [each for seed in range(40) if (each := series(f"flat {seed}", law, 3, seed=seed, noise=0.05)).scaling]
    worth = multiplier(flat[0], flat[1])
    assert math.isnan(worth.factor.low) and "no interval" in worth.sentence


# -- warnings


def test_one_learning_rate_for_all_sizes_is_warned_of():
    law = PowerLaw(0.0, 1e-12, 0.25)
    assert any("not retuned" in note for note in series("one lr", law).warnings)


def test_a_learning_rate_for_each_size_is_not_warned_of():
    each = series("tuned", PowerLaw(0.0, 1e-12, 0.25))
    sizes = [Size(*(*vars(size).values(),)) for size in each.sizes]
    rates = [f"optim.lr = {0.1 / (index + 1):g}" for index in range(len(sizes))]
    tuned = Series("tuned", "nll", "bits/dim", tuple(
        Size(size.arm, size.compute, size.parameters, size.examples, size.model, rate, size.values)
        for size, rate in zip(sizes, rates, strict=True)
    ))  # fmt: skip
    assert tuned.warnings == []


# -- grids


def grid_sizes(noise=0.0, num_seeds=2, seed=1):
    """Return a grid on Hoffmann's law: L = 1.7 + 60 / N^0.34 + 9 / D^0.28, with equal compute along its diagonals."""
    draw = np.random.default_rng(seed)
    return [
        Size(
            f"{parameters:g} {examples:g}", 3 * parameters * examples, parameters, examples, f"{parameters}", "lr",
            {
                seed: float((1.7 + 60 / parameters**0.34 + 9 / examples**0.28) * np.exp(noise * draw.standard_normal()))
                for seed in range(num_seeds)
            },
        )
        for parameters in 1e5 * 4.0 ** np.arange(5)
        for examples in 1e3 * 4.0 ** np.arange(5)
    ]  # fmt: skip


def test_a_law_of_size_and_length_is_given_back():
    law = fit_size_and_length(grid_sizes())
    assert law.asymptote.value == pytest.approx(1.7, rel=1e-3)
    assert (law.alpha.value, law.beta.value) == pytest.approx((0.34, 0.28), rel=1e-2)
    assert law(1e6, 1e5)[0] == pytest.approx(1.7 + 60 / 1e6**0.34 + 9 / 1e5**0.28, rel=1e-5)


def test_the_intervals_of_a_law_of_size_and_length_contain_what_was_planted():
    law = fit_size_and_length(grid_sizes(noise=0.003))
    for planted_value, fitted in ((1.7, law.asymptote), (0.34, law.alpha), (0.28, law.beta)):
        assert fitted.low < planted_value < fitted.high
    assert law.best_size_exponent.low < 0.28 / 0.62 < law.best_size_exponent.high


def test_a_study_without_a_grid_has_no_law_of_size_and_length():
    assert fit_size_and_length([size for size in grid_sizes() if size.examples < 5e3]) is None


def test_the_best_size_at_equal_compute_is_the_minimum_of_a_parabola():
    budgets = iso_flops(grid_sizes(noise=0.001))
    assert [len(budget.sizes) for budget in budgets] == [3, 4, 5, 4, 3]
    middle = budgets[2]
    # N^0.62 = (0.34 * 60 / (0.28 * 9)) (C / 3)^0.28 minimises the law at C = 3 N D.
    best = (0.34 * 60 / (0.28 * 9) * (middle.compute / 3) ** 0.28) ** (1 / 0.62)
    assert middle.best_parameters.value == pytest.approx(best, rel=0.3)
    assert not middle.at_edge
    exponent = best_size_exponent(budgets)
    assert exponent.value == pytest.approx(0.28 / 0.62, abs=0.1)


def test_values_that_only_fall_with_size_have_their_best_size_at_the_edge():
    sizes = [Size("", 1e9, n, 1e9 / n, f"{n}", "lr", {0: n**-0.1 * (1 + 1e-3 * n**0.2)}) for n in (1e3, 1e4, 1e5, 1e6)]
    [budget] = iso_flops(sizes)
    assert budget.at_edge
    assert best_size_exponent([budget]) is None


def test_where_size_and_length_vary_only_the_best_of_each_compute_counts():
    each = Series("grid", "nll", "bits/dim", tuple(sorted(grid_sizes(), key=lambda size: size.compute)))
    amounts = [size.compute for size in each.fitted]
    assert len(amounts) == len(set(np.round(np.log(amounts), 1))) == 9
    assert [size.mean for size in each.fitted] == sorted((size.mean for size in each.fitted), reverse=True)


# -- from records

WIDTHS = """
grid: {model.channels: [8, 16, 32]}
replicates: 2
evaluate: [{nll: {}, fidelity: {num_samples: 64, num_steps: 10}}]
"""


def on_a_law(run):
    compute = 1e9 * run.spec.model.channels**2
    return {"compute": compute, "nll": float(PowerLaw(0, 1e-20, 0.1)(compute)), "fid": 10.0}


def measured(frame):
    return frame[frame["role"] == fig_scaling.MEASURED]


def test_a_study_of_widths_gives_its_law_and_its_unit(study_runs):
    frame = fig_scaling.data(load_records(study_runs(WIDTHS, on_a_law)))
    nll = frame[frame["metric"] == "nll"]
    assert measured(nll)["arm"].tolist() == ["channels=8", "channels=16", "channels=32"]
    assert measured(nll)["compute_multiply_adds"].tolist() == [6.4e10, 2.56e11, 1.024e12]
    assert nll["fit_c"].iloc[0] == pytest.approx(0.1, rel=1e-9)
    assert nll["fit_c_low"].iloc[0] == pytest.approx(0.1, rel=1e-9)
    law = nll[nll["role"] == fig_scaling.LAW]
    assert law["compute_multiply_adds"].max() == pytest.approx(1.024e13), "ten times beyond what was measured"
    flat = frame[frame["metric"] == "fid"]
    assert flat["fit_c"].isna().all(), "equal values follow no power law"
    assert set(flat["protocol"]) == {"digitsnet, 64 samples"}
    axes = fig_scaling.draw(frame).axes
    assert [ax.get_xlabel() for ax in axes] == ["training compute (multiply-adds)"] * 2
    assert "digitsnet" in axes[1].get_ylabel()
    text = fig_scaling.caption(frame)
    assert "is off by" in text and "not retuned by size" in text


def test_two_schedules_over_widths_have_a_multiplier(study_runs):
    extra = "grid: {diffusion.schedule: [linear, cosine], model.channels: [8, 16, 32]}\nevaluate: [{nll: {}}]\n"

    def values(run):
        compute = 1e9 * run.spec.model.channels**2
        worth = 2.0 if run.spec.diffusion.schedule.name == "cosine" else 1.0
        return {"compute": compute, "nll": float(PowerLaw(0, 1e-20, 0.1)(worth * compute))}

    frame = fig_scaling.data(load_records(study_runs(extra, values)))
    cosine = measured(frame[frame["series"] == "cosine simple"])
    assert set(cosine["multiplier_of"]) == {"linear simple"}
    assert cosine["multiplier"].iloc[0] == pytest.approx(2, rel=1e-6)
    assert "cosine simple is worth 2x the compute of linear simple" in fig_scaling.caption(frame)


def test_a_study_of_size_and_length_is_drawn_by_both(study_runs):
    extra = """
grid: {model.channels: [8, 16, 32], train.steps: [100, 400, 1600]}
evaluate: [{nll: {}}]
"""

    def values(run):
        parameters, examples = 3000.0 * run.spec.model.channels**2, run.spec.train.steps * run.spec.train.batch_size
        value = 1.7 + 60 / parameters**0.34 + 9 / examples**0.28
        return {"compute": 3 * parameters * examples, "parameters": parameters, "nll": value}

    frame = fig_allocation.data(load_records(study_runs(extra, values)))
    assert set(frame["panel"]) == {fig_allocation.LENGTH, fig_allocation.ISO_FLOP}
    axes = fig_allocation.draw(frame).axes
    assert [ax.get_xlabel() for ax in axes] == ["examples seen in training", "parameters of the model"]
    assert "the best N grows as compute to the power" in fig_allocation.caption(frame)


def test_arms_that_differ_in_more_than_size_are_no_series(study_runs):
    extra = "grid: {diffusion.schedule: [linear, cosine]}\nevaluate: [{nll: {}}]\n"
    assert fig_scaling.data(load_records(study_runs(extra, on_a_law))).empty


def test_another_number_of_output_channels_is_no_scale(study_runs):
    extra = "grid: {model.dropout: [0.0, 0.1]}\nevaluate: [{nll: {}}]\n"
    runs = load_records(study_runs(extra, lambda run: {"compute": 1e9 * (1.2 if run.spec.model.dropout else 1)}))
    assert series_of(runs) == []


def test_series_of_one_name_are_told_apart_by_their_values(study_runs):
    extra = """
grid:
  model.channels: [8, 16]
  diffusion.schedule: [{name: cosine, s: 0.008}, {name: cosine, s: 0.05}]
evaluate: [{nll: {}}]
"""
    frame = fig_scaling.data(load_records(study_runs(extra, on_a_law)))
    assert set(frame["series"]) == {
        "cosine simple (diffusion.schedule.s=0.008)",
        "cosine simple (diffusion.schedule.s=0.05)",
    }
    assert frame.groupby("series").size().tolist() == [2, 2]


@pytest.mark.parametrize("other", ["num_samples: 128, num_steps: 10", "num_samples: 64, num_steps: 10, k: 5"])
def test_fids_of_different_protocols_share_no_axis_and_no_fit(study_runs, other):
    extra = f"""
grid: {{model.channels: [8, 16, 32, 64]}}
evaluate:
  - {{name: eval, arms: [channels=8, channels=16], fidelity: {{num_samples: 64, num_steps: 10}}}}
  - {{name: eval_other, arms: [channels=32, channels=64], fidelity: {{{other}}}}}
"""
    frame = fig_scaling.data(load_records(study_runs(extra, on_a_law)))
    assert frame.groupby("protocol", sort=False)["arm"].apply(list).tolist() == [
        ["channels=8", "channels=16"],
        ["channels=32", "channels=64"],
    ]
    axes = fig_scaling.draw(frame).axes
    labels = [ax.get_ylabel() for ax in axes]
    assert len(set(labels)) == 2 and all(label.startswith("FID (digitsnet") for label in labels)
    assert [len(ax.containers) for ax in axes] == [1, 1]
