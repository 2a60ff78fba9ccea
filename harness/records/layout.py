"""The layout of a folder of runs: the only place that defines names of files and folders.

    runs/<run_key>/                     a run (`RunLayout`; the files are described in harness/records/directory.py)
    runs/.jobs/<study>/<stamp>/         a submission (`SubmissionLayout`; harness/launch/__init__.py)
    runs/.code/<id>/                    the code at the time of a submission (harness/records/snapshot.py)
    runs/.search/<name>/                a search (harness/search/__init__.py)
    runs/.studies/<study>/              what a study asks for (harness/records/manifest.py)
    runs/.throughput/                   measured cost of training steps (harness/records/throughput.py)

Names that start with a dot are never runs or studies.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from harness.records.reading import STUDY_NAME

JOBS, CODE, SEARCH, THROUGHPUT, ASKED = ".jobs", ".code", ".search", ".throughput", ".studies"
NODES = ".nodes"
JOURNALS = "journal-*.jsonl"
KEPT_BATCHES = "batch-*.npy"  # in the folder of a draw, below a run's `kept`
STUDIES = "[!.]*.json"  # in a run's folder of studies; a file that is being written starts with a dot
_RUN_KEY = re.compile(r"[0-9a-f]{12,64}")
_JOURNAL_NAME = re.compile(r"journal-[0-9]{1,9}\.jsonl")


def run_paths(runs_folder: Path) -> list[Path]:
    """Return the run directories in a folder of runs, in the order of their keys."""
    return [path.parent for path in sorted(runs_folder.glob("[!.]*/spec.json")) if _RUN_KEY.fullmatch(path.parent.name)]


def folders_that_are_no_runs(runs_folder: Path) -> dict[str, str]:
    """Return the folders that look like runs and are not read as runs, with the reason, by name."""
    reasons = {
        path.parent.name: "its name is not a run_key; if it is a copy of a run, move it out of the folder of runs"
        for path in runs_folder.glob("[!.]*/spec.json")
        if not _RUN_KEY.fullmatch(path.parent.name)
    }
    for path in runs_folder.glob("[!.]*/studies"):  # written after the spec, so one without it has lost it
        if _RUN_KEY.fullmatch(path.parent.name) and not (path.parent / "spec.json").exists():
            reasons[path.parent.name] = "spec.json is missing"
    for path in runs_folder.glob("[!.]*"):
        if _RUN_KEY.fullmatch(path.name) and path.is_dir() and not os.access(path, os.R_OK | os.X_OK):
            reasons[path.name] = "it cannot be read: permission denied"
    return dict(sorted(reasons.items()))


def members_of(runs_folder: Path, study: str) -> list[Path]:
    """Return the run directories that have ever been members of a study, in no particular order."""
    paths = (path.parent for path in runs_folder.glob("[!.]*/studies"))
    return [path for path in paths if _RUN_KEY.fullmatch(path.name) and is_member(path, study)]


def is_member(path: Path, study: str) -> bool:
    """Return whether a folder is the directory of a run that has ever been a member of a study."""
    return (path / "studies" / f"{study}.json").is_file()


def study_names(runs_folder: Path) -> list[str]:
    """Return the names of all studies that have ever had a run here, sorted."""
    paths = runs_folder.glob(f"[!.]*/studies/{STUDIES}")
    names = {path.stem for path in paths if _RUN_KEY.fullmatch(path.parents[1].name)}
    return sorted(name for name in names if STUDY_NAME.fullmatch(name))


def submission_folders(runs_folder: Path, study: str = "*") -> list[Path]:
    """Return the folders of submissions, of all studies or of one, the oldest first: their names start with a time."""
    return sorted((runs_folder / JOBS).glob(f"{study}/*"), key=lambda path: path.name)


class RunLayout:
    """The files and folders of one run directory."""

    path: Path

    @property
    def spec_path(self) -> Path:
        return self.path / "spec.json"

    @property
    def spec_yaml_path(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def status_path(self) -> Path:
        return self.path / "status.json"

    @property
    def environment_path(self) -> Path:
        return self.path / "environment.json"

    @property
    def prune_path(self) -> Path:
        return self.path / "prune.json"

    @property
    def retried_path(self) -> Path:
        """The number of the last attempt before `harness retry`."""
        return self.path / "retried"

    @property
    def studies_folder(self) -> Path:
        return self.path / "studies"

    @property
    def checkpoints_folder(self) -> Path:
        return self.path / "checkpoints"

    @property
    def arrays_folder(self) -> Path:
        return self.path / "arrays"

    @property
    def samples_folder(self) -> Path:
        return self.path / "samples"

    @property
    def kept_folder(self) -> Path:
        """Samples and features that evaluations keep; all of it can be drawn again."""
        return self.path / "kept"

    def num_kept_batches(self) -> int:
        """Return how many batches the evaluations that are not finished have kept."""
        return sum(1 for _ in self.kept_folder.glob(f"*/{KEPT_BATCHES}"))

    @property
    def evaluations_folder(self) -> Path:
        return self.path / "evaluations"

    @property
    def certificates_folder(self) -> Path:
        return self.path / "certificates"

    @property
    def logs_folder(self) -> Path:
        return self.path / "logs"

    @property
    def lock_folder(self) -> Path:
        return self.path / "lock"

    @property
    def tracking_folder(self) -> Path:
        return self.path / "tracking"

    def study_path(self, study: str) -> Path:
        return self.studies_folder / f"{study}.json"

    def evaluation_path(self, key: str) -> Path:
        return self.evaluations_folder / f"{key}.json"

    def journal_path(self, attempt: int) -> Path:
        return self.path / f"journal-{attempt:04d}.jsonl"

    def log_path(self, attempt: int) -> Path:
        return self.logs_folder / f"attempt-{attempt:04d}.log"

    def journal_paths(self) -> list[Path]:
        """Return the existing journals, the oldest attempt first."""
        return sorted(path for path in self.path.glob(JOURNALS) if _JOURNAL_NAME.fullmatch(path.name))

    def log_paths(self) -> list[Path]:
        """Return the existing logs, the oldest attempt first."""
        return sorted(self.logs_folder.glob("attempt-*.log"))


class StudyLayout:
    """The files and folders of what one study asks for."""

    def __init__(self, runs_folder: Path, study: str):
        self.folder = runs_folder / ASKED / study

    @property
    def manifest_path(self) -> Path:
        """The runs that it asks for."""
        return self.folder / "manifest.json"

    def scored_path(self, arm: str) -> Path:
        """The measurement of images from elsewhere that stand beside its arms."""
        return self.folder / "scored" / f"{arm}.json"

    @property
    def lock_folder(self) -> Path:
        return self.folder / "lock"

    @property
    def tracking_folder(self) -> Path:
        """What MLflow has of its arms and of itself."""
        return self.folder / "tracking"


class SubmissionLayout:
    """The files and folders of one submission."""

    def __init__(self, folder: Path):
        self.folder = folder

    @property
    def runs_folder(self) -> Path:
        return self.folder.parents[2]

    @property
    def submission_path(self) -> Path:
        """Who submitted what, where and with which options."""
        return self.folder / "submission.json"

    @property
    def claims_folder(self) -> Path:
        return self.folder / "claims"

    def claim_path(self, run_key: str) -> Path:
        """The jobs that took a run, the newest last."""
        return self.claims_folder / run_key

    def cancelled_path(self, run_key: str) -> Path:
        """Who cancelled a run, and when."""
        return self.folder / "cancelled" / run_key

    def starts_path(self, run_key: str) -> Path:
        """The number of attempts that a run had at each start of its job."""
        return self.folder / "begun" / run_key

    def job_log_path(self, job_id: str) -> Path:
        """The output of a job beside its runs' own logs; submitit chooses the name."""
        return self.folder / f"{job_id}_0_log.out"

    def earlier_log_path(self, run_key: str) -> Path:
        """The log of a run that shared its job, in versions without logs in run directories."""
        return self.folder / f"{run_key}_log.out"


def claim_folders(runs_folder: Path) -> Iterable[Path]:
    """Return the folders of claims of all submissions, the oldest submission first."""
    return sorted((runs_folder / JOBS).glob("*/*/claims"), key=lambda path: path.parts[-2])
