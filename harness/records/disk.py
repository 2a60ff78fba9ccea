"""Disk usage of run directories, and what can be removed: nothing that a resume, a figure or an evaluation needs.

Leftovers of killed processes are removable when the file is ten minutes old. This is the only place where a file's time
matters, and it errs on the safe side: a new copy of a leftover is kept a little longer.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.layout import CODE, KEPT_BATCHES, SubmissionLayout, run_paths, submission_folders
from harness.records.reading import Fields, read_json, shortened

LEFTOVER_SECONDS = 600.0  # a younger one may still be written
SCORES = "scores.json"  # beside checkpoints: the value of `records.best` at their steps
_CHECKPOINT = re.compile(r"step-(\d{8,})-([0-9a-f]{64})\.pt")
_SNAPSHOT = re.compile(r"averages-(\d{8,})-([0-9a-f]{64})\.pt")


@dataclass(frozen=True)
class Removable:
    """A file or folder that can be removed, and why."""

    path: Path
    num_bytes: int
    why: str


def checkpoint_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the checkpoints in a folder with their steps, intact or not, in ascending order."""
    return _files_by_step(folder.glob("step-*.pt"), _CHECKPOINT)


def snapshot_files(folder: Path) -> list[tuple[int, Path]]:
    """Return the snapshots of averages beside the checkpoints with their steps, intact or not, in ascending order."""
    return _files_by_step(folder.glob("averages-*.pt"), _SNAPSHOT)


def _files_by_step(paths: Iterable[Path], name: re.Pattern[str]) -> list[tuple[int, Path]]:
    return sorted((int(match[1]), path) for path in paths if (match := name.fullmatch(path.name)))


def scores(folder: Path, metric: str | None = None) -> dict[int, float]:
    """Return a metric's value at each checkpoint's step, smaller being better; None: the recorded metric."""
    try:
        recorded, by_step = scores_from(read_json(folder / SCORES), str(folder / SCORES))
    except FileNotFoundError:
        return {}
    if metric not in (None, recorded):
        return {}
    steps = {step for step, _ in checkpoint_files(folder)}
    return {step: score for step, score in by_step.items() if step in steps}


def scores_from(stored: Any, place: str) -> tuple[str | None, dict[int, float]]:
    """Return the metric in a scores.json, and its value by step.

    Raises:
        RecordError: a value is missing or not of its type.
    """
    fields = Fields(stored, place)
    values, by_step = fields.fields("scores"), {}
    for step in stored["scores"]:
        if not re.fullmatch("[0-9]{1,18}", step):
            raise RecordError(f"{place}: scores has a step {shortened(step)}")
        by_step[int(step)] = values.number(step)
    return fields.get("metric") and fields.line("metric"), by_step


def best_step(folder: Path, metric: str | None = None) -> int | None:
    """Return the step of the best existing checkpoint, the earliest of equals."""
    by_step = scores(folder, metric)
    return min(by_step, key=lambda step: (by_step[step], step), default=None)


def usage(run_directories: Iterable[Path]) -> Counter[str]:
    """Return the disk usage of runs in bytes by kind: checkpoints, journals, samples, arrays, kept and other."""
    num_bytes: Counter[str] = Counter()
    for run_directory in run_directories:
        for path in run_directory.rglob("*"):
            if path.is_file():
                top = path.relative_to(run_directory).parts[0]
                kind = "journals" if top.startswith("journal-") else top
                num_bytes[kind if kind in ("checkpoints", "journals", "samples", "arrays", "kept") else "other"] += (
                    _size(path)
                )
    return num_bytes


def removable(run_directory: RunDirectory) -> list[Removable]:
    """Return what can be removed in an inactive run: old checkpoints of a done one, and leftovers of killed jobs."""
    if run_directory.may_be_written():
        return []
    can_go = [Removable(path, _size(path), "left by a killed job") for path in _leftovers(run_directory)]
    if run_directory.status().state == "done" and not run_directory.damage():
        old = _old_checkpoints(run_directory)
        can_go += [Removable(path, _size(path), "checkpoint before the last of a done run") for path in old]
        unrecorded = _batches_of_unfinished_evaluations(run_directory)
        can_go += [
            Removable(path, _size(path), "batches of an evaluation that was not finished") for path in unrecorded
        ]
    return can_go


