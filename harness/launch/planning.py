"""Compare a study with the records: which runs are absent, failed or interrupted, and their cost. Read-only."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.launch.rungs import state_at_rung, with_rungs
from harness.launch.states import RunState, read_run_states
from harness.records import throughput
from harness.records.directory import RunDirectory
from harness.records.ensembles import middle_of
from harness.records.layout import is_member
from harness.records.lineage import parent_of
from harness.records.manifest import read_manifest
from harness.records.status import Status
from harness.records.throughput import Throughput
from harness.slurm.jobs import JobInfo
from harness.slurm.profile import Profile, gpus_of_run, idle_gpus, runs_per_gpu
from harness.spec.averages import PowerAverages
from harness.spec.cards import Card, find_card
from harness.spec.costs import FORWARD_AND_BACKWARD, network_evaluations
from harness.spec.evaluation import Evaluation
from harness.study.expand import name_of_study
from harness.study.model import Run, Study
from harness.study.rungs import describe_training, numbers_at_rungs, training_with_rungs
from harness.text import count, harness_command

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
    """The runs of a study and their states.

    Attributes:
        earlier: the runs that were in the study before, and that its file no longer asks for.
        other_file: another file that asked for runs under this study's name, and that still does.
        profile: of the cluster that the cost is asked for; None: what the study's own resources say.
        card: that the cost is asked for; None: the newest measurement's.
    """

    study: Study
    runs_folder: Path
    runs: tuple[PlannedRun, ...]
    earlier: tuple[RunDirectory, ...] = ()
    other_file: Path | None = None
    profile: Profile | None = None
    card: Card | None = None

    @property
    def to_do(self) -> list[PlannedRun]:
        return [planned for planned in self.runs if planned.state in TO_DO]

    @cached_property
    def _throughput(self) -> dict[str, list[Throughput]]:
        return throughput.load(self.runs_folder)

    def measured(self, planned: PlannedRun, device: str | None = None) -> Throughput | None:
        """Return the measured cost of a step with this network, image size, batch size and precision.

        The newest measurement is used. Those on another kind of device or card than the run requests, with another
        number of processes or other kernels, or where more or fewer runs shared a GPU, are ignored.

        Args:
            device: cpu or cuda; None means the run's resources.device, either if that is auto.
        """
        if not self._throughput:
            return None
        spec, resources = planned.run.spec, planned.run.resources
        if device is None and resources.device != "auto":
            device = resources.device
        elif device is None and (self.profile or Profile()).gpus(resources)[0]:
            device = "cuda"
        for measured in self._throughput.get(spec.cost_key, ()):
            sharing = runs_per_gpu(resources, self.profile) if self.profile else measured.runs_per_gpu
            if (
                measured.device == (device or measured.device)
                and measured.num_processes == resources.num_processes
                and measured.runs_per_gpu == sharing
                and measured.kernels == resources.kernels
                and self._is_of_card(measured)
            ):
                return measured
        return None

    def _is_of_card(self, measured: Throughput) -> bool:
        return self.card is None or measured.device != "cuda" or self.card.is_family_of(measured.device_name)

    def cards(self) -> dict[str, Card]:
        """Return the cards on which runs like these were measured, each once, by a device's name."""
        facts = [fact for run in self.runs for fact in self._throughput.get(run.run.spec.cost_key, ())]
        names = dict.fromkeys(fact.device_name for fact in facts if fact.device == "cuda")
        families = {card.family: name for name in reversed(names) if (card := find_card(name))}
        return {name: card for name in families.values() if (card := find_card(name))}

    def training_seconds(self, planned: PlannedRun, device: str | None = None) -> float | None:
        """Estimate the remaining training time, without evaluations; None if no similar run has been measured."""
        if planned.state in ("done", "evaluate", "paused", "pruned"):
            return 0.0
        measured = self.measured(planned, device)
        steps_left = max(0, (planned.run.until or planned.run.spec.train.steps) - planned.status.step)
        return measured.seconds_per_step * steps_left if measured else None

    def device_hours(self, planned: PlannedRun, device: str | None = None) -> float | None:
        """Estimate the remaining training in hours of one device: a GPU, or the cores of a process without one."""
        seconds = self.training_seconds(planned, device)
        return None if seconds is None else seconds * self.devices(planned) / 3600

    def devices(self, planned: PlannedRun) -> float:
        """Return how many devices a run holds: GPUs, used or not, of a pack its share; without GPUs its processes.

        Without a profile it is one for each process.
        """
        resources = planned.run.resources
        return (self.profile and gpus_of_run(resources, self.profile)) or resources.num_processes

    def evaluation_seconds(
        self, planned: PlannedRun, evaluation: Evaluation, device: str | None = None
    ) -> float | None:
        """Estimate the time of an evaluation from that of a training step; None if that or its work is unknown."""
        if self.measured(planned, device) is None:
            return None
        if None in network_evaluations(evaluation, planned.run.spec).values():
            return None
        return self._known_evaluation_seconds(planned, evaluation, device)

    def _known_evaluation_seconds(
        self, planned: PlannedRun, evaluation: Evaluation, device: str | None
    ) -> float | None:
        """Estimate the time of those parts of an evaluation whose work is known."""
        measured = self.measured(planned, device)
        if measured is None:
            return None
        known = [number for number in network_evaluations(evaluation, planned.run.spec).values() if number]
        # The first of several processes evaluates alone.
        of_one_process = measured.seconds_per_step * measured.num_processes
        return of_one_process / planned.run.spec.train.batch_size / FORWARD_AND_BACKWARD * sum(known)

    def evaluation_hours(self, planned: PlannedRun, device: str | None = None) -> float:
        """Estimate what is left to evaluate in hours of one device, as far as its work is known."""
        left = self.evaluations_left(planned)
        seconds = sum(self._known_evaluation_seconds(planned, evaluation, device) or 0.0 for evaluation in left)
        return seconds * self.devices(planned) / 3600

    def evaluations_left(self, planned: PlannedRun) -> list[Evaluation]:
        if not planned.run.evaluations or planned.state in ("paused", "pruned"):
            return []
        evaluated = planned.directory.evaluated_keys() if planned.state != "new" else set()
        return [evaluation for evaluation in planned.run.evaluations if evaluation.key not in evaluated]

    def uncounted_parts(self) -> list[str]:
        """Return the parts of evaluations that are left whose work is not known before: `eval: metrics`."""
        parts = {
            f"{evaluation.name}: {part}": None
            for planned in self.runs
            for evaluation in self.evaluations_left(planned)
            for part, number in network_evaluations(evaluation, planned.run.spec).items()
            if number is None
        }
        return list(parts)

    def idle_gpus(self) -> list[str]:
        """Say of which arms' jobs GPUs would stay idle, and what to change."""
        profile, arms = self.profile or Profile(), dict[tuple[int, int], dict[str, None]]()
        for planned in self.runs:
            if idle := idle_gpus(planned.run.resources, profile):
                arms.setdefault((idle, profile.gpus(planned.run.resources)[0]), {})[planned.run.arm] = None
        return [
            f"{', '.join(names)}: {idle} of the {count(number, 'GPU')} that a job asks for on each node would be idle: "
            + (
                f"set gpus_per_node to {number - idle}, resources.processes_per_node to {number}, or pack"
                if idle < number
                else "resources.device is cpu; set gpus_per_node to 0"
            )
            for (idle, number), names in arms.items()
        ]

    def checkpoint_bytes(self, planned: PlannedRun) -> int | None:
        """Estimate the disk space of a run's checkpoints: the last two, those kept by `records.keep_every`, snapshots.

        A checkpoint has five copies of the network or more: weights, two averages and Adam's two moments. A snapshot
        has two in half the precision.
        """
        if planned.state in ("done", "evaluate", "paused", "pruned"):
            return 0
        if not self._throughput:
            return None
        sizes = [measured.checkpoint_bytes for measured in self._throughput.get(planned.run.spec.cost_key, ())]
        num_bytes = next(filter(None, sizes), None)  # the same on every device
        keep_every, steps = planned.run.records.keep_every, planned.run.spec.train.steps
        if not num_bytes:
            return None
        ema = planned.run.spec.train.ema
        snapshots = steps // ema.every * num_bytes // 5 if isinstance(ema, PowerAverages) else 0
        return num_bytes * (2 + (steps // keep_every if keep_every else 0)) + snapshots

    def as_json(self) -> dict[str, Any]:
        runs = [
            {
                "run_key": planned.run_key,
                "state": planned.state,
                "arm": planned.run.arm,
                "replicate": planned.run.replicate,
                "run_dir": str(planned.path),
                "evaluations": [
                    {"name": evaluation.name, "network_evaluations": network_evaluations(evaluation, planned.run.spec)}
                    for evaluation in planned.run.evaluations
                ],
            }
            for planned in self.runs
        ]
        earlier = [directory.key for directory in self.earlier]
        training = {"training": self._training_with_rungs()} if self.study.rungs else {}
        return {"study": self.study.name, "runs": runs, "no_longer_asked_for": earlier, **training}

    def _training_with_rungs(self) -> dict[str, Any]:
        rungs, arms = self.study.rungs, {run.arm for run in self.study.runs}
        assert rungs is not None
        numbers = numbers_at_rungs(len(arms), len(rungs.steps), rungs.reduction_factor)
        return training_with_rungs(numbers, rungs.steps, len(self.study.runs) // len(arms))

    def notes(self) -> list[str]:
        """Say what this study asked for before and no longer does, and who else asks under its name."""
        notes = []
        if rungs := self.study.rungs:
            shown = describe_training(self._training_with_rungs())
            notes.append(f"rungs by {rungs.metric}, arms to steps: {shown}; costs are up to the next rung")
        if self.earlier:
            verb = "is" if len(self.earlier) == 1 else "are"
            notes.append(
                f"{count(len(self.earlier), 'run')} of this study {verb} no longer asked for; "
                f"{harness_command('forget', self.study.name, runs_folder=self.runs_folder)} ends their membership"
            )
        if self.other_file:
            notes.append(
                f"{self.other_file} is another study named {self.study.name}: the one that is submitted last replaces "
                "the other's runs in tables and figures; rename one of them"
            )
        return notes


def on_cluster(plan: Plan, profile: Profile, card: Card | None = None) -> Plan:
    """Return a plan whose cost is that on a cluster.

    Args:
        card: of its GPUs; None: the one that the profile names, if it names one.
    """
    kind = str(profile.gpus_per_node or "").rpartition(":")[0]
    return replace(plan, profile=profile, card=card or find_card(kind) or find_card(profile.constraint))


def plan(study: Study, runs_folder: Path, *, recent: bool = False) -> Plan:
    """Look up the state of every run of a study. Read-only; 1,000 runs take a fraction of a second.

    Args:
        recent: whether an answer of SLURM's that is half a minute old will do, as for what is shown.

    Raises:
        SpecError: a run cannot continue the run that it names, or form an ensemble with it.
    """
    present = set(os.listdir(runs_folder)) if runs_folder.is_dir() else set()  # noqa: PTH208 (one call for all runs)
    paths = [runs_folder / run.run_key for run in study.runs if run.run_key in present]
    states = read_run_states(paths, recent=recent)
    runs = tuple(planned_run(run, runs_folder / run.run_key, states) for run in study.runs)
    if study.rungs:
        runs = tuple(with_rungs(study, study.rungs, runs, runs_folder))
        study = replace(study, runs=tuple(planned.run for planned in runs))
    for planned in runs:
        if planned.run.spec.continue_from and planned.state == "new":
            parent_of(planned.run.spec, runs_folder)
        for evaluation in planned.run.evaluations if planned.state != "done" else ():
            if evaluation.ensemble:
                middle_of(evaluation.ensemble.middle, planned.run.spec, runs_folder)
    others = present - {run.run_key for run in study.runs}
    return Plan(study, runs_folder, runs, _members(study, runs_folder, others), _other_file(study, runs_folder))


def _members(study: Study, runs_folder: Path, names: set[str]) -> tuple[RunDirectory, ...]:
    """Return those of the folders that are runs of a study, in the order of their keys."""
    folders = (runs_folder / name for name in sorted(names) if not name.startswith("."))
    return tuple(RunDirectory(folder) for folder in folders if is_member(folder, study.name))


def _other_file(study: Study, runs_folder: Path) -> Path | None:
    """Return the file that asked for runs under this study's name before, if it is another and still does."""
    manifest = read_manifest(runs_folder, study.name)
    if manifest is None or not manifest.file:
        return None
    before, now = Path(manifest.file), study.path.absolute()
    try:
        if before == now or not before.is_file() or (now.exists() and before.samefile(now)):
            return None
    except OSError:  # a path of another machine, which this one cannot look at
        return None
    return before if name_of_study(before) == study.name else None


def planned_run(run: Run, path: Path, states: dict[str, RunState]) -> PlannedRun:
    run_state = states.get(run.run_key, RunState())
    state = state_at_rung(run, run_state.status)
    if state == "done" and run.evaluations:
        evaluated = RunDirectory(path).evaluated_keys()
        if any(evaluation.key not in evaluated for evaluation in run.evaluations):
            state = "evaluate"
    return PlannedRun(run, path, state, run_state.status, run_state.job, run_state.unanswered)
