"""Claims: which submission took a run, with which job, and where its log is."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.files import replace_file
from harness.records.layout import SubmissionLayout, claim_folders
from harness.records.reading import Fields, parse_json, read_json
from harness.slurm.jobs import JobInfo, QueueAnswer

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Claim:
    """A submission that took a run: its folder, and its jobs that worked on the run, the newest last."""

    folder: Path
    jobs: tuple[str, ...] = ()

    @property
    def job_id(self) -> str:
        return self.jobs[-1] if self.jobs else ""

    @cached_property
    def submission(self) -> dict[str, Any]:
        return read_submission(self.folder)

    @property
    def on_slurm(self) -> bool:
        return bool(self.submission.get("cluster") == "slurm")

    @property
    def user(self) -> str:
        """Who submitted; empty in submissions of early versions."""
        return str(self.submission.get("user") or "")

    @property
    def clusters(self) -> str:
        """The clusters that its jobs were submitted to, empty for the login node's own."""
        profile = self.submission.get("profile")
        return str(profile.get("clusters") or "") if isinstance(profile, dict) else ""

    def live_job(self, answer: QueueAnswer) -> JobInfo | None:
        """Return the newest job of the claim that SLURM has in its queue; None if it has none, or did not answer."""
        names = [job_id for job_id in self.jobs if self.on_slurm and answer.presence(job_id) == "present"]
        return answer.jobs[names[-1]] if names else None

    def cancellation(self, run_key: str) -> Cancellation | None:
        """Return the cancellation of the run, None if there is none."""
        path = SubmissionLayout(self.folder).cancelled_path(run_key)
        if not path.exists():
            return None
        text = path.read_text(errors="replace").strip()
        if not text.startswith("{"):
            return Cancellation(text, path.stat().st_mtime)  # written by a version that did not store the time
        try:
            fields = Fields(parse_json(text.encode(), str(path)), str(path))
            return Cancellation(fields.text("by"), fields.seconds("cancelled_seconds"))
        except RecordError:  # torn by a full disk: that it is there is what counts
            return Cancellation("unknown", path.stat().st_mtime)


@dataclass(frozen=True)
class Cancellation:
    """A user's request to stop a run."""

    by: str
    cancelled_seconds: float  # Unix time


@cache
def read_submission(folder: Path) -> dict[str, Any]:
    path = SubmissionLayout(folder).submission_path
    try:
        submission = read_json(path)
        fields = Fields(submission, str(path))
        fields.seconds("time", 0.0)
        fields.fields("canaries", {})
        fields.fields("memory_gib", {})
    except FileNotFoundError:
        return {}
    except RecordError as error:
        logger.warning(f"{error}; this submission is left out")
        return {}
    return submission


def claims_of(runs_folder: Path, run_keys: Iterable[str]) -> dict[str, list[Claim]]:
    """Return the claims on each run, oldest first; a run without claims is missing."""
    keys = set(run_keys)
    claims: dict[str, list[Claim]] = {}
    for folder in claim_folders(runs_folder) if keys else []:
        for key in keys.intersection(os.listdir(folder)):  # noqa: PTH208 (3 times faster)
            jobs = tuple((folder / key).read_text().split())
            claims.setdefault(key, []).append(Claim(folder.parent, jobs))
    return claims


def jobs_by_clusters(claims: Iterable[Claim]) -> dict[str, set[str]]:
    """Return the jobs on SLURM of some claims by the clusters that know them."""
    jobs: dict[str, set[str]] = {}
    for claim in claims:
        if claim.on_slurm:
            jobs.setdefault(claim.clusters, set()).update(claim.jobs)
    return jobs


def is_cancelled(folder: Path, path: Path) -> bool:
    return SubmissionLayout(folder).cancelled_path(path.name).exists()


def mark_cancelled(folder: Path, run_key: str, by: str) -> None:
    path = SubmissionLayout(folder).cancelled_path(run_key)
    path.parent.mkdir(exist_ok=True)
    replace_file(path, json.dumps({"by": by, "cancelled_seconds": time.time()}), durable=False)


def unmark_cancelled(folder: Path, run_key: str) -> None:
    SubmissionLayout(folder).cancelled_path(run_key).unlink(missing_ok=True)


def job_of(runs_folder: Path, run_key: str) -> tuple[Path | None, str]:
    """Return the folder of the newest submission that took a run, and the name of submitit's job in it."""
    newest = claims_of(runs_folder, [run_key]).get(run_key, [None])[-1]
    return (newest.folder, newest.job_id) if newest else (None, "")


def run_log(runs_folder: Path, run_key: str) -> Path | None:
    """Return the log of a run's newest attempt or start; None if there is none.

    For runs of versions that kept no log in the run directory it is the job's.
    """
    logs = RunDirectory(runs_folder / run_key).log_paths()
    return logs[-1] if logs else job_log(runs_folder, run_key)


def job_log(runs_folder: Path, run_key: str) -> Path | None:
    """Return the log of the newest job that took a run: output outside of runs, and SLURM's messages."""
    for claim in reversed(claims_of(runs_folder, [run_key]).get(run_key, [])):
        layout = SubmissionLayout(claim.folder)
        for path in (layout.earlier_log_path(run_key), *map(layout.job_log_path, reversed(claim.jobs))):
            if path.exists():
                return path
    return None
