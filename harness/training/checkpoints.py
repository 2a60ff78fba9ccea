"""Atomic checkpoints: written to a temporary file, flushed, named by their own sha256, and renamed.

    checkpoints/step-00001000-<sha256>.pt

A file's name contains its checksum, so no second file can be missing or disagree. One that does not hash to its name is
damaged; the one before it is used. Loading never unpickles code (`weights_only`).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import pickle
import warnings
from pathlib import Path
from typing import IO, Any, cast

import torch

from harness.errors import CheckpointError
from harness.records.disk import SCORES, best_step, checkpoint_files, scores
from harness.records.files import replace_file, sync_folder


class DamagedCheckpointWarning(UserWarning):
    """A checkpoint does not hash to its name and was skipped."""


class Checkpoints:
    """Save and load the whole state of a run; one process saves, any may load.

    Args:
        folder: created if it does not exist.
        keep_last: how many of the newest to keep.
        keep_every: also keep the steps that are multiples of it (0: none).
        metric: of the scores; scores of another metric, or of another protocol, are discarded.
    """

    def __init__(self, folder: Path, keep_last: int = 2, keep_every: int = 0, metric: str | None = None):
        assert keep_last >= 1
        self.folder = Path(folder)
        self.keep_last, self.keep_every, self.metric = keep_last, keep_every, metric
        self.slowest_seconds = 0.0  # of those that the training has saved here

    def save(self, step: int, state: dict[str, Any], *, score: float | None = None) -> Path:
        """Write a checkpoint, then remove those that are not kept; it is durable when this returns.

        Args:
            step: training steps done; a file of a later step was superseded and is removed.
            state: tensors and plain values, nested in dicts, lists and tuples; contains the spec, so that sampling and
                evaluation need no flags.
            score: the metric at this step, smaller is better; the best checkpoint is always kept.

        Raises:
            CheckpointError: the disk is full (earlier checkpoints are kept), or the state contains something that could
                not be loaded without unpickling code.
        """
        _require_plain(state, "state")
        temporary, path = write_temporary(self.folder, "step", step, state)
        if score is not None:  # before the rename: a score without its checkpoint is ignored, but not the reverse
            self.record_score(step, score)
        temporary.rename(path)
        sync_folder(self.folder)
        self._prune(path, step)
        return path

    def latest(self, map_location: str | torch.device = "cpu") -> tuple[int, dict[str, Any]] | None:
        """Load the newest intact checkpoint; warn about each damaged one that is skipped."""
        for step, path in reversed(checkpoint_files(self.folder)):
            try:
                return step, load_file(path, map_location)
            except CheckpointError as error:
                warnings.warn(f"{error}; going back to the one before", DamagedCheckpointWarning, stacklevel=2)
        return None

    def load(self, step: int, map_location: str | torch.device = "cpu") -> dict[str, Any]:
        """Load the checkpoint of one step.

        Raises:
            CheckpointError: it does not exist (the message lists those that do), or it is damaged.
        """
        for stored_step, path in checkpoint_files(self.folder):
            if stored_step == step:
                return load_file(path, map_location)
        raise CheckpointError(f"{self.folder} has no checkpoint of step {step}; it has {self.steps() or 'none'}")

    def steps(self) -> list[int]:
        """Return the steps that have a checkpoint, intact or not, in ascending order."""
        return sorted({step for step, _ in checkpoint_files(self.folder)})

    def best_step(self) -> int | None:
        """Return the step of the checkpoint with the smallest score, None if none has a score."""
        return best_step(self.folder, self.metric)

    def record_score(self, step: int, score: float) -> None:
        """Record the metric at the step of a checkpoint; NaN is ignored."""
        if not math.isfinite(score):
            return
        known = {**scores(self.folder, self.metric), step: float(score)}
        text = json.dumps({"metric": self.metric, "scores": known})
        replace_file(self.folder / SCORES, text, durable=True)

    def _prune(self, newest: Path, step: int) -> None:
        for stored_step, path in checkpoint_files(self.folder):
            if stored_step > step or (stored_step == step and path != newest):
                path.unlink()
        keep = {*self.steps()[-self.keep_last :], self.best_step()}
        for stored_step, path in checkpoint_files(self.folder):
            by_interval = self.keep_every and stored_step % self.keep_every == 0
            if not (stored_step in keep or by_interval):
                path.unlink()


def write_temporary(folder: Path, kind: str, step: int, state: dict[str, Any]) -> tuple[Path, Path]:
    """Write a state to a temporary file; return its path and the one that it has to be renamed to.

    Raises:
        CheckpointError: the disk is full; earlier files are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob("*.tmp"):  # left by a killed save, since there is only one writer
        leftover.unlink()
    temporary = folder / f"{kind}-{step:08d}.tmp"
    try:
        with temporary.open("wb") as file:
            hashing = _HashingFile(file)
            try:
                torch.save(state, cast(IO[bytes], hashing))
            finally:
                hashing.raise_first_error()
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        cause = "the disk or your quota is full" if full else error.strerror
        what = "checkpoint" if kind == "step" else "snapshot of the averages"
        raise CheckpointError(
            f"{folder}: the {what} of step {step} cannot be written: {cause}; earlier ones are intact"
        ) from error
    return temporary, folder / f"{kind}-{step:08d}-{hashing.digest.hexdigest()}.pt"


def load_file(path: Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Load a file whose name has its digest.

    Raises:
        CheckpointError: it is damaged, or contains code.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest not in path.name:
        raise CheckpointError(f"{path} is damaged: its contents do not hash to its name")
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} contains more than tensors and plain values, and code is never executed"
        ) from error


class _HashingFile:
    """Hashes what torch.save writes, and keeps the cause of a failed write, which torch hides in a RuntimeError."""

    def __init__(self, file: Any):
        self._file = file
        self._error: OSError | None = None
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        if self._error:
            return len(data)
        try:
            self.digest.update(data)
            return self._file.write(data)
        except OSError as error:
            self._error = error
            return len(data)

    def flush(self) -> None:
        pass

    def raise_first_error(self) -> None:
        if self._error:
            raise self._error


def _require_plain(value: Any, path: str) -> None:
    """Raise CheckpointError for values that `weights_only` cannot load, such as numpy's float64."""
    if isinstance(value, dict):
        for key, item in value.items():
            _require_plain(key, f"{path} key")
            _require_plain(item, f"{path}.{key}")
    elif type(value) in (list, tuple):
        for index, item in enumerate(value):
            _require_plain(item, f"{path}[{index}]")
    elif not isinstance(value, torch.Tensor) and type(value) not in (type(None), bool, int, float, str):
        raise CheckpointError(
            f"{path} is a {type(value).__name__}: a checkpoint can only hold tensors and plain values"
        )
