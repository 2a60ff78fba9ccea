"""The page: differences against every arm, curves with bounded numbers of points, links, and no way out of a text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.analysis import html
from harness.analysis.answers import results
from harness.analysis.answers.contrasts import contrasts, contrasts_of
from harness.analysis.figures import fig_learning_curves
from harness.analysis.page import page_curves, page_runs
from harness.analysis.page.page import Section, Shown, as_json, render
from harness.analysis.page.page_differences import differences, undecided
from harness.analysis.runs import load_records
from harness.analysis.tables.tab_results import tables
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.records.status import Status
from harness.spec.presentation import Compare, Presentation

STUDY = """
grid: {diffusion.schedule: [linear, cosine, vp]}
replicates: 4
evaluate: [{name: eval, nll: {}, fidelity: {num_samples: 64, num_steps: 10}, grid: 4}]
"""
OFFSETS = {"linear": 0.0, "cosine": -0.5, "vp": -0.25}


def numbers(run):
    jitter = [0.0, 0.01, -0.02, 0.015][run.replicate] * (run.arm == "cosine")
    return {"nll": 3.0 + run.replicate / 10 + OFFSETS[run.arm] + jitter, "nll_standard_error_bpd": 0.001}


@pytest.fixture(scope="module")
def runs(study_runs_of_module):
    """Runs of three arms and four seeds; no test changes their folder."""
    return load_records(study_runs_of_module(STUDY, numbers))


@pytest.fixture
def own_runs(study_runs):
    return load_records(study_runs("replicates: 2\nevaluate: [{name: eval, nll: {}}]\n", lambda run: {}))


class Elements(HTMLParser):
    """The elements of a page, its scripts, and the attributes that a browser runs."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.handlers, self.scripts = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.handlers += [name for name, value in attrs if name.startswith("on") or "javascript:" in (value or "")]
        if tag == "script":
            self.scripts.append(dict(attrs).get("type", "program"))


# -- differences


def compared_of(runs, compare):
    return differences(runs, results.data(runs), compare, contrasts_of(runs, compare))


def test_the_differences_against_every_arm_are_those_of_its_contrasts(runs):
    shown = compared_of(runs, Compare())
    assert shown.baseline == "linear"
    assert shown.own == contrasts(runs, baseline="linear")
    assert shown.others == {arm: contrasts(runs, baseline=arm) for arm in ("cosine", "vp")}


def test_a_cell_has_the_difference_and_the_verdict_of_its_arm_and_metric(runs):
    frame = results.data(runs)
    shown = compared_of(runs, Compare(baseline="cosine"))
    rows = {row["arm"]: row for _, _, members in tables(frame) for row in members if row["model"] == results.TRAINED}
    assert shown.cell(rows["linear"], "nll") == {"quantity": 0, "text": "+0.499 worse", "verdict": "worse"}
    assert shown.cell(rows["cosine"], "nll") == {"quantity": 0, "text": "baseline", "verdict": ""}
    assert shown.cell({**rows["linear"], "model": results.UNTRAINED}, "nll") is None
    against = {entry["baseline"]: entry for entry in json.loads(as_json(shown.for_the_script))}
    assert set(against) == {"linear", "vp"}
    assert [0, "cosine", "-0.499 better", "better"] in against["linear"]["cells"]
    assert [0, "linear", "baseline", ""] in against["linear"]["cells"]
    assert against["linear"]["tables"][0]["heading"].endswith("against linear (3.150)")


def test_a_study_that_names_pairs_shows_no_difference_before_a_baseline_is_chosen(runs):
    shown = compared_of(runs, Compare(pairs="all"))
    assert (shown.baseline, shown.own, list(shown.others)) == ("", [], list(OFFSETS))


def test_of_many_arms_only_the_first_baselines_can_be_chosen(runs, monkeypatch):
    rows_of_one_baseline = len(contrasts(runs, baseline="linear"))
    monkeypatch.setattr("harness.analysis.page.page_differences.MAX_ROWS", 2 * rows_of_one_baseline - 1)
    assert list(compared_of(runs, Compare()).others) == ["cosine"]


def test_what_is_undecided_is_named_with_what_it_lacks_and_counted_where_it_is_much(study_runs):
    of_two = load_records(study_runs(STUDY.replace("replicates: 4", "replicates: 2"), numbers))
    compared = contrasts(of_two, metric="nll")
    lines = undecided(compared)
    assert sum(line.count(" against linear in NLL (bits/dim)") for line in lines) == 2
    assert undecided(compared * 3) == ["6 of 6 differences: 2 more seeds would decide all"]
    assert undecided([]) == []


def test_of_many_undecided_differences_it_is_said_how_many_seeds_decide_how_many(study_runs):
    def uneven(run):
        return numbers(run) | {"nll": 3.0 + OFFSETS[run.arm] + 0.4 * run.replicate * (run.arm == "cosine")}

    of_two = load_records(study_runs(STUDY.replace("replicates: 4", "replicates: 2"), numbers))
    noisy = load_records(study_runs(STUDY.replace("replicates: 4", "replicates: 2"), uneven, folder="noisy"))
    (line,) = undecided(contrasts(noisy, metric="nll") * 2 + contrasts(of_two, metric="nll"))
    assert re.fullmatch(r"6 of 6 differences: 2 more seeds would decide \d; \d+ more seeds would decide all", line)


