"""Which nodes new jobs exclude: those that failed under a run, or whose device did."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from pathlib import Path

from harness.errors import LaunchError
from harness.records.nodes import BadNode, bad_nodes, report_bad_node
from harness.slurm.cluster import node_names
from harness.slurm.jobs import JobInfo, read_accounting


def note_failed_nodes(runs_folder: Path, jobs: Iterable[JobInfo | None]) -> None:
    """Record the nodes that failed under these jobs.

    Of a job of several nodes SLURM does not say which one failed, so none is recorded.
    """
    known = {entry.node: entry.found_seconds for entry in bad_nodes(runs_folder)}
    for job in filter(None, jobs):
        for attempt in job.attempts:
            if attempt.state != "NODE_FAIL" or not attempt.node or set(attempt.node) & set("[,"):
                continue
            with contextlib.suppress(ValueError):
                ended = time.mktime(time.strptime(attempt.end, "%Y-%m-%dT%H:%M:%S"))
                if ended > known.get(attempt.node, 0.0):
                    report_bad_node(runs_folder, attempt.node, f"NODE_FAIL under job {job.job_id}", ended)


def note_failures_of(runs_folder: Path, job_id: str) -> None:
    """Record the nodes that failed under earlier attempts of this job, which SLURM requeued."""
    with contextlib.suppress(LaunchError):  # without accounting nobody knows
        note_failed_nodes(runs_folder, [read_accounting([job_id]).get(job_id)])


def excluded(runs_folder: Path) -> list[BadNode]:
    """Return the bad nodes that this cluster has: the folder may also be used from another.

    Raises:
        LaunchError: SLURM does not answer.
    """
    entries = bad_nodes(runs_folder)
    names = node_names() if entries else set()
    present = [entry for entry in entries if entry.node in names]
    return present if len(present) < len(names) else []  # without any node nothing would run


def exclude_option(given: str | None, nodes: Iterable[BadNode]) -> str | None:
    """Return the value of sbatch's --exclude: the profile's nodes, and these."""
    return ",".join(filter(None, [given, *(entry.node for entry in nodes)])) or None
