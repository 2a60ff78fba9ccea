"""Compare a study with the records: which runs are absent, failed or interrupted, and their cost. Read-only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.launch.states import RunState, read_run_states
from harness.records import throughput
from harness.records.directory import RunDirectory
from harness.records.lineage import parent_of
from harness.records.status import Status
from harness.records.throughput import Throughput
from harness.slurm.jobs import JobInfo
from harness.study.model import Run, Study

TO_DO = ("new", "interrupted", "failed", "evaluate")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study and its state; `evaluate` means done, but the study requests more evaluations."""

    run: Run
    path: Path
    state: str
    status: Status = field(default_factory=Status)
    job: JobInfo | None = None  # what SLURM says of its job
    unanswered: str = ""  # why SLURM does not say whether it has a job of this run

    @property
    def run_key(self) -> str:
        return self.run.run_key

    @property
    def directory(self) -> RunDirectory:
        return RunDirectory(self.path)


@dataclass(frozen=True)
class Plan:
    study: Study
    runs_folder: Path
    runs: tuple[PlannedRun, ...]

    @property
    def to_do(self) -> list[PlannedRun]:
        return [planned for planned in self.runs if planned.state in TO_DO]

    @cached_property
    def _throughput(self) -> dict[str, list[Throughput]]:
        return throughput.load(self.runs_folder)

    def measured(self, planned: PlannedRun, device: str | None = None) -> Throughput | None:
        """Return the measured cost of a step with this network, image size, batch size and precision.

        The newest measurement is used. Those on another kind of device than the run requests, or with another number
        of processes, are ignored.

        Args:
            device: cpu or cuda; None means the run's resources.device, either if that is auto.
        """
        spec, resources = planned.run.spec, planned.run.resources
        if device is None and resources.device != "auto":
            device = resources.device
        elif device is None and resources.gpus_per_node:
            device = "cuda"
        for measured in self._throughput.get(spec.cost_key, ()):
            if measured.device == (device or measured.device) and measured.num_processes == resources.num_processes:
                return measured
        return None

    def training_seconds(self, planned: PlannedRun, device: str | None = None) -> float | None:
        """Estimate the remaining training time, without evaluations; None if no similar run has been measured."""
        if planned.state in ("done", "evaluate", "pruned"):
            return 0.0
        measured = self.measured(planned, device)
        steps_left = planned.run.spec.train.steps - planned.status.step
        return measured.seconds_per_step * steps_left if measured else None

    def device_hours(self, planned: PlannedRun, device: str | None = None) -> float | None:
        """Estimate the remaining training in hours of one device: a GPU, or the cores of a process without one."""
        seconds = self.training_seconds(planned, device)
        return None if seconds is None else seconds * planned.run.resources.num_processes / 3600

    def checkpoint_bytes(self, planned: PlannedRun) -> int | None:
        """Estimate the disk space of a run's checkpoints: the last two, and those kept by `records.keep_every`."""
        if planned.state in ("done", "evaluate", "pruned"):
            return 0
        sizes = [measured.checkpoint_bytes for measured in self._throughput.get(planned.run.spec.cost_key, ())]
        num_bytes = next(filter(None, sizes), None)  # the same on every device
        keep_every, steps = planned.run.records.keep_every, planned.run.spec.train.steps
        return num_bytes * (2 + (steps // keep_every if keep_every else 0)) if num_bytes else None

    def as_json(self) -> dict[str, Any]:
        runs = [
            {
                "run_key": planned.run_key,
                "state": planned.state,
                "arm": planned.run.arm,
                "replicate": planned.run.replicate,
                "run_dir": str(planned.path),
            }
            for planned in self.runs
        ]
        return {"study": self.study.name, "runs": runs}


def plan(study: Study, runs_folder: Path) -> Plan:
    """Look up the state of every run of a study. Read-only; 1,000 runs take a fraction of a second.

    Raises:
        SpecError: a run cannot continue the run that it names.
    """
    present = set(os.listdir(runs_folder)) if runs_folder.is_dir() else set()  # noqa: PTH208 (one call for all runs)
    states = read_run_states([runs_folder / run.run_key for run in study.runs if run.run_key in present])
    runs = tuple(planned_run(run, runs_folder / run.run_key, states) for run in study.runs)
    for planned in runs:
        if planned.run.spec.continue_from and planned.state == "new":
            parent_of(planned.run.spec, runs_folder)
    return Plan(study, runs_folder, runs)


def planned_run(run: Run, path: Path, states: dict[str, RunState]) -> PlannedRun:
    run_state = states.get(run.run_key, RunState())
    state = run_state.status.state
    if state == "done" and run.evaluations:
        evaluated = RunDirectory(path).evaluated_keys()
        if any(evaluation.key not in evaluated for evaluation in run.evaluations):
            state = "evaluate"
    return PlannedRun(run, path, state, run_state.status, run_state.job, run_state.unanswered)
