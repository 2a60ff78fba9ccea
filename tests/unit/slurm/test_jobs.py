"""What SLURM says of jobs is taken as it is; no answer is an error, and never an empty queue."""

from __future__ import annotations

import getpass
import os
import subprocess
import time

import pytest

from harness.errors import LaunchError
from harness.slurm import jobs
from harness.slurm.jobs import JobAttempt, JobInfo

pytestmark = pytest.mark.process  # programs that stand in for SLURM's

SQUEUE = """\
7_0|PENDING||BeginTime|2026-11-22T19:40:00
7_1|RUNNING|n1|None|2026-11-22T19:30:05
9|PENDING||Priority|N/A
"""
SACCT = """\
7_0|NODE_FAIL|n2|0:0|2026-11-22T19:00:00|2026-11-22T19:10:00
7_0|PENDING|None assigned|0:0|Unknown|Unknown
7_2|CANCELLED by 4294967|n1|0:15|2026-11-22T19:30:05|2026-11-22T19:30:50
7_3|OUT_OF_MEMORY|n1|0:125|2026-11-22T19:30:05|2026-11-22T19:30:50
"""


def print_table(table: str) -> str:
    return f'while read -r line; do echo "$line"; done <<END\n{table}END'


def test_without_jobs_slurm_is_not_asked(fake_program):
    assert jobs.read_queue([]) == {}


def test_a_machine_without_slurm_is_told_apart_from_an_empty_queue(fake_program):
    with pytest.raises(LaunchError, match="squeue not found; run this on a login node"):
        jobs.read_queue(["7_0"])


def test_a_queue_that_does_not_answer_is_told_apart_from_an_empty_one(fake_program):
    fake_program("sacct", print_table(SACCT))
    fake_program("squeue", "exit 1")
    for ask in (lambda: jobs.read_queue(["7_0"]), jobs.live_jobs):
        with pytest.raises(LaunchError, match="squeue failed"):
            ask()
    fake_program("squeue", "exit 0")
    assert jobs.live_jobs() == {}
    assert set(jobs.read_queue(["7_2", "8"])) == {"7_2"}


def test_squeue_and_sacct_are_read_together(fake_program):
    fake_program("squeue", print_table(SQUEUE))
    fake_program("sacct", print_table(SACCT))
    queue = jobs.read_queue(["7_0", "7_1", "7_2", "7_3"])
    assert set(queue) == {"7_0", "7_1", "7_2", "7_3"}  # not 9, which was not asked for
    requeued, running, cancelled, killed = (queue[f"7_{task}"] for task in range(4))
    assert (requeued.state, requeued.reason, requeued.live, requeued.waits) == ("PENDING", "BeginTime", True, True)
    first = JobAttempt("NODE_FAIL", "n2", "2026-11-22T19:00:00", "2026-11-22T19:10:00", "0:0")
    assert requeued.attempts == (first, JobAttempt("PENDING", exit_code="0:0"))
    assert (requeued.restarts, requeued.end) == (1, "")
    assert running == JobInfo("7_1", "RUNNING", "n1", "None", start="2026-11-22T19:30:05", live=True)
    assert cancelled.describe_end() == "CANCELLED by 4294967 on n1"  # a user without a name here
    assert (killed.describe_end(), killed.exit_code, killed.live) == ("OUT_OF_MEMORY on n1", "0:125", False)


def test_without_accounting_the_queue_alone_is_read(fake_program):
    fake_program("squeue", print_table(SQUEUE))
    fake_program("sacct", "exit 1")
    assert set(jobs.read_queue(["7_0", "7_2"])) == {"7_0"}
    with pytest.raises(LaunchError, match="sacct failed"):
        jobs.read_accounting(["7_0"])


def test_who_cancelled_a_job_is_named(fake_program):
    fake_program("sacct", print_table(f"7|CANCELLED by {os.getuid()}|None assigned|0:0|Unknown|Unknown\n"))
    assert jobs.read_accounting(["7"])["7"].describe_end() == f"CANCELLED by {getpass.getuser()}"


