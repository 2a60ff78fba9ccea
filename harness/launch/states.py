"""Where a run stands: what its directory and SLURM say together."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.errors import LaunchError
from harness.launch.claims import Claim, claims_of, log_of
from harness.records.directory import RunDirectory
from harness.records.status import Status
from harness.slurm.jobs import JobInfo, read_queue

ATTEMPTS_WITHOUT_PROGRESS = 3


@dataclass(frozen=True)
class RunState:
    """What the run directory and SLURM say of a run together."""

    status: Status = field(default_factory=Status)
    job: JobInfo | None = None
    claim: Claim | None = None


def read_run_states(paths: Sequence[Path]) -> dict[str, RunState]:
    """Return where runs stand, by their keys; SLURM is asked once, and where it is not, the directories alone tell.

    Args:
        paths: run directories, all in one folder.
    """
    found = {path.name: RunState(RunDirectory(path).status()) for path in paths}
    open_ends = [key for key, one in found.items() if one.status.state in ("queued", "running", "interrupted")]
    if not open_ends:
        return found
    newest = {key: all_claims[-1] for key, all_claims in claims_of(paths[0].parent, open_ends).items()}
    on_slurm = {key: claim.job_id for key, claim in newest.items() if claim.on_slurm and claim.job_id}
    try:
        jobs = read_queue(on_slurm.values())
    except LaunchError:
        jobs, on_slurm = {}, {}
    for path in paths:
        if (key := path.name) in open_ends:
            job, claim = jobs.get(on_slurm.get(key, "")), newest.get(key)
            status = _combine_with_slurm(found[key].status, key, claim, job, slurm_answers=key in on_slurm)
            if status.state == "interrupted" and (reason := killed_without_progress(path)):
                status = replace(status, state="failed", reason=reason)
            found[key] = RunState(status, job, claim)
    return found


def _combine_with_slurm(
    status: Status, key: str, claim: Claim | None, job: JobInfo | None, *, slurm_answers: bool
) -> Status:
    """Add to what a run directory says what only SLURM can know: that a job waits, comes back or is gone."""
    if claim is None:
        # Between this state and the claim lie seconds, unless the submission was broken off there.
        forgotten = status.state == "queued" and time.time() - status.updated_seconds > 600
        return replace(status, state="interrupted", reason="no job was submitted for it") if forgotten else status
    by = claim.cancelled_by(key)
    if slurm_answers and job and job.live and not (by and status.state == "interrupted"):
        if status.state == "running":
            return status
        begun = f"requeued, {status.reason}" if status.state == "interrupted" else ""
        return replace(status, state="queued", reason=_why_it_waits(claim, job) + (f"; {begun}" if begun else ""))
    if status.state == "interrupted" or (slurm_answers and status.state in ("queued", "running")):
        if by:
            return replace(status, state="interrupted", reason=f"cancelled by {by}")
        if slurm_answers and not (status.state == "interrupted" and status.reason.startswith("stopped by")):
            return replace(status, state="interrupted", reason=_why_it_ended(claim, job))
    return status


def _why_it_waits(claim: Claim, job: JobInfo) -> str:
    if not job.waits:
        return f"starts on {job.node}" if job.state == "RUNNING" else f"leaves {job.node}"
    if job.reason in ("Dependency", "None") and _canary(claim, job.job_id):
        return "waits for its canary"
    return f"({job.reason})"


def _why_it_ended(claim: Claim, job: JobInfo | None) -> str:
    canary = _canary(claim, claim.job_id)
    if canary:
        died = RunDirectory(claim.folder.parents[2] / canary).status()
        if died.state == "failed" and (job is None or job.state == "CANCELLED"):
            return f"its canary failed: {died.reason or died.state}"
    if job is None:
        return f"SLURM no longer knows its job {claim.job_id}: cancelled before it began"
    if job.state == "COMPLETED":
        return f"its job {job.job_id} ended without it"
    return f"killed: {job.how_it_ended()}" if job.start else job.how_it_ended()


def _canary(claim: Claim, job_id: str) -> str | None:
    """Return the run whose first steps the array of a job waits for."""
    return claim.submission.get("canaries", {}).get(job_id.split("_")[0])


def killed_without_progress(path: Path) -> str | None:
    """Return why a run had better not be begun again: its last three attempts were ended without a word at one step.

    A checkpoint, an evaluation, and any state that the job itself could write are progress, or a word. What happened
    before `harness retry` does not count.
    """
    directory = RunDirectory(path)
    attempts = directory.attempts()[-ATTEMPTS_WITHOUT_PROGRESS:]
    forgiven = _forgiven(path)
    if len(attempts) < ATTEMPTS_WITHOUT_PROGRESS or attempts[0] <= forgiven or directory.writer():
        return None
    events = [event for event in directory.events() if event.attempt in attempts]
    started = [event for event in events if event.name == "started"]
    words = {"checkpoint", "evaluation", "interrupted", "failed", "finished", "pruned"}
    if len({event.facts["resumed_from_step"] for event in started}) != 1 or any(e.name in words for e in events):
        return None
    last = started[-1].facts
    place = f"at step {last['resumed_from_step']} without progress"
    return repeated_kill_reason(path, len(attempts), place, last["host"])


def repeated_kill_reason(path: Path, times: int, place: str, host: str) -> str:
    _, text = log_of(path.parent, path.name, whole=True)
    host = os.environ.get("SLURMD_NODENAME", host)
    out_of_memory = re.search(r"exceeded (job|step) memory|exceeded memory limit|oom[-_ ]kill|OUT_OF_MEMORY", text)
    what = f"OUT_OF_MEMORY on {host}; ask for more memory_gib" if out_of_memory else f"on {host}"
    return f"killed {times} times {place}: {what}, then `harness retry`"


def _forgiven(path: Path) -> int:
    """Return the number of the attempts before the last `harness retry`."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return int((path / "retried").read_text())
    return 0
