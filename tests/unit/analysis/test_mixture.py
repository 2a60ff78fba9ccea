"""Figures and tables of a mixture: methods by rows, numbers of sampling steps by columns."""

from dataclasses import replace

import numpy as np
import pytest

from harness.analysis.claims import verdicts
from harness.analysis.figures import fig_mixture
from harness.analysis.mixture import distance_scale, sampled_mixtures
from harness.analysis.runs import load_records
from harness.analysis.tables import tab_mixture
from harness.testing import tiny_study, write_finished_run

STUDY = """
study: plane
data: mog
diffusion: {num_timesteps: 8, schedule: cosine}
model: {name: mlp, width: 16}
train: {steps: 12, batch_size: 16, ema_rate: 0.8}
"""
CHAINS = """
grid: {objective: [simple, hybrid], diffusion.num_timesteps: [2, 4]}
evaluate: [{modes: {num_samples: 250}}]
"""
FEWER = """
arms: {plain: {}, longer: {diffusion.num_timesteps: 16}}
evaluate: [{modes: {num_samples: 250, num_steps: [2, 8]}}]
"""


@pytest.fixture
def records_of(tmp_path):
    """Return a function: lines of YAML, and a run -> its numbers -> the records of the study."""

    def write(extra, numbers=lambda run: {}, study=STUDY):
        for run in tiny_study(tmp_path, extra, study=study):
            write_finished_run(run, tmp_path / "runs", numbers(run))
        return load_records(tmp_path / "runs")

    return write


def test_arms_that_differ_in_the_length_of_their_chain_alone_are_one_row(records_of):
    samples = sampled_mixtures(records_of(CHAINS))
    assert [(sample.row, sample.index, sample.num_steps) for sample in samples] == [
        ("simple", 0, 2),
        ("simple", 0, 4),
        ("hybrid", 1, 2),
        ("hybrid", 1, 4),
    ]


def test_a_long_chain_that_is_sampled_in_fewer_steps_stands_in_the_same_columns(records_of):
    samples = sampled_mixtures(records_of(FEWER))
    assert [(sample.row, sample.num_steps) for sample in samples] == [
        ("longer / plain", 8),
        ("longer / plain, T = 8", 2),
        ("longer / plain, T = 16", 2),
        ("longer / plain, T = 16", 8),
    ]


def test_a_row_of_one_arm_has_its_name_and_says_how_long_its_chain_is_where_it_is_sampled_in_fewer(records_of):
    (first, second) = sampled_mixtures(records_of("evaluate: [{modes: {num_steps: [4, 8]}}]\n"))
    assert (first.row, second.row, first.num_steps, second.num_steps) == ("base, T = 8", "base, T = 8", 4, 8)


def test_distances_are_compared_with_the_paper_in_its_own_coordinates(records_of):
    assert {distance_scale(run) for run in records_of(CHAINS)} == {121}


def test_the_figure_has_the_samples_of_the_first_replicate_with_its_numbers(records_of):
    records = records_of(CHAINS + "replicates: 2\n", lambda run: {"modes_covered": 20.0 + run.replicate})
    frame = fig_mixture.data(records)
    assert len(frame) == 4 and set(frame["replicate"]) == {0} and set(frame["modes_covered"]) == {20}
    assert all(points.shape == (250, 2) for points in frame["points"])
    assert "the first replicate; crosses" in fig_mixture.caption(frame)
    panels = [axes for axes in fig_mixture.draw(frame).axes if axes.collections]
    assert len(panels) == 4


def test_a_method_that_was_not_sampled_in_a_number_of_steps_leaves_its_panel_empty(records_of):
    frame = fig_mixture.data(records_of(CHAINS))
    figure = fig_mixture.draw(frame[(frame["row"] == "simple") | (frame["num_steps"] == 2)])
    assert sum(not axes.collections for axes in figure.axes) == 1


def test_samples_that_diverged_are_drawn_as_an_empty_panel(records_of):
    frame = fig_mixture.data(records_of(CHAINS))
    frame.at[0, "points"] = np.full((250, 2), np.nan, np.float32)
    assert fig_mixture.draw(frame).axes


def test_a_study_of_images_has_no_such_figure(study_runs):
    assert fig_mixture.data(load_records(study_runs("evaluate: [{nll: {}}]\n", lambda run: {}))).empty


def cells(frame, title, label):
    (table,) = [table for table in tab_mixture.tables(frame) if table["title"].startswith(title)]
    (row,) = [row for row in table["rows"] if row["label"] == label]
    return [row.get(step, "–") for step in table["steps"]]


def test_the_table_has_intervals_by_number_of_steps_beside_the_papers_second_hand_values(records_of):
    records = records_of(CHAINS + "replicates: 3\n", lambda run: {"frechet": (1 + run.replicate) / 121, "mmd2": 0.5})
    frame = tab_mixture.data(records)
    assert cells(frame, "Fréchet", "simple") == ["2.000 ± 2.484"] * 2
    assert cells(frame, "Fréchet", "SIDDM without AFD (paper, second-hand)") == ["21.19", "53.22"]
    assert cells(frame, "MMD", "hybrid") == ["0.500 ± 0.000"] * 2
    assert cells(frame, "modes", "simple") == ["25.0 ± 0.0"] * 2
    assert cells(frame, "high-quality", "simple") == ["90.0 ± 0.0"] * 2
    assert set(frame["source"]) == {"measured", "second-hand"}