@pytest.mark.parametrize(("moment", "preempted"), [("None", False), ("2026-11-22T19:30:05", True)])
def test_a_preemption_is_told_from_a_cancel_by_its_time(fake_program, moment, preempted):
    fake_program("scontrol", f"echo JobId=7 JobName=a b JobState=RUNNING PreemptTime={moment} Dependency=")
    assert jobs.was_preempted("7") == preempted


def test_a_task_of_an_array_is_named_so_that_it_alone_is_meant(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert jobs.current_job_id() is None
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert jobs.current_job_id() == "12"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "12")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert jobs.current_job_id() == "12_3"


def test_a_job_that_submits_another_passes_on_nothing_of_its_own_but_where_slurm_is(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv("SLURM_MEM_PER_CPU", "1")
    monkeypatch.setenv("SBATCH_PARTITION", "high")
    monkeypatch.setenv("HARNESS_SNAPSHOT", "abc")
    kept = jobs.login_environment()
    assert kept["SLURM_CONF"] == "/etc/slurm.conf"
    assert kept["HARNESS_SNAPSHOT"] == "abc"
    assert not {"SLURM_JOB_ID", "SLURM_MEM_PER_CPU", "SBATCH_PARTITION"} & set(kept)


def test_a_users_defaults_for_sbatch_fill_in_what_the_profile_leaves_open_and_overrule_nothing(monkeypatch):
    for name in [name for name in jobs.os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name in ("ACCOUNT", "PARTITION", "TIMELIMIT", "GRES", "NO_REQUEUE", "MEM_PER_CPU", "EXPORT", "ARRAY_INX"):
        monkeypatch.setenv(f"SBATCH_{name}", "1")
    kept = jobs.login_environment(["partition", "mem"])
    assert [name for name in kept if name.startswith("SBATCH_")] == ["SBATCH_ACCOUNT"]
    ignored = ["ARRAY_INX", "EXPORT", "GRES", "MEM_PER_CPU", "NO_REQUEUE", "PARTITION", "TIMELIMIT"]
    assert jobs.ignored_defaults(["partition", "mem"]) == [f"SBATCH_{name}" for name in ignored]


def test_a_job_that_is_submitted_again_is_named_as_slurm_names_it(fake_program, tmp_path):
    fake_program("sbatch", f"echo \"$@\" >>{tmp_path}/calls; echo '31;elsewhere'")
    assert jobs.resubmit_job(tmp_path / "job.sh", "12_3") == "31_3"
    assert jobs.resubmit_job(tmp_path / "job.sh", "12") == "31"
    assert (tmp_path / "calls").read_text().splitlines() == [
        f"--parsable --array=3 {tmp_path}/job.sh",
        f"--parsable {tmp_path}/job.sh",
    ]


@pytest.mark.slurm
def test_a_job_is_followed_from_its_wait_to_its_end(slurm, tmp_path):
    command = ["sbatch", "--parsable", "--array=0-1", "--hold", "--output=/dev/null", "--wrap=exit 3"]
    number = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    names = [f"{number}_0", f"{number}_1"]
    waiting = jobs.read_queue(names)
    assert {(job.state, job.reason, job.live) for job in waiting.values()} == {("PENDING", "JobHeldUser", True)}
    jobs.cancel_jobs([names[1]])
    subprocess.run(["scontrol", "release", number], check=True)
    deadline = time.monotonic() + 240
    queue = waiting
    while names[0] not in queue or queue[names[0]].state in ("PENDING", "RUNNING", "COMPLETING"):  # as sacct lags
        assert time.monotonic() < deadline
        time.sleep(0.2)
        queue = jobs.read_queue(names)
    assert (queue[names[0]].state, queue[names[0]].exit_code, queue[names[0]].restarts) == ("FAILED", "3:0", 0)
    assert names[1] not in queue  # accounting never hears of a task that is cancelled while its array waits
    jobs.cancel_jobs(names)  # again, and nothing happens


def test_a_user_without_a_name_has_a_number(monkeypatch):
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert jobs.current_user() == str(os.getuid())
