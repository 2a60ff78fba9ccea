"""Figures of the papers from records: of the reverse process, of mixed pairs and of noisy gradients."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness.analysis.figures import (
    fig_interpolation,
    fig_learning_curves,
    fig_noise_scale,
    fig_progressive,
    fig_quality_cost,
    fig_rate_distortion,
    fig_reconstruction,
    fig_skip,
)
from harness.analysis.report import report
from harness.analysis.runs import load_records
from harness.testing import tiny_study, write_finished_run

ARMS = """
arms: {learned: {diffusion.var_type: learned_range, objective: hybrid}, simple: {}}
replicates: 3
"""
DDPM = """
study: ddpm
data: {name: cifar10, horizontal_flip: true}
diffusion: {num_timesteps: 1000, schedule: linear, mean_type: epsilon, var_type: fixed}
objective: simple
model: {channels: 128}
optim: {lr: 2.0e-4}
train: {steps: 800000, batch_size: 128}
"""


@pytest.fixture
def records_of(tmp_path):
    """Return a function: lines of YAML, and a run -> its numbers -> the records of the tiny study with these."""

    def write(extra, numbers=lambda run: {}, **options):
        for run in tiny_study(tmp_path, extra, **options):
            write_finished_run(run, tmp_path / "runs", numbers(run))
        return load_records(tmp_path / "runs")

    return write


FIGURES = [
    fig_reconstruction,
    fig_quality_cost,
    fig_skip,
    fig_progressive,
    fig_rate_distortion,
    fig_noise_scale,
    fig_interpolation,
]


@pytest.mark.parametrize("module", FIGURES, ids=lambda module: module.__name__)
def test_a_study_without_such_an_evaluation_has_no_such_figure(records_of, module):
    assert module.data(records_of("evaluate: [{nll: {}}]\n")).empty
    assert "evaluation" in module.NEEDS


class TestSkip:
    EXTRA = ARMS + "evaluate: [{skip: {num_samples: 64, fractions: [0, 0.1, 0.3]}}]\n"

    def test_fid_is_summarised_over_replicates_by_the_skipped_percentage(self, records_of):
        frame = fig_skip.data(records_of(self.EXTRA, lambda run: {"fid": 4.0 + run.replicate}))
        assert frame["arm"].unique().tolist() == ["simple", "learned"]
        assert frame.loc[frame["arm"] == "simple", "skipped_percent"].tolist() == [0, 10, 30]
        assert set(frame["n"]) == {3} and set(frame["mean"]) == {5.0} and set(frame["kind"]) == {"interval"}
        (axes,) = fig_skip.draw(frame).axes
        assert len(axes.lines) == 2 * 3, "a line with two caps for each arm"
        assert "95 % t-interval" in fig_skip.caption(frame)

    def test_a_diverged_model_leaves_a_gap_and_no_axis_of_infinite_length(self, records_of):
        frame = fig_skip.data(records_of(self.EXTRA, lambda run: {"fid": float("inf") if run.arm == "simple" else 4.0}))
        assert frame[frame["arm"] == "simple"]["mean"].isna().all()
        (axes,) = fig_skip.draw(frame).axes
        assert np.isfinite(axes.get_ylim()).all()

    def test_both_readings_of_a_fixed_variance_are_curves_of_one_panel(self, records_of):
        part = "skip: {num_samples: 64, fractions: [0, 0.1]}"
        entries = f"evaluate: [{{name: eval, {part}}}, {{name: eval_small, fixed_variance: small, {part}}}]\n"
        frame = fig_skip.data(records_of(entries))
        assert set(frame["variance"]) == {"β", "β̃"} and frame["protocol"].nunique() == 1
        (legend,) = fig_skip.draw(frame).legends
        assert [text.get_text() for text in legend.get_texts()] == ["base", "σ² = β", "σ² = β̃"]

    def test_another_number_of_samples_has_a_panel_of_its_own(self, records_of):
        entries = "evaluate: [{name: eval, skip: {num_samples: 64}}, {name: eval_more, skip: {num_samples: 128}}]\n"
        frame = fig_skip.data(records_of(entries))
        assert frame["protocol"].unique().tolist() == [
            "digitsnet, 64 samples, ancestral",
            "digitsnet, 128 samples, ancestral",
        ]
        assert len(fig_skip.draw(frame).axes) == 2


def test_quality_along_the_chain_ends_with_the_samples_fid(records_of):
    extra = ARMS + "evaluate: [{progressive: {num_samples: 64, num_frames: 4}}]\n"
    frame = fig_progressive.data(records_of(extra, lambda run: {"fid": 5.0}))
    simple = frame[frame["arm"] == "simple"]
    np.testing.assert_allclose(simple["made_percent"], [0, 100 / 3, 200 / 3, 100])
    assert simple["mean"].tolist()[0] == 105 and simple["mean"].tolist()[-1] == 5
    assert fig_progressive.draw(frame).axes and "DDPM" in fig_progressive.caption(frame)


def test_reconstruction_has_its_error_by_the_number_of_steps(records_of):
    extra = ARMS + "evaluate: [{reconstruction: {num_images: 8, num_steps: [5, 10]}}]\n"
    frame = fig_reconstruction.data(records_of(extra, lambda run: {"reconstruction_mse": 1.0 + run.replicate / 100}))
    simple = frame[frame["arm"] == "simple"]
    assert simple["num_steps"].tolist() == [5, 10] and simple["mean"].tolist() == pytest.approx([0.202, 0.101])
    assert set(simple["n"]) == {3} and set(simple["protocol"]) == {"8 test images"}
    assert fig_reconstruction.draw(frame).axes[0].get_yscale() == "log"
    assert "DDIM" in fig_reconstruction.caption(frame)


def test_the_page_of_figures_names_every_figure_and_every_part_of_an_evaluation():
    from harness.analysis.figures import fig_search
    from harness.spec.evaluation import PARTS

    text = (Path(__file__).parents[3] / "docs" / "figures.md").read_text()
    names = [*report.OF_A_STUDY, *(f"schedules/{name}" for name in report.WITHOUT_RUNS), *fig_search.FIGURES, *PARTS]
    assert [name for name in names if f"`{name}" not in text] == []


def test_every_study_that_the_page_of_figures_names_is_there():
    import re

    root = Path(__file__).parents[3]
    named = re.findall(r"`((?:iddpm|ddpm|siddm|laptop)/\w+)`", (root / "docs" / "figures.md").read_text())
    assert len(set(named)) > 15
    assert [name for name in named if not (root / "experiments" / f"{name}.yaml").is_file()] == []


class TestRateDistortion:
    EXTRA = ARMS + "evaluate: [{rate_distortion: {num_images: 8, num_steps: 10}}]\n"

    def test_curves_are_means_with_the_range_over_replicates(self, records_of):
        frame = fig_rate_distortion.data(records_of(self.EXTRA, lambda run: {"rate_bpd": 3.0 + run.replicate}))
        last = frame[(frame["arm"] == "simple") & (frame["reverse_steps"] == 10)].iloc[0]
        assert (last["n"], last["rate_bpd_low"], last["rate_bpd"], last["rate_bpd_high"]) == (3, 3, 4, 5)
        assert (last["distortion_rmse"], last["protocol"]) == (1.0, "8 test images")
        assert set(frame["source"]) == {"measured"}
        assert "over 3 replicates" in fig_rate_distortion.caption(frame)

    def test_there_are_three_panels_and_the_third_has_distortion_against_rate(self, records_of):
        figure = fig_rate_distortion.draw(fig_rate_distortion.data(records_of(self.EXTRA)))
        labels = [(axes.get_xlabel(), axes.get_ylabel()) for axes in figure.axes]
        rate, distortion = "rate (bits/dim)", "distortion (RMSE on [0, 255])"
        assert labels == [("reverse steps", distortion), ("reverse steps", rate), (rate, distortion)]

    def test_a_method_without_a_likelihood_has_its_distortion_alone(self, records_of):
        frame = fig_rate_distortion.data(records_of(self.EXTRA)).assign(rate_bpd=float("nan"))
        (axes,) = fig_rate_distortion.draw(frame).axes
        assert axes.get_ylabel().startswith("distortion")
        assert "of the bits" not in fig_rate_distortion.caption(frame)

    def test_the_caption_says_what_the_last_tenth_of_the_steps_costs(self, records_of):
        frame = fig_rate_distortion.data(records_of(self.EXTRA))
        assert "The last tenth of the steps sends 11 % of the bits." in fig_rate_distortion.caption(frame)

    def test_the_same_training_is_marked_with_the_papers_points_and_another_is_not(self, records_of):
        evaluate = "evaluate: [{rate_distortion: {num_images: 8}}]\n"
        frame = fig_rate_distortion.data(records_of(evaluate, study=DDPM))
        paper = frame[frame["source"] != "measured"]
        assert set(paper["source"]) == {"DDPM, table 4"} and paper["n"].isna().all()
        assert paper["reverse_steps"].tolist() == [100, 300, 500, 700, 900, 1000]
        assert paper["rate_bpd"].iloc[-1] == 1.77581
        figure = fig_rate_distortion.draw(frame)
        marks = [line for axes in figure.axes for line in axes.lines if line.get_marker() == "x"]
        assert [len(line.get_xdata()) for line in marks] == [6, 6, 6]
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == ["base", "paper: DDPM, table 4"]
        assert frame.loc[frame["source"] == "measured", "rate_bpd"].max() == 1, "ours are not touched"
        shorter = fig_rate_distortion.data(records_of(evaluate, study=DDPM.replace("800000", "80000")))
        assert len(shorter[shorter["source"] != "measured"]) == 6 and shorter["arm"].nunique() == 2 + 1


class TestNoiseScale:
    EXTRA = ARMS + "evaluate: [{weights: raw, noise_scale: {batch_size: 4, small_per_big: 2, num_big: 2}}]\n"

    def test_each_arm_has_a_line_on_an_axis_of_examples(self, records_of):
        frame = fig_noise_scale.data(
            records_of(self.EXTRA, lambda run: {"gradient_noise_scale": 100.0 + run.replicate})
        )
        assert frame[["arm", "step", "mean", "n"]].to_numpy().tolist() == [
            ["simple", 12, 101.0, 3],
            ["learned", 12, 101.0, 3],
        ]
        (axes,) = fig_noise_scale.draw(frame).axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["simple", "learned"]
        assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "gradient noise scale (examples)")
        assert frame["protocol"].unique().tolist() == ["batches of 4 and 8"]

    def test_what_has_no_logarithm_is_not_drawn_and_the_caption_says_so(self, records_of):
        values = {"simple": -5.0, "learned": 50.0}
        frame = fig_noise_scale.data(records_of(self.EXTRA, lambda run: {"gradient_noise_scale": values[run.arm]}))
        (axes,) = fig_noise_scale.draw(frame).axes
        assert [label.get_text() for label in axes.get_yticklabels()] == ["learned"]
        assert "1 of 2 not shown" in fig_noise_scale.caption(frame)


class TestInterpolation:
    EXTRA = ARMS + "evaluate: [{interpolation: {num_pairs: 3, t: [5, 20], num_weights: 4}}]\n"

    def test_each_arm_shows_the_first_pairs_of_its_first_replicate(self, records_of):
        records = records_of(self.EXTRA)
        frame = fig_interpolation.data(records)
        assert frame["arm"].tolist() == ["simple", "learned"] and set(frame["replicate"]) == {0}
        expected = records[0].arrays("eval_interpolation.npz")
        np.testing.assert_array_equal(frame["images"][0], expected["images"])
        first, second = fig_interpolation.draw(frame).axes
        assert [label.get_text() for label in first.get_yticklabels()] == ["t = 5", "t = 20"] * 3
        columns = [label.get_text() for label in second.get_xticklabels()]
        assert (columns[0], columns[1], columns[-1], len(columns)) == ("first", "0", "second", 6)

    def test_every_row_stands_between_its_two_originals(self, records_of):
        row = fig_interpolation.data(records_of(self.EXTRA)).iloc[0]
        tiles = fig_interpolation._tiles(row).reshape(3, 2, 6, *row["images"].shape[3:])
        np.testing.assert_array_equal(tiles[2, 1, 0], row["originals"][0, 2])
        np.testing.assert_array_equal(tiles[2, 1, 5], row["originals"][1, 2])
        np.testing.assert_array_equal(tiles[2, 1, 3], row["images"][1, 2, 2])

    def test_points_of_the_plane_have_no_such_pictures(self, records_of):
        records = records_of("evaluate: [{interpolation: {}}]\n", sets=("data=mog", "model={name: mlp, width: 16}"))
        assert fig_interpolation.data(records).empty


class TestQualityAndCost:
    EXTRA = """
