"""The papers' own values: beside the same data, training and protocol alone, and never among ours."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.analysis import papers
from harness.analysis.answers import results
from harness.analysis.runs import load_records
from harness.analysis.tables import tab_results
from harness.spec.metrics import METRIC_KINDS
from harness.study.expand import load_study
from harness.testing import tiny_study, write_finished_run

EXPERIMENTS = Path(__file__).parents[3] / "experiments"
LAPTOP = sorted(path.stem for path in (EXPERIMENTS / "laptop").glob("*.yaml") if "\nsearch:" not in path.read_text())
CIFAR = """
study: table2
data: cifar10
diffusion: {num_timesteps: 4000, schedule: cosine, var_type: learned_range}
objective: {name: hybrid, lambda_vlb: 0.001}
model: {channels: 128, channel_mult: [1, 2, 2, 2], num_res_blocks: 3, dropout: 0.3}
optim: {lr: 1.0e-4}
train: {steps: 500000, batch_size: 128}
evaluate: [{name: eval, nll: {}}]
"""


@pytest.fixture
def records_of(tmp_path):
    """Return a function: lines of YAML after those of CIFAR, and a run -> its numbers -> the study's records."""

    def write(extra="", numbers=lambda run: {}, study=CIFAR):
        for run in tiny_study(tmp_path, extra, study=study):
            write_finished_run(run, tmp_path / "runs", numbers(run))
        return load_records(tmp_path / "runs")

    return write


def sources(run, metric="nll"):
    return [row.source for measurement in run.measurements for row in papers.of_measurement(run, measurement, metric)]


def arms_of(name):
    """Return the rows of each arm of a study of this repository: (source, values)."""
    runs = load_study(EXPERIMENTS / f"{name}.yaml").runs
    rows = {run.arm: papers.of_training(run.spec.model_dump(mode="json")) for run in runs}
    return {arm: [(row.source, row.values) for row in of_arm] for arm, of_arm in rows.items()}


def test_every_value_is_a_number_with_a_source_a_certainty_and_a_known_metric():
    levels = {"paper", "two readings", "one reading", "second-hand", "second-hand, unverified", "unverified"}
    assert len(papers.published()) > 80
    for row in papers.published():
        assert row.certainty in levels and ", table " in row.source and row.conditions["data.name"]
        for metric, text in row.values.items():
            assert float(text) >= 0
            assert metric in ("nll", "network_evaluations", "seconds", "reverse_steps") or metric in METRIC_KINDS


@pytest.mark.parametrize(
    ("study", "source", "nll", "fid"),
    [
        ("iddpm/table1_imagenet64", "IDDPM, table 1", "3.99 3.77 3.66 3.68 3.62 3.57 3.57 3.53",
         "32.5 31.3 32.2 27.0 28.0 56.7 19.2 40.1"),
        ("iddpm/table2_cifar10", "IDDPM, table 2", "3.73 3.37 3.26 3.26 3.17 2.94", "3.29 2.90 3.07 3.05 3.19 11.47"),
    ],
)  # fmt: skip
def test_the_arms_of_a_papers_table_have_its_rows_in_its_order(study, source, nll, fid):
    rows = arms_of(study)
    assert [[name for name, _ in found] for found in rows.values()] == [[source]] * len(rows)
    assert [values["nll"] for ((_, values),) in rows.values()] == nll.split()
    assert [values["fid"] for ((_, values),) in rows.values()] == fid.split()


def test_the_arms_of_the_other_studies_have_the_rows_that_they_are_made_after():
    fids = {
        study: {arm: [values.get("fid") for _, values in rows] for arm, rows in arms_of(study).items()}
        for study in (
            "ddpm/table2_parametrisations",
            "siddm/cifar10",
            "siddm/cifar10_steps",
            "iddpm/table4_class_conditional",
        )
    }
    assert fids["ddpm/table2_parametrisations"] == {
        "mu-vlb-learned": ["23.69"],
        "mu-vlb-fixed": ["13.22"],
        "mu-mse": [],
        "epsilon-vlb-learned": [],
        "epsilon-vlb-fixed": ["13.51", None],
        "epsilon-simple": ["3.17", None, "5.24", *[None] * 6],
    }
    assert fids["siddm/cifar10"] == {
        "ddgan": ["3.75"],
        "siddm": ["2.24"],
        "siddm-afd-0": ["77.15"],
        "siddm-afd-0.1": ["3.32"],
        "siddm-afd-0.5": ["2.63"],
        "siddm-afd-5": ["2.55"],
        "siddm-afd-alone": ["41.27"],
        "siddm-no-denoising": ["3.20"],
    }
    steps = fids["siddm/cifar10_steps"]
    assert [steps[f"ddgan-num_timesteps={T}"] for T in (1, 2, 4, 8)] == [["14.6"], ["4.08"], ["3.75"], ["4.36"]]
    assert steps["siddm-num_timesteps=8"] == []
    assert fids["iddpm/table4_class_conditional"] == {"small": ["6.92"], "large": ["2.92"]}


