"""The one loader: run directories as plain records that figures, tables and claims are made from."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from harness.errors import RecordError
from harness.records import layout
from harness.records.directory import RunDirectory
from harness.records.status import STATES, Status
from harness.spec.base import choices
from harness.spec.evaluation import extractor_name
from harness.spec.run import Objective, Schedule


@dataclass(frozen=True)
class Measurement:
    """One finished evaluation of one run, as its study asked for it.

    Attributes:
        name: of the evaluation in the study, the same in every run.
        prefix: of its metrics in this run; the name, or the name and a piece of the key where two studies clashed.
        asked: the resolved `spec.Evaluation` as plain values.
        protocol: what the job said beside the numbers: images, extractor, reference, ...
    """

    name: str
    prefix: str
    asked: dict[str, Any]
    protocol: dict[str, Any]

    @property
    def trained(self) -> bool:
        """Tell a measurement of trained weights from one of the untrained baseline."""
        return self.asked["weights"] != "untrained"


@dataclass(frozen=True)
class RunRecord:
    """One run as one study sees it; curves and files belong to the run, arm and measurements to the study.

    Attributes:
        curves: metric -> (steps, values), what stands in the journals after fencing.
        problems: what is wrong with the journals, line by line; a figure that uses the run should not hide it.
    """

    folder: Path
    study: str
    arm: str
    replicate: int
    spec: dict[str, Any] = field(repr=False)
    status: Status
    measurements: tuple[Measurement, ...] = ()
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)
    environment: dict[str, Any] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()

    @property
    def run_key(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        return self.status.state

    @property
    def code_version(self) -> str:
        """The code that the last attempt ran: its snapshot where there is one, else the harness's version."""
        return str(self.environment.get("code_version") or self.environment.get("harness") or "unknown")

    def history(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a metric's curve, [n] steps and [n] values; empty where it was never recorded."""
        return self.curves.get(key, (np.empty(0, int), np.empty(0)))

    def final(self, key: str) -> float:
        """Return a metric's value at its last step, NaN where it was never recorded."""
        steps, values = self.history(key)
        return float(values[np.argmax(steps)]) if len(steps) else float("nan")

    def measured(self, part: str, *, trained: bool = True) -> Iterator[Measurement]:
        """Iterate over the finished measurements that hold a part: nll, fidelity, sweep or grid."""
        return (one for one in self.measurements if one.asked[part] and one.trained == trained)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of one file, e.g. `eval_likelihood.npz`; none where it was never written."""
        path = RunDirectory(self.folder).arrays_folder / name
        if not path.exists():
            return {}
        with np.load(path) as file:
            return dict(file)

    def sample_pictures(self) -> dict[str, Path]:
        """Return the run's sample grids by the prefix of the measurement that made them."""
        folder = RunDirectory(self.folder).samples_folder
        paths = {one.prefix: folder / f"{one.prefix}_samples.png" for one in self.measured("grid")}
        return {prefix: path for prefix, path in paths.items() if path.exists()}

    # -- what a measurement gave

    def nll(self, one: Measurement) -> float:
        """Return the bound in bits/dim."""
        return self.final(f"{one.prefix}/nll_bpd")

    def fidelity(self, one: Measurement, metric: str = "fid") -> float:
        """Return fid, precision or recall."""
        part = one.asked["fidelity"]
        sampler, num_steps = part["sampler"]["name"], part["num_steps"]
        extractor = self.extractor(part)
        return self.final(f"{one.prefix}/{metric}_{extractor}_{part['num_samples']}_{sampler}{num_steps}")

    def sweep(self, one: Measurement) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return FID against the number of sampling steps, by sampler: its steps and its values."""
        part = one.asked["sweep"]
        prefix = "sweep" if one.prefix == "eval" else f"sweep_{one.prefix.removeprefix('eval_')}"
        key = f"{prefix}/fid_{self.extractor(part)}_{part['num_samples']}"
        return {sampler["name"]: self.history(f"{key}_{sampler['name']}") for sampler in part["samplers"]}

    def extractor(self, part: dict[str, Any]) -> str:
        """Return the name of the network whose features a `fidelity` or `sweep` compares."""
        return extractor_name(part["extractor"], self.spec["data"]["name"])


def load_runs(runs_folder: Path | str, study: str | None = None) -> list[RunRecord]:
    """Read every run of a study, or every run once for each study that it belongs to.

    Runs come in the order of their studies, arms (schedule, objective, name) and replicates. One whose records cannot
    be read is kept, as failed, with the reason: a figure must be able to count it.
    """
    records: list[RunRecord] = []
    for path in layout.run_paths(Path(runs_folder)):
        directory = RunDirectory(path)
        studies = {name: facts for name, facts in directory.studies().items() if study in (None, name)}
        if studies:
            records.extend(_records(directory, studies))
    return sorted(records, key=lambda run: (run.study, _arm_order(run), run.arm, run.replicate))


def study_names(runs_folder: Path | str) -> list[str]:
    """Return the names of all studies that have a run here."""
    return layout.study_names(Path(runs_folder))


def by_arm(runs: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group runs by arm; the order of the arms and of the replicates stays."""
    arms: dict[str, list[RunRecord]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def arm_index(runs: Sequence[RunRecord]) -> dict[str, int]:
    """Number a study's arms; the number decides an arm's colour, the same in all figures of the study."""
    return {arm: index for index, arm in enumerate(by_arm(runs))}


def count_states(runs: Sequence[RunRecord]) -> str:
    """Say how many runs there are and how many of them are not done: `12 runs, 1 of them failed`."""
    states = Counter(run.state for run in runs)
    unfinished = [f"{states[state]} {state}" for state in STATES if state != "done" and states[state]]
    total = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    return f"{total}, of them {', '.join(unfinished)}" if unfinished else f"{total}, all done"


def _records(directory: RunDirectory, studies: dict[str, dict]) -> Iterator[RunRecord]:
    spec, status = directory.spec(), directory.status()
    environment: dict[str, Any] = {}
    events, curves, problems = [], {}, []
    try:
        environment = (directory.environments() or [{}])[-1]
        events = [event for event in directory.events("evaluation") if not event.superseded]
        curves = _curves(directory)
        problems = directory.problems()
    except (RecordError, ValueError) as error:
        status = Status(state="failed", reason=f"its records cannot be read: {error}")
    prefixes = {event.facts["key"]: event.facts["prefix"] for event in events}
    for study, facts in studies.items():
        yield RunRecord(
            folder=directory.path,
            study=study,
            arm=facts["arm"],
            replicate=facts["replicate"],
            spec=spec,
            status=status,
            measurements=tuple(_measurements(directory, facts["evaluations"], prefixes)),
            curves=curves,
            environment=environment,
            problems=tuple(problems),
        )


def _measurements(directory: RunDirectory, asked: list[dict], prefixes: dict[str, str]) -> Iterator[Measurement]:
    """Find what the study asked for among what was measured.

    Protocols are compared as they were written, not by keys made anew: a later version of the harness, whose protocols
    have more parts, still draws the records of an earlier one.
    """
    for key, prefix in prefixes.items():
        path = directory.evaluation_path(key)
        protocol = json.loads(path.read_text()) if path.exists() else {}
        evaluation = protocol.get("evaluation")
        if evaluation in asked:
            yield Measurement(evaluation["name"], prefix, evaluation, protocol)


def _curves(directory: RunDirectory) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    points: dict[str, list[tuple[int, float]]] = {}
    for row in directory.rows():
        if not row.key.startswith("system/"):
            points.setdefault(row.key, []).append((row.step, row.value))
    return {
        key: (np.array([step for step, _ in found]), np.array([value for _, value in found]))
        for key, found in points.items()
    }


@cache
def _ranks() -> tuple[dict[str, int], dict[str, int]]:
    schedules, objectives = list(choices(Schedule)), list(choices(Objective))
    return {name: i for i, name in enumerate(schedules)}, {name: i for i, name in enumerate(objectives)}


def _arm_order(run: RunRecord) -> tuple:
    """Order arms as the papers' tables do: schedule, objective, then by name with numbers as numbers."""
    schedules, objectives = _ranks()
    words = re.split(r"(\d+(?:\.\d+)?)", run.arm)
    natural = [(float(word), "") if index % 2 else (0.0, word) for index, word in enumerate(words)]
    schedule, objective = run.spec["diffusion"]["schedule"]["name"], run.spec["objective"]["name"]
    return schedules.get(schedule, len(schedules)), objectives.get(objective, len(objectives)), natural
