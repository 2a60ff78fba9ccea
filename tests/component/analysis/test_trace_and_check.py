"""Where a figure comes from, whether it is still true, and which cells have no value yet."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from harness.analysis.report import report
from harness.analysis.report.check import CHANGED, NOT_DRAWN, OTHER_CODE, check
from harness.analysis.report.trace import read_provenance, trace
from harness.cli import cli
from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.manifest import ask_for
from harness.records.status import Status
from harness.spec.presentation import FigureStyle
from harness.testing import tiny_study, write_finished_run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_closed_forms")]  # each reads or draws figures

STUDY = """
grid: {diffusion.schedule: [linear, cosine]}
replicates: 2
evaluate: [{name: eval, nll: {num_images: 16}, fidelity: {num_samples: 64, num_steps: 5}}]
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with a study's file, its runs and its figures."""
    home = tmp_path_factory.mktemp("home")
    runs = tiny_study(home, STUDY)
    for run in runs:
        directory = write_finished_run(run, home / "runs")
        environment = directory.environments()[0] | {"data_digest": "d" * 64, "code_version": "0.1.0+gabc"}
        directory.environment_path.write_text(json.dumps([environment]))
    ask_for(home / "runs", "tiny", {run.run_key: run.membership() for run in runs}, file=home / "tiny.yaml")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "WITHOUT_RUNS", {})
        report.report(home / "runs", home / "figures")
    return home


@pytest.fixture
def home(drawn, tmp_path) -> Path:
    return shutil.copytree(drawn, tmp_path / "home")


@pytest.fixture
def runs(home) -> Path:
    return home / "runs"


@pytest.fixture
def out(home) -> Path:
    return home / "figures"


def a_run(runs: Path, arm: str = "cosine", replicate: int = 1) -> RunDirectory:
    directories = [RunDirectory(path) for path in sorted(runs.glob("[!.]*"))]
    place = {"arm": arm, "replicate": replicate}
    return next(run for run in directories if place.items() <= run.studies()["tiny"].items())


def change(runs: Path) -> None:
    """Change what a run measured."""
    run = a_run(runs)
    with run.lock(), run.open_journal(resumed_from_step=12) as journal:
        journal.metrics(13, {"train/mse": 5.0})


# ---------------------------------------------------------------------------------------------------------------- trace


@pytest.mark.parametrize("name", ["learning_curves.png", "learning_curves.pdf", "learning_curves.csv", "results.tex"])
def test_every_file_of_a_study_is_traced_to_its_runs_code_data_and_protocols(runs, out, name):
    traced = trace(out / "tiny" / name, runs, Path("elsewhere"))
    [study] = traced.studies
    assert traced.name == f"tiny/{name if name.endswith('tex') else 'learning_curves'}"
    assert (study.made_of.study, study.made_of.command, study.why_stale) == ("tiny", "harness figures tiny", "")
    assert (study.made_of.code_versions, study.made_of.data_digests) == (("0.1.0+gabc",), ("d" * 64,))
    [protocol] = study.made_of.protocols
    assert protocol.startswith("custom-")
    keys = {path.name for path in runs.glob("[!.]*")}
    assert {run.run_key for run in study.runs} == keys
    assert {(run.arm, run.replicate, run.seed) for run in study.runs} == {
        (arm, replicate, replicate) for arm in ("linear", "cosine") for replicate in (0, 1)
    }
    assert {Path(run.run_dir) for run in study.runs} == {runs / key for key in keys}