@pytest.mark.parametrize("study", LAPTOP)
def test_no_study_for_a_laptop_has_a_papers_value(study):
    runs = load_study(EXPERIMENTS / "laptop" / f"{study}.yaml").runs
    assert not any(papers.of_training(run.spec.model_dump(mode="json")) for run in runs)


def test_an_arm_that_differs_in_one_value_has_none(records_of):
    (same,) = records_of()
    assert sources(same) == ["IDDPM, table 2"]
    for change in (
        {"diffusion": {"schedule": {"name": "cosine", "s": 0.004}}},
        {"objective": {"lambda_vlb": 0.002}},
        {"train": {"steps": 400_000}},
        {"data": {"batches": [1]}},
        {"model": {"dropout": 0.1}},
    ):
        ((part, values),) = change.items()
        other = replace(same, spec=same.spec | {part: same.spec[part] | values})
        assert sources(other) == [], change


def test_a_value_needs_the_papers_protocol_too(records_of):
    entries = """
evaluate:
  - {name: eval, fidelity: {num_samples: 50000, num_steps: 4000, k: 3, extractor: classifier}}
  - {name: eval_untrained, weights: untrained, nll: {}}
  - {name: eval_train, split: train, nll: {}}
"""
    (run,) = records_of(entries, study=CIFAR.replace("evaluate: [{name: eval, nll: {}}]", ""))
    samples, untrained, train = run.measurements
    assert sources(replace(run, measurements=(untrained, train))) == []
    assert papers.of_measurement(run, samples, "fid") == [], "its own classifier's distance is nobody else's FID"
    of_papers = {"extractor": "inception", "num_steps": 4000}
    for part, known in ((of_papers, True), (of_papers | {"num_samples": 10_000}, False), ({"num_steps": 4000}, False)):
        evaluation = samples.evaluation | {"fidelity": samples.evaluation["fidelity"] | part}
        assert bool(papers.of_measurement(run, replace(samples, evaluation=evaluation), "fid")) == known


def test_precision_and_recall_need_the_papers_k_and_fid_does_not(records_of):
    study = (
        CIFAR.replace("data: cifar10", "data: imagenet64")
        .replace("500000", "1700000")
        .replace("dropout: 0.3", "class_cond: true")
    )
    study = study.replace("[1, 2, 2, 2]", "[1, 2, 3, 4]").replace(
        "nll: {}", "fidelity: {num_samples: 50000, num_steps: 250, k: 3}"
    )
    (run,) = records_of(study=study)
    (measurement,) = run.measurements
    part = measurement.evaluation["fidelity"] | {"extractor": "inception"}
    for k, known in ((3, {"fid"}), (5, {"fid", "precision", "recall"})):
        measured = replace(measurement, evaluation=measurement.evaluation | {"fidelity": part | {"k": k}})
        shown = {metric for metric in ("fid", "precision", "recall") if papers.of_measurement(run, measured, metric)}
        assert shown == known


def test_the_results_have_the_papers_row_under_its_arm_and_take_no_mean_over_it(records_of):
    extra = "replicates: 3\narms: {alike: {}, other: {diffusion.schedule.s: 0.004}}\n"
    frame = results.data(records_of(extra, lambda run: {"nll_bpd": 4.0 + run.replicate + (run.arm == "other")}))
    trained = frame[(frame["model"] == "trained") & (frame["metric"] == "nll")]
    assert trained["mean"].tolist() == [5.0, 6.0] and set(trained["n"]) == {3}
    (paper,) = frame[frame["model"] == "paper"].to_dict("records")
    assert (paper["arm"], paper["values"], paper["n"], paper["source"]) == ("alike", "3.17", 0, "IDDPM, table 2")
    assert np.isnan(paper["low"]) and np.isnan(paper["high"])
    labels = [tab_results._label(row) for row in tab_results.rows(frame)]
    assert labels == ["alike", "alike (paper: IDDPM, table 2)", "other", "Gaussian per pixel"]
    best = [row["best"] for row in tab_results.rows(frame)]
    assert best[:3] == [{"nll"}, set(), set()], "the paper's value is lower, and no competitor"
    latex = tab_results.latex(frame)
    assert r"\textit{alike (paper: IDDPM, table 2)}" in latex and "3.17" in latex
    markdown = tab_results.markdown(frame)
    assert "| *alike (paper: IDDPM, table 2)* |  | *3.17* |" in markdown and "in no mean" in markdown
    assert "alike (paper: IDDPM, table 2)" in tab_results.as_html(frame)


def test_without_a_papers_value_the_table_has_no_column_for_a_source(records_of):
    frame = results.data(records_of(study=CIFAR.replace("500000", "12")))
    assert "source" not in frame and "paper" not in tab_results.caption(frame)
