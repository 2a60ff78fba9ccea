"""Execute the runs of trials: as processes of this machine, or as SLURM jobs."""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.launch import local, planning, processes, submit
from harness.launch.states import read_run_states
from harness.slurm.commands import NoAnswer
from harness.slurm.jobs import live_jobs
from harness.study.model import Study

if TYPE_CHECKING:
    from harness.slurm.profile import Profile


class Workers(ABC):
    """Executes the runs that the coordinator starts."""

    poll_seconds = 0.5

    @abstractmethod
    def start(self, study: Study) -> None:
        """Start the only run of `study`, unless it is finished.

        Raises:
            LaunchError: SLURM refused it; NoAnswer if it does not answer.
        """

    @abstractmethod
    def busy(self, run_keys: set[str]) -> set[str]:
        """Return which of these runs are running or queued.

        Raises:
            NoAnswer: SLURM does not say.
        """

    def free_slots(self) -> int:
        """Return how many more runs can start."""
        return 1_000_000

    def may_be_full(self) -> bool:
        """Return whether a refused run may be taken later, when others have ended.

        Raises:
            NoAnswer: SLURM does not say.
        """
        return False

    def wait(self) -> None:  # noqa: B027 (jobs of a cluster run on their own)
        """Wait until the processes of this machine have ended."""

    def stop(self) -> None:  # noqa: B027
        """Ask the processes of this machine to write their checkpoints, and wait until they have ended."""


class LocalWorkers(Workers):
    """Processes of this machine, one per run: as many as there are GPUs or cores, or `jobs`."""

    def __init__(self, runs_folder: Path, jobs: int | None, parallel_runs: int):
        self._runs_folder = runs_folder
        self._gpus = processes.visible_gpus()
        cores = processes.available_cores()
        self._jobs = min(jobs or len(self._gpus) or cores, parallel_runs)
        self._threads = max(1, cores // self._jobs)
        self._submissions: dict[int, tuple[str, local.LocalSubmission]] = {}  # slot -> run_key, its process

    def start(self, study: Study) -> None:
        self._drop_finished()
        (run,) = study.runs
        # Each submission has one run and is independent of the others, so its share of the cores is set here.
        shared = run.resources.model_copy(update={"threads": run.resources.threads or self._threads})
        alone = replace(study, runs=(replace(run, resources=shared),))
        slot = next(index for index in itertools.count() if index not in self._submissions)
        gpu = {"CUDA_VISIBLE_DEVICES": self._gpus[slot % len(self._gpus)]} if len(self._gpus) > 1 else {}
        with processes.process_environment(gpu):
            submission = submit.submit(planning.plan(alone, self._runs_folder), jobs=1, sync=False, asks=False)
            assert isinstance(submission, local.LocalSubmission)
            submission.start()
        if submission.runs:
            self._submissions[slot] = (run.run_key, submission)

    def busy(self, run_keys: set[str]) -> set[str]:
        self._drop_finished()
        return run_keys & {key for key, _ in self._submissions.values()}

    def free_slots(self) -> int:
        self._drop_finished()
        return self._jobs - len(self._submissions)

    def wait(self) -> None:
        while self.free_slots() < self._jobs:
            time.sleep(0.1)

    def stop(self) -> None:
        for _, submission in self._submissions.values():
            submission.stop()

    def _drop_finished(self) -> None:
        self._submissions = {
            slot: (key, submission) for slot, (key, submission) in self._submissions.items() if submission.alive()
        }


class SlurmWorkers(Workers):
    """SLURM jobs, one per run. They outlive the coordinator, and the queue shows which runs are busy."""

    poll_seconds = 5.0

    def __init__(self, runs_folder: Path, jobs: int | None, profile: Profile | None, *, sync: bool):
        self._runs_folder, self._jobs = runs_folder, jobs
        self._options: dict[str, Any] = {"profile": profile, "sync": sync}
        self._busy: set[str] = set()
        self._has_jobs = False  # SLURM has accepted one of this search

    def start(self, study: Study) -> None:
        submit.submit(planning.plan(study, self._runs_folder), cluster="slurm", asks=False, **self._options)
        self._busy.add(study.runs[0].run_key)
        self._has_jobs = True

    def busy(self, run_keys: set[str]) -> set[str]:
        paths = [self._runs_folder / key for key in run_keys | self._busy]  # also of trials that were pruned
        states = read_run_states(paths, recent=True)
        if failure := next((state.unanswered for state in states.values() if state.unanswered), ""):
            raise NoAnswer(failure)
        self._busy = {
            key
            for key, state in states.items()
            if state.status.state == "running" or state.live_claims or (state.job and state.job.live)
        }
        return run_keys & self._busy

    def may_be_full(self) -> bool:
        return bool(live_jobs()) or self._has_jobs

    def free_slots(self) -> int:
        return (self._jobs or 1_000_000) - len(self._busy)