@pytest.mark.parametrize("kind", ["png", "pdf", "svg"])
def test_a_copy_of_a_picture_far_from_its_folder_is_traced_by_what_stands_in_it(runs, out, tmp_path, kind):
    if kind == "svg":
        report.draw_report(runs, out, look=FigureStyle(formats=("svg",)))
    copy = Path(shutil.copy(out / "tiny" / f"learning_curves.{kind}", tmp_path / f"figure-3.{kind}"))
    shutil.rmtree(out)
    traced = trace(copy, runs, out)
    [study] = traced.studies
    assert (traced.name, traced.title, study.why_stale) == ("", "Learning curves", "")
    assert len(study.runs) == 4 and study.made_of.study == "tiny"
    change(runs)
    assert trace(copy, runs, out).studies[0].why_stale == CHANGED
    shutil.rmtree(runs)
    assert {run.state for run in trace(copy, runs, out).studies[0].runs} == {"absent"}


def test_a_copy_of_a_table_is_known_by_its_content(runs, out, tmp_path):
    copy = Path(shutil.copy(out / "tiny" / "results.tex", tmp_path / "table2.tex"))
    assert trace(copy, runs, out).name == "tiny/results.tex"
    copy.write_text(copy.read_text() + "\n")
    with pytest.raises(RecordError, match=r"nothing says where it comes from\. What can be traced: every file"):
        trace(copy, runs, out)


def test_the_page_is_traced_to_every_study_on_it(runs, out):
    traced = trace(out / "index.html", runs, out)
    assert [study.made_of.study for study in traced.studies] == ["tiny"]
    assert len(traced.studies[0].runs) == 4


def test_the_card_of_claims_and_a_copy_of_it_are_traced_to_the_runs_of_its_studies(runs, out, tmp_path):
    copy = Path(shutil.copy(out / "claims.png", tmp_path / "card.png"))
    for file, folder in ((out / "claims.csv", out), (copy, tmp_path / "none")):
        [study] = trace(file, runs, folder).studies
        assert (study.made_of.study, len(study.runs), study.why_stale) == ("tiny", 4, "")
    for run in runs.glob("[!.]*"):
        shutil.rmtree(run / "evaluations")
    assert trace(out / "claims.csv", runs, out).studies[0].why_stale


def test_a_file_that_was_edited_or_whose_records_changed_is_not_true_any_more(runs, out):
    path = out / "tiny" / "learning_curves.csv"
    path.write_text(path.read_text() + "1,2,3\n")
    assert trace(path, runs, out).studies[0].why_stale == "tiny/learning_curves.csv was changed"
    change(runs)
    assert trace(out / "tiny" / "L_t.png", runs, out).studies[0].why_stale == ""
    assert trace(path, runs, out).studies[0].why_stale == CHANGED


def test_a_file_of_somebody_else_cannot_be_traced_and_one_that_is_not_there_neither(runs, out, tmp_path):
    from PIL import Image

    Image.new("L", (3, 3)).save(tmp_path / "x.png")
    (tmp_path / "x.pdf").write_bytes(b"%PDF-1.4 /Keywords (a paper \\(2021\\)) ")
    (tmp_path / "x.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (tmp_path / "broken.svg").write_text("<svg")
    (tmp_path / "x.csv").write_text("a,b\n")
    for name in ("x.png", "x.pdf", "x.svg", "broken.svg", "x.csv"):
        assert read_provenance(tmp_path / name) is None
        with pytest.raises(RecordError, match="nothing says where it comes from"):
            trace(tmp_path / name, runs, out)
    with pytest.raises(RecordError, match="is no file"):
        trace(tmp_path / "absent.png", runs, out)


def test_a_traced_file_is_shown_as_lines_and_as_json(runs, out):
    arguments = ["trace", str(out / "tiny" / "L_t.pdf"), "--runs", str(runs)]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False).output
    assert "study       tiny" in shown and "still true  yes" in shown and str(a_run(runs).path) in shown
    document = json.loads(CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).stdout)
    [study] = document["studies"]
    assert (study["current"], study["command"], len(study["runs"])) == (True, "harness figures tiny", 4)


# ---------------------------------------------------------------------------------------------------------------- check


def test_right_after_a_report_nothing_is_stale_and_no_cell_is_missing(runs, out):
    result = check(runs, out)
    assert (result.stale, result.num_missing) == ([], 0)


