"""Load run directories: as records for figures, tables and claims, and as data frames.

`load_runs` returns pandas frames, for a notebook; `load_records` returns records, for the figures here.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.analysis.journals import Journals, read_journals
from harness.analysis.order import in_order
from harness.analysis.settings import flatten, settings_of, what_differs
from harness.errors import RecordError
from harness.records import layout
from harness.records.devices import devices_in
from harness.records.directory import RunDirectory
from harness.records.documents import check_spec
from harness.records.manifest import Manifests
from harness.records.reading import Fields, read_arrays, read_json
from harness.records.status import STATES, Status
from harness.spec.base import canonical_json, digest
from harness.spec.evaluation import extractor_name
from harness.spec.metrics import (
    array_file,
    curve_name,
    fidelity_name,
    metric_name,
    picture_file,
    sweep_name,
    training_terms,
)


@dataclass(frozen=True)
class Measurement:
    """One finished evaluation of one run, as requested by its study.

    Attributes:
        name: of the evaluation in the study, the same in every run.
        prefix: of its metrics in this run; the name, or the name and a part of the key if two studies clashed.
        evaluation: the resolved `spec.Evaluation` as plain values.
        protocol: what the job recorded with the numbers: images, extractor, reference, ...
    """

    name: str
    prefix: str
    evaluation: dict[str, Any]
    protocol: dict[str, Any]

    @property
    def trained(self) -> bool:
        """Whether trained weights were measured, not the untrained baseline."""
        return self.evaluation["weights"] != "untrained"


@dataclass(frozen=True)
class RunRecord:
    """One run in one study; curves and files belong to the run, arm and measurements to the study.

    Attributes:
        curves: metric -> (steps, values), without superseded rows.
        over_training: the metrics whose steps are training steps; those of the others are t, or numbers of steps.
        problems: of the journals, one line each; a figure that uses the run should not hide them.
        not_asked_for: prefixes of evaluations that the run has, but that the study does not ask for.
        collapses: signs that the model has collapsed, one line each.
        devices: of all attempts, each once.
        arm_number: of the arm in the whole study, where the run is one of a few that are shown.
    """

    folder: Path
    study: str
    arm: str
    replicate: int
    spec: dict[str, Any] = field(repr=False)
    status: Status
    measurements: tuple[Measurement, ...] = ()
    curves: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict, repr=False)
    over_training: frozenset[str] = field(default_factory=frozenset, repr=False)
    environment: dict[str, Any] = field(default_factory=dict, repr=False)
    problems: tuple[str, ...] = ()
    not_asked_for: frozenset[str] = frozenset()
    collapses: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    arm_number: int | None = None

    @property
    def run_key(self) -> str:
        return self.folder.name

    @property
    def state(self) -> str:
        return self.status.state

    @property
    def code_version(self) -> str:
        """The code of the last attempt: its snapshot if there is one, else the harness's version."""
        return str(self.environment.get("code_version") or self.environment.get("harness") or "unknown")

    def named(self, path: str) -> str:
        """Return the name of a part of the spec, such as `objective`; empty if the run's method has no such part."""
        part: Any = self.spec
        for key in path.split("."):
            part = (part or {}).get(key)
        return str((part or {}).get("name", ""))

    def history(self, key: str) -> tuple[np.ndarray, np.ndarray]:
        """Return a metric's curve, [n] steps and [n] values; empty if it was never recorded."""
        return self.curves.get(key, (np.empty(0, int), np.empty(0)))

    def final(self, key: str) -> float:
        """Return a metric's value at its last step, NaN if it was never recorded."""
        steps, values = self.history(key)
        return float(values[np.argmax(steps)]) if len(steps) else float("nan")

    def measured(self, part: str, *, trained: bool = True) -> Iterator[Measurement]:
        """Iterate over the finished measurements that have a part: nll, fidelity, sweep or grid."""
        return (
            measurement
            for measurement in self.measurements
            if measurement.evaluation.get(part) and measurement.trained == trained
        )

    def terms(self) -> list[str]:
        """Return the names of the terms of the training's loss, such as `train/mse`."""
        return training_terms(self.curves)

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of one file, e.g. `eval_likelihood.npz`; empty if it was never written."""
        try:
            return read_arrays(RunDirectory(self.folder).arrays_folder / name)
        except FileNotFoundError:
            return {}

    def sample_pictures(self) -> dict[str, Path]:
        """Return the run's sample grids by the prefix of their measurement."""
        folder = RunDirectory(self.folder).samples_folder
        prefixes = [measurement.prefix for measurement in self.measured("grid")]
        paths = {prefix: folder / picture_file(prefix, "samples") for prefix in prefixes}
        return {prefix: path for prefix, path in paths.items() if path.exists()}

    # -- values of a measurement

    def metric(self, measurement: Measurement, kind: str) -> float:
        """Return a metric whose name is only its kind, such as `nll_bpd`."""
        return self.final(metric_name(measurement.prefix, kind))

    def nll(self, measurement: Measurement) -> float:
        """Return the bound in bits/dim."""
        return self.metric(measurement, "nll_bpd")

    def nll_curve(self, measurement: Measurement) -> tuple[np.ndarray, np.ndarray]:
        """Return the bound in bits/dim over training steps."""
        return self.history(metric_name(measurement.prefix, "nll_bpd"))

    def L_t(self, measurement: Measurement) -> np.ndarray | None:
        """Return the terms of the bound, [T]; None if the arrays are missing."""
        return self.arrays(array_file(measurement.prefix, "likelihood")).get("L_t_bpd")

    def samples(self, measurement: Measurement) -> np.ndarray | None:
        """Return the kept samples, [n, C, H, W]; None if the arrays are missing."""
        return self.arrays(array_file(measurement.prefix, "samples")).get("samples")

    def variance(self, measurement: Measurement) -> str:
        """Return the variance that was sampled with: β or β̃ where it is fixed, learned, or "" without a var_type."""
        match self.spec["diffusion"].get("var_type"):
            case None:
                return ""
            case "fixed":
                return {"small": "β̃", "large": "β"}[measurement.evaluation["fixed_variance"]]
        return "learned"

    def fidelity(self, measurement: Measurement, kind: str = "fid") -> float:
        """Return fid, precision or recall."""
        part = measurement.evaluation["fidelity"]
        protocol = (self.extractor(part), part["num_samples"], part["sampler"]["name"], part["num_steps"])
        return self.metric(measurement, fidelity_name(kind, *protocol))

    def sweep(self, measurement: Measurement) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
        """Return metrics against the number of sampling steps: (metric, sampler) -> the steps and the values."""
        part = measurement.evaluation["sweep"]
        names = {
            (kind, sampler["name"]): sweep_name(kind, self.extractor(part), part["num_samples"], sampler["name"])
            for kind in part.get("metrics", ("fid",))
            for sampler in part["samplers"]
        }
        return {key: self.history(curve_name(measurement.prefix, "sweep", name)) for key, name in names.items()}

    def extractor(self, part: dict[str, Any]) -> str:
        """Return the name of the network whose features a `fidelity` or `sweep` compares."""
        data, digest = self.spec["data"]["name"], self.environment.get("data_digest")
        name = extractor_name(part["extractor"], data, digest if isinstance(digest, str) else None)
        # Records of earlier versions have no digest in the name.
        return name if any(f"_{name}_" in key for key in self.curves) else extractor_name(part["extractor"], data)


