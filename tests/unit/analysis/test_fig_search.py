"""The figures of a search, from records with planted numbers."""

import json
from dataclasses import replace

import numpy as np
import pytest

from harness.analysis.figures import fig_search
from harness.analysis.report.report import report
from harness.analysis.runs import load_records
from harness.errors import RecordError

SPACE = [
    {"path": "objective.lambda_vlb", "kind": "float", "low": 1e-5, "high": 1e-1, "log": True, "step": None},
    {"path": "diffusion.schedule.s", "kind": "float", "low": 1e-4, "high": 1e-1, "log": True, "step": None},
    {"path": "model.depth", "kind": "choices", "choices": {"2": 2, "3": 3}, "when": {"objective.name": ["hybrid"]}},
]
METRICS = [{"name": "eval/nll_bpd", "direction": "minimize"}, {"name": "eval/recall", "direction": "maximize"}]
# (lambda, s, depth, nll, recall, state), in the order in which they ended
TRIALS = [
    (1e-4, 1e-2, 2, 4.0, 0.2, "complete"),
    (1e-3, 1e-2, 3, 3.0, 0.5, "complete"),
    (1e-2, 1e-3, None, 9.0, None, "pruned"),
    (1e-2, 1e-4, 2, 3.5, 0.6, "complete"),
    (1e-2, 1e-3, 3, 3.6, 0.4, "complete"),
    (1e-1, 1e-1, 2, None, None, "failed"),
]
WITHOUT_DATA = ("search_intermediate", "search_rungs")  # nothing is measured during these trainings


@pytest.fixture
def searched(study_runs):
    runs = study_runs("", lambda run: {})
    folder = runs / ".search" / "small"
    (folder / "trials").mkdir(parents=True)
    definition = {"space": SPACE, "metrics": METRICS}
    (folder / "search.json").write_text(json.dumps({"study": "small", "definition": definition}))
    for number, (lambda_vlb, s, depth, nll, recall, state) in enumerate(TRIALS):
        point = {"objective.lambda_vlb": lambda_vlb, "diffusion.schedule.s": s}
        point |= {"model.depth": depth} if depth else {}
        values = {"eval/nll_bpd": nll, "eval/recall": recall}
        record = {"number": number, "point": point, "state": state, "ended_seconds": 10.0 + number}
        record |= {"values": {name: value for name, value in values.items() if value}, "replicate_values": {}}
        (folder / "trials" / f"trial-{number:04d}.json").write_text(json.dumps(record))
    row = {"share": 0.7, "low": 0.5, "high": 0.9}
    shares = {"num_trials": 4, "metrics": {"eval/nll_bpd": {"objective.lambda_vlb": row}}}
    (folder / "importances.json").write_text(json.dumps(shares))
    return runs


def frame_of(name, searched):
    return fig_search.FIGURES[name].data(load_records(searched, "small"))


def test_the_best_so_far_follows_complete_trials_in_the_direction_of_each_metric(searched):
    frame = frame_of("search_history", searched)
    nll, recall = (frame[frame["metric"] == one["name"]] for one in METRICS)
    assert nll["best"].tolist() == [4.0, 3.0, 3.0, 3.0, 3.0]
    assert recall["best"].tolist() == [0.2, 0.5, 0.5, 0.6, 0.6]
    assert nll["state"].tolist().count("pruned") == 1 and 5 not in set(nll["trial"])


def test_the_front_holds_what_nothing_beats_though_one_metric_is_maximised(searched):
    frame = frame_of("search_pareto", searched)
    assert frame.loc[frame["on_front"], "trial"].tolist() == [1, 3]


def test_the_distribution_has_the_share_of_trials_that_are_as_good_the_best_first(searched):
    frame = frame_of("search_distribution", searched)
    nll, recall = (frame[frame["metric"] == one["name"]] for one in METRICS)
    assert nll["value"].tolist() == [3.0, 3.5, 3.6, 4.0] and nll["share"].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert recall["value"].tolist() == [0.6, 0.5, 0.4, 0.2]
    first, second = fig_search.FIGURES["search_distribution"].draw(frame).axes
    assert not first.xaxis_inverted() and second.xaxis_inverted(), "better values are on the left"


