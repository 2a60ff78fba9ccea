"""Where trials run: workers on this machine or jobs on SLURM."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch import claims, local, planning, processes, submit
from harness.study.model import Study

if TYPE_CHECKING:
    from harness.slurm.profile import Profile


class Workers(ABC):
    """Who does the runs that the coordinator asks for."""

    every_seconds = 0.5  # between two looks

    @abstractmethod
    def start(self, study: Study) -> None:
        """Begin work on the one run of `study`, unless nothing is left to do on it."""

    @abstractmethod
    def at_work(self, run_keys: set[str]) -> set[str]:
        """Return those of these runs that somebody is at work on, or will be."""

    def room(self) -> int:
        """Return how many more runs can begin."""
        return 1_000_000

    def wait(self) -> None:  # noqa: B027 (jobs of a cluster need nobody)
        """Wait until the processes on this machine have ended."""

    def stop(self) -> None:  # noqa: B027
        """Ask the processes on this machine for checkpoints, and wait until they have ended."""


class LocalWorkers(Workers):
    """Processes on this machine, one a run: as many as GPUs or cores, or as `jobs` says."""

    def __init__(self, runs_folder: Path, jobs: int | None, parallel_runs: int):
        self._runs_folder = runs_folder
        self._gpus = processes.visible_gpus()
        cores = processes.available_cores()
        self._jobs = min(jobs or len(self._gpus) or cores, parallel_runs)
        self._threads = max(1, cores // self._jobs)
        self._submissions: dict[int, tuple[str, local.LocalSubmission]] = {}  # by their place

    def start(self, study: Study) -> None:
        self._forget_ended()
        (run,) = study.runs
        # One at a time knows nothing of the others, so its share of the cores is said here.
        shared = run.resources.model_copy(update={"threads": run.resources.threads or self._threads})
        alone = replace(study, runs=(replace(run, resources=shared),))
        place = next(index for index in itertools.count() if index not in self._submissions)
        with _on_gpu(self._gpus[place % len(self._gpus)] if len(self._gpus) > 1 else None):
            submission = submit.submit(planning.plan(alone, self._runs_folder), jobs=1, sync=False)
            assert isinstance(submission, local.LocalSubmission)
            submission.start()
        if submission.runs:
            self._submissions[place] = (run.run_key, submission)

    def at_work(self, run_keys: set[str]) -> set[str]:
        self._forget_ended()
        return run_keys & {key for key, _ in self._submissions.values()}

    def room(self) -> int:
        self._forget_ended()
        return self._jobs - len(self._submissions)

    def wait(self) -> None:
        while self.room() < self._jobs:
            time.sleep(0.1)

    def stop(self) -> None:
        for _, submission in self._submissions.values():
            submission.stop()

    def _forget_ended(self) -> None:
        self._submissions = {place: held for place, held in self._submissions.items() if held[1].alive()}


@contextlib.contextmanager
def _on_gpu(name: str | None) -> Iterator[None]:
    """Let what is begun meanwhile see one GPU alone."""
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    if name is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = name
    try:
        yield
    finally:
        if name is not None:
            if before is None:
                del os.environ["CUDA_VISIBLE_DEVICES"]
            else:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


class SlurmWorkers(Workers):
    """Jobs of SLURM, one a run. They outlive the coordinator, and the queue itself says who is at work."""

    every_seconds = 5.0

    def __init__(self, runs_folder: Path, jobs: int | None, profile: Profile | None, *, sync: bool):
        self._runs_folder, self._jobs = runs_folder, jobs
        self._options: dict[str, Any] = {"profile": profile, "sync": sync}
        self._busy: set[str] = set()

    def start(self, study: Study) -> None:
        submit.submit(planning.plan(study, self._runs_folder), cluster="slurm", **self._options)
        self._busy.add(study.runs[0].run_key)

    def at_work(self, run_keys: set[str]) -> set[str]:
        from harness.slurm.jobs import live_jobs

        queued = live_jobs()
        asked = run_keys | self._busy  # jobs of trials that have ended leave their room
        self._busy = {key for key in asked if claims.job_of(self._runs_folder, key)[1] in queued}
        return run_keys & self._busy

    def room(self) -> int:
        return (self._jobs or 1_000_000) - len(self._busy)
