"""The states of runs, and what a plan says of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from harness.launch import claims, manage, planning, requeue, states, submit
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.slurm.jobs import JobInfo
from harness.spec.base import SCHEMA_VERSION
from harness.study.expand import load_study
from harness.study.model import Study

EVALUATE = "evaluate: [{nll: {num_images: 16, evaluations_per_image: 4}}]\n"


@pytest.fixture
def study(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., Study]:
    """Return a function that loads the tiny study with extra lines of YAML."""

    def load(extra: str = "", *sets: str) -> Study:
        tiny_study(extra)
        return load_study(tmp_path / "tiny.yaml", sets=sets)

    return load


def write(runs_folder: Path, run, status: Status) -> RunDirectory:
    directory = RunDirectory(runs_folder / run.run_key)
    directory.create(run.spec.model_dump(mode="json"), SCHEMA_VERSION)
    directory.set_status(status)
    return directory


def files_below(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_without_records_every_run_is_new_and_planning_writes_nothing(tmp_path, study):
    plan = planning.plan(study("replicates: 3\n"), tmp_path / "runs")
    assert [planned.state for planned in plan.runs] == ["new"] * 3
    assert len(plan.to_do) == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("status", "state", "to_do"),
    [
        (Status("done", step=12), "done", False),
        (Status("failed", step=3, reason="boom"), "failed", True),
        (Status("interrupted", step=3), "interrupted", True),
        (Status("running", step=3), "interrupted", True),  # nobody holds its lock: it was killed
        (Status("queued"), "queued", False),
        (Status("pruned"), "pruned", False),
    ],
)
def test_a_run_is_to_do_unless_it_is_done_queued_or_pruned(tmp_path, study, status, state, to_do):
    tiny = study()
    write(tmp_path / "runs", tiny.runs[0], status)
    before = files_below(tmp_path)
    plan = planning.plan(tiny, tmp_path / "runs")
    assert plan.runs[0].state == state
    assert bool(plan.to_do) == to_do
    assert files_below(tmp_path) == before


def test_a_run_with_a_living_writer_is_left_alone(tmp_path, study):
    tiny = study()
    directory = write(tmp_path / "runs", tiny.runs[0], Status("running"))
    with directory.lock():
        plan = planning.plan(tiny, tmp_path / "runs")
        assert plan.runs[0].state == "running"
        assert not plan.to_do


def test_a_done_run_of_which_more_is_asked_is_to_be_evaluated(tmp_path, study):
    tiny = study(EVALUATE)
    directory = write(tmp_path / "runs", tiny.runs[0], Status("done", step=12))
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "evaluate"
    with directory.lock(), directory.open_journal(resumed_from_step=12) as journal:
        journal.event("evaluation", key=tiny.runs[0].evaluations[0].key)
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "done"
    another = study(EVALUATE.replace("16", "17"))
    assert planning.plan(another, tmp_path / "runs").runs[0].state == "evaluate"


def test_a_torn_line_is_no_evaluation(tmp_path, study):
    tiny = study(EVALUATE)
    directory = write(tmp_path / "runs", tiny.runs[0], Status("done", step=12))
    with directory.lock(), directory.open_journal(resumed_from_step=12) as journal:
        journal.event("evaluation", key=tiny.runs[0].evaluations[0].key)
    path = directory.path / "journal-0001.jsonl"
    path.write_bytes(path.read_bytes()[:-2])
    assert directory.evaluated_keys() == set()


def test_the_cost_is_what_is_left_at_the_recorded_throughput(tmp_path, study):
    tiny = study("replicates: 2\n")
    runs = tmp_path / "runs"
    assert planning.plan(tiny, runs).training_seconds(planning.plan(tiny, runs).runs[0]) is None
    write(runs, tiny.runs[1], Status("interrupted", step=8))
    (runs / ".throughput").mkdir()
    measured = {"seconds_per_step": 2.0, "device": "cpu", "threads": 1, "kernels": "fused"}
    (runs / ".throughput" / f"{tiny.runs[0].spec.cost_key}.json").write_text(json.dumps(measured))
    plan = planning.plan(tiny, runs)
    assert [plan.training_seconds(planned) for planned in plan.runs] == [24.0, 8.0]
    assert plan.measured(plan.runs[0]).device == "cpu"
    done = replace(plan.runs[0], state="done")
    assert plan.training_seconds(done) == 0.0


def test_a_plan_as_json_has_exactly_the_promised_fields(tmp_path, study):
    tiny = study()
    run = tiny.runs[0]
    assert planning.plan(tiny, tmp_path / "runs").as_json() == {
        "study": "tiny",
        "runs": [
            {
                "run_key": run.run_key,
                "state": "new",
                "arm": "base",
                "replicate": 0,
                "run_dir": str(tmp_path / "runs" / run.run_key),
                "evaluations": [],
            }
        ],
        "no_longer_asked_for": [],
    }


def claim_of(tmp_path: Path, run_key: str, job_id: str = "7_0", **facts) -> claims.Claim:
    folder = tmp_path / "runs" / ".jobs" / "tiny" / f"20260101-{time.monotonic_ns()}"
    (folder / "claims").mkdir(parents=True)
    (folder / "claims" / run_key).write_text(job_id)
    (folder / "submission.json").write_text(json.dumps({"cluster": "slurm", "runs": [run_key], "profile": {}} | facts))
    return claims.Claim(folder, (job_id,))


@pytest.mark.parametrize(
    ("status", "job", "reason"),
    [
        (Status("queued"), JobInfo("7_0", "PENDING", reason="Priority", live=True), "(Priority)"),
        (Status("queued"), JobInfo("7_0", "RUNNING", "n1", live=True), "starting on n1"),
        (Status("queued"), JobInfo("7_0", "CANCELLED", user="ada"), "CANCELLED by ada"),
        (Status("queued"), None, "SLURM no longer knows its job 7_0: cancelled before it started"),
        (Status("queued"), JobInfo("7_0", "COMPLETED"), "job 7_0 finished but never ran this run"),
        (
            Status(
                "interrupted", cause="signal", stopped_by="SIGUSR2", reason="stopped by SIGUSR2; resubmit to resume"
            ),
            JobInfo("7_0", "PENDING", reason="BeginTime", live=True),
            "(BeginTime); requeued, stopped by SIGUSR2",
        ),
        (
            Status("running", step=3),  # and nobody holds its lock
            JobInfo("7_0", "OUT_OF_MEMORY", "n1", start="2026-01-01T00:00:00"),
            "killed: OUT_OF_MEMORY on n1",
        ),
    ],
)
def test_people_are_told_why_a_run_waits_or_ended(tmp_path, study, monkeypatch, status, job, reason):
    tiny = study()
    directory = write(tmp_path / "runs", tiny.runs[0], status)
    claim_of(tmp_path, directory.key)
    monkeypatch.setattr(states, "read_queue", lambda jobs: {"7_0": job} if job and set(jobs) == {"7_0"} else {})
    assert planning.plan(tiny, tmp_path / "runs").runs[0].status.reason == reason


@pytest.mark.parametrize("old", [False, True])
def test_a_run_that_was_cancelled_says_by_whom_and_when(tmp_path, study, monkeypatch, old):
    tiny = study()
    stopped = Status("interrupted", cause="signal", stopped_by="SIGTERM")
    directory = write(tmp_path / "runs", tiny.runs[0], stopped)
    claim = claim_of(tmp_path, directory.key)
    before = time.time()
    claims.mark_cancelled(claim.folder, directory.key, "ada")
    path = claim.folder / "cancelled" / directory.key
    if old:  # the name alone, and the file's time
        path.write_text("ada\n")
        os.utime(path, (7, 7))
    monkeypatch.setattr(states, "read_queue", lambda jobs: {})
    status = planning.plan(tiny, tmp_path / "runs").runs[0].status
    assert (status.cause, status.reason) == ("cancelled", "cancelled by ada")
    cancelled_seconds = claim.cancellation(directory.key).cancelled_seconds
    assert cancelled_seconds == 7 if old else before <= cancelled_seconds <= time.time()


def attempt(directory: RunDirectory, step: int, *events: str) -> None:
    with directory.lock(), directory.open_journal(resumed_from_step=step) as journal:
        for name in events:
            journal.event(name, step=step)


def test_three_kills_without_progress_leave_a_run_failed_until_a_retry(tmp_path, study):
    tiny = study()
    runs = tmp_path / "runs"
    directory = write(runs, tiny.runs[0], Status("running"))
    attempt(directory, 0, "checkpoint")
    for _ in range(2):
        attempt(directory, 4)
    assert planning.plan(tiny, runs).runs[0].state == "interrupted"
    attempt(directory, 4)
    plan = planning.plan(tiny, runs)
    assert plan.runs[0].state == "failed"
    assert plan.runs[0].status.reason.startswith("killed 3 times at step 4 without progress: on ")
    assert submit.submit(plan, cluster="debug", sync=False).runs == []
    again = manage.select_retries(plan, failed=True, killed=False)
    assert [planned.run_key for planned in again.to_do] == [directory.key]
    assert requeue.given_up(directory.path) is None


def test_what_a_changed_study_no_longer_asks_for_is_found_unless_another_study_does(tmp_path, study):
    before = study("replicates: 3\n")
    runs = tmp_path / "runs"
    for run in before.runs:
        write(runs, run, Status("queued")).add_to_study("tiny", run.membership())
    RunDirectory(runs / before.runs[2].run_key).add_to_study("another", {})
    plan = planning.plan(study("replicates: 1\n"), runs)
    assert [orphan.key for orphan in manage.orphans(plan)] == [before.runs[1].run_key]


def test_a_run_of_a_version_without_logs_of_its_own_has_its_newest_jobs(tmp_path):
    for stamp, job in (("20260101-000000-1", "11"), ("20260102-000000-1", "12")):
        folder = tmp_path / ".jobs" / "tiny" / stamp
        (folder / "claims").mkdir(parents=True)
        (folder / "claims" / "aaaa").write_text(job)
        (folder / f"{job}_0_log.out").write_text(f"job {job}\n")
    assert claims.run_log(tmp_path, "aaaa") == tmp_path / ".jobs" / "tiny" / "20260102-000000-1" / "12_0_log.out"
    (folder / "aaaa_log.out").touch()  # of a run that shared its job
    assert claims.run_log(tmp_path, "aaaa") == folder / "aaaa_log.out"


@pytest.mark.parametrize("content", ["", "{", "[]", "7"])
def test_a_damaged_description_of_a_submission_ends_no_status(tmp_path, study, content):
    tiny = study()
    directory = write(tmp_path / "runs", tiny.runs[0], Status("interrupted", step=3))
    claim = claim_of(tmp_path, directory.key)
    (claim.folder / "submission.json").write_text(content)
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "interrupted"


def test_a_run_that_no_job_took_has_no_log(tmp_path):
    assert claims.run_log(tmp_path, "aaaa") is None
    assert claims.job_log(tmp_path, "aaaa") is None
