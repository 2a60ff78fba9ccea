"""`harness predict`: a value with its interval, how well the fit has predicted, and what it cannot say."""

import json

import pytest
from click.testing import CliRunner

from harness.analysis.statistics.scaling import PowerLaw
from harness.cli import cli
from harness.errors import LaunchError

WIDTHS = """
grid: {model.channels: [8, 16, 32, 64]}
evaluate: [{nll: {}, fidelity: {num_samples: 64, num_steps: 10}}]
"""
LAW = PowerLaw(0, 1e-20, 0.1)


def on_a_law(run):
    compute = 1e9 * run.spec.model.channels**2
    return {"compute": compute, "nll": float(LAW(compute)), "fid": float(LAW(compute))}


@pytest.fixture
def predict(study_runs):
    def run(*arguments, extra=WIDTHS, numbers=on_a_law):
        runs = study_runs(extra, numbers)
        return CliRunner().invoke(cli, ["predict", "small", "--runs", str(runs), *arguments], catch_exceptions=False)

    return run


def test_a_prediction_has_its_law_its_interval_and_its_held_out_error(predict):
    document = json.loads(predict("--compute", "1e13", "--metric", "nll", "--json").stdout)
    assert document["compute_multiply_adds"] == 1e13
    [prediction] = document["predictions"]
    assert prediction["value"] == pytest.approx(float(LAW(1e13)), rel=1e-6)
    assert prediction["low"] <= prediction["value"] <= prediction["high"]
    assert prediction["c"] == pytest.approx(0.1)
    assert prediction["held_out"]["error"] == pytest.approx(0, abs=1e-9)
    assert prediction["held_out"]["compute_multiply_adds"] == 1e9 * 64**2
    assert not prediction["extrapolates"]


def test_far_beyond_what_was_measured_it_warns(predict):
    result = predict("--compute", "1e20")
    assert "1e+20 is 2.44e+07 times above what was measured" in result.stdout
    assert "times above" not in predict("--compute", "4e13").stdout
    assert "times below" in predict("--compute", "1e8").stdout


def test_a_learning_rate_that_was_not_retuned_is_warned_of(predict):
    assert "the learning rate was not retuned by size" in predict("--compute", "1e13").stdout
    tuned = WIDTHS.replace(
        "model.channels: [8, 16, 32, 64]", "model.channels & optim.lr: [[8, 0.4], [16, 0.3], [32, 0.2]]"
    )
    assert "not retuned" not in predict("--compute", "1e13", extra=tuned).stdout


def test_series_are_compared_by_the_compute_that_they_save(predict):
    extra = WIDTHS.replace("{model", "{diffusion.schedule: [linear, cosine], model")

    def numbers(run):
        worth = 3.0 if run.spec.diffusion.schedule.name == "cosine" else 1.0
        compute = 1e9 * run.spec.model.channels**2
        return {"compute": compute, "nll": float(LAW(worth * compute)), "fid": 10.0}

    result = predict("--compute", "1e13", extra=extra, numbers=numbers)
    assert "cosine simple is worth 3x the compute of linear simple" in result.stdout


def test_a_metric_that_was_not_measured_is_refused_with_the_choices(predict):
    with pytest.raises(LaunchError, match=r"--metric recall: not measured over compute; choices: nll, fid"):
        predict("--compute", "1e13", "--metric", "recall")


@pytest.mark.parametrize("compute", ["0", "-1", "nan", "inf"])
def test_an_amount_of_compute_that_is_none_is_refused(predict, compute):
    with pytest.raises(LaunchError, match="give a positive number of multiply-adds"):
        predict("--compute", compute)


def test_a_study_without_a_law_is_told_what_it_takes(predict):
    with pytest.raises(LaunchError, match=r"it takes three amounts of compute .* it has 2 such arms"):
        predict("--compute", "1e13", extra=WIDTHS.replace("[8, 16, 32, 64]", "[8, 16]"))


def test_a_study_that_there_is_not_is_refused_with_the_choices(study_runs):
    runs = study_runs(WIDTHS, on_a_law)
    with pytest.raises(LaunchError, match=r"no study 'smal'.*choices: small"):
        CliRunner().invoke(cli, ["predict", "smal", "--compute", "1", "--runs", str(runs)], catch_exceptions=False)