def test_values_during_training_are_curves_the_best_done_run_stands_out_and_pruned_ones_end_early(searched):
    (run,) = load_records(searched, "small")
    metric, runs = METRICS[0]["name"], []
    for number, values in enumerate(([5.0, 4.0, 3.0], [5.0, 4.5, 3.5], [6.0, 2.0])):
        status = replace(run.status, state="pruned" if number == 2 else "done")
        curve = np.arange(1, len(values) + 1) * 10, np.array(values)
        changed = {"curves": {metric: curve}, "over_training": frozenset({metric}), "status": status}
        runs.append(replace(run, folder=run.folder.with_name(f"run{number}"), **changed))
    picture = fig_search.FIGURES["search_intermediate"]
    frame = picture.data(runs)
    assert frame.groupby("run_key")["value"].last().to_dict() == {"run0": 3.0, "run1": 3.5, "run2": 2.0}
    (axes,) = picture.draw(frame).axes
    widths = [line.get_linewidth() for line in axes.lines if len(line.get_xdata()) > 1]
    assert widths[0] > widths[1] == widths[2], "the pruned run is lower, but was not trained to its end"
    assert "the 1 that were pruned" in picture.caption(frame)
    assert picture.data([run]).empty


@pytest.fixture
def with_rungs(searched):
    """Four trials at rung 10, two at 20, one at 40; and one whose value is no number."""
    folder = searched / ".search" / "small"
    definition = {"space": [], "metrics": METRICS[:1], "rungs": [10, 20, 40], "reduction_factor": 2}
    (folder / "search.json").write_text(json.dumps({"study": "small", "definition": definition}))
    for path in folder.glob("trials/*.json"):
        path.unlink()
    for number, values in enumerate(([5.0, 4.0], [4.5, 3.0, 2.0], [6.0], [7.0], [float("nan")])):
        record = {"number": number, "point": {}, "state": "complete" if number == 1 else "pruned"}
        record |= {"ended_seconds": 10.0 + number, "replicate_values": {}, "values": {METRICS[0]["name"]: values[-1]}}
        record["rung_values"] = dict(zip(("10", "20"), values, strict=False))
        (folder / "trials" / f"trial-{number:04d}.json").write_text(json.dumps(record))
    return searched


def test_dropped_trials_end_at_their_rung_in_a_cross_and_the_best_stands_out(with_rungs):
    picture, frame = fig_search.FIGURES["search_rungs"], frame_of("search_rungs", with_rungs)
    assert frame.groupby("rung")["trial"].nunique().tolist() == [5, 2, 1]
    assert frame[frame["trial"] == 1][["step", "value"]].to_numpy().tolist() == [[10, 4.5], [20, 3.0], [40, 2.0]]
    assert frame[frame["trial"] == 0]["step"].tolist() == [10, 20], "a dropped trial's last value is no third rung"
    (axes,) = picture.draw(frame).axes
    markers = {tuple(line.get_ydata()): line.get_marker() for line in axes.lines}
    assert markers[5.0, 4.0] == markers[(6.0,)] == "x" and markers[4.5, 3.0, 2.0] == "o"
    assert [text.get_text() for text in axes.texts] == ["5", "2", "1"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "20", "40"]
    assert axes.get_legend_handles_labels()[1] == ["dropped at a rung", "best"]
    assert picture.caption(frame).startswith("5 trials from rung to rung")
    assert "4 were dropped" in picture.caption(frame) and "1 had a value that is no number" in picture.caption(frame)


def test_a_search_without_rungs_has_no_figure_of_them_and_a_damaged_one_leaves_its_trial_out(with_rungs):
    path = with_rungs / ".search" / "small" / "trials" / "trial-0001.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rung_values": {"10": "<b>"}}))
    assert set(frame_of("search_rungs", with_rungs)["trial"]) == {0, 2, 3, 4}
    stored = with_rungs / ".search" / "small" / "search.json"
    definition = json.loads(stored.read_text())["definition"]
    stored.write_text(json.dumps({"definition": definition | {"rungs": "all"}}))
    with pytest.raises(RecordError, match="rungs are not a list of steps"):
        frame_of("search_rungs", with_rungs)
    del definition["rungs"]
    stored.write_text(json.dumps({"definition": definition}))
    assert frame_of("search_rungs", with_rungs).empty