def test_the_best_of_a_number_of_steps_is_never_the_papers(records_of):
    numbers = {"simple": {"frechet": 1.0, "modes_covered": 3.0}, "hybrid": {"frechet": 2.0}}
    frame = tab_mixture.data(records_of(CHAINS, lambda run: numbers[run.spec.objective.name]))
    best = {(table["title"], row["label"]): row["best"] for table in tab_mixture.tables(frame) for row in table["rows"]}
    assert best["Fréchet distance ↓", "simple"] == best["modes covered ↑", "hybrid"] == {2, 4}
    assert best["Fréchet distance ↓", "DDGAN (paper, second-hand)"] == set()


def test_markdown_and_html_show_the_same_cells_and_a_dash_where_nothing_was_sampled(records_of):
    frame = tab_mixture.data(records_of(CHAINS))
    frame = frame[(frame["row"] != "simple") | (frame["num_steps"] == 2)]
    assert cells(frame, "MMD", "simple") == ["1.000", "–"]
    markdown, page = tab_mixture.markdown(frame), tab_mixture.as_html(frame)
    for table in tab_mixture.tables(frame):
        assert table["title"] in markdown and table["title"] in page
        for row in table["rows"]:
            for step in table["steps"]:
                assert str(row.get(step, "–")) in markdown and str(row.get(step, "–")) in page
    assert "121 times" in tab_mixture.caption(frame)


def test_a_diverged_model_has_a_nan_in_its_cell(records_of):
    frame = tab_mixture.data(records_of(CHAINS, lambda run: {"frechet": float("nan"), "modes_covered": 0.0}))
    assert cells(frame, "Fréchet", "simple") == ["1 NaN", "1 NaN"] and cells(frame, "modes", "simple") == ["0.0", "0.0"]


TABLE_1 = {
    "ddgan": {2: 7.27, 4: 0.99, 8: 0.49, 16: 0.53},
    "siddm": {2: 0.14, 4: 1.21, 8: 0.30, 16: 0.23},
    "without": {2: 21.19, 4: 53.22, 8: 7.04, 16: 14.37},
}
METHODS = {
    "ddgan": {"name": "ddgan"},
    "siddm": {"name": "siddm", "lambda_afd": 1.0, "adversarial": True},
    "without": {"name": "siddm", "lambda_afd": 0.0, "adversarial": True},
}
THREE = """
grid:
  objective & diffusion.var_type: [[simple, fixed], [hybrid, learned_range], [vlb, learned_range]]
  diffusion.num_timesteps: [2, 4, 8, 16]
replicates: 4
evaluate: [{modes: {num_samples: 250}}]
"""


def of_three_methods(records_of, table):
    """Return records as if each objective were one of the methods of SIDDM's table 1."""
    names = dict(zip(("simple", "hybrid", "vlb"), METHODS, strict=True))

    def numbers(run):
        distance = table[names[run.spec.objective.name]][run.spec.diffusion.num_timesteps]
        return {"frechet": distance * (1 + 0.01 * run.replicate) / 121}

    records = []
    for run in records_of(THREE, numbers):
        spec = {key: value for key, value in run.spec.items() if key not in ("objective", "timestep_sampler")}
        spec["diffusion"] = {key: value for key, value in spec["diffusion"].items() if key != "var_type"}
        records.append(replace(run, spec=spec | {"method": METHODS[names[run.spec["objective"]["name"]]]}))
    return records


def test_the_papers_own_numbers_support_the_papers_orderings(records_of):
    judged = verdicts.judge(of_three_methods(records_of, TABLE_1))
    assert [len(claim.contrasts) for claim in judged] == [3, 4, 3, 1]
    contrasts = [contrast for claim in judged for contrast in claim.contrasts]
    assert {contrast.verdict for contrast in contrasts} == {"reproduced"}
    assert [contrast.context for contrast in judged[1].contrasts] == ["T = 2", "T = 4", "T = 8", "T = 16"]
    assert contrasts[3].numbers().startswith("SIDDM 0.1421, SIDDM without AFD 21.51; difference")
    assert all("second-hand" in claim.source for claim in judged)


def test_the_opposite_numbers_contradict_them_and_equal_ones_decide_nothing(records_of):
    swapped = TABLE_1 | {"siddm": TABLE_1["without"], "without": TABLE_1["siddm"]}
    _, afd, ddgan, four = verdicts.judge(of_three_methods(records_of, swapped))
    assert {contrast.verdict for contrast in (*afd.contrasts, *ddgan.contrasts)} == {"contradicted"}
    assert four.contrasts[0].verdict == "reproduced"


def test_methods_that_are_not_of_the_table_get_no_verdict(records_of):
    assert verdicts.judge(records_of(CHAINS)) == []
