"""The requeue policy: when a job is requeued, how, and when its runs are given up.

What ends an attempt of a job                   The job then
----------------------------------------------  ------------------------------------------------------------------
SIGUSR2 ahead of the time limit                 is requeued (by itself: SLURM's own requeue would end it at once), for
                                                ten minutes again and again while SLURM does not answer
SIGUSR2 or SIGTERM, and SLURM says preempted    is requeued; where the cluster cancels what it preempts
                                                (`preempt_mode: cancel`), submits its own successor
SIGTERM alone                                   is not requeued: a user's scancel
its one process is killed (usually memory)      is requeued by its batch script (`SETUP`), which outlives the process
one of several runs is killed                   is requeued when the others have ended
one of a run's several processes is killed      is requeued at once: the run is interrupted, and the others leave
the node fails                                  is requeued by SLURM (`--requeue`, in harness/slurm/profile.py)
the device of its node is broken                submits its own successor, which excludes the node
all its runs are cancelled, done or failed      is not requeued
the canary has made its steps                   ends, and its array starts; the array's first task finishes the run

A run is given up (failed, until `harness retry`) when three lives in a row had no progress: it was killed, also by the
loss of one of its processes, or came to its time limit within an evaluation, at one step; or it was killed before its
attempt started. A checkpoint, an evaluation, a batch that an evaluation keeps, and any other state that the job itself
could write are progress; a preemption does not count. The same holds without SLURM, where nothing is requeued but
`harness submit` resumes runs.
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
from harness.records.journal import Event
from harness.records.layout import SubmissionLayout
from harness.records.status import Ending
from harness.slurm.kills import REQUEUE_WHEN_KILLED, reports_out_of_memory
from harness.slurm.time_limit import NOTE_BEGINNING

KILLS_WITHOUT_PROGRESS = 3
MAX_TIME_LIMITS = 1_000_000  # submitit's own default is 3
REQUEUE_PAUSES_SECONDS = (1.0, 3.0, 6.0, *[10.0] * 60)  # an outage of slurmctld loses no job
STARTUP_SECONDS = 120.0  # SLURM may signal a minute early, and scripts of earlier versions do not say when a job began
SETUP = (*NOTE_BEGINNING, *REQUEUE_WHEN_KILLED)  # the first lines of every batch script

RequeueAction = Literal["none", "requeue", "resubmit"]


def requeue_action(
    stopped_by: str, *, killed: bool, preempted: bool, preemption_cancels: bool, device_broken: bool = False
) -> RequeueAction:
    """Return how to requeue a job that ended with some of its runs unfinished and not cancelled.

    Args:
        stopped_by: the signal that asked it to stop, "" if none did.
        killed: whether one of its several runs, or one of a run's several processes, was killed.
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
    """Return why a run is not started again, None if it may be: three lives had no progress.

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
    if len({event.fields["resumed_from_step"] for event in started}) != 1 or any(map(_is_progress, events)):
        return None
    kept = directory.num_kept_batches()
    if any(event.fields.get("kept_batches", 0) != kept for event in started):
        return None
    last = started[-1].fields
    if any(event.fields.get("stopped_by") == "SIGUSR2" for event in events):
        reason = f"it came to its time limit {len(started)} times without finishing one batch of its evaluation"
        return Ending("no_progress", f"{reason}: request more time_minutes, then `harness retry`")
    return _killed_repeatedly(path, f"at step {last['resumed_from_step']} without progress", last["host"])


def _is_progress(event: Event) -> bool:
    """Return whether an event says that an attempt came further, or that a person or the run itself ended it.

    Ahead of a time limit a training writes a checkpoint, which is progress, so SIGUSR2 alone is one of an evaluation.
    """
    if event.name == "interrupted":
        return event.fields.get("cause") not in ("killed", "device") and event.fields.get("stopped_by") != "SIGUSR2"
    return event.name in ("checkpoint", "evaluation", "paused", "failed", "finished", "pruned")


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
    """Reset the count of lives without progress: the user wants another try, or the last one was cut short."""
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