# -- curves


def test_a_curve_of_a_seed_has_the_values_of_its_runs_and_the_mean_those_of_the_figure(runs):
    frame = fig_learning_curves.data(runs)
    panels = page_curves.panels("learning_curves", frame, runs)
    (mse,) = [panel for panel in panels if panel["title"] == "Prediction error"]
    of_cosine = [curve for curve in mse["curves"] if curve["arm"] == 1]
    assert [curve["note"] for curve in of_cosine] == ["mean of 4 seeds", "seed 0", "seed 1", "seed 2", "seed 3"]
    assert [curve.get("seed", False) for curve in of_cosine] == [False, True, True, True, True]
    figure = frame[(frame["curve"] == "mse") & (frame["arm"] == "cosine")]
    np.testing.assert_allclose(of_cosine[0]["y"], figure["mean"], rtol=1e-4)
    np.testing.assert_allclose(of_cosine[0]["high"], figure["high"], rtol=1e-4)
    alone = fig_learning_curves.data([run for run in runs if run.replicate == 2])
    np.testing.assert_allclose(
        of_cosine[3]["y"], alone.loc[(alone["curve"] == "mse") & (alone["arm"] == "cosine"), "mean"], rtol=1e-4
    )
    assert mse["x"][of_cosine[0]["x"]] == figure["iteration"].tolist()


def test_a_long_curve_keeps_points_of_its_own_and_both_ends_and_no_more_than_the_bound():
    t = np.arange(1, 4001)
    frame = pd.DataFrame({"evaluation": "eval", "arm": "a", "arm_index": 0, "t": t, "n": 1, "mean": 1 / t})
    frame = frame.assign(low=frame["mean"], high=frame["mean"], share=t / 4000)
    terms, _ = page_curves.panels("L_t", frame, [_Run("a")])
    shown = terms["x"][0]
    assert 300 < len(shown) <= page_curves.MAX_POINTS
    assert shown[:3] == [1, 2, 3] and shown[-1] == 4000
    np.testing.assert_allclose(terms["curves"][0]["y"], 1 / np.array(shown), rtol=1e-4)


def test_of_many_arms_a_panel_has_a_bounded_number_of_points():
    t = np.arange(1, 1001)
    arms = [f"arm{number}" for number in range(200)]
    frame = pd.concat(
        pd.DataFrame({"evaluation": "e", "arm": arm, "arm_index": i, "t": t, "n": 3, "mean": 1.0, "share": 0.5})
        for i, arm in enumerate(arms)
    ).assign(low=0.5, high=1.5)
    panels = page_curves.panels("L_t", frame, [_Run(arm, replicate) for arm in arms for replicate in range(3)])
    for panel in panels:
        assert sum(len(curve["y"]) for curve in panel["curves"]) <= page_curves.MAX_POINTS_OF_PANEL
        assert not any("seed" in curve or "low" in curve for curve in panel["curves"])


class _Run:
    """What numbering arms reads of a run."""

    def __init__(self, arm, replicate=0):
        self.arm, self.replicate, self.spec = arm, replicate, {"seed": replicate}
        self.arm_number = None


def test_a_value_that_is_no_number_is_left_out_of_a_curve():
    frame = pd.DataFrame({"evaluation": "e", "arm": "a", "arm_index": 0, "t": [1, 2, 3], "n": 1, "share": 0.5})
    frame = frame.assign(mean=[1.0, np.nan, np.inf], low=1.0, high=1.0)
    (curve,) = page_curves.panels("L_t", frame, [_Run("a")])[0]["curves"]
    assert curve["y"] == [1]
    as_json(curve)  # NaN is no JSON


# -- runs


def test_every_arm_is_told_by_what_differs_from_the_baseline(runs):
    table = page_runs.what_every_arm_is(runs, "cosine")
    column = table["heads"].index("diffusion.schedule")
    cells = {row["arm"]: row["cells"][column] for row in table["rows"]}
    assert cells == {"linear": ("linear", True), "cosine": ("cosine", False), "vp": ("vp", True)}
    assert "train.steps" not in table["heads"] and "seed" not in table["heads"]
    assert table["rows"][0]["runs"] == "4 runs, all done"
    assert page_runs.what_every_arm_is(runs[:4], "linear") is None


def test_missing_runs_and_evaluations_are_counted_with_the_commands_that_fill_them(own_runs, tmp_path):
    assert page_runs.missing(own_runs, "small") is None
    folder = own_runs[0].folder.parent
    asked = {run.run_key: RunDirectory(run.folder).studies()["small"] for run in own_runs}
    asked |= {"f" * 16: asked[own_runs[0].run_key] | {"replicate": 4}}
    ask_for(folder, "small", asked, file=tmp_path / "my studies" / "small.yaml")
    failed = [replace(own_runs[0], status=Status(state="failed")), replace(own_runs[1], measurements=())]
    assert page_runs.missing(failed, "small") == {
        "text": "1 run not done, 1 run without a folder, 1 evaluation of runs that are done",
        "commands": ["harness submit 'my studies/small.yaml'", "harness status small"],
    }


