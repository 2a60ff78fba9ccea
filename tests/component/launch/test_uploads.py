"""What a submission uploads to MLflow by itself, because no job of it will."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.launch import planning
from harness.launch.submit import submit
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.study.expand import load_study
from harness.study.model import Study
from harness.testing import write_finished_run
from harness.tracking import sync
from harness.tracking.check import check


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture
def submit_study(tmp_path: Path, tiny_study: Callable[..., list], uri: str) -> Callable[..., Study]:
    """Return a function that writes all runs of a study as finished, submits it, and returns it."""

    def finish_and_submit(extra: str, *sets: str) -> Study:
        tiny_study(extra)
        study = load_study(tmp_path / "tiny.yaml", sets=sets)
        for run in study.runs:
            if RunDirectory(tmp_path / "runs" / run.run_key).status().state != "done":
                write_finished_run(run, tmp_path / "runs")  # and its submitter was killed before it uploaded anything
        submission = submit(planning.plan(study, tmp_path / "runs"), cluster="debug", tracking_uri=uri)
        assert submission.runs == []
        return study

    return finish_and_submit


def present_in_mlflow(uri: str, study: str) -> set[tuple[str, str]]:
    """Return run_key and name of the runs that MLflow's pages show under the filter of the documentation."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'run' and tags.asked_for = 'true'")
    return {(run.data.tags["run_key"], run.info.run_name) for run in runs}


def named(study: Study) -> set[tuple[str, str]]:
    return {(run.run_key, f"{run.arm} r{run.replicate}") for run in study.runs}


def test_runs_that_were_done_when_their_submitter_was_killed_are_uploaded_by_the_next_submission(
    tmp_path, submit_study, uri, monkeypatch
):
    study = submit_study("replicates: 2\n")
    for run in study.runs:
        report = check(RunDirectory(tmp_path / "runs" / run.run_key), tracking_uri=uri)
        assert report.ok and report.num_rows_compared > 0

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it is uploaded already")

    monkeypatch.setattr(sync, "sync_run", refuse)
    submit_study("replicates: 2\n")


def test_a_run_that_a_search_has_pruned_is_uploaded_too(tmp_path, submit_study, uri, tiny_study):
    [run] = tiny_study()
    directory = write_finished_run(run, tmp_path / "runs")
    directory.set_status(Status("pruned", 12, 12, 1, reason="no hope"))
    study = load_study(tmp_path / "tiny.yaml")
    submit(planning.plan(study, tmp_path / "runs"), cluster="debug", tracking_uri=uri)
    assert check(directory, tracking_uri=uri).ok


def test_after_every_edit_mlflow_shows_exactly_the_present_runs(submit_study, uri):
    edits = [
        "replicates: 3\n",
        "replicates: 2\n",
        "replicates: 2\narms: {renamed: {}, wide: {model.channels: 16}}\n",
        "arms: {wide: {}, renamed: {model.channels: 16}}\n",
        "replicates: 3\n",
    ]
    for extra in edits:
        study = submit_study(extra)
        assert present_in_mlflow(uri, "tiny") == named(study)
    study = submit_study("replicates: 2\n", "train.steps=11")
    assert present_in_mlflow(uri, "tiny") == named(study)
