"""SLURM's programs: what they say of our jobs, and what we tell them."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import LaunchError
from harness.slurm.profile import Profile


@dataclass(frozen=True)
class JobAttempt:
    """One stay of a job on its nodes; a job that is requeued has several."""

    state: str  # PENDING, RUNNING, COMPLETED, OUT_OF_MEMORY, ...
    node: str = ""
    start: str = ""  # local time, 2026-11-22T19:30:05
    end: str = ""
    exit_code: str = ""  # code:signal


@dataclass(frozen=True)
class JobInfo:
    """What SLURM knows of one job, or of one task of an array: its last life, and those before."""

    job_id: str
    state: str
    node: str = ""
    reason: str = ""  # why it waits: Priority, Dependency, ...
    exit_code: str = ""
    start: str = ""
    end: str = ""
    live: bool = False  # waits or runs; SLURM will go on with it by itself
    user: str = ""  # who cancelled it
    lives: tuple[JobAttempt, ...] = ()

    @property
    def restarts(self) -> int:
        return max(0, len(self.lives) - 1)

    @property
    def waits(self) -> bool:
        return self.live and self.state not in ("RUNNING", "COMPLETING")

    def how_it_ended(self) -> str:
        """Say `OUT_OF_MEMORY on n1`, `CANCELLED by ada`."""
        by = f" by {self.user}" if self.user else ""
        return f"{self.state}{by}" + (f" on {self.node}" if self.node else "")


def read_queue(job_ids: Iterable[str]) -> dict[str, JobInfo]:
    """Look jobs up in one query each of squeue (what waits and runs) and sacct (what has ended, and earlier lives).

    Args:
        job_ids: `12`, or `12_3` for a task of an array; what SLURM does not know is missing in the answer.

    Raises:
        LaunchError: squeue is not here or does not answer. Without sacct the past is missing, and no more.
    """
    wanted = set(job_ids)
    if not wanted:
        return {}
    found: dict[str, JobInfo] = {}
    arrays = sorted({job_id.split("_")[0] for job_id in wanted}, key=int)
    query = ["sacct", "-X", "-n", "-P", "--duplicates", "--format=JobID,State,NodeList,ExitCode,Start,End"]
    with contextlib.suppress(LaunchError):
        for row in _rows(_ask([*query, f"--jobs={','.join(arrays)}"]), 6):
            job_id, said, node, exit_code, start, end = row
            if job_id in wanted:
                found[job_id] = _another_life(found.get(job_id), job_id, said, node, exit_code, start, end)
    for job_id, state, node, reason, start in _rows(_ask([*_SQUEUE, "--format=%i|%T|%N|%r|%S"]), 5):
        if job_id in wanted:
            before = found.get(job_id, JobInfo(job_id, state))
            # sacct may not have heard of the newest life yet, and keeps the old one's end for a job that waits again.
            found[job_id] = replace(
                before, state=state, node=node, reason=reason, exit_code="", start=start, end="", live=True
            )
    return found


_SQUEUE = ("squeue", "--noheader", "--array", "--me")


def _another_life(
    before: JobInfo | None, job_id: str, said: str, node: str, exit_code: str, start: str, end: str
) -> JobInfo:
    state, _, by = said.partition(" by ")
    life = JobAttempt(state, "" if node == "None assigned" else node, _time(start), _time(end), exit_code)
    lives = (*(before.lives if before else ()), life)
    return JobInfo(
        job_id, state, life.node, "", exit_code, life.start, life.end, user=_user(by.strip()) if by else "", lives=lives
    )


def _user(uid: str) -> str:
    try:
        return pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        return uid


def _time(said: str) -> str:
    return "" if said in ("Unknown", "None", "N/A") else said


def _rows(text: str, width: int) -> list[list[str]]:
    return [row for line in text.splitlines() if len(row := line.split("|")) == width]


def queued_in_slurm() -> set[str]:
    """Return the user's jobs that wait or run, array tasks one by one.

    Raises:
        LaunchError: squeue does not answer.
    """
    return set(_ask([*_SQUEUE, "--format=%i"]).split())


def max_array_size(profile: Profile) -> int:
    """Return how many tasks an array may have: SLURM limits the index, and ours begins at 0."""
    if profile.max_array_size:
        return profile.max_array_size
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _ask(["scontrol", "show", "config"]), re.MULTILINE)
    return int(found[1]) if found else 1001  # SLURM's own default


def cancel(job_ids: Sequence[str]) -> None:
    """Cancel exactly these jobs and tasks; those that have ended already do not matter.

    Raises:
        LaunchError: scancel does not answer or refuses.
    """
    for first in range(0, len(job_ids), 500):  # a command line has its limits
        _ask(["scancel", "--quiet", *job_ids[first : first + 500]])


def _ask(command: Sequence[str]) -> str:
    """Return a program's answer.

    Raises:
        LaunchError: it is not here, takes longer than a minute, or refuses.
    """
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    except FileNotFoundError:
        raise LaunchError(f"{command[0]} is not on this machine: ask where SLURM is (a login node)") from None
    except subprocess.TimeoutExpired:
        raise LaunchError(f"{command[0]} did not answer within a minute; SLURM is busy or down: try again") from None
    if answer.returncode != 0:
        raise LaunchError(f"{command[0]} does not answer: {' '.join(answer.stderr.split())[-400:]}")
    return answer.stdout


def this_job() -> str | None:
    """Return the job that this process belongs to as `12` or `12_3`, None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue(job_id: str) -> None:
    """Have SLURM begin this job again; it ends the present life at once."""
    _ask(["scontrol", "requeue", job_id])


def was_preempted(job_id: str) -> bool:
    """Tell whether SLURM itself is ending the job to make room, not a person by scancel."""
    found = re.search(r"\bPreemptTime=(\S+)", _ask(["scontrol", "show", "job", job_id]))
    return bool(found and _time(found[1]))


def outside_a_job() -> dict[str, str]:
    """Return the environment as a login shell has it: what SLURM told this job would become the new one's options."""
    told = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_", "PMI")
    return {name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith(told)}


def submit_again(script: Path, job_id: str) -> str:
    """Submit the job again as a new one, where SLURM does not requeue what it preempted; return its name.

    Args:
        script: the file that sbatch was given.
        job_id: `12` or `12_3`.
    """
    task = job_id.partition("_")[2]
    command = ["sbatch", "--parsable", *([f"--array={task}"] if task else []), str(script)]
    answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env=outside_a_job())
    if answer.returncode != 0:
        raise LaunchError(f"sbatch refused the job's successor: {answer.stderr.strip()}")
    number = answer.stdout.split(";")[0].strip()
    return f"{number}_{task}" if task else number
