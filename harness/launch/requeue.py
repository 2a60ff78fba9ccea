"""The requeue policy: when a job is requeued, how, and when its runs are given up.

What ends an attempt of a job                   The job then
----------------------------------------------  ------------------------------------------------------------------
SIGUSR2 ahead of the time limit                 is requeued (by itself: SLURM's own requeue would end it at once)
SIGUSR2 or SIGTERM, and SLURM says preempted    is requeued; where the cluster cancels what it preempts
                                                (`preempt_mode: cancel`), submits its own successor
SIGTERM alone                                   is not requeued: a user's scancel
its one process is killed (usually memory)      is requeued by its batch script (`SETUP`), which outlives the process
one of several processes is killed              is requeued when the others have ended
the node fails                                  is requeued by SLURM (`--requeue`, in harness/slurm/profile.py)
the device of its node is broken                submits its own successor, which excludes the node
all its runs are cancelled, done or failed      is not requeued
the canary has made its steps                   ends, and its array starts; the array's first task finishes the run

A run is given up (failed, until `harness retry`) when it was killed three times at one step, or three times before its
attempt started. A checkpoint, an evaluation, and any state that the job itself could write are progress; a preemption
does not count as a kill. The same holds without SLURM, where nothing is requeued but `harness submit` resumes runs.
There is no other limit: a long run may reach as many time limits as it needs (`MAX_TIME_LIMITS`).
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Literal

from harness.errors import RecordError
from harness.launch.claims import job_log
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.status import Ending
from harness.slurm.kills import REQUEUE_WHEN_KILLED, reports_out_of_memory

KILLS_WITHOUT_PROGRESS = 3
MAX_TIME_LIMITS = 1_000_000  # submitit's own default is 3
SETUP = REQUEUE_WHEN_KILLED  # the first lines of every batch script

RequeueAction = Literal["none", "requeue", "resubmit"]


def requeue_action(
    stopped_by: str, *, killed: bool, preempted: bool, preemption_cancels: bool, device_broken: bool = False
) -> RequeueAction:
    """Return how to requeue a job that ended with some of its runs unfinished and not cancelled.

    Args:
        stopped_by: the signal that asked it to stop, "" if none did.
        killed: whether one of its several processes was killed.
        preempted: whether SLURM reports a preemption.
        preemption_cancels: whether the cluster cancels preempted jobs instead of requeueing them.
        device_broken: whether the device of its node ended one of its runs.
    """
    if device_broken:  # only a new job can exclude the node
        return "resubmit"
    if preempted and stopped_by:
        return "resubmit" if preemption_cancels else "requeue"
    if stopped_by:
        return "requeue" if stopped_by == "SIGUSR2" else "none"
    return "requeue" if killed else "none"


def given_up(path: Path) -> Ending | None:
    """Return why a run is not started again, None if it may be: it was killed three times at one step.

    What happened before `harness retry` does not count.
    """
    directory = RunDirectory(path)
    attempts = directory.attempts()[-KILLS_WITHOUT_PROGRESS:]
    if len(attempts) < KILLS_WITHOUT_PROGRESS or attempts[0] <= _last_attempt_before_retry(directory):
        return None
    try:
        if directory.writer():
            return None
        events = [event for event in directory.events() if event.attempt in attempts]
    except RecordError:  # its next attempt says what is wrong
        return None
    started = [event for event in events if event.name == "started"]
    progress = {"checkpoint", "evaluation", "interrupted", "paused", "failed", "finished", "pruned"}
    came_further = [event for event in events if event.name in progress and event.fields.get("cause") != "device"]
    if len({event.fields["resumed_from_step"] for event in started}) != 1 or came_further:
        return None
    last = started[-1].fields
    return _killed_repeatedly(path, f"at step {last['resumed_from_step']} without progress", last["host"])


def given_up_before_attempt(submission: SubmissionLayout, path: Path, host: str) -> Ending | None:
    """Count this start; return why the run is not started again: three starts ended before an attempt.

    For example, memory may not even suffice to import torch.
    """
    begun = submission.starts_path(path.name)
    begun.parent.mkdir(exist_ok=True)
    earlier = begun.read_text().split() if begun.exists() else []
    attempts = str(len(RunDirectory(path).attempts()))
    begun.write_text("\n".join([*earlier, attempts]))
    if earlier[-KILLS_WITHOUT_PROGRESS:] == [attempts] * KILLS_WITHOUT_PROGRESS:
        return _killed_repeatedly(path, "before its attempt started", host)
    return None


def attempt_began(submission: SubmissionLayout, path: Path) -> bool:
    """Return whether a run's attempt has begun since `given_up_before_attempt` counted this start."""
    begun = submission.starts_path(path.name)
    counted = begun.read_text().split() if begun.exists() else []
    return bool(counted) and counted[-1] != str(len(RunDirectory(path).attempts()))


def reset_starts(submission: SubmissionLayout, path: Path) -> None:
    """Reset the count of starts: the job was preempted, not killed."""
    submission.starts_path(path.name).unlink(missing_ok=True)


def reset_kills(directory: RunDirectory) -> None:
    """Reset the count of kills: the user wants the run to be tried again."""
    directory.retried_path.write_text(str(max(directory.attempts(), default=0)))


def _last_attempt_before_retry(directory: RunDirectory) -> int:
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int(directory.retried_path.read_text())
    return 0


def _killed_repeatedly(path: Path, place: str, host: str) -> Ending:
    host = os.environ.get("SLURMD_NODENAME", host)
    times = f"killed {KILLS_WITHOUT_PROGRESS} times {place}"
    log = job_log(path.parent, path.name)
    if log and reports_out_of_memory(log.read_text(errors="replace")):
        return Ending(
            "out_of_memory", f"{times}: out of memory on {host}; request more memory_gib, then `harness retry`"
        )
    return Ending("no_progress", f"{times}: on {host}, then `harness retry`")
