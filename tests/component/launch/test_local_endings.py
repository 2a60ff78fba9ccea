from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.launch import manage, planning, submit
from harness.study.expand import load_study
from harness.study.model import Study

LONG = ("train.steps=3000", "records.checkpoint_every_seconds=0.2")


@pytest.fixture
def study(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., Study]:
    """Return a function that loads the tiny study with extra lines of YAML."""

    def load(extra: str = "", *sets: str) -> Study:
        tiny_study(extra)
        return load_study(tmp_path / "tiny.yaml", sets=sets)

    return load


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "cause", "stopped_by"), [(signal.SIGTERM, "signal", "SIGTERM"), (signal.SIGKILL, "killed", "")]
)
def test_a_local_run_that_is_stopped_or_killed_says_so_and_goes_on(tmp_path, study, number, cause, stopped_by):
    long = study("", *LONG)
    submission = submit.submit(planning.plan(long, tmp_path / "runs"), sync=False)
    directory = submission.runs[0].directory
    submission.start()
    while not directory.events("checkpoint"):
        assert submission.alive(), "it ended before it could be disturbed"
        time.sleep(0.05)
    os.kill(directory.writer()["pid"], number)
    while submission.alive():
        time.sleep(0.05)
    plan = planning.plan(long, tmp_path / "runs")
    [planned] = plan.runs
    assert (planned.state, planned.status.cause, planned.status.stopped_by) == ("interrupted", cause, stopped_by)
    assert bool(manage.select_retries(plan, failed=False, killed=True).runs) == (cause == "killed")
    assert [path.name for path in directory.log_paths()] == ["attempt-0001.log"]
    again = submit.submit(plan, sync=False)
    again.start()
    while len(directory.events("started")) < 2:
        assert again.alive(), "it ended before it began"
        time.sleep(0.05)
    again.stop()
    assert directory.events("started")[1].fields["resumed_from_step"] > 0
    assert [path.name for path in directory.log_paths()] == ["attempt-0001.log", "attempt-0002.log"]
