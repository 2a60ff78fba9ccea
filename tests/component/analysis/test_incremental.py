"""Only what has changed is drawn, and what stands in the folder is the same as if all had been drawn at once."""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path

import pytest

from harness.analysis.report import drawing, drawn, parallel, report, stamps
from harness.analysis.report.drawn import RECORD, read_drawn
from harness.analysis.report.stamps import Stamps, nothing_has_changed
from harness.errors import HarnessError
from harness.records.directory import RunDirectory
from harness.records.status import Status

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_closed_forms")]  # each draws figures

STUDY = "grid: {diffusion.schedule: [linear, cosine]}\nreplicates: 2\nevaluate: [{name: eval, nll: {}, grid: 4}]\n"
FIGURES = {"small/samples", "small/learning_curves", "small/L_t"}


def nll(run):
    return {"nll": 3.0 + run.replicate / 100 - (run.arm == "cosine") / 10}


@pytest.fixture(scope="module")
def records_of_module(study_runs_of_module):
    return study_runs_of_module(STUDY, nll)


@pytest.fixture(scope="module")
def figures_of_module(records_of_module):
    out = records_of_module.parent / "figures"  # the page links to the runs as seen from its folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "WITHOUT_RUNS", {})
        report.report(records_of_module, out)
    return out


@pytest.fixture
def records(records_of_module, tmp_path) -> Path:
    """A copy of a study's runs."""
    return shutil.copytree(records_of_module, tmp_path / "runs", symlinks=True)


@pytest.fixture
def out(figures_of_module, tmp_path) -> Path:
    """A copy of the figures that were drawn of them."""
    return shutil.copytree(figures_of_module, tmp_path / "figures")


@pytest.fixture
def settled(monkeypatch):
    """Let files that were written a moment ago have stamps."""
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", 0.0)


def files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def a_run(records: Path, arm: str = "cosine", replicate: int = 1) -> RunDirectory:
    directories = [RunDirectory(path) for path in sorted(records.glob("[!.]*"))]
    place = {"arm": arm, "replicate": replicate}
    return next(run for run in directories if place.items() <= run.studies()["small"].items())


def change_arrays(records: Path) -> None:
    """Give a run the terms of the bound that another has."""
    ours, other = (a_run(records, arm, 0).arrays_folder / "eval_likelihood.npz" for arm in ("cosine", "linear"))
    shutil.copy(other, ours)


def test_the_second_report_makes_nothing_and_after_it_no_record_is_read(records, out, settled, file_accesses):
    before = files(out)
    outcome = report.draw_report(records, out)
    assert outcome.made == [] and files(out) == before
    with file_accesses() as accesses:
        assert nothing_has_changed(records, out, [])
    opened = {Path(arguments[0]) for event, *arguments in accesses if event == "open" and type(arguments[0]) is not int}
    read = {path.name for path in opened if path.is_relative_to(records)}
    assert not read & {"journal-0001.jsonl", "status.json", "spec.json", "eval_likelihood.npz"}


def test_records_that_were_copied_are_read_again_and_nothing_is_drawn(records, out, settled, tmp_path):
    report.report(records, out)
    copy = shutil.copytree(records, tmp_path / "copy")
    assert not nothing_has_changed(copy, out, [])
    assert report.draw_report(copy, out).made == []
    assert nothing_has_changed(copy, out, [])


def test_a_change_of_the_same_size_and_time_is_seen(records, out, settled):
    report.report(records, out)
    path = a_run(records).status_path
    facts = path.stat()
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"done"', b'"fail"', 1))
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (facts.st_size, facts.st_mtime_ns)
    assert not nothing_has_changed(records, out, [])


def test_records_that_changed_a_moment_ago_have_no_stamp_and_are_read_each_time(records, out, monkeypatch):
    monkeypatch.setattr(stamps, "SETTLED_SECONDS", 1000.0)
    assert Stamps(records).of("small") == ""
    report.report(records, out)
    assert read_drawn(out).studies["small"].stamp == ""
    assert not nothing_has_changed(records, out, [])


def test_only_what_shows_the_changed_record_is_made_again(records, out):
    times = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    change_arrays(records)
    assert report.draw_report(records, out).made == ["small/L_t"]
    changed = {path.stem for path, time in times.items() if path.stat().st_mtime_ns != time}
    assert changed == {"L_t"}


def test_drawn_bit_by_bit_or_at_once_the_bytes_are_the_same(study_runs, records, tmp_path):
    first = tmp_path / "some"
    out = tmp_path / "figures"
    shutil.copytree(records, first)
    for replicate in (0, 1):
        shutil.rmtree(a_run(first, "linear", replicate).path)
    report.report(first, out)
    assert "linear" not in (out / "small" / "results.csv").read_text()
    report.report(records, out)
    report.report(records, tmp_path / "at_once")
    assert files(out) == files(tmp_path / "at_once")


