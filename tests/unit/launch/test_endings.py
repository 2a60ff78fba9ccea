"""How a run ended, and what follows from it: by fields alone, so that every text for people may change.

tests/system/test_no_sentence_is_parsed.py runs these tests with all of them replaced.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.job.signals import StopSignals, stop_number
from harness.launch import manage, planning, requeue, states, worker
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.lock import FolderLock
from harness.records.status import Status
from harness.slurm.jobs import JobInfo
from harness.slurm.time_limit import TimeLimit
from harness.study.expand import load_study
from harness.study.model import Study


@pytest.fixture
def study(tmp_path: Path, tiny_study: Callable[..., list]) -> Callable[..., Study]:
    """Return a function that loads the tiny study with extra lines of YAML."""

    def load(extra: str = "", *sets: str) -> Study:
        tiny_study(extra)
        return load_study(tmp_path / "tiny.yaml", sets=sets)

    return load


def write(tmp_path: Path, run, status: Status) -> RunDirectory:
    directory = RunDirectory(tmp_path / "runs" / run.run_key)
    directory.register(run)
    directory.set_status(status)
    return directory


def submission_of(tmp_path: Path, run_key: str, **facts) -> SubmissionLayout:
    """Write the submission of a run to SLURM as job 7_0."""
    layout = SubmissionLayout(tmp_path / "runs" / ".jobs" / "tiny" / "20260101")
    layout.claims_folder.mkdir(parents=True)
    layout.claim_path(run_key).write_text("7_0")
    layout.submission_path.write_text(json.dumps({"cluster": "slurm", "runs": [run_key], "profile": {}} | facts))
    return layout


def attempt(directory: RunDirectory, step: int, *events: str) -> None:
    with directory.lock(), directory.open_journal(resumed_from_step=step) as journal:
        for name in events:
            journal.event(name, step=step)


BEGUN = "2026-01-01T00:00:00"


@pytest.mark.parametrize(
    ("status", "job", "state", "cause"),
    [
        (Status("queued"), JobInfo("7_0", "PENDING", live=True), "queued", ""),
        (Status("queued"), JobInfo("7_0", "RUNNING", "n1", live=True), "queued", ""),
        (Status("queued"), JobInfo("7_0", "CANCELLED", user="ada"), "interrupted", "cancelled"),
        (Status("queued"), None, "interrupted", "not_begun"),
        (Status("queued"), JobInfo("7_0", "COMPLETED", start=BEGUN), "interrupted", "not_begun"),
        (Status("queued"), JobInfo("7_0", "BOOT_FAIL"), "interrupted", "not_begun"),
        # A checkpoint was written and SLURM will begin the job again: nobody is to submit the run a second time.
        (
            Status("interrupted", cause="signal", stopped_by="SIGUSR2"),
            JobInfo("7_0", "PENDING", live=True),
            "queued",
            "",
        ),
        # Nobody holds the lock of these.
        (Status("running"), JobInfo("7_0", "OUT_OF_MEMORY", "n1", start=BEGUN), "interrupted", "out_of_memory"),
        (Status("running"), JobInfo("7_0", "NODE_FAIL", "n1", start=BEGUN), "interrupted", "killed"),
        (Status("running"), JobInfo("7_0", "PENDING", live=True), "queued", ""),
        (Status("running"), JobInfo("7_0", "SUSPENDED", "n1", live=True), "queued", ""),
        (Status("interrupted", cause="signal", stopped_by="SIGTERM"), None, "interrupted", "signal"),
        (Status("interrupted", cause="step_limit"), None, "interrupted", "step_limit"),
        (Status("interrupted", cause="killed"), JobInfo("7_0", "TIMEOUT", start=BEGUN), "interrupted", "killed"),
        (Status("failed", cause="error"), JobInfo("7_0", "COMPLETING", live=True), "failed", "error"),
    ],
)
def test_what_slurm_says_completes_what_the_run_directory_says(tmp_path, study, monkeypatch, status, job, state, cause):
    tiny = study()
    directory = write(tmp_path, tiny.runs[0], status)
    submission_of(tmp_path, directory.key)
    monkeypatch.setattr(states, "read_queue", lambda jobs: {"7_0": job} if job and set(jobs) == {"7_0"} else {})
    planned = planning.plan(tiny, tmp_path / "runs").runs[0]
    assert (planned.state, planned.status.cause) == (state, cause)
    assert bool(planned.status.stopped_by) == (cause == "signal")


def test_a_job_that_worked_on_a_run_and_was_forgotten_by_slurm_was_killed(tmp_path, study, monkeypatch):
    """Without accounting SLURM forgets a job a few minutes after its end; a task of an array is a job 17 to itself."""
    directory = write(tmp_path, study().runs[0], Status("running", step=30))
    submission_of(tmp_path, directory.key)
    directory.lock_folder.mkdir(parents=True)
    lock = directory.lock_folder / "000001"
    lock.write_text(json.dumps({"host": "n1", "slurm_job_id": "17"}))
    os.utime(lock, (0, 0))
    monkeypatch.setattr(states, "read_queue", lambda jobs: {})
    assert FolderLock(directory.lock_folder, "").slurm_job_id() == "17"
    status = states.read_run_states([directory.path])[directory.key].status
    assert (status.state, status.cause) == ("interrupted", "killed")


def test_a_job_that_is_suspended_is_neither_running_nor_waiting_for_nodes():
    suspended, running, pending = (JobInfo("7", state, live=True) for state in ("SUSPENDED", "RUNNING", "PENDING"))
    assert [job.is_suspended for job in (suspended, running, pending)] == [True, False, False]
    assert [job.waits for job in (suspended, running, pending)] == [False, False, True]


@pytest.mark.parametrize(
    ("received", "stays"),
    [
        (["SIGUSR2", "SIGTERM"], "SIGUSR2"),
        (["SIGTERM", "SIGUSR2"], "SIGUSR2"),
        (["SIGINT", "SIGTERM"], "SIGTERM"),
        (["SIGUSR2", "SIGINT"], "SIGUSR2"),
    ],
)
def test_the_signal_ahead_of_a_time_limit_outlasts_the_one_at_the_limit(received, stays):
    signals = StopSignals()
    with signals.caught():
        for name in received:
            signal.raise_signal(signal.Signals[name])
    assert signals.received == stays
    assert stop_number("SIGUSR2") > stop_number("SIGTERM") > stop_number("SIGINT") > stop_number("")


def test_a_run_whose_canary_failed_says_so(tmp_path, study, monkeypatch):
    canary, waiting = (write(tmp_path, run, Status("queued")) for run in study("replicates: 2\n").runs)
    canary.set_status(Status("failed", cause="error"))
    submission_of(tmp_path, waiting.key, canaries={"7": canary.key})
    monkeypatch.setattr(states, "read_queue", lambda jobs: {"7_0": JobInfo("7_0", "CANCELLED")})
    status = states.read_run_states([waiting.path])[waiting.key].status
    assert (status.state, status.cause) == ("interrupted", "canary")


def test_a_run_without_a_job_is_forgotten_after_ten_minutes(tmp_path, study):
    directory = write(tmp_path, study().runs[0], Status("queued"))
    assert states.read_run_states([directory.path])[directory.key].status.state == "queued"
    stored = json.loads(directory.status_path.read_text())
    directory.status_path.write_text(json.dumps(stored | {"updated_seconds": time.time() - 700}))
    status = states.read_run_states([directory.path])[directory.key].status
    assert (status.state, status.cause) == ("interrupted", "never_submitted")


@pytest.mark.parametrize(
    ("status", "killed", "failed"),
    [
        (Status("running"), True, False),  # nobody holds its lock
        (Status("interrupted", cause="killed"), True, False),
        (Status("interrupted", cause="out_of_memory"), True, False),
        (Status("interrupted", cause="signal", stopped_by="SIGTERM", reason="killed"), False, False),
        (Status("interrupted", cause="cancelled", reason="killed"), False, False),
        (Status("failed", cause="error", reason="killed"), False, True),
        (Status("failed", cause="no_progress"), False, True),
        (Status("done"), False, False),
    ],
)
def test_a_retry_chooses_by_cause(tmp_path, study, status, killed, failed):
    tiny = study()
    write(tmp_path, tiny.runs[0], status)
    plan = planning.plan(tiny, tmp_path / "runs")
    assert bool(manage.select_retries(plan, failed=False, killed=True).runs) == killed
    assert bool(manage.select_retries(plan, failed=True, killed=False).runs) == failed


# -------------------------------------------------------------------------------------------------- the requeue policy


@pytest.mark.parametrize(
    ("stopped_by", "killed", "preempted", "preemption_cancels", "action"),
    [
        ("SIGUSR2", False, False, False, "requeue"),  # the time limit
        ("SIGUSR2", False, False, True, "requeue"),
        ("SIGUSR2", False, True, False, "requeue"),
        ("SIGUSR2", False, True, True, "resubmit"),
        ("SIGTERM", False, True, False, "requeue"),
        ("SIGTERM", False, True, True, "resubmit"),
        ("SIGTERM", False, False, False, "none"),  # scancel
        ("SIGTERM", True, False, False, "none"),
        ("", True, False, False, "requeue"),
        ("", False, False, False, "none"),
    ],
)
def test_a_job_is_requeued_unless_a_person_ended_it(stopped_by, killed, preempted, preemption_cancels, action):
    facts = {"killed": killed, "preempted": preempted, "preemption_cancels": preemption_cancels}
    assert requeue.requeue_action(stopped_by, **facts) == action


@pytest.mark.parametrize(
    ("progress", "fields"),
    [
        ("checkpoint", {}),
        ("evaluation", {}),
        ("interrupted", {}),  # of an earlier version
        ("interrupted", {"cause": "signal", "stopped_by": "SIGTERM"}),
        ("interrupted", {"cause": "step_limit"}),
    ],
)
def test_progress_and_a_clean_end_are_no_failures(tmp_path, study, progress, fields):
    directory = write(tmp_path, study().runs[0], Status("running"))
    attempt(directory, 4)
    with directory.lock(), directory.open_journal(resumed_from_step=4) as journal:
        journal.event(progress, step=4, **fields)
    attempt(directory, 4)
    assert requeue.given_up(directory.path) is None


def lose_a_process(directory: RunDirectory) -> None:
    with directory.lock(), directory.open_journal(resumed_from_step=4) as journal:
        journal.event("interrupted", cause="killed", stopped_by="")
    directory.set_status(Status("interrupted", cause="killed"))


def test_the_loss_of_a_process_is_a_kill(tmp_path, study):
    directory = write(tmp_path, study().runs[0], Status("running"))
    for _ in range(2):
        lose_a_process(directory)
        assert requeue.given_up(directory.path) is None
    lose_a_process(directory)
    assert requeue.given_up(directory.path).cause == "no_progress"


def stop_in_an_evaluation(directory: RunDirectory, kept: int) -> None:
    """Write a life that came to its time limit within an evaluation that had kept so many batches before."""
    with directory.lock(), directory.open_journal(resumed_from_step=12, kept_batches=kept) as journal:
        journal.event("interrupted", cause="signal", stopped_by="SIGUSR2")
    directory.set_status(Status("interrupted", cause="signal", stopped_by="SIGUSR2"))


def keep_a_batch(directory: RunDirectory) -> None:
    folder = directory.kept_folder / "draw"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"batch-{directory.num_kept_batches():06d}-16-uint8-0.npy").touch()


def test_an_evaluation_that_keeps_batches_comes_back_from_any_number_of_time_limits(tmp_path, study):
    directory = write(tmp_path, study().runs[0], Status("running"))
    for kept in range(6):
        stop_in_an_evaluation(directory, kept)
        keep_a_batch(directory)
        assert requeue.given_up(directory.path) is None


def test_an_evaluation_that_comes_to_its_time_limit_three_times_within_one_batch_is_given_up(tmp_path, study):
    directory = write(tmp_path, study().runs[0], Status("running"))
    keep_a_batch(directory)
    for _ in range(3):
        assert requeue.given_up(directory.path) is None
        stop_in_an_evaluation(directory, 1)
    assert requeue.given_up(directory.path).cause == "no_progress"
    requeue.reset_kills(directory)  # as after a preemption
    assert requeue.given_up(directory.path) is None


def test_a_run_that_was_killed_three_times_at_one_step_is_given_up_until_a_retry(tmp_path, study):
    tiny = study()
    directory = write(tmp_path, tiny.runs[0], Status("running"))
    for _ in range(3):
        assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "interrupted"
        attempt(directory, 4)
    plan = planning.plan(tiny, tmp_path / "runs")
    assert (plan.runs[0].state, plan.runs[0].status.cause) == ("failed", "no_progress")
    assert manage.select_retries(plan, failed=True, killed=False).runs
    assert planning.plan(tiny, tmp_path / "runs").runs[0].state == "interrupted"


def test_three_starts_that_did_not_come_as_far_as_an_attempt_are_enough(tmp_path, study):
    directory = write(tmp_path, study().runs[0], Status("queued"))
    layout = submission_of(tmp_path, directory.key)
    assert [requeue.given_up_before_attempt(layout, directory.path, "n1") for _ in range(3)] == [None] * 3
    assert requeue.given_up_before_attempt(layout, directory.path, "n1").cause == "no_progress"
    layout.job_log_path("7_0").write_text("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0.\n")
    assert requeue.given_up_before_attempt(layout, directory.path, "n1").cause == "out_of_memory"
    requeue.reset_starts(layout, directory.path)
    assert requeue.given_up_before_attempt(layout, directory.path, "n1") is None


def test_what_a_run_itself_prints_is_no_kill_for_memory(tmp_path, study):
    directory = write(tmp_path, study().runs[0], Status("running"))
    for _ in range(3):
        attempt(directory, 4)
    submission_of(tmp_path, directory.key)
    with worker.printing_to(directory.log_path(3)):
        os.write(1, b"exceeded memory limit? no\n")
    assert b"exceeded memory limit" in directory.log_path(3).read_bytes()
    assert requeue.given_up(directory.path).cause == "no_progress"


@pytest.mark.parametrize(
    ("checkpoint_seconds", "seconds_left", "is_near"),
    [
        (20, 90, False),  # SIGUSR2 comes early enough
        (40, 130, True),  # one that may take 120 s does not end within the 90 s
        (40, 140, False),
        (10_000, 1900, False),  # never more than half of the limit
        (10_000, 1700, True),
    ],
)
def test_a_training_stops_ahead_of_a_signal_that_would_come_too_late(checkpoint_seconds, seconds_left, is_near):
    limit = TimeLimit(time.monotonic() + seconds_left, limit_seconds=3600, lead_seconds=90)
    assert limit.is_near(checkpoint_seconds) == is_near


@pytest.mark.parametrize(("seconds", "is_near"), [(1900, True), (1700, False)])
def test_what_a_job_takes_to_load_its_modules_and_imports_counts_towards_its_time_limit(monkeypatch, seconds, is_near):
    monkeypatch.setenv("HARNESS_JOB_BEGAN", str(int(time.time()) - seconds))
    assert TimeLimit.of_this_job(limit_seconds=3600, lead_seconds=90).is_near(10_000) == is_near
    monkeypatch.delenv("HARNESS_JOB_BEGAN")  # the script of an earlier version
    assert not TimeLimit.of_this_job(limit_seconds=3600, lead_seconds=90).is_near(10_000)


# -------------------------------------------------------------------------------------------------------- this machine
