"""What bits depend on beyond the spec is recorded, and a resume under another value of it says so."""

import json

import pytest
import torch
from click.testing import CliRunner

from harness.cli import cli
from harness.job.job import run_job
from harness.records.directory import RunDirectory
from harness.training.loop import Interrupted


@pytest.fixture
def interrupted(tiny_run, monkeypatch):
    """A run that was stopped in the midst, with a checkpoint."""
    folder = tiny_run("", "records.keep_every=4")

    def stop(*_):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(
            "harness.job.job._Job._evaluate_during", lambda job, training, data, step: stop() if step == 6 else None
        )
        assert run_job(folder, sync=False, show_progress=False) == "interrupted"
    return folder


def pretend(folder, **facts):
    """Let the first attempt have run elsewhere."""
    path = folder / "environment.json"
    path.write_text(json.dumps([one | facts for one in json.loads(path.read_text())]))


def test_a_resume_under_another_torch_and_device_says_so(interrupted, caplog):
    caplog.set_level("INFO", "harness")
    pretend(interrupted, torch="1.13.1", device="NVIDIA H200")
    assert run_job(interrupted, sync=False, show_progress=False) == "done"
    (event,) = RunDirectory(interrupted).events("environment_changed")
    expected = f"torch 1.13.1 -> {torch.__version__}, device NVIDIA H200 -> cpu: the bits may differ from here on"
    assert event.fields == {"step": 4, "changes": expected}
    assert expected in caplog.text
    said = CliRunner().invoke(cli, ["why", interrupted.name, "--runs", str(interrupted.parent)]).output
    assert f"environment_changed  step=4 changes={expected}" in said


def test_a_resume_under_the_same_conditions_says_nothing(interrupted):
    assert run_job(interrupted, sync=False, show_progress=False) == "done"
    assert RunDirectory(interrupted).events("environment_changed") == []


def test_a_fact_that_an_older_record_lacks_is_not_a_change(interrupted):
    path = interrupted / "environment.json"
    (old,) = json.loads(path.read_text())
    del old["cpu_capability"], old["microbatch"]
    path.write_text(json.dumps([old]))
    run_job(interrupted, sync=False, show_progress=False)
    assert RunDirectory(interrupted).events("environment_changed") == []


def test_the_threads_are_those_of_the_first_attempt_or_it_says_so(interrupted):
    # They are taken up again, so that only a record which was edited or lost can differ.
    run_job(interrupted, sync=False, show_progress=False, threads=2)
    assert [one["threads"] for one in RunDirectory(interrupted).environments()] == [1, 1]


def test_a_start_from_nothing_is_no_change(tiny_run, monkeypatch):
    folder = tiny_run()
    directory = RunDirectory(folder)
    directory.write_environment(1, {"torch": "1.13.1", "threads": 1})
    assert run_job(folder, sync=False, show_progress=False) == "done"
    assert directory.events("environment_changed") == []