def test_a_run_has_links_to_its_files_relative_to_the_page_and_to_the_server_that_has_it(own_runs, tmp_path):
    run, directory = own_runs[0], RunDirectory(own_runs[0].folder)
    directory.tracking_folder.mkdir(exist_ok=True)
    cursor = directory.tracking_folder / f"{run.study}-0123456789ab.json"
    cursor.write_text(json.dumps({"run_id": "ab12", "server": "https://mlflow.example/base"}))
    shown = {link.text: link.href for link in page_runs.links(run, tmp_path / "figures")}
    assert shown["spec"] == f"../runs/{run.run_key}/spec.yaml"
    assert shown["MLflow"] == "https://mlflow.example/base/#/runs/ab12"


@pytest.mark.parametrize(
    "cursor",
    [
        {"run_id": "ab12", "server": "javascript:alert(1)"},
        {"run_id": "ab12", "server": "file:///etc/passwd"},
        {"run_id": "ab12", "server": "https://user:password@mlflow.example"},
        {"run_id": "../x", "server": "https://mlflow.example"},
        {"run_id": "ab12", "server": ["https://mlflow.example"]},
        {"run_id": "ab12"},
        [],
    ],
)
def test_no_other_address_than_that_of_a_server_is_linked(own_runs, tmp_path, cursor):
    directory = RunDirectory(own_runs[0].folder)
    directory.tracking_folder.mkdir(exist_ok=True)
    (directory.tracking_folder / f"{own_runs[0].study}-0123456789ab.json").write_text(json.dumps(cursor))
    assert "MLflow" not in {link.text for link in page_runs.links(own_runs[0], tmp_path)}


def test_samples_of_one_replicate_stand_side_by_side(runs, tmp_path):
    sets = page_runs.samples(runs, tmp_path)
    assert [entry["name"] for entry in sets] == ["seed 0", "seed 1", "seed 2", "seed 3"]
    assert [picture["arm"] for picture in sets[1]["pictures"]] == list(OFFSETS)
    for picture in sets[1]["pictures"]:
        assert (tmp_path / picture["src"]).resolve() == picture["path"].resolve()


# -- the page


EVIL = "</script><!--<script>alert(1)</script><img src=x onerror=alert(1)>\"'&\u2028"


def test_no_text_from_records_becomes_markup_or_ends_the_data_of_the_script(runs):
    names = {"cosine": EVIL}
    odd = [
        replace(run, arm=names.get(run.arm, run.arm), status=replace(run.status, reason=EVIL), collapses=(EVIL,))
        for run in runs
    ]
    frame = results.data(odd)
    section = Section("small", odd, Presentation(question=EVIL), results=frame, left_out={EVIL: EVIL})
    section.contrasts = contrasts(odd)
    section.differences = differences(odd, frame, Compare(), section.contrasts)
    curves = page_curves.panels("learning_curves", fig_learning_curves.data(odd), odd)
    section.curves = {"learning_curves": curves}
    section.figures = [Shown("small/learning_curves", EVIL, EVIL, 6.9)]
    page = render([section], [])
    elements = Elements(page)
    assert elements.handlers == []
    assert elements.scripts == ["application/json", "application/json", "program"]  # the curves, the study, the script
    assert elements.tags.count("img") == 1 + len(odd)  # the figure and the sample grids
    assert page.count("<!--") == 0 and "\u2028" not in page
    data = re.search(r'<script type="application/json" class="study-data">(.*?)</script>', page, re.DOTALL)[1]
    assert json.loads(data)["arms"][1]["name"].startswith("</script><!--<script>alert(1)")


def test_the_page_begins_with_the_question_its_answer_and_what_the_arms_are(runs):
    section = Section("small", runs, Presentation(question="Is cosine better?"), results=results.data(runs))
    section.contrasts = contrasts(runs)
    page = render([section], [])
    places = [
        page.index(text)
        for text in ("Is cosine better?", "NLL (bits/dim): cosine is better than linear by 0.499", "What the arms are")
    ]
    assert places == sorted(places)
    assert places[-1] < page.index("<h3>Results</h3>")


def test_the_script_calls_nothing_outside_and_makes_no_markup_from_text():
    script = (Path(html.__file__).parent / "templates" / "report.js").read_text()
    words = (
        "innerHTML|outerHTML|insertAdjacentHTML|document.write|eval|Function|fetch|XMLHttpRequest|import|setAttributeNS"
    )
    assert not re.search(rf"\b(?:{words})\b", script.replace("Every number was computed in Python", ""))


def test_as_json_gives_the_values_again_and_nothing_that_html_reads():
    values = {"text": EVIL, "number": 1.5, "none": None}
    text = as_json(values)
    assert not set("<>&") & set(text)
    assert json.loads(text) == values