def remove(run_directory: RunDirectory) -> int:
    """Remove items of a run while holding its lock; return the number of bytes freed.

    Raises:
        RecordError: another process has started to work on the run.
    """
    # Looked up before taking the lock, since its holder counts as a writer, and removed while holding it.
    can_go = removable(run_directory)
    if not can_go:
        return 0
    with run_directory.lock():
        for entry in can_go:
            entry.path.unlink(missing_ok=True)
    return sum(entry.num_bytes for entry in can_go)


def removable_folders(runs_folder: Path) -> list[Removable]:
    """Return what can be removed beside the runs: code snapshots that no run used, and folders of finished jobs."""
    directories = {path.name: RunDirectory(path) for path in run_paths(runs_folder)}
    states = {key: directory.status().state for key, directory in directories.items()}
    code = "code snapshots that no run used"
    jobs = "logs and pickles of finished jobs"
    return [
        *(Removable(path, _size_below(path), code) for path in _unused_code(runs_folder, directories, states)),
        *(Removable(path, _size_below(path), "left by a killed import") for path in _killed_imports(runs_folder)),
        *(Removable(path, _size_below(path), jobs) for path in _finished_jobs(runs_folder, states)),
    ]


def remove_folder(folder: Removable) -> int:
    """Remove a folder; return the number of bytes freed."""
    shutil.rmtree(folder.path, ignore_errors=True)
    return folder.num_bytes


def _unused_code(runs_folder: Path, directories: dict[str, RunDirectory], states: dict[str, str]) -> list[Path]:
    if {"queued", "running"} & set(states.values()):
        return []  # a queued job has not recorded yet which code it will import
    try:
        used = {entry.get("code_snapshot") for run in directories.values() for entry in run.environments()}
    except RecordError:
        return []  # a run whose environment cannot be read may use any of them
    return [path for path in (runs_folder / CODE).glob("[!.]*") if path.name not in used and _is_old(path)]


def _killed_imports(runs_folder: Path) -> list[Path]:
    return [path for path in runs_folder.glob(".import-*") if all(map(_is_old, [path, *path.rglob("*")]))]


def _finished_jobs(runs_folder: Path, states: dict[str, str]) -> list[Path]:
    """Find submissions whose runs are all done, removed, or failed after a later submission: their logs are not needed.

    An interrupted run may still have a job of any of its submissions in SLURM's queue, which needs its pickle.
    """
    newest: dict[str, Path] = {}
    claims = {
        folder: [claim.name for claim in SubmissionLayout(folder).claims_folder.glob("*")]
        for folder in submission_folders(runs_folder)
    }
    for folder, keys in claims.items():
        newest |= dict.fromkeys(keys, folder)

    def finished(folder: Path, key: str) -> bool:
        state = states.get(key, "done")
        return state in ("done", "pruned") or (newest[key] != folder and state == "failed")

    return [
        folder
        for folder, keys in claims.items()
        if all(finished(folder, key) for key in keys) and all(map(_is_old, [folder, *folder.rglob("*")]))
    ]


def _is_old(path: Path) -> bool:
    return time.time() - path.stat().st_mtime > LEFTOVER_SECONDS


def _size_below(folder: Path) -> int:
    return sum(_size(path) for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _leftovers(run_directory: RunDirectory) -> list[Path]:
    """Find files that were being written when their process ended: writers rename them when they are complete."""
    hidden = [path for path in run_directory.path.rglob(".*") if path.is_file()]
    partial = list(run_directory.checkpoints_folder.glob("*.tmp"))
    return [path for path in [*hidden, *partial] if _is_old(path)]


def _batches_of_unfinished_evaluations(run_directory: RunDirectory) -> list[Path]:
    """Find the batches that were kept against a kill, unless a study keeps them for good."""
    wanted = any(membership.get("records", {}).get("keep_samples") for membership in run_directory.studies().values())
    return [] if wanted else sorted(run_directory.kept_folder.glob(f"*/{KEPT_BATCHES}"))


def _old_checkpoints(run_directory: RunDirectory) -> list[Path]:
    folder = run_directory.checkpoints_folder
    checkpoints = checkpoint_files(folder)
    if len(checkpoints) < 2:
        return []
    newest = checkpoints[-1][1]
    with newest.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() not in newest.name:
            return []  # the newest is damaged, so the one before it is needed
    every = [membership.get("records", {}).get("keep_every") for membership in run_directory.studies().values()]
    best = best_step(folder)
    by_interval = {step for step, _ in checkpoints if any(interval and step % interval == 0 for interval in every)}
    return [path for step, path in checkpoints[:-1] if step != best and step not in by_interval]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # removed meanwhile
        return 0
