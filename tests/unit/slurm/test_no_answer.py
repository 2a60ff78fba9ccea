"""A question to SLURM has three answers: the job is there, it is gone, or there is no answer; the last decides nothing.

Programs that fail, hang or print something else stand in for SLURM's.
"""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from harness.cli import status_view
from harness.errors import LaunchError
from harness.launch import manage, planning, states, submit
from harness.launch.requeue import given_up_before_attempt
from harness.launch.slurm_job import Task, _AttemptEnd
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.status import Status
from harness.slurm import commands, jobs
from harness.slurm.commands import NoAnswer
from harness.study.expand import load_study

pytestmark = pytest.mark.process

REQUEUED = Status("interrupted", cause="signal", stopped_by="SIGUSR2", reason="stopped by SIGUSR2")
PENDING = "7_0|PENDING||BeginTime|N/A|17"
NO_ANSWERS = {
    "fails": "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1",
    "hangs": "exec /bin/sleep 20",
    "prints something else": "echo 'error: Unable to contact slurm controller'",
    "is killed": "kill -9 $$",
}


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(commands, "PAUSES_SECONDS", (0.0, 0.0))
    monkeypatch.setattr(commands, "TIMEOUT_SECONDS", 5.0)


@pytest.fixture
def study(tmp_path, tiny_study):
    tiny_study("")
    return load_study(tmp_path / "tiny.yaml")


@pytest.fixture
def requeued(tmp_path, study) -> RunDirectory:
    """Return a run that wrote a checkpoint when SLURM asked it to, and whose job 7_0 was requeued."""
    directory = RunDirectory(tmp_path / "runs" / study.runs[0].run_key)
    directory.register(study.runs[0])
    directory.set_status(REQUEUED)
    claim(directory, "20260101", "7_0")
    return directory


def claim(directory: RunDirectory, stamp: str, *job_ids: str, cluster: str = "slurm") -> SubmissionLayout:
    layout = SubmissionLayout(directory.path.parent / ".jobs" / "tiny" / stamp)
    layout.claims_folder.mkdir(parents=True)
    layout.claim_path(directory.key).write_text("\n".join(job_ids))
    description = {"cluster": cluster, "runs": [directory.key], "profile": {}}
    layout.submission_path.write_text(json.dumps(description))
    return layout


def plan_of(study, directory: RunDirectory) -> planning.Plan:
    return planning.plan(study, directory.path.parent)


def state_of(directory: RunDirectory) -> states.RunState:
    return states.read_run_states([directory.path])[directory.key]


