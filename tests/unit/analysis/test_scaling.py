import numpy as np
import pytest

from harness.analysis import fig_scaling
from harness.analysis.runs import load_records
from harness.analysis.scaling import PowerLaw, bootstrap, fit_power_law

IDDPM_FID = PowerLaw(4.00, 2.5e-25, 0.22, 0)  # figure 10
IDDPM_NLL = PowerLaw(3.40, 3.0e-15, 0.17, 0)


def test_the_papers_fit_gives_the_papers_end_point():
    # 3 x 39e9 multiply-adds x 128 images x 1.5e6 steps; the paper measured 19.2 and 3.57 there.
    compute = 3 * 39e9 * 128 * 1.5e6
    assert IDDPM_FID(compute) == pytest.approx(18.3, abs=0.05)
    assert IDDPM_NLL(compute) == pytest.approx(3.551, abs=0.0005)


@pytest.mark.parametrize("law", [IDDPM_FID, IDDPM_NLL])
def test_points_on_a_law_give_that_law_back(law):
    compute = np.geomspace(1e17, 1e21, 6)
    known = fit_power_law(compute, law(compute), a=law.a)
    assert (known.b, known.c) == pytest.approx((law.b, law.c), rel=1e-6)
    found = fit_power_law(compute, law(compute))
    assert found.a == pytest.approx(law.a, rel=0.02)  # the asymptote is searched on a grid
    assert found.c == pytest.approx(law.c, rel=0.05)
    assert found.degrees_of_freedom == 3


def test_three_points_allow_no_asymptote():
    law = fit_power_law([1e9, 1e10, 1e11], [4.0, 3.5, 3.3])
    assert (law.a, law.degrees_of_freedom) == (0.0, 1)


def test_there_is_no_law_for_two_points_or_for_values_that_rise():
    assert fit_power_law([1e9, 1e10], [4.0, 3.0]) is None
    assert fit_power_law([1e9, 1e9, 1e10], [4.0, 4.1, 3.0]) is None
    assert fit_power_law([1e9, 1e10, 1e11, 1e12], [3.0, 3.1, 3.2, 3.3]) is None
    assert fit_power_law([1e9, 1e10, 1e11], [4.0, 3.5, 3.3], a=3.3) is None
    assert fit_power_law([1e9, 1e10, 1e11], [3.0, 3.0, 3.0]) is None


def test_the_bootstrap_is_deterministic_and_knows_no_spread_without_noise():
    compute, values = [1e9, 1e10, 1e11], [[4.0, 4.1], [3.5, 3.4], [3.0, 3.1]]
    assert bootstrap(compute, values) == bootstrap(compute, values)
    # Two replicates have three means; of equally spaced points only the outer two decide the slope.
    assert len({law.c for law in bootstrap(compute, values)}) == 9
    assert len({law.c for law in bootstrap(compute, [[4.0, 4.0], [3.5, 3.5], [3.0, 3.0]])}) == 1


WIDTHS = """
grid: {model.channels: [8, 16, 32]}
replicates: 2
evaluate: [{nll: {}, fidelity: {num_samples: 64, num_steps: 10}}]
"""


def on_a_law(run):
    compute = 1e9 * run.spec.model.channels**2
    return {"compute": compute, "nll": float(PowerLaw(0, 1e-20, 0.1, 0)(compute)), "fid": 10.0}


def test_a_study_of_widths_gives_its_law_and_its_unit(study_runs):
    frame = fig_scaling.data(load_records(study_runs(WIDTHS, on_a_law)))
    nll = frame[frame["metric"] == "nll"]
    assert nll["arm"].tolist() == ["channels=8", "channels=16", "channels=32"]
    assert nll["compute_multiply_adds"].tolist() == [6.4e10, 2.56e11, 1.024e12]
    assert nll["fit_c"].iloc[0] == pytest.approx(0.1, rel=1e-9)
    assert nll["fit_c_low"].iloc[0] == pytest.approx(0.1, rel=1e-9)
    flat = frame[frame["metric"] == "fid"]
    assert flat["fit_c"].isna().all(), "equal values follow no power law"
    assert set(flat["protocol"]) == {"digitsnet, 64 samples"}
    axes = fig_scaling.draw(frame).axes
    assert [ax.get_xlabel() for ax in axes] == ["training compute (multiply-adds)"] * 2
    assert "digitsnet" in axes[1].get_ylabel()


def test_arms_that_differ_in_more_than_size_are_no_series(study_runs):
    extra = "grid: {diffusion.schedule: [linear, cosine]}\nevaluate: [{nll: {}}]\n"
    assert fig_scaling.data(load_records(study_runs(extra, on_a_law))).empty


def test_another_number_of_output_channels_is_no_scale(study_runs):
    extra = "grid: {model.dropout: [0.0, 0.1]}\nevaluate: [{nll: {}}]\n"
    runs = load_records(study_runs(extra, lambda run: {"compute": 1e9 * (1.2 if run.spec.model.dropout else 1)}))
    assert fig_scaling.data(runs).empty


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
