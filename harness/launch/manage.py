"""Cancel, retry, and find runs that no study requests any more."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Sequence, Set
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.errors import LaunchError
from harness.launch.claims import (
    Claim,
    claims_of,
    jobs_by_clusters,
    mark_cancelled,
    read_submission,
    unmark_cancelled,
)
from harness.launch.planning import TO_DO, Plan
from harness.launch.requeue import reset_kills
from harness.launch.states import read_run_states
from harness.records.directory import RunDirectory
from harness.records.layout import SubmissionLayout, submission_folders
from harness.records.manifest import Manifests
from harness.slurm.commands import addressing, patiently
from harness.slurm.jobs import cancel_jobs, current_user
from harness.slurm.profile import Profile
from harness.slurm.recent import forget_recent_queue
from harness.text import count


def orphans(plan: Plan) -> list[RunDirectory]:
    """Return the queued and running runs that this study no longer asks for, and no other study does."""
    manifests, study = Manifests(plan.runs_folder), plan.study.name
    alone = [directory for directory in plan.earlier if not manifests.memberships(directory).keys() - {study}]
    return active(alone)


def active(directories: Sequence[RunDirectory]) -> list[RunDirectory]:
    """Return the runs that are queued or running."""
    states = read_run_states([directory.path for directory in directories])
    return [directory for directory in directories if states[directory.key].status.state in ("queued", "running")]


def cancel(directories: Sequence[RunDirectory]) -> list[RunDirectory]:
    """Stop queued and running runs, running ones with a checkpoint; return those that were stopped.

    A job that several runs share is cancelled when no run needs it; else the job stops the cancelled runs itself.

    Raises:
        LaunchError: SLURM does not answer; or a run is running on another machine, which cannot be signalled from here;
            or a job is another user's, and goes on.
    """
    if not directories:
        return []
    runs_folder = directories[0].path.parent
    by = current_user()
    keys = [directory.key for directory in directories]
    claims = claims_of(runs_folder, keys)
    states = read_run_states([directory.path for directory in directories], wait=True)
    unanswered = [state.unanswered for state in states.values() if state.unanswered]
    if unanswered:
        raise LaunchError(
            f"SLURM does not answer, and {count(len(unanswered), 'run')} may have a job in its queue: {unanswered[0]}. "
            "Nothing was cancelled: try again later"
        )
    # Local workers claim a run when they start it: queued ones are marked here, too.
    for folder in submission_folders(runs_folder):
        submission = read_submission(folder)
        if submission and submission.get("cluster") != "slurm":
            for key in set(keys) & set(submission.get("runs", ())):
                if states[key].status.state in TO_DO or states[key].status.state == "running":
                    mark_cancelled(folder, key, by)
    live = [directory for directory in directories if states[directory.key].status.state in ("queued", "running")]
    job_ids: dict[str, str] = {}  # and whose each is, empty where that is not known
    marks: list[tuple[Claim, str]] = []
    folders: set[Path] = set()
    for directory in live:
        state, newest = states[directory.key], claims.get(directory.key, [None])[-1]
        if state.job and state.job.live:
            job_ids[state.job.job_id] = ""
        for claim in dict.fromkeys([*state.live_claims, *filter(None, [newest])]):
            mark_cancelled(claim.folder, directory.key, by)
            marks.append((claim, directory.key))
            if claim.on_slurm:
                job_ids |= dict.fromkeys(claim.jobs, claim.user)
                folders.add(claim.folder)
        if newest and not (newest.on_slurm and newest.jobs) and (owner := directory.writer()):
            if owner.get("host") != socket.gethostname():
                raise LaunchError(f"run {directory.key} is running on {owner['host']}: cancel it there")
            with contextlib.suppress(ProcessLookupError):
                os.kill(owner["pid"], signal.SIGTERM)
    needed = {job_id for folder in folders for job_id in _needed(folder)}
    to_cancel = {job_id: user for job_id, user in job_ids.items() if job_id not in needed}
    known = jobs_by_clusters(claim for of_run in claims.values() for claim in of_run)
    elsewhere = set().union(*(jobs for clusters, jobs in known.items() if clusters))
    refusals = []
    try:
        for clusters, jobs in {**known, "": to_cancel.keys() - elsewhere}.items():
            others = {job_id for job_id in jobs & to_cancel.keys() if to_cancel[job_id] not in ("", by)}
            with addressing(clusters):
                patiently(partial(cancel_jobs, sorted((jobs & to_cancel.keys()) - others)))
                refusals += _cancel_others(others, marks)
    finally:
        forget_recent_queue()
    if refusals:
        raise LaunchError(
            f"SLURM does not let you end the job {'; nor '.join(refusals)}: it goes on, and its owner can cancel it. "
            "Your own jobs are cancelled"
        )
    return live


def _cancel_others(job_ids: Set[str], marks: Sequence[tuple[Claim, str]]) -> list[str]:
    """Cancel jobs of other users, as an administrator may; return whose jobs SLURM refused to end, and why.

    Args:
        marks: all that were set; those of runs whose job goes on are removed.
    """
    refusals = []
    for user in sorted({claim.user for claim, _ in marks if job_ids & set(claim.jobs)}):
        of_user = [(claim, key) for claim, key in marks if claim.user == user]
        theirs = sorted(job_ids & {job_id for claim, _ in of_user for job_id in claim.jobs})
        try:
            cancel_jobs(theirs)
        except LaunchError as error:
            for claim, key in of_user:
                unmark_cancelled(claim.folder, key)
            refusals.append(f"{', '.join(theirs)} of {user} ({error})")
    return refusals


def _needed(folder: Path) -> set[str]:
    """Return the jobs of a submission that still have a run that is neither cancelled nor finished."""
    layout = SubmissionLayout(folder)
    needed = set()
    for path in layout.claims_folder.iterdir():
        if not layout.cancelled_path(path.name).exists():
            state = RunDirectory(layout.runs_folder / path.name).status().state
            if state in ("queued", "running", "interrupted"):
                needed.update(path.read_text().split()[-1:])
    return needed


def select_retries(plan: Plan, *, failed: bool, killed: bool) -> Plan:
    """Return the failed and the killed runs of a plan, and reset their counts of kills."""
    chosen = [
        planned
        for planned in plan.to_do
        if (failed and planned.state == "failed")
        or (killed and planned.state == "interrupted" and planned.status.cause in ("killed", "out_of_memory"))
    ]
    for planned in chosen:
        reset_kills(planned.directory)
    return replace(plan, runs=tuple(replace(planned, state="interrupted") for planned in chosen))


def last_options(plan: Plan) -> dict[str, Any]:
    """Return `cluster`, `jobs` and `profile` of the newest submission of a study; the defaults if there was none."""
    submissions = list(filter(None, map(read_submission, submission_folders(plan.runs_folder, plan.study.name))))
    submission = submissions[-1] if submissions else {"cluster": "local", "jobs": None, "profile": {}}
    options = {"cluster": submission.get("cluster", "local"), "jobs": submission.get("jobs")}
    profile = submission.get("profile")
    return options | {"profile": Profile.model_validate(profile) if profile else None}
