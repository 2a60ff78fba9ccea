"""The state of a run: its directory combined with SLURM's answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import LaunchError
from harness.launch.claims import Claim, claims_of
from harness.launch.requeue import given_up
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout
from harness.records.status import Ending, Status
from harness.slurm.jobs import JobInfo, read_queue

FORGOTTEN_SECONDS = 600.0  # "queued" and the claim are seconds apart, unless the submission was interrupted in between


@dataclass(frozen=True)
class RunState:
    """The state of a run, from its directory and SLURM."""

    status: Status = field(default_factory=Status)
    job: JobInfo | None = None
    claim: Claim | None = None


def read_run_states(paths: Sequence[Path]) -> dict[str, RunState]:
    """Return the states of runs by key; SLURM is queried once, and without SLURM only the directories are used.

    Args:
        paths: run directories, all in one folder.
    """
    states = {path.name: RunState(RunDirectory(path).status()) for path in paths}
    open_ends = [key for key, state in states.items() if state.status.state in ("queued", "running", "interrupted")]
    if not open_ends:
        return states
    newest = {key: all_claims[-1] for key, all_claims in claims_of(paths[0].parent, open_ends).items()}
    on_slurm = {key: claim.job_id for key, claim in newest.items() if claim.on_slurm and claim.job_id}
    try:
        jobs = read_queue(on_slurm.values())
    except LaunchError:
        jobs, on_slurm = {}, {}
    for path in paths:
        if (key := path.name) in open_ends:
            job, claim = jobs.get(on_slurm.get(key, "")), newest.get(key)
            status = _combine_with_slurm(states[key].status, key, claim, job, slurm_answers=key in on_slurm)
            if status.state == "interrupted" and (ending := given_up(path)):
                status = _ended(status, "failed", ending)
            states[key] = RunState(status, job, claim)
    return states


def _combine_with_slurm(
    status: Status, key: str, claim: Claim | None, job: JobInfo | None, *, slurm_answers: bool
) -> Status:
    """Add to a run directory's status what only SLURM knows: that a job is queued, requeued or gone."""
    if claim is None:
        forgotten = status.state == "queued" and time.time() - status.updated_seconds > FORGOTTEN_SECONDS
        ending = Ending("never_submitted", "the submission was interrupted before the run had a job")
        return _ended(status, "interrupted", ending) if forgotten else status
    cancellation = claim.cancellation(key)
    if slurm_answers and job and job.live and not (cancellation and status.state == "interrupted"):
        if status.state == "running":
            return status
        why = _pending_reason(claim, job)
        reason = f"{why}; requeued, {status.reason}" if status.state == "interrupted" else why
        return replace(status, state="queued", reason=reason, cause="", stopped_by="")
    if status.state == "interrupted" or (slurm_answers and status.state in ("queued", "running")):
        if cancellation:
            return _ended(status, "interrupted", Ending("cancelled", f"cancelled by {cancellation.by}"))
        left_a_checkpoint = status.state == "interrupted" and status.cause in ("signal", "step_limit")
        if slurm_answers and not left_a_checkpoint:
            return _ended(status, "interrupted", _ending_of_job(claim, job))
    return status


def _ended(status: Status, state: str, ending: Ending) -> Status:
    return replace(status, state=state, cause=ending.cause, reason=ending.reason, stopped_by="")


def _pending_reason(claim: Claim, job: JobInfo) -> str:
    if not job.waits:
        return f"starting on {job.node}" if job.state == "RUNNING" else f"ending on {job.node}"
    if job.reason in ("Dependency", "None") and _canary(claim, job.job_id):
        return "waiting for its canary"
    return f"({job.reason})"


def _ending_of_job(claim: Claim, job: JobInfo | None) -> Ending:
    canary = _canary(claim, claim.job_id)
    if canary:
        status = RunDirectory(SubmissionLayout(claim.folder).runs_folder / canary).status()
        if status.state == "failed" and (job is None or job.state == "CANCELLED"):
            return Ending("canary", f"its canary failed: {status.reason or status.state}")
    if job is None:
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
