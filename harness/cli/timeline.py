"""The output of `harness why`: what happened to a run, in order."""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

from harness.errors import LaunchError
from harness.launch.claims import Claim, claims_of, jobs_by_clusters
from harness.records import collapse
from harness.records.directory import RunDirectory
from harness.records.journal import MEASURED, Event
from harness.slurm.commands import addressing
from harness.slurm.jobs import JobInfo
from harness.slurm.recent import read_recent_queue
from harness.text import printable

WITHIN_THE_SECOND_MS = 999
"""What is added to the second of a job's end: what its run still wrote in that second was before it."""


def timeline(directory: RunDirectory) -> list[str]:
    """Describe what happened to a run, from its journal and SLURM, one line per event, oldest first.

    Of consecutive checkpoints only the last is shown. Without SLURM's accounting only the run directory is used.
    """
    events = [event for event in directory.events() if event.name != MEASURED]
    following = [*events, None][1:]
    journal = [
        (event.time_ms, _event_line(event))
        for event, after in zip(events, following, strict=True)
        if event.name != "checkpoint" or after is None or after.name != "checkpoint"
    ]
    claims = claims_of(directory.path.parent, [directory.key]).get(directory.key, [])
    jobs: dict[str, JobInfo] = {}
    for clusters, names in jobs_by_clusters(claims).items():
        with suppress(LaunchError), addressing(clusters):
            jobs |= read_recent_queue(names)
    cancellations = [claim.cancellation(directory.key) for claim in claims]
    cancelled = [(_whole_ms(one.cancelled_seconds), f"cancelled by {one.by}") for one in cancellations if one]
    sources = [*(_claim_lines(claim, jobs) for claim in claims), cancelled, journal]
    # SLURM says a start by its second and the journal by its millisecond, so at equal times what came by a submission
    # or a job is before what the run did in it.
    moments = heapq.merge(*map(_in_sequence, sources), key=lambda line: line[0])
    return [
        printable(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(time_ms / 1000))}  {message}")
        for time_ms, message in moments
    ]


def _in_sequence(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    """Yield events in the order in which their source has them, with times that do not fall.

    SLURM's times are whole seconds, and the clocks of two nodes differ; each source knows the order of its own events.
    """
    latest = 0
    for time_ms, line in lines:
        latest = max(latest, time_ms)
        yield latest, line


def _claim_lines(claim: Claim, jobs: Mapping[str, JobInfo]) -> Iterator[tuple[int, str]]:
    submission = claim.submission
    if not submission:
        return
    job = f", job {claim.jobs[0]}" if claim.on_slurm and claim.jobs else ""
    by, cluster = submission.get("user", "someone"), submission.get("cluster", "unknown")
    yield _whole_ms(submission.get("time", 0.0)), f"submitted by {by} ({cluster}{job})"
    for job_id in claim.jobs:
        attempts = jobs[job_id].attempts if job_id in jobs else ()
        for number, attempt in enumerate(attempts):
            if attempt.start and attempt.node:
                again = "again " if number or job_id != claim.jobs[0] else ""
                yield _local_ms(attempt.start), f"SLURM starts job {job_id} {again}on {attempt.node}"
            if attempt.end and attempt.state not in ("RUNNING", "PENDING"):
                by = f" by {jobs[job_id].user}" if attempt.state == "CANCELLED" and jobs[job_id].user else ""
                code = f", exit code {attempt.exit_code}" if attempt.exit_code not in ("", "0:0") else ""
                ended = f"SLURM ends job {job_id}: {attempt.state}{by}{code}"
                yield _local_ms(attempt.end) + WITHIN_THE_SECOND_MS, ended


def _local_ms(local: str) -> int:
    return _whole_ms(time.mktime(time.strptime(local, "%Y-%m-%dT%H:%M:%S")))


def _whole_ms(seconds: float) -> int:
    """Return the millisecond in which a moment lies, as the journal writes its times."""
    return math.floor(seconds * 1000)


def _event_line(event: Event) -> str:
    shown = {key: value for key, value in event.fields.items() if key not in ("attempt", "traceback")}
    fields = " ".join(f"{key}={value}" for key, value in shown.items() if value not in (None, ""))
    superseded = "  (superseded by a later attempt)" if event.superseded else ""
    if event.name == "started":
        begun = (
            f"resumed at step {event.fields['resumed_from_step']}" if event.fields["resumed_from_step"] else "started"
        )
        fields = f"on {event.fields['host']} (attempt {event.attempt}, process {event.fields['pid']})"
        return f"{begun} {fields}{superseded}"
    if event.name == collapse.EVENT:
        whose = f"step {event.fields.get('step', 0)}" + (
            f", {name}" if (name := event.fields.get("evaluation")) else ""
        )
        return f"collapse at {whose}: {collapse.describe(event)}{superseded}"
    return f"{event.name}  {fields}".rstrip() + superseded