def test_the_contour_takes_the_two_numbers_of_each_complete_trial(searched):
    frame = frame_of("search_contour", searched)
    assert frame["parameter_x"].unique().tolist() == ["objective.lambda_vlb"]
    assert frame["parameter_y"].unique().tolist() == ["diffusion.schedule.s"]
    nll = frame[frame["metric"] == "eval/nll_bpd"]
    assert nll[["trial", "position_x", "position_y", "value"]].to_numpy().tolist() == [
        [0, 1e-4, 1e-2, 4.0], [1, 1e-3, 1e-2, 3.0], [3, 1e-2, 1e-4, 3.5], [4, 1e-2, 1e-3, 3.6],
    ]  # fmt: skip


def test_the_surface_of_a_contour_stays_within_the_values_that_it_joins():
    points = np.random.default_rng(0).random((12, 2))
    values = points[:, 0]
    surface = fig_search._smooth(points, values, np.linspace(0, 1, 11))
    assert values.min() <= surface.min() < surface.max() <= values.max()
    assert (np.diff(surface.mean(0)) > 0).all()  # and rises where they rise


def test_a_choice_stands_at_its_place_and_a_parameter_that_takes_no_part_nowhere(searched):
    frame = fig_search.trials(load_records(searched, "small"))
    depth = frame[(frame["parameter"] == "model.depth") & (frame["metric"] == "eval/nll_bpd")]
    assert depth["position"].fillna(-1).tolist() == [0, 1, -1, 0, 1]
    assert depth["label"].tolist() == ["2", "3", "", "2", "3"]


@pytest.mark.slow
@pytest.mark.usefixtures("without_closed_forms")
def test_the_report_shows_the_figures_of_a_search_and_of_a_study_none_of_them(searched, study_runs, tmp_path, capsys):
    page = report(searched, tmp_path / "figures").read_text()
    for name, picture in fig_search.FIGURES.items():
        if name in WITHOUT_DATA:
            continue
        for kind in ("png", "pdf", "csv"):
            assert (tmp_path / "figures" / "small" / f"{name}.{kind}").stat().st_size > 50
        assert picture.TITLE in page
    plain = study_runs("", lambda run: {}, folder="plain")
    assert not fig_search.is_search(load_records(plain, "small"))
    report(plain, tmp_path / "plain_figures")
    assert not list((tmp_path / "plain_figures" / "small").glob("search_*"))


@pytest.mark.slow
def test_the_pictures_of_a_search_are_drawn_into_its_folder(searched):
    out = searched / ".search" / "small" / "figures"
    drawn = fig_search.draw_all(searched, "small", out)
    assert [path.stem for path in drawn] == [name for name in fig_search.FIGURES if name not in WITHOUT_DATA]


@pytest.mark.parametrize(
    "content",
    ["[]", "", '{"state": "complete"}', '{"state": "complete", "number": "x"}', '{"state": 7}', "[" * 100_000],
)
def test_a_damaged_trial_is_left_out_and_named(searched, content, caplog):
    before = len(frame_of("search_slices", searched)["trial"].unique())
    (searched / ".search" / "small" / "trials" / "trial-0001.json").write_text(content)
    assert len(frame_of("search_slices", searched)["trial"].unique()) == before - 1
    assert "trial-0001.json" in caplog.text and "this trial is left out" in caplog.text


def test_a_trial_whose_value_is_a_text_or_whose_choice_is_none_of_the_searchs_is_left_out(searched):
    path = searched / ".search" / "small" / "trials" / "trial-0001.json"
    whole = json.loads(path.read_text())
    for change in ({"values": {"eval/nll_bpd": "<b>"}}, {"point": {"model.depth": 9}}, {"ended_seconds": None}):
        path.write_text(json.dumps(whole | change))
        assert 1 not in set(fig_search.trials(load_records(searched, "small"))["trial"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["search.json", "importances.json"])
def test_damaged_records_of_a_search_end_no_other_figure(searched, name, tmp_path, caplog):
    (searched / ".search" / "small" / name).write_text('{"definition": [], "metrics": "all"}')
    paths = fig_search.draw_all(searched, "small", tmp_path / "pictures")
    drawn = {path.stem for path in paths}
    assert ("search_importances" in drawn) == (name == "search.json")
    assert ("search_history" in drawn) == (name == "importances.json")
    assert f"{name}: " in caplog.text
