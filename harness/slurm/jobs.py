"""This user's SLURM jobs: query them by squeue and sacct; submit, cancel and requeue them."""

from __future__ import annotations

import contextlib
import getpass
import os
import pwd
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from harness.errors import LaunchError
from harness.slurm.commands import NoAnswer, parse_records, patiently, run_slurm

JOBS_PER_COMMAND = 500  # the length of a command line is limited

Presence = Literal["present", "absent", "unknown"]


@dataclass(frozen=True)
class JobAttempt:
    """One execution of a job; a job that is requeued has several."""

    state: str  # PENDING, RUNNING, COMPLETED, OUT_OF_MEMORY, ...
    node: str = ""
    start: str = ""  # local time, 2026-11-22T19:30:05
    end: str = ""
    exit_code: str = ""  # code:signal


@dataclass(frozen=True)
class JobInfo:
    """SLURM's information on one job, or on one task of an array: its newest attempt, and all attempts."""

    job_id: str
    state: str
    node: str = ""
    reason: str = ""  # why it is pending: Priority, Dependency, ...
    exit_code: str = ""
    start: str = ""
    end: str = ""
    live: bool = False  # pending or running; SLURM will execute it without our help
    user: str = ""  # who cancelled it
    attempts: tuple[JobAttempt, ...] = ()
    number: str = ""  # SLURM_JOB_ID within it: a task of an array has a number of its own, too

    @property
    def restarts(self) -> int:
        return max(0, len(self.attempts) - 1)

    @property
    def waits(self) -> bool:
        return self.live and self.state not in ("RUNNING", "COMPLETING") and not self.is_suspended

    @property
    def is_suspended(self) -> bool:
        """Whether its processes are stopped, and go on later: neither running nor waiting for nodes."""
        return self.state in ("SUSPENDED", "STOPPED")

    def describe_end(self) -> str:
        """Return `OUT_OF_MEMORY on n1`, `CANCELLED by ada`."""
        by = f" by {self.user}" if self.user else ""
        return f"{self.state}{by}" + (f" on {self.node}" if self.node else "")


@dataclass(frozen=True)
class QueueAnswer:
    """SLURM's answer about jobs: each is present or absent, or, if SLURM did not answer, unknown.

    No answer must never be taken for an absent job: it would be submitted a second time.
    """

    jobs: Mapping[str, JobInfo] = field(default_factory=dict)  # by the names that they were asked for by
    failure: str = ""  # why SLURM did not answer

    def presence(self, job_id: str) -> Presence:
        """Return whether a job is pending or running, so that SLURM will execute it without our help."""
        if self.failure:
            return "unknown"
        return "present" if job_id in self.jobs and self.jobs[job_id].live else "absent"


# ------------------------------------------------------------------------------------------------------------- queries


def ask_queue(query: Callable[[], Mapping[str, JobInfo]], *, wait: bool = False) -> QueueAnswer:
    """Query the queue; a failure is an answer, too.

    Args:
        query: such as `read_queue` of some jobs.
        wait: ask again, with pauses, while SLURM does not answer.
    """
    try:
        return QueueAnswer(patiently(query) if wait else query())
    except LaunchError as error:
        return QueueAnswer(failure=str(error))