def test_what_is_missing_edited_or_out_of_date_is_named_with_the_reason_and_nothing_is_written(runs, out, monkeypatch):
    (out / "tiny" / "L_t.pdf").unlink()
    (out / "index.html").write_text("edited")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    stale = {entry.name: entry.why for entry in check(runs, out).stale}
    assert stale == {"tiny/L_t": "tiny/L_t.pdf is missing", "index.html": "index.html was changed"}
    change(runs)
    assert {entry.name: entry.why for entry in check(runs, out).stale}["tiny/learning_curves"] == CHANGED
    monkeypatch.setattr("harness.analysis.report.drawing.libraries", lambda: "matplotlib 99")
    assert {entry.name: entry.why for entry in check(runs, out).stale}["tiny/L_t"] == OTHER_CODE
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_without_figures_each_is_named_as_not_drawn(runs, tmp_path):
    assert {entry.why for entry in check(runs, tmp_path / "none").stale} == {NOT_DRAWN}
    assert not (tmp_path / "none").exists()


def test_cells_without_a_value_are_named_with_their_run_its_state_and_what_fills_them(drawn, runs, home):
    failed, absent = a_run(runs, "linear", 1), a_run(runs, "cosine", 0)
    shutil.rmtree(absent.path)
    shutil.rmtree(failed.evaluations_folder)
    failed.set_status(Status("failed", reason="out of memory"))
    cells = check(runs, home / "figures", options=" --runs somewhere").missing["tiny"]
    rows = {(cell.arm, cell.replicate, cell.seed, cell.metric, cell.state) for cell in cells}
    metrics = ("nll", "fid", "precision", "recall")
    assert rows == {("linear", 1, 1, metric, "failed") for metric in metrics} | {
        ("cosine", 0, None, metric, "absent") for metric in metrics
    }
    assert {cell.command for cell in cells} == {f"harness submit {drawn / 'tiny.yaml'} --runs somewhere"}
    failed.set_status(Status("queued"))
    commands = {cell.arm: cell.command for cell in check(runs, home / "figures").missing["tiny"]}
    assert commands["linear"] == "harness status tiny"
    failed.set_status(Status("pruned"))
    assert {cell.arm for cell in check(runs, home / "figures").missing["tiny"]} == {"cosine"}


def test_the_verb_fails_when_something_is_stale_or_missing(runs, out):
    arguments = ["figures", "tiny", "--check", "--runs", str(runs), "--out", str(out)]
    right = CliRunner().invoke(cli, arguments)
    assert (right.exit_code, "no cell is without a value" in right.output) == (0, True)
    shutil.rmtree(a_run(runs).evaluations_folder)
    wrong = CliRunner().invoke(cli, arguments)
    assert wrong.exit_code == 1
    assert "tiny: 4 cells without a value" in wrong.output and "to draw again: harness figures tiny" in wrong.output
    document = json.loads(CliRunner().invoke(cli, [*arguments, "--json"]).stdout)
    assert {cell["metric"] for cell in document["missing"]["tiny"]} == {"nll", "fid", "precision", "recall"}
    assert {entry["study"] for entry in document["stale"]} == {"tiny"}


def test_a_page_in_one_file_is_traced_and_is_stale_once_its_figures_were_drawn_again(runs, out):
    report.draw_report(runs, out, one_file=True)
    page = out / "tiny" / "tiny.html"
    assert check(runs, out).stale == []
    [study] = trace(page, runs, out).studies
    assert (study.made_of.study, len(study.runs), study.why_stale) == ("tiny", 4, "")
    change(runs)
    report.report(runs, out)
    assert page.is_file()
    assert [(entry.name, entry.why) for entry in check(runs, out).stale] == [("tiny/tiny.html", CHANGED)]
    assert trace(page, runs, out).studies[0].why_stale == CHANGED