grid: {diffusion.num_timesteps: [4, 8]}
replicates: 2
evaluate: [{fidelity: {num_samples: 64, num_steps: null}}]
"""

    def test_chains_of_two_lengths_are_two_points(self, records_of):
        frame = fig_quality_cost.data(records_of(self.EXTRA, lambda run: {"fid": 8 / run.spec.diffusion.num_timesteps}))
        assert frame[["network_evaluations", "mean", "n", "source"]].to_numpy().tolist() == [
            [4, 2.0, 2, "measured"],
            [8, 1.0, 2, "measured"],
        ]
        (axes,) = fig_quality_cost.draw(frame).axes
        assert axes.get_xscale() == axes.get_yscale() == "log"

    def test_where_all_cost_the_same_there_is_no_figure(self, records_of):
        assert fig_quality_cost.data(records_of("evaluate: [{fidelity: {num_samples: 64, num_steps: 4}}]\n")).empty

    def test_guidance_evaluates_the_network_twice(self, records_of):
        part = "fidelity: {num_samples: 64, num_steps: 4, metrics: [fid]}"
        entries = f"evaluate: [{{name: eval, {part}}}, {{name: eval_guided, guidance: 2, {part}}}]\n"
        sets = ("model.class_cond=true", "model.label_dropout=0.1")
        frame = fig_quality_cost.data(records_of(entries, sets=sets))
        assert frame["network_evaluations"].tolist() == [4, 8]

    def test_papers_models_stand_beside_the_same_protocol_on_the_same_data_alone(self, records_of):
        evaluate = "evaluate: [{fidelity: {num_samples: 50000, num_steps: 1000, extractor: classifier}}]\n"
        (run,) = records_of(evaluate, study=DDPM)
        assert fig_quality_cost.data([run]).empty, "its own classifier's distance"
        (measurement,) = run.measurements
        part = measurement.evaluation["fidelity"] | {"extractor": "inception"}
        inception = replace(measurement, evaluation=measurement.evaluation | {"fidelity": part})
        frame = fig_quality_cost.data([replace(run, measurements=(inception,))])
        paper = frame[frame["source"] != "measured"].set_index("arm")
        assert paper.loc["DDIM", ["network_evaluations", "mean", "source"]].tolist() == [
            50,
            4.67,
            "DDGAN, table 1 (second-hand)",
        ]
        assert set(paper["n"]) == {0} and set(paper["kind"]) == {"paper"}
        (axes,) = fig_quality_cost.draw(frame.fillna({"mean": 5.0, "low": 5.0, "high": 5.0})).axes
        assert "DDIM" in [text.get_text() for text in axes.texts]
        assert "DDGAN, table 1 (second-hand)" in fig_quality_cost.caption(frame)


def test_the_learning_curve_of_a_papers_training_has_its_final_nll_as_a_thin_grey_line(records_of):
    extra = "arms: {alike: {}, other: {train.steps: 400000}}\nevaluate: [{nll: {}, every: 100000}]\n"
    study = DDPM.replace("optim:", "records: {log_every: 100000}\noptim:")
    records = []
    for run in records_of(extra, study=study):
        steps = np.array([100_000, run.spec["train"]["steps"]])
        records.append(replace(run, curves=run.curves | {"eval/nll_bpd": (steps, np.array([4.0, 3.8]))}))
    frame = fig_learning_curves.data(records)
    marked = frame[frame["paper"] != ""]
    assert set(marked["arm"]) == {"alike"} and set(marked["curve"]) == {"nll"}
    assert set(marked["paper"]) == {"3.75"} and set(marked["source"]) == {"DDPM, table 1"}
    assert frame.loc[frame["curve"] == "nll", "mean"].tolist() == [4.0, 3.8] * 2, "ours are not touched"
    panel = fig_learning_curves.draw(frame).axes[-1]
    assert "alike: paper 3.75, DDPM, table 1" in [text.get_text() for text in panel.texts]
    assert fig_learning_curves.caption(frame).endswith("of the same data, training and split.")
    without = fig_learning_curves.data([run for run in records if run.arm == "other"])
    assert "paper" not in without and "paper" not in fig_learning_curves.caption(without)
