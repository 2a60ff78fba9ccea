"""The state of a run: its directory combined with SLURM's answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from harness.launch.claims import Claim, claims_of, jobs_by_clusters
from harness.launch.requeue import given_up
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.lock import FolderLock
from harness.records.status import Ending, Status
from harness.slurm.commands import addressing
from harness.slurm.jobs import JobInfo, QueueAnswer, ask_queue, read_queue
from harness.slurm.recent import read_recent_queue

FORGOTTEN_SECONDS = 600.0  # "queued" and the claim are seconds apart, unless the submission was interrupted in between


@dataclass(frozen=True)
class RunState:
    """The state of a run, from its directory and SLURM."""

    status: Status = field(default_factory=Status)
    job: JobInfo | None = None
    claim: Claim | None = None
    live_claims: tuple[Claim, ...] = ()  # whose jobs SLURM has in its queue
    unanswered: str = ""  # why SLURM did not answer, if the state depends on its answer


def read_run_states(paths: Sequence[Path], *, wait: bool = False, recent: bool = False) -> dict[str, RunState]:
    """Return the states of runs by key; SLURM is queried once.

    While SLURM does not answer, a run keeps the state in its directory, and `unanswered` says that this may be wrong.

    Args:
        paths: run directories, all in one folder.
        wait: ask again, with pauses, while SLURM does not answer.
        recent: whether an answer that is half a minute old will do: for what is shown, and not for what is submitted.
    """
    states = {path.name: RunState(RunDirectory(path).status()) for path in paths}
    open_ends = [path for path in paths if states[path.name].status.state in ("queued", "running", "interrupted")]
    if not open_ends:
        return states
    claims = claims_of(paths[0].parent, [path.name for path in open_ends])
    # A run that says queued has not been started since it was submitted.
    holders = {
        path.name: FolderLock(RunDirectory(path).lock_folder, path.name).slurm_job_id()
        for path in open_ends
        if states[path.name].status.state != "queued"
    }
    on_slurm = [claim for of_run in claims.values() for claim in of_run if claim.on_slurm]
    read = read_recent_queue if recent else read_queue
    answer = QueueAnswer()
    for clusters, jobs in (jobs_by_clusters(on_slurm) or {"": set[str]()}).items():
        job_ids = jobs | set(filter(None, holders.values()))
        with addressing(clusters):
            part = ask_queue(partial(read, job_ids), wait=wait)
        answer = QueueAnswer({**answer.jobs, **part.jobs}, answer.failure or part.failure)
    for path in open_ends:
        key = path.name
        state = _combine_with_slurm(states[key].status, key, claims.get(key, []), holders.get(key, ""), answer)
        if state.status.state == "interrupted" and not state.unanswered and (ending := given_up(path)):
            state = replace(state, status=_ended(state.status, "failed", ending))
        states[key] = state
    return states


def shown_states(directories: Sequence[RunDirectory]) -> dict[str, str]:
    """Return the states of runs by key as `status` shows them; `unknown` where they depend on an answer of SLURM's."""
    states = read_run_states([directory.path for directory in directories], recent=True) if directories else {}
    return {key: "unknown" if state.unanswered else state.status.state for key, state in states.items()}


def _combine_with_slurm(
    status: Status, key: str, claims: Sequence[Claim], holder: str, answer: QueueAnswer
) -> RunState:
    """Add to a run directory's status what only SLURM knows: that a job is queued, requeued or gone.

    Args:
        claims: on the run, the oldest first. Each may have a job in the queue, not only the newest.
        holder: the SLURM job of the process that has the run's lock, or had it when it was killed.
    """
    newest = claims[-1] if claims else None
    on_slurm = [claim for claim in claims if claim.on_slurm and claim.jobs]
    if len(on_slurm) < len(claims):
        holder = ""  # perhaps a local worker in an interactive job of SLURM's, which is not the run's job
    if status.state == "running":
        return _running(status, key, claims, holder, answer)
    if not on_slurm and not holder:
        forgotten = status.state == "queued" and not (newest and newest.jobs)
        if forgotten and time.time() - status.updated_seconds > FORGOTTEN_SECONDS:
            ending = Ending("never_submitted", "the submission was interrupted before the run had a job")
            return RunState(_ended(status, "interrupted", ending), None, newest)
        return RunState(_without_slurm(status, newest, key), None, newest)
    if answer.failure:
        reason = f"SLURM does not answer: {answer.failure}" + (f"; {status.reason}" if status.reason else "")
        return RunState(replace(status, reason=reason), None, newest, unanswered=answer.failure)
    live = [claim for claim in on_slurm if claim.live_job(answer)]
    if status.state == "interrupted":  # a job that several runs share goes on when one of them is cancelled
        live = [claim for claim in live if not claim.cancellation(key)]
    job = live[-1].live_job(answer) if live else None
    if job is None and answer.presence(holder) == "present" and not (newest and newest.cancellation(key)):
        job = answer.jobs[holder]  # its submission was interrupted before it could note the job
    if job:
        why = _pending_reason(live[-1] if live else newest, job)
        # Not the reason itself, which says to resubmit: SLURM has requeued the job.
        why_stopped = f"stopped by {status.stopped_by}" if status.cause == "signal" else status.reason
        reason = f"{why}; requeued, {why_stopped}" if status.state == "interrupted" else why
        status = replace(status, state="queued", reason=reason, cause="", stopped_by="")
        return RunState(status, job, live[-1] if live else newest, tuple(live))
    job = answer.jobs.get(newest.job_id) if newest else answer.jobs.get(holder)
    return RunState(_not_in_queue(status, key, newest, job), job, newest)