def read_queue(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """Look up jobs in one query each of squeue (pending and running) and sacct (ended, and earlier attempts).

    Args:
        job_ids: `12`, or `12_3` for a task of an array, or a task's own SLURM_JOB_ID. A job that is missing in the
            result is unknown to SLURM. They may be of any user: several may share a folder of runs.

    Raises:
        NoAnswer: squeue does not answer, so nothing is known. If sacct does not answer, only the past is missing.
    """
    requested = set(job_ids)
    if not requested:
        return {}
    jobs: dict[str, JobInfo] = {}
    with contextlib.suppress(LaunchError):
        jobs = _requested(read_accounting(requested), requested)
    for job_id, live in _requested(_live_jobs_by_number(requested), requested).items():
        # sacct may not list the newest attempt yet, and shows the end of the old one for a job that is pending.
        known = jobs.get(job_id, live)
        jobs[job_id] = replace(live, user=known.user, attempts=known.attempts)
    return jobs


def _requested(jobs: Mapping[str, JobInfo], requested: set[str]) -> dict[str, JobInfo]:
    """Return the requested ones of some jobs, by the names that they were requested by."""
    by_number = {job.number: job for job in jobs.values() if job.number in requested}
    return by_number | {job_id: job for job_id, job in jobs.items() if job_id in requested}


def live_jobs() -> dict[str, JobInfo]:
    """Return this user's pending and running jobs, array tasks separately.

    Raises:
        NoAnswer: squeue does not answer, or what it prints is no list of jobs.
    """
    return _live_jobs("--me")


def _live_jobs_by_number(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    numbers = _numbers(job_ids)
    jobs: dict[str, JobInfo] = {}
    for first in range(0, len(numbers), JOBS_PER_COMMAND):
        some = numbers[first : first + JOBS_PER_COMMAND]
        # Twice the last one: squeue fails if it is asked for a single job that it does not know, but not for several.
        jobs |= _live_jobs(f"--jobs={','.join([*some, some[-1]])}")
    return jobs


def _numbers(job_ids: Iterable[str]) -> list[str]:
    """Return the numbers of jobs, of an array its own."""
    return sorted({number for job_id in job_ids if (number := job_id.split("_")[0]).isdecimal()}, key=int)


def _live_jobs(selection: str) -> dict[str, JobInfo]:
    try:
        text = run_slurm("squeue", "--noheader", "--array", selection, "--format=%i|%T|%N|%r|%S|%A")
    except NoAnswer:
        raise
    except LaunchError as error:
        raise NoAnswer(str(error)) from error
    jobs = {}
    for job_id, state, node, reason, start, *rest in _rows(text, "squeue", 5):
        jobs[job_id] = JobInfo(job_id, state, node, reason, start=_time(start), live=True, number="".join(rest[:1]))
    return jobs


def _rows(text: str, program: str, num_columns: int) -> list[list[str]]:
    """Split lines of `a|b|c`, of which a few may be warnings.

    Raises:
        NoAnswer: there are lines, and none is one of the table.
    """
    rows = [row for line in text.splitlines() if len(row := line.split("|")) >= num_columns]
    if text.strip() and not rows:
        raise NoAnswer(f"{program} printed no list of jobs but: {' '.join(text.split())[:200]}")
    return rows


def read_accounting(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """Return the accounting of jobs, and of all tasks of their arrays.

    Args:
        job_ids: `12`, or `12_3` for a task; none means all of today's.

    Raises:
        LaunchError: sacct does not answer; a cluster without slurmdbd has none.
    """
    numbers = _numbers(job_ids)
    columns = "--format=JobID,State,NodeList,ExitCode,Start,End,JobIDRaw"
    selection = [f"--jobs={','.join(numbers)}"] if numbers else []
    table = run_slurm("sacct", "--allocations", "--noheader", "--parsable2", "--duplicates", columns, *selection)
    jobs: dict[str, JobInfo] = {}
    for job_id, state, node, exit_code, start, end, *rest in _rows(table, "sacct", 6):
        state, _, uid = state.partition(" by ")  # CANCELLED by 1000
        node = "" if node == "None assigned" else node
        attempt = JobAttempt(state, node, _time(start), _time(end), exit_code)
        jobs[job_id] = JobInfo(
            job_id,
            state,
            node,
            exit_code=exit_code,
            start=attempt.start,
            end=attempt.end,
            user=_user_name(uid.strip()),
            attempts=(*(jobs[job_id].attempts if job_id in jobs else ()), attempt),
            number="".join(rest[:1]),
        )
    return jobs


def was_preempted(job_id: str) -> bool:
    """Return whether SLURM is ending the job by preemption, not a user by scancel.

    Raises:
        LaunchError: scontrol does not answer or does not know the job.
    """
    records = parse_records(run_slurm("scontrol", "--oneliner", "show", "job", job_id))
    return any(_time(record.get("PreemptTime", "None")) for record in records)


def current_job_id() -> str | None:
    """Return the job that this process belongs to as `12` or `12_3`, None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def current_user() -> str:
    """Return this user's name; the number where there is no name, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


def _user_name(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid


def _time(value: str) -> str:
    return "" if value in ("Unknown", "None", "N/A") else value


# ------------------------------------------------------------------------------------------------------------ commands


def submit_script(script: Path, *options: str) -> str:
    """Submit a batch script, from a login node or from within a job; return the job's number.

    Raises:
        LaunchError: sbatch refuses or does not answer.
    """
    printed = run_slurm("sbatch", "--parsable", *options, str(script), environment=login_environment())
    return printed.strip().split(";")[0]  # 12, or 12;cluster


def check_script(script: Path, options: Iterable[str]) -> None:
    """Let SLURM check a batch script; nothing is submitted.

    Args:
        options: of sbatch that the script has; the user's defaults count for others, as they do in a submission.

    Raises:
        LaunchError: SLURM would not accept it; with SLURM's reason.
    """
    run_slurm("sbatch", "--test-only", str(script), environment=login_environment(options))


def resubmit_job(script: Path, job_id: str, *options: str) -> str:
    """Submit a job again as a new one, where SLURM does not requeue preempted jobs; return the new job's id.

    Args:
        script: the file that was passed to sbatch.
        job_id: `12`, or `12_3`, of which only the task is submitted.
        options: of sbatch, which replace those of the script.
    """
    task = job_id.partition("_")[2]
    number = submit_script(script, *([f"--array={task}"] if task else []), *options)
    return f"{number}_{task}" if task else number


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel exactly these jobs and tasks; those that have ended already are ignored.

    Raises:
        LaunchError: scancel does not answer or refuses.
    """
    for first in range(0, len(job_ids), JOBS_PER_COMMAND):
        run_slurm("scancel", "--quiet", *job_ids[first : first + JOBS_PER_COMMAND])


def requeue_job(job_id: str) -> None:
    """Requeue this job; SLURM ends the current attempt at once.

    Raises:
        LaunchError: scontrol does not answer or refuses.
    """
    run_slurm("scontrol", "requeue", job_id)


_LEFT_TO_THE_USER = ("account", "partition", "qos", "reservation", "wckey", "constraint")
"""Options of sbatch whose default in the shell (SBATCH_ACCOUNT) counts where neither study nor profile gives one."""

_OF_SRUN = (
    "SLURM_EXPORT_ENV",
    "SLURM_STDOUTMODE",
    "SLURM_STDERRMODE",
    "SLURM_UNBUFFEREDIO",
    "SLURM_HINT",
    "SLURM_WAIT",
)
_OF_A_JOB = ("SLURM_", "SLURMD_", "SRUN_", "SUBMITIT_", "PMI")


def login_environment(options: Iterable[str] = ()) -> dict[str, str]:
    """Return the environment without the variables that would change what a job is.

    Those of the job that this process belongs to would become options of a job that it submits. A user's defaults for
    sbatch would overrule the batch script: only those stay that say what the script does not.

    Args:
        options: of sbatch that the batch script has, such as account.
    """
    given = set(options)
    kept = {f"SBATCH_{name.upper()}" for name in _LEFT_TO_THE_USER if name not in given}
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in _OF_SRUN and (name in kept or not name.startswith("SBATCH_"))
    }
    if "SLURM_JOB_ID" not in environment:
        return environment
    return {
        name: value
        for name, value in environment.items()
        if name == "SLURM_CONF" or not name.startswith((*_OF_A_JOB, "SBATCH_"))
    }


def ignored_defaults(options: Iterable[str]) -> list[str]:
    """Return the user's defaults for sbatch that do not count beside these options, by name."""
    kept = login_environment(options)
    return sorted(name for name in os.environ if name.startswith("SBATCH_") and name not in kept)