def test_what_was_removed_truncated_or_edited_is_made_again_and_nothing_else(records, out):
    before = files(out)
    (out / "small" / "samples.png").unlink()
    pdf = out / "small" / "L_t.pdf"
    pdf.write_bytes(pdf.read_bytes()[:100])
    with (out / "small" / "results.tex").open("a") as file:
        file.write("edited by hand")
    (out / "index.html").unlink()
    assert sorted(report.draw_report(records, out).made) == ["small/L_t", "small/results.tex", "small/samples"]
    assert files(out) == before


def test_other_code_or_other_libraries_draw_every_figure_again(records, out, monkeypatch):
    before = files(out)
    monkeypatch.setattr(drawing, "libraries", lambda: "matplotlib 99")
    assert set(report.draw_report(records, out).made) == FIGURES | {"claims"}
    monkeypatch.setattr(drawing, "code_of", lambda module: "edited" if module.endswith("fig_samples") else "other")
    assert set(report.draw_report(records, out).made) == FIGURES | {"claims"}
    monkeypatch.setattr(drawing, "code_of", lambda module: "again" if module.endswith("fig_samples") else "other")
    assert report.draw_report(records, out).made == ["small/samples"]
    assert files(out) == before


def test_other_code_ends_the_quick_look_at_the_files(records, out, settled, monkeypatch):
    report.report(records, out)
    assert nothing_has_changed(records, out, [])
    monkeypatch.setattr(stamps, "surroundings", lambda: "another version")
    assert not nothing_has_changed(records, out, [])


def test_a_fresh_report_draws_every_figure_again(records, out):
    before = files(out)
    assert set(report.draw_report(records, out, fresh=True).made) >= FIGURES
    assert files(out) == before


def test_a_damaged_record_of_what_was_drawn_is_no_record(records, out, caplog):
    for text in (
        "{",
        "[]",
        '{"format": 1}',
        '{"format": 1, "surroundings": 7, "page": [], "studies": {}, "outputs": {}}',
    ):
        (out / RECORD).write_text(text)
        assert read_drawn(out) == drawn.Drawn()
    assert set(report.draw_report(records, out).made) >= FIGURES
    assert "everything is drawn anew" in caplog.text


def test_a_figure_without_data_any_more_is_removed_unless_somebody_has_changed_it(records, out):
    for path in records.glob("[!.]*"):
        for name in ("eval_samples.npz", "eval_likelihood.npz"):
            (path / "arrays" / name).unlink()
    (out / "small" / "L_t.png").write_bytes(b"somebody's")
    report.report(records, out)
    names = {path.name for path in (out / "small").iterdir()}
    assert "samples.png" not in names and "samples.pdf" not in names and "L_t.pdf" not in names
    assert (out / "small" / "L_t.png").read_bytes() == b"somebody's"


def test_a_study_with_something_left_out_is_read_each_time_so_that_it_is_said_each_time(records, out, settled, caplog):
    run = a_run(records)
    run.study_path("small").write_text("{")
    report.report(records, out)
    assert read_drawn(out).studies["small"].stamp == ""
    assert run.key in caplog.text


def test_a_report_of_one_study_is_no_reason_to_call_another_current(records, out, settled):
    report.report(records, out)
    change_arrays(records)
    for path in records.glob("[!.]*"):
        shutil.copy(path / "studies" / "small.json", path / "studies" / "other.json")
    report.report(records, out, ["other"])
    assert not nothing_has_changed(records, out, [])
    assert report.draw_report(records, out).made == ["small/L_t"]


def test_a_run_that_fails_changes_captions_the_page_and_texts_and_draws_nothing(records, out):
    a_run(records).set_status(Status("failed", reason="out of memory"))
    assert {Path(name).stem for name in report.draw_report(records, out).made} == {"reproducibility"}
    assert (out / "index.html").read_text().count("The study has 4 runs, of them 1 failed.") == len(FIGURES)


def test_several_processes_draw_the_same_bytes_and_their_messages_are_logged_here(
    records, out, tmp_path, monkeypatch, caplog
):
    caplog.set_level("INFO", logger="harness")
    monkeypatch.setattr(report, "MANY_RUNS", 1)
    outcome = report.draw_report(records, tmp_path / "several", num_processes=2)
    assert files(tmp_path / "several" / "small") == files(out / "small")
    assert outcome.without_data["small"]["scaling figure"].startswith("arms that differ in size")
    a_run(records).study_path("small").write_text("{")
    report.draw_report(records, tmp_path / "several", num_processes=2)
    assert "small: left out: " in caplog.text


def test_results_of_several_processes_come_back_in_their_order():
    assert parallel.results([partial(sum, [number, 1]) for number in range(5)], 2) == [1, 2, 3, 4, 5]


def test_a_process_that_is_killed_is_an_error_that_says_what_to_do():
    with pytest.raises(HarnessError, match=r"one of 2 processes was killed, .* --jobs 1"):
        parallel.results([partial(os._exit, 9), partial(sum, [1])], 2)