def _running(status: Status, key: str, claims: Sequence[Claim], holder: str, answer: QueueAnswer) -> RunState:
    """Return the state of a run whose lock is held, by the holder's own job: others may wait for the lock in vain."""
    newest = claims[-1] if claims else None
    if answer.failure:
        return RunState(status, None, newest, unanswered=answer.failure if newest and newest.on_slurm else "")
    live = tuple(claim for claim in claims if claim.live_job(answer))
    job = answer.jobs.get(holder)
    if job and job.is_suspended:  # its heartbeat is not stale yet
        status = replace(status, state="queued", reason=_pending_reason(newest, job), cause="", stopped_by="")
        return RunState(status, job, newest, live)
    if job and job.end and not job.live and not live:
        # SLURM knows the holder's end already; its heartbeat would still look fresh for a while.
        return RunState(_not_in_queue(status, key, newest, job), job, newest)
    return RunState(status, job or (live[-1].live_job(answer) if live else None), newest, live)


def _not_in_queue(status: Status, key: str, newest: Claim | None, job: JobInfo | None) -> Status:
    """Return the status of an unfinished run of which SLURM has no job in its queue."""
    if newest and (cancellation := newest.cancellation(key)):
        return _ended(status, "interrupted", Ending("cancelled", f"cancelled by {cancellation.by}"))
    left_a_checkpoint = status.state == "interrupted" and status.cause in ("signal", "step_limit", "device")
    if left_a_checkpoint or not (newest and newest.on_slurm):
        return status
    return _ended(status, "interrupted", _ending_of_job(newest, job, status))


def _without_slurm(status: Status, newest: Claim | None, key: str) -> Status:
    if status.state == "interrupted" and newest and (cancellation := newest.cancellation(key)):
        return _ended(status, "interrupted", Ending("cancelled", f"cancelled by {cancellation.by}"))
    return status


def _ended(status: Status, state: str, ending: Ending) -> Status:
    return replace(status, state=state, cause=ending.cause, reason=ending.reason, stopped_by="")


def _pending_reason(claim: Claim | None, job: JobInfo) -> str:
    if job.is_suspended:
        return f"suspended on {job.node}"
    if not job.waits:
        return f"starting on {job.node}" if job.state == "RUNNING" else f"ending on {job.node}"
    if job.reason in ("Dependency", "None") and claim and _canary(claim, job.job_id):
        return "waiting for its canary"
    return f"({job.reason})"


def _ending_of_job(claim: Claim, job: JobInfo | None, status: Status) -> Ending:
    if canary := _canary(claim, claim.job_id):
        of_canary = RunDirectory(SubmissionLayout(claim.folder).runs_folder / canary).status()
        if of_canary.state == "failed" and (job is None or job.state == "CANCELLED"):
            return Ending("canary", f"its canary failed: {of_canary.reason or of_canary.state}")
    if job is None:
        # Without accounting SLURM forgets a job a few minutes after its end. A submission says queued, so a run that
        # says anything else was worked on since.
        if status.state != "queued":
            return Ending("killed", f"killed: SLURM no longer knows its job {claim.job_id}")
        return Ending("not_begun", f"SLURM no longer knows its job {claim.job_id}: cancelled before it started")
    if job.state == "COMPLETED":
        return Ending("not_begun", f"job {job.job_id} finished but never ran this run")
    if job.state == "OUT_OF_MEMORY":
        return Ending("out_of_memory", f"killed: {job.describe_end()}")
    if job.start:
        return Ending("killed", f"killed: {job.describe_end()}")
    return Ending("cancelled" if job.state == "CANCELLED" else "not_begun", job.describe_end())


def _canary(claim: Claim, job_id: str) -> str | None:
    """Return the canary that a job's array waits for."""
    return claim.submission.get("canaries", {}).get(job_id.split("_")[0])
