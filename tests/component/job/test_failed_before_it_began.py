"""Whatever fails before a run begins leaves the state, the reason and an attempt in its records."""

from __future__ import annotations

import json
import re
import sys

import pytest

from harness.job.job import run_job
from harness.launch.worker import execute_run
from harness.records.directory import RunDirectory


def torchrun_forgot_a_variable(directory, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "0")
    return "LOCAL_RANK is not set: unset WORLD_SIZE if"


def the_request_of_a_study_is_damaged(directory, monkeypatch):
    path = directory.study_path("tiny")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"resources": {"threads": "many"}}))
    return "threads"


def the_spec_is_of_another_version(directory, monkeypatch):
    stored = json.loads(directory.spec_path.read_text())
    directory.spec_path.write_text(json.dumps(stored | {"spec": stored["spec"] | {"of_tomorrow": 1}}))
    return "of_tomorrow"


def torch_cannot_be_imported(directory, monkeypatch):
    monkeypatch.setitem(sys.modules, "harness.job.job", None)
    return "ModuleNotFoundError|ImportError"


@pytest.mark.parametrize(
    "damage",
    [
        torchrun_forgot_a_variable,
        the_request_of_a_study_is_damaged,
        the_spec_is_of_another_version,
        torch_cannot_be_imported,
    ],
)
def test_a_run_that_fails_before_it_begins_says_so(tiny_run, monkeypatch, damage):
    path = tiny_run("", "resources.processes_per_node=2")
    directory = RunDirectory(path)
    words = damage(directory, monkeypatch)
    assert execute_run(path, 1, False, None, logged=False) == "failed"
    status = directory.status()
    assert (status.state, status.cause) == ("failed", "error")
    if damage is not torch_cannot_be_imported:  # which does not come as far as an attempt
        [event] = directory.events("failed")
        assert event.fields["reason"] == status.reason
        assert status.attempt == 1
    assert re.search(words, status.reason)
    assert directory.writer() is None


def test_the_progress_of_a_run_that_then_fails_to_begin_is_kept(tiny_run, monkeypatch):
    path = tiny_run("", "resources.processes_per_node=2")
    directory = RunDirectory(path)
    with directory.lock(), directory.open_journal(resumed_from_step=0) as journal:
        journal.metrics(4, {"train/loss": 1.0})
        journal.event("checkpoint", step=4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run_job(path, sync=False) == "failed"
    assert directory.durable_step() == 4
    assert directory.history("train/loss") == ([4], [1.0])


def test_a_run_that_another_process_works_on_is_not_called_failed(tiny_run, monkeypatch, capsys):
    path = tiny_run("", "resources.processes_per_node=2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with RunDirectory(path).lock():
        assert run_job(path, sync=False) == "failed"
    assert RunDirectory(path).status().state == "new"
    assert RunDirectory(path).attempts() == []


def test_a_store_that_cannot_be_named_keeps_no_run_from_its_training(tiny_run):
    path = tiny_run("", "train.steps=2")
    assert run_job(path, sync=True, tracking_uri="a/folder", show_progress=False) == "done"