@dataclass(frozen=True)
class StudyRuns:
    """Runs as data frames; returned by `load_runs`."""

    records: tuple[RunRecord, ...] = field(repr=False)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """One row per run and study.

        Columns: study, arm, replicate, run_key, state, step, num_steps; the spec's fields by their dotted paths, such
        as `optim.lr` and `diffusion.schedule.name`; and each metric at its last training step, such as `eval/nll_bpd`,
        but for evaluations that the study does not ask for.
        """
        return pd.DataFrame([_table_row(run) for run in self.records])

    @cached_property
    def curves(self) -> pd.DataFrame:
        """Every recorded value, with the columns run_key, key, step and value; each run once.

        `step` is a training step, except for curves over something else: t for `eval/L_t_bpd`, the number of sampling
        steps for `sweep/...`.
        """
        runs = {run.run_key: run for run in self.records}
        parts = [
            pd.DataFrame({"run_key": run_key, "key": key, "step": steps, "value": values})
            for run_key, run in runs.items()
            for key, (steps, values) in run.curves.items()
        ]
        columns = ["run_key", "key", "step", "value"]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=columns)

    def array(self, run_key: str, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of one file of a run, e.g. `eval_likelihood.npz` with its `L_t_bpd`.

        Raises:
            RecordError: no such run, or it has no such file; the message lists the choices.
        """
        run = next((run for run in self.records if run.run_key == run_key), None)
        if run is None:
            keys = ", ".join(sorted({run.run_key for run in self.records})) or "none"
            raise RecordError(f"no run {run_key!r} was loaded; choices: {keys}")
        arrays = run.arrays(name)
        if not arrays:
            names = ", ".join(sorted(path.name for path in (run.folder / "arrays").glob("[!.]*.npz"))) or "none"
            raise RecordError(f"run {run_key} has no arrays {name!r}; choices: {names}")
        return arrays


def load_runs(study: str | None = None, *, runs_folder: Path | str | None = None) -> StudyRuns:
    """Read the runs of a study, or of all studies, as pandas frames: `.runs`, `.curves` and `.array(run_key, name)`.

    Args:
        study: its name; its runs are those that it asks for.
        runs_folder: default: $HARNESS_RUNS, else ./runs.

    Raises:
        RecordError: no run belongs to the study; the message lists the studies.
    """
    folder = Path(runs_folder or os.environ.get("HARNESS_RUNS", "runs"))
    if study is not None:
        require_study(folder, study)
    return StudyRuns(tuple(load_records(folder, study)))


def require_study(runs_folder: Path, study: str) -> None:
    """Raise a RecordError with the choices if no run belongs to a study."""
    known = study_names(runs_folder)
    if study not in known:
        raise RecordError(f"no run in {runs_folder} belongs to study {study!r}; choices: {', '.join(known) or 'none'}")


def load_records(runs_folder: Path | str, study: str | None = None) -> list[RunRecord]:
    """Read the runs that a study asks for, or those of all studies, once for each study that asks for a run.

    Arms are in the order of the study's file, or without a manifest by schedule, objective and name. A run whose
    journals cannot be read is included as failed, with the reason, so that figures can count it. One whose spec or
    place in the study cannot be read is left out; `unreadable_runs` has the reason. Runs of one arm differ in nothing
    but their seed: where a study without a manifest has others, they are arms of their own, named by what differs.
    """
    manifests = Manifests(Path(runs_folder))
    directories = manifests.runs(study) if study else map(RunDirectory, layout.run_paths(Path(runs_folder)))
    records: list[RunRecord] = []
    with _without_garbage_collection():
        for directory in directories:
            asked = manifests.memberships(directory, complete=True)
            studies = {name: membership for name, membership in asked.items() if study in (None, name)}
            if studies and not _wrong_spec(directory):
                records.extend(_read(directory, studies))
    return in_order(_with_separate_arms(records), manifests)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch the collector of cycles off: it would look through the millions of rows of journals again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def count_earlier(runs_folder: Path | str, study: str) -> int:
    """Return the number of runs that a study no longer asks for."""
    return len(Manifests(Path(runs_folder)).earlier_runs(study))


def _with_separate_arms(records: list[RunRecord]) -> list[RunRecord]:
    """Rename runs of one arm that differ in more than their seed, by the values of what differs."""
    arms: dict[tuple[str, str], dict[str, list[RunRecord]]] = {}
    for run in records:
        settings = canonical_json(settings_of(run))
        arms.setdefault((run.study, run.arm), {}).setdefault(settings, []).append(run)
    renamed = []
    for variants in arms.values():
        names = what_differs([settings_of(runs[0]) for runs in variants.values()])
        for runs, name in zip(variants.values(), names, strict=True):
            renamed += [replace(run, arm=f"{run.arm} ({name})") for run in runs] if name else runs
    return renamed


def unreadable_runs(runs_folder: Path | str, study: str | None = None) -> dict[str, str]:
    """Return why folders of a study, or of all studies, are not read as runs, by the folder's name."""
    reasons = {}
    for path in layout.run_paths(Path(runs_folder)):
        directory = RunDirectory(path)
        if study is None or directory.study_path(study).exists():
            _, problems = directory.read_studies(complete=True)
            named = [problem for problem in problems if study is None or problem.startswith(f"studies/{study}.json")]
            if reason := "; ".join(filter(None, [_wrong_spec(directory), *named])):
                reasons[path.name] = reason
    return reasons | layout.folders_that_are_no_runs(Path(runs_folder))


def _wrong_spec(directory: RunDirectory) -> str:
    """Return what is wrong with a run's spec.json, empty if it is the spec of this run."""
    try:
        document = read_json(directory.spec_path)
        check_spec(document, str(directory.spec_path), complete=True)
        key = digest({"schema_version": document["schema_version"], "spec": document["spec"]})
    except FileNotFoundError:
        return "spec.json is missing"
    except RecordError as error:
        return str(error).removeprefix(f"{directory.path}/")
    except (ValueError, TypeError) as error:  # NaN, or a character that is none
        return f"spec.json has no key: {error}"
    if len(directory.key) == len(key) and directory.key != key:
        return f"spec.json is the spec of run {key}: it was changed, or the folder renamed"
    return ""


def study_names(runs_folder: Path | str) -> list[str]:
    """Return the names of all studies that have a run."""
    return layout.study_names(Path(runs_folder))


def by_arm(runs: Iterable[RunRecord]) -> dict[str, list[RunRecord]]:
    """Group runs by arm; keep the order of arms and replicates."""
    arms: dict[str, list[RunRecord]] = {}
    for run in runs:
        arms.setdefault(run.arm, []).append(run)
    return arms


def arm_index(runs: Sequence[RunRecord]) -> dict[str, int]:
    """Number a study's arms; the number determines an arm's colour, the same in all figures of the study."""
    numbers = {arm: members[0].arm_number for arm, members in by_arm(runs).items()}
    return {arm: index if number is None else number for index, (arm, number) in enumerate(numbers.items())}


def with_arms(runs: Sequence[RunRecord], arms: Sequence[str]) -> list[RunRecord]:
    """Return the runs of those arms that are there, in that order, numbered as among all; all if none of them is."""
    numbers, members = arm_index(runs), by_arm(runs)
    shown = [replace(run, arm_number=numbers[arm]) for arm in arms for run in members.get(arm, ())]
    return shown or list(runs)


def count_states(runs: Sequence[RunRecord]) -> str:
    """Describe the number of runs, and of those that are not done or collapsed: `12 runs, of them 1 failed`."""
    states = Counter(run.state for run in runs)
    unfinished = [f"{states[state]} {state}" for state in STATES if state != "done" and states[state]]
    total = f"{len(runs)} run{'s' if len(runs) != 1 else ''}"
    collapsed = sum(bool(run.collapses) for run in runs)
    signs = f", {collapsed} with signs of a collapse" if collapsed else ""
    return (f"{total}, of them {', '.join(unfinished)}" if unfinished else f"{total}, all done") + signs


def _table_row(run: RunRecord) -> dict[str, Any]:
    row = {
        "study": run.study,
        "arm": run.arm,
        "replicate": run.replicate,
        "run_key": run.run_key,
        "state": run.state,
        "step": run.status.step,
        "num_steps": run.status.num_steps,
    }
    shown = [name for name in run.curves if name in run.over_training and name.split("/")[0] not in run.not_asked_for]
    return row | flatten(run.spec) | {name: run.final(name) for name in shown}


def _read(directory: RunDirectory, studies: dict[str, dict]) -> Iterator[RunRecord]:
    spec, status = directory.spec(), directory.status()
    environments: list[dict[str, Any]] = []
    journals = Journals()
    try:
        environments = directory.environments()
        journals = read_journals(directory)
    except RecordError as error:
        reason = str(error).removeprefix(f"{directory.path}/")
        status = Status(state="failed", reason=f"its records cannot be read: {reason}")
    prefixes = journals.prefixes
    protocols, damaged = _protocols(directory, prefixes)
    for study, membership in studies.items():
        measurements = tuple(_measurements(protocols, membership.get("evaluations", []), prefixes))
        yield RunRecord(
            folder=directory.path,
            study=study,
            arm=membership["arm"],
            replicate=membership["replicate"],
            spec=spec,
            status=status,
            measurements=measurements,
            curves=journals.curves,
            over_training=journals.over_training,
            environment=environments[-1] if environments else {},
            problems=(*journals.problems, *damaged),
            not_asked_for=frozenset(prefixes.values()) - {measurement.prefix for measurement in measurements},
            collapses=journals.collapses,
            devices=devices_in(environments),
        )


def _protocols(directory: RunDirectory, keys: Iterable[str]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Return what a run recorded of its evaluations by their keys, and which files cannot be read."""
    protocols, problems = {}, []
    for key in keys:
        path = directory.evaluation_path(key)
        try:
            fields = Fields(protocol := read_json(path), str(path))
            fields.fields("evaluation", {})
            fields.fields("likelihood", {})
            fields.fields("metrics", {})
            protocols[key] = protocol
        except FileNotFoundError:
            continue
        except RecordError as error:
            problems.append(str(error).removeprefix(f"{directory.path}/"))
    return protocols, problems


def _measurements(
    protocols: dict[str, dict[str, Any]], evaluations: list[dict], prefixes: dict[str, str]
) -> Iterator[Measurement]:
    """Return the finished measurements that the study requested, in its order.

    Protocols are compared as stored, not by newly computed keys: so a later version of the harness, whose protocols
    have more parts, can still draw the records of an earlier one.
    """
    finished = []
    for key, prefix in prefixes.items():
        if key in protocols:
            finished.append((prefix, protocols[key]))
    for evaluation in evaluations:
        for prefix, protocol in finished:
            if protocol.get("evaluation") == evaluation:
                yield Measurement(evaluation["name"], prefix, evaluation, protocol)
