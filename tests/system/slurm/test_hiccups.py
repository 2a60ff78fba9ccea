"""A live SLURM behind a wrapper that at times does not answer, and a runs folder of an odd name on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import LaunchError
from harness.launch import manage, planning, submit
from harness.records.status import Status
from harness.slurm import commands
from harness.slurm.commands import NoAnswer
from harness.slurm.jobs import live_jobs
from harness.slurm.profile import Profile
from harness.study.expand import load_study

pytestmark = pytest.mark.slurm


@pytest.fixture
def wrapper(tmp_path, slurm, monkeypatch) -> Callable[[str], Path]:
    """Return a function that puts a line of shell before the real squeue."""
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which("squeue")

    def write(line: str) -> Path:
        (folder / "squeue").write_text(f'#!/bin/sh\n{line}\nexec {real} "$@"\n')
        (folder / "squeue").chmod(0o755)
        return folder

    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(commands, "PAUSES_SECONDS", (0.1, 0.1))
    write(":")
    return write


@pytest.fixture
def study(tmp_path, tiny_study):
    tiny_study("")
    return load_study(tmp_path / "tiny.yaml")


def put(study, runs_folder: Path):
    profile = Profile(time_minutes=20, memory_gib=1.5)
    return submit.submit(planning.plan(study, runs_folder), cluster="slurm", profile=profile, sync=False)


def wait_for(done: Callable[[], object], seconds: float = 480) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, "it did not come to pass"
        time.sleep(0.2)


def test_a_requeued_run_is_submitted_once_however_squeue_fails_meanwhile(tmp_path, study, wrapper):
    wait_for(lambda: not live_jobs())  # SLURM takes a while to clean up behind the jobs of other tests
    subprocess.run(["scontrol", "update", "partitionname=main", "state=down"], check=True)  # none is to start
    try:
        first = put(study, tmp_path / "runs")
        [job] = first.jobs
        directory = first.runs[0].directory
        # As after SIGUSR2: its checkpoint is written, and its job waits to start again.
        directory.set_status(Status("interrupted", cause="signal", stopped_by="SIGUSR2"))
        wrapper("exit 1")
        with pytest.raises(NoAnswer, match="1 run may have a job in its queue"):
            put(study, tmp_path / "runs")
        with pytest.raises(LaunchError, match="Nothing was cancelled"):
            manage.cancel([directory])
        wrapper(f"[ -e {tmp_path}/hiccup ] || {{ : >{tmp_path}/hiccup; exit 1; }}")
        assert put(study, tmp_path / "runs").runs == []
        wrapper(":")
        assert set(live_jobs()) == {job.job_id}
        assert planning.plan(study, tmp_path / "runs").runs[0].state == "queued"
        assert manage.cancel([directory]) == [directory]
        wait_for(lambda: not live_jobs())
        assert planning.plan(study, tmp_path / "runs").runs[0].status.cause == "cancelled"
    finally:
        subprocess.run(["scontrol", "update", "partitionname=main", "state=up"], check=True)


@pytest.mark.parametrize("name", ['it\'s "q" [a]* ü;b&c$d #e'])
def test_jobs_run_in_a_folder_of_an_odd_name(tmp_path, study, slurm, name, monkeypatch):
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")  # would leave the job without the frozen code
    submission = put(study, tmp_path / name / "runs")
    wait_for(lambda: not submission.unfinished())
    assert [planned.state for planned in submission.now()] == ["done"]
    assert {path.name for path in tmp_path.iterdir()} == {name, "tiny.yaml"}
    logs = list(submission.folder.glob("*_log.out"))
    assert len(logs) == 1