def below(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def once(tmp_path: Path, first: str, later: str) -> str:
    """Return a script that does one thing at its first call and another at all later ones."""
    return f"if [ ! -e {tmp_path}/called ]; then : >{tmp_path}/called; {first}; else {later}; fi"


# --------------------------------------------------------------------------------------------------- the three answers


def test_a_job_is_present_absent_or_unknown(fake_program):
    fake_program("squeue", f"echo '{PENDING}'")
    answer = jobs.ask_queue(lambda: jobs.read_queue(["7_0", "8"]))
    assert (answer.presence("7_0"), answer.presence("8")) == ("present", "absent")
    fake_program("squeue", "exit 1")
    answer = jobs.ask_queue(lambda: jobs.read_queue(["7_0", "8"]))
    assert (answer.presence("7_0"), answer.presence("8")) == ("unknown", "unknown")


@pytest.mark.parametrize("script", NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_whatever_is_no_list_of_jobs_is_no_answer(fake_program, monkeypatch, script):
    monkeypatch.setattr(commands, "TIMEOUT_SECONDS", 0.3)
    fake_program("squeue", script)
    with pytest.raises(NoAnswer):
        jobs.read_queue(["7_0"])


def test_a_warning_beside_the_list_is_no_failure(fake_program):
    fake_program("squeue", f"echo 'warning: slow controller'; echo '{PENDING}'")
    assert set(jobs.read_queue(["7_0"])) == {"7_0"}


def test_a_task_of_an_array_is_found_by_the_number_that_it_has_within_itself(fake_program):
    fake_program("squeue", f"echo '{PENDING}'")
    fake_program("sacct", "echo '7_1|COMPLETED|n1|0:0|2026-01-01T00:00:00|2026-01-01T01:00:00|18'")
    queue = jobs.read_queue(["17", "18"])
    assert {number: job.job_id for number, job in queue.items()} == {"17": "7_0", "18": "7_1"}


def test_it_is_asked_again_while_slurm_does_not_answer_but_not_for_a_missing_program(fake_program, tmp_path):
    fake_program("squeue", once(tmp_path, "exit 1", f"echo '{PENDING}'"))
    assert jobs.ask_queue(lambda: jobs.read_queue(["7_0"]), wait=True).presence("7_0") == "present"
    (tmp_path / "bin" / "squeue").unlink()
    calls: list[int] = []

    def query():
        calls.append(1)
        return jobs.read_queue(["7_0"])

    assert "squeue not found" in jobs.ask_queue(query, wait=True).failure
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SQUEUE_STATES", "RUNNING"),
        ("SQUEUE_PARTITION", "debug"),
        ("SQUEUE_FORMAT", "%i"),
        ("SQUEUE_USERS", "ada"),
        ("SLURM_TIME_FORMAT", "relative"),
    ],
)
def test_a_users_defaults_of_squeue_hide_no_job(fake_program, monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    fake_program("squeue", f'[ -n "${variable}" ] || echo "{PENDING}"')
    assert jobs.ask_queue(lambda: jobs.read_queue(["7_0"])).presence("7_0") == "present"


@pytest.mark.parametrize("variable", ["SCANCEL_INTERACTIVE", "SCANCEL_STATE", "SCANCEL_USER"])
def test_a_users_defaults_of_scancel_keep_no_job(fake_program, monkeypatch, variable):
    monkeypatch.setenv(variable, "PENDING")
    fake_program("scancel", f'[ -z "${variable}" ]')
    jobs.cancel_jobs(["7_0"])


# --------------------------------------------------------------------------------------------------- submit and status


@pytest.mark.slow
@pytest.mark.parametrize("script", NO_ANSWERS.values(), ids=NO_ANSWERS)
@pytest.mark.parametrize("cluster", ["slurm", "local"])
def test_a_run_that_may_be_in_the_queue_is_not_submitted_again(
    fake_program, monkeypatch, tmp_path, study, requeued, script, cluster
):
    monkeypatch.setattr(commands, "TIMEOUT_SECONDS", 0.3)
    fake_program("squeue", script)
    fake_program("sbatch", f"echo submitted >>{tmp_path}/calls; echo 9")
    before = below(tmp_path / "runs")
    with pytest.raises(NoAnswer, match=r"1 run may have a job in its queue: squeue .*Nothing was submitted"):
        submit.submit(plan_of(study, requeued), cluster=cluster, sync=False)
    assert below(tmp_path / "runs") == before
    assert not (tmp_path / "calls").exists()


def test_a_submission_waits_for_an_answer_and_then_leaves_the_requeued_run_alone(
    fake_program, tmp_path, study, requeued
):
    fake_program("squeue", once(tmp_path, "exit 1", f"echo '{PENDING}'"))
    plan = plan_of(study, requeued)
    assert plan.to_do and plan.runs[0].unanswered
    assert submit.submit(plan, cluster="slurm", sync=False).runs == []
    assert plan_of(study, requeued).runs[0].state == "queued"


def test_a_retry_asks_too(fake_program, tmp_path, study, requeued):
    fake_program("squeue", "exit 1")
    requeued.set_status(Status("interrupted", cause="killed"))
    chosen = manage.select_retries(plan_of(study, requeued), failed=False, killed=True)
    with pytest.raises(NoAnswer):
        submit.submit(chosen, cluster="slurm", sync=False)


def test_status_says_that_slurm_does_not_answer(fake_program, requeued):
    fake_program("squeue", "echo down >&2; exit 1")
    [row] = status_view.status_rows([requeued])
    assert (row.state, row.reason) == (
        "interrupted",
        "SLURM does not answer: squeue failed: down; stopped by SIGUSR2",
    )


def test_without_a_claim_on_slurm_its_silence_does_not_matter(fake_program, tmp_path, study, requeued):
    for path in sorted((tmp_path / "runs" / ".jobs").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert not plan_of(study, requeued).runs[0].unanswered
    claim(requeued, "20260102", "4711", cluster="local")
    assert not plan_of(study, requeued).runs[0].unanswered


# --------------------------------------------------------------------------------------------------- several claims


def test_an_older_claim_counts_while_its_job_is_in_the_queue(fake_program, study, requeued):
    claim(requeued, "20260102", "8_0")
    fake_program("squeue", f"echo '{PENDING}'")
    fake_program("sacct", "echo '8_0|COMPLETED|n1|0:0|2026-01-01T00:00:00|2026-01-01T01:00:00|18'")
    state = state_of(requeued)
    assert (state.status.state, state.job.job_id) == ("queued", "7_0")
    assert not plan_of(study, requeued).to_do


def test_a_run_that_trains_is_running_though_a_later_job_waited_for_it_in_vain(fake_program, monkeypatch, requeued):
    claim(requeued, "20260102", "8_0")
    fake_program("sacct", "echo '8_0|COMPLETED|n1|0:0|2026-01-01T00:00:00|2026-01-01T01:00:00|18'")
    requeued.set_status(Status("running", step=3))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    for queue in ("7_0|RUNNING|n1|None|2026-01-01T00:00:00|17", ""):  # squeue may lag behind, too
        fake_program("squeue", f"echo '{queue}'")
        with requeued.lock():
            assert state_of(requeued).status.state == "running"


def test_a_run_whose_holders_job_has_ended_is_interrupted_before_its_heartbeat_is_old(
    fake_program, monkeypatch, requeued
):
    fake_program("squeue", "")
    fake_program("sacct", "echo '7_0|NODE_FAIL|n1|0:0|2026-01-01T00:00:00|2026-01-01T01:00:00|17'")
    requeued.set_status(Status("running", step=3))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with requeued.lock():
        status = state_of(requeued).status
    assert (status.state, status.cause) == ("interrupted", "killed")


def _leave_lock(directory: RunDirectory, number: str) -> None:
    """Leave the lock of a process that was killed on another machine in job `number`."""
    directory.lock_folder.mkdir()
    owner = {"host": "n1", "machine": "n1", "pid": 1, "started": "1", "slurm_job_id": number, "heartbeat": 0}
    (directory.lock_folder / "000001").write_text(json.dumps(owner | {"slurm_restart_count": "0"}))


def test_the_job_that_the_lock_names_counts_without_a_claim(fake_program, tmp_path, study, requeued):
    for path in (tmp_path / "runs" / ".jobs").rglob("claims/*"):
        path.unlink()
    requeued.set_status(Status("running", step=3))
    _leave_lock(requeued, "17")
    fake_program("squeue", f"echo '{PENDING}'")
    assert state_of(requeued).status.state == "queued"
    fake_program("squeue", "exit 1")
    with pytest.raises(NoAnswer):
        submit.submit(plan_of(study, requeued), cluster="slurm", sync=False)
    fake_program("squeue", "")
    assert state_of(requeued).status.state == "interrupted"


def test_an_interactive_job_in_which_a_local_worker_was_killed_is_not_the_runs_own(fake_program, tmp_path, requeued):
    (tmp_path / "runs" / ".jobs" / "tiny" / "20260101").rename(tmp_path / "elsewhere")
    claim(requeued, "20260102", "4711", cluster="local")
    requeued.set_status(Status("running", step=3))
    _leave_lock(requeued, "17")
    fake_program("squeue", "echo '17|RUNNING|n1|None|2026-01-01T00:00:00|17'")
    state = state_of(requeued)
    assert (state.status.state, state.job) == ("interrupted", None)


def test_a_job_that_a_colleague_submitted_from_the_same_folder_is_no_absent_job(fake_program, tmp_path, requeued):
    path = tmp_path / "runs" / ".jobs" / "tiny" / "20260101" / "submission.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"user": "nobody-of-that-name"}))
    fake_program("squeue", f"case \"$*\" in *--me*|*--user*) ;; *--jobs=*) echo '{PENDING}';; esac")
    assert state_of(requeued).status.state == "queued"


# -------------------------------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize("status", [REQUEUED, Status("queued"), Status("running", step=3)])
def test_nothing_is_cancelled_while_slurm_does_not_answer(fake_program, tmp_path, requeued, status):
    requeued.set_status(status)
    fake_program("squeue", "exit 1")
    fake_program("scancel", f"echo $@ >>{tmp_path}/calls")
    before = below(tmp_path / "runs")
    with pytest.raises(LaunchError, match="Nothing was cancelled"):
        manage.cancel([requeued])
    assert below(tmp_path / "runs") == before
    assert not (tmp_path / "calls").exists()


def test_a_cancel_ends_the_jobs_of_all_claims_and_asks_again_after_a_hiccup(fake_program, tmp_path, requeued):
    claim(requeued, "20260102", "8_0")
    fake_program("squeue", f"echo '{PENDING}'; echo '8_0|PENDING||Priority|N/A|8'")
    fake_program("scancel", once(tmp_path, "exit 1", f"echo $@ >>{tmp_path}/calls"))
    assert manage.cancel([requeued]) == [requeued]
    assert (tmp_path / "calls").read_text() == "--quiet 7_0 8_0\n"
    fake_program("squeue", "")
    assert state_of(requeued).status.cause == "cancelled"


# ------------------------------------------------------------------------------------------------------ within a job


@pytest.mark.parametrize("script", ["exit 1", "echo garbage"])
def test_a_job_near_its_time_limit_is_requeued_though_slurm_does_not_say_whether_it_is_preempted(
    fake_program, monkeypatch, tmp_path, requeued, script
):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    fake_program("scontrol", f'[ "$1" = requeue ] && echo $@ >>{tmp_path}/calls && exit 0; {script}')
    folder = tmp_path / "runs" / ".jobs" / "tiny" / "20260101"
    Task(folder, 1)._requeue_if_needed(_AttemptEnd(stopped_by=signal.SIGUSR2.name), [requeued.path])
    assert (tmp_path / "calls").read_text() == "requeue 17\n"


def test_a_run_whose_attempt_has_begun_is_requeued_at_its_time_limit_without_a_question(
    fake_program, monkeypatch, tmp_path, requeued
):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    fake_program("scontrol", f"echo $@ >>{tmp_path}/calls")
    folder = tmp_path / "runs" / ".jobs" / "tiny" / "20260101"
    assert given_up_before_attempt(SubmissionLayout(folder), requeued.path, "n1") is None  # counts this start
    end = _AttemptEnd(stopped_by=signal.SIGUSR2.name)
    Task(folder, 1)._requeue_if_needed(end, [requeued.path])
    assert (tmp_path / "calls").read_text() == "--oneliner show job 17\nrequeue 17\n"  # stopped before it began
    with requeued.lock(), requeued.open_journal(resumed_from_step=0):
        pass
    (tmp_path / "calls").unlink()
    Task(folder, 1)._requeue_if_needed(end, [requeued.path])
    assert (tmp_path / "calls").read_text() == "requeue 17\n"
    (tmp_path / "calls").unlink()
    Task(folder, 1, preemption_cancels=True)._requeue_if_needed(end, [requeued.path])
    assert (tmp_path / "calls").read_text() == "--oneliner show job 17\nrequeue 17\n"  # its answer decides


def test_a_requeue_that_slurm_does_not_hear_is_asked_for_again(fake_program, monkeypatch, tmp_path, requeued):
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    again = once(tmp_path, "exit 1", f"echo $@ >>{tmp_path}/calls")
    fake_program("scontrol", f'[ "$1" = requeue ] || exit 0; {again}')
    folder = tmp_path / "runs" / ".jobs" / "tiny" / "20260101"
    Task(folder, 1)._requeue_if_needed(_AttemptEnd(killed=True), [requeued.path])
    assert (tmp_path / "calls").read_text() == "requeue 17\n"
