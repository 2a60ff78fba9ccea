"""A search: trials that Optuna asks for one by one, each an ordinary run. The only file that imports optuna.

    load_search     a YAML file -> Search: its space, held against RunSpec at its corners before anything runs
    Coordinator     one process that asks, starts, reports, prunes and tells; workers never open Optuna's storage

Killing anything loses no finished trial, because everything can be found again:

    runs/<run_key>/                       a trial's runs, as any others: their study is the search, their arm the trial
    runs/.search/<name>/journal.log       Optuna's own record (or a database of the user's)
    runs/.search/<name>/trials/*.json     what each trial asked for, written before it is started, and how it ended
    runs/.search/<name>/search.json       the space and the objectives; a search that is taken up must be the same

A suggestion depends on the search's seed, the trial's number and the trials that had ended, and on nothing else: a
coordinator that died between asking and starting asks for the same point again, under the same number.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from harness import launch
from harness.errors import LaunchError, RecordError, SpecError, TrackingError
from harness.records import FolderLock, RunDirectory, differences, replace_file
from harness.spec import Evaluation, Part, RunSpec, extractor_name
from harness.study import (
    RUN_PARTS,
    Document,
    Keys,
    Mark,
    Override,
    Run,
    Study,
    did_you_mean,
    expand,
    labels,
    read_document,
    validate,
)

if TYPE_CHECKING:
    import optuna

    from harness.cluster import Profile

MAX_CORNERS = 256
MAX_FAILURES_IN_A_ROW = 10
MAX_STARTS_WITHOUT_PROGRESS = 3
FINISHED = ("complete", "pruned")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
STEP_PRUNERS = ("median", "hyperband", "asha")
LEAST_REPLICATES = 3  # of Wilcoxon's test


# ----------------------------------------------------------------------------------------------------------- what it is


class Settings(Part):
    """The part `search` of a file; its space and its metrics are read with more care below."""

    space: dict[str, Any] = Field(min_length=1)
    metrics: tuple[dict[str, Literal["minimize", "maximize"]], ...] = Field(min_length=1)
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "qmc", "grid", "random"] = "tpe"
    pruner: Literal["none", "median", "hyperband", "asha", "wilcoxon"] = "none"
    trials: int = Field(ge=1, le=100_000)  # that end well, or are pruned
    parallel: int = Field(1, ge=1, le=1000)  # trials at a time
    replicates: int = Field(1, ge=1, le=100)  # runs of a trial, which differ in their seed
    timeout: str | None = Field(None, pattern=r"^\d+(\.\d+)?[smhd]$")  # after which nothing more is asked
    seed: int = Field(0, ge=0, lt=2**31)
    storage: str | None = None  # of Optuna, a database's URL; None: a file beside the trials

    @property
    def timeout_seconds(self) -> float:
        return float(self.timeout[:-1]) * _SECONDS[self.timeout[-1]] if self.timeout else math.inf


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space: a range, or choices, which Optuna knows by their labels.

    Attributes:
        when: path -> the values at which this parameter takes part; everywhere when empty.
    """

    path: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: Mapping[Any, Any] = field(default_factory=dict)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def value(self, label: Any) -> Any:
        """Return what goes into the spec for a value as Optuna has it."""
        return self.choices[label] if self.kind == "choices" else label

    def corners(self) -> list[Any]:
        return list(self.choices) if self.kind == "choices" else [self.low, self.high]

    def points(self) -> list[Any] | None:
        """Return all values, or None where they are not finite."""
        if self.kind == "choices":
            return list(self.choices)
        if self.log or (self.step is None and self.kind == "float"):
            return None
        step = self.step or 1
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [type(self.low)(f"{self.low + index * step:.12g}") for index in range(count)]  # 0.3, not 0.3 + 4e-17

    def suggest(self, trial: optuna.Trial) -> Any:
        """Return the trial's value, asked for now unless it was before."""
        if self.kind == "choices":
            return trial.suggest_categorical(self.path, list(self.choices))
        if self.kind == "int":
            return trial.suggest_int(self.path, int(self.low), int(self.high), step=int(self.step or 1), log=self.log)
        return trial.suggest_float(self.path, self.low, self.high, step=self.step, log=self.log)

    def about(self) -> dict[str, Any]:
        """Return it as plain values, for the record and the figures."""
        found: dict[str, Any] = {"path": self.path, "kind": self.kind}
        if self.kind == "choices":
            found["choices"] = dict(zip(map(str, self.choices), self.choices.values(), strict=True))
        else:
            found |= {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        return found | ({"when": {path: list(values) for path, values in self.when.items()}} if self.when else {})

    def spell(self) -> str:
        """Say it in a few words: `1e-05 to 0.1, log`."""
        text = " | ".join(map(str, self.choices)) if self.choices else f"{self.low:g} to {self.high:g}"
        text += ", log" if self.log else ""
        text += f", steps of {self.step:g}" if self.step else ""
        when = " and ".join(f"{path} is {' or '.join(map(str, values))}" for path, values in self.when.items())
        return f"{text}  (when {when})" if when else text


@dataclass(frozen=True)
class Metric:
    """What is made small or large: `eval/fid` stands for the one metric of evaluation `eval` that begins so."""

    name: str
    direction: Literal["minimize", "maximize"]

    def find(self, run: Run) -> tuple[Evaluation, str]:
        """Return the evaluation that gives it, and its whole name there without the prefix.

        Raises:
            ValueError: none gives it, or it could be several.
        """
        prefix, _, stem = self.name.partition("/")
        known = [(one, name) for one in run.evaluations for name in metrics_of(one, run.spec)]
        mine = [(one, name) for one, name in known if one.name == prefix]
        exact = [(one, name) for one, name in mine if name == stem]
        found = exact or [(one, name) for one, name in mine if name.startswith(f"{stem}_")]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{self.name} is ambiguous; choices: {', '.join(f'{prefix}/{name}' for _, name in found)}")
        names = [f"{one.name}/{name}" for one, name in known]
        if not names:
            raise ValueError(f"nothing gives {self.name}: the file evaluates nothing that is a number; add `evaluate`")
        raise ValueError(f"no evaluation gives {self.name}; {did_you_mean(self.name, names)}")

    def better(self, one: float, other: float) -> bool:
        return one < other if self.direction == "minimize" else one > other


def metrics_of(evaluation: Evaluation, spec: RunSpec) -> list[str]:
    """Return the names, without their prefix, of the single numbers that a resolved evaluation leaves of a run."""
    names = []
    if evaluation.nll:
        names += ["nll_bpd", "nll_standard_error_bpd", "nll_images_standard_error_bpd", "L_0_bpd", "L_T_bpd"]
    if part := evaluation.fidelity:
        extractor = extractor_name(part.extractor, spec.data.name)
        how = f"{extractor}_{part.num_samples}_{part.sampler.name}{part.num_steps}"
        names += [f"{metric}_{how}" for metric in ("fid", "precision", "recall")]
    if evaluation.rate_distortion:
        names += ["rate_bpd", "distortion_rmse"]
    if evaluation.noise_scale:
        names.append("gradient_noise_scale")
    return names


@dataclass(frozen=True)
class Search:
    """A search as its file says it."""

    name: str
    path: Path
    settings: Settings
    space: tuple[Parameter, ...]
    metrics: tuple[Metric, ...]
    document: Document = field(repr=False)
    late: tuple[Override, ...] = ()
    inception: bool = False

    def choose(self, pick: Callable[[Parameter], Any]) -> dict[str, Any]:
        """Return a point of the space: `pick` is asked for each parameter that takes part, in the file's order."""
        chosen: dict[str, Any] = {}
        for parameter in self.space:
            if all(self._at(path, chosen) in wanted for path, wanted in parameter.when.items()):
                chosen[parameter.path] = parameter.value(pick(parameter))
        return chosen

    def _at(self, path: str, chosen: Mapping[str, Any]) -> Any:
        """Return the value at a path of the spec as it is so far: what is chosen, else what the file says."""
        keys = path.split(".")
        heads = [".".join(keys[:count]) for count in range(len(keys), 0, -1)]
        head = next((head for head in heads if head in chosen), None)
        value: Any = self.document.value if head is None else chosen[head]
        for key in keys[0 if head is None else head.count(".") + 1 :]:
            value = {"name": value} if isinstance(value, str) else value
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def trial(self, number: int, chosen: Mapping[str, Any]) -> Study:
        """Return a trial's runs: an arm of the study that is named after the search.

        Raises:
            SpecError: the runs cannot be; with the places of the parameters in the file.
        """
        arm = trial_name(number)
        # A part before what lies in it: `objective`, then `objective.lambda_vlb`.
        overrides = dict(sorted(chosen.items(), key=lambda item: item[0].count(".")))
        value = {key: one for key, one in self.document.value.items() if key != "search"}
        value |= {"arms": {arm: overrides}, "replicates": self.settings.replicates}
        places: dict[Keys, Mark] = {("arms", arm, path): self.document.mark(_place(path)) for path in overrides}
        return expand(Document(value, {**self.document.marks, **places}), self.path, self.late, self.inception)

    def definition(self) -> dict[str, Any]:
        """Return all that must not change while the search goes on, as plain values."""
        value = self.document.value
        return json.loads(
            json.dumps(
                {
                    "space": [parameter.about() for parameter in self.space],
                    "metrics": [asdict(metric) for metric in self.metrics],
                    **self.settings.model_dump(include={"sampler", "pruner", "replicates", "seed"}),
                    "spec": {key: value[key] for key in RUN_PARTS if key in value},
                    "set": {override.path: override.value for override in self.late},
                    "evaluate": value.get("evaluate", []),
                    "inception": self.inception,
                }
            )
        )

    def folder(self, runs_folder: Path) -> Path:
        return runs_folder / ".search" / self.name


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


# ------------------------------------------------------------------------------------------------------------- reading


def load_search(path: str | Path, *, sets: Sequence[str] = (), inception: bool = False) -> Search:
    """Read a search and hold it against everything that could refuse it later.

    Args:
        path: the YAML file.
        sets: `path=value` for once, such as search.trials=4.
        inception: whether Inception's weights are at hand.

    Raises:
        SpecError: one line a mistake: `file:line: path: what is wrong; the choices`.
    """
    document, late = read_document(path, sets)
    for part in ("arms", "grid", "exclude", "replicates"):
        if part in document.value:
            where = "search.replicates" if part == "replicates" else "search.space, as choices: [...]"
            raise document.fail((part,), f"a search has no {part} of its own; say it in {where}")
    if "search" not in document.value:
        raise SpecError(f"{path}: no search stands here; a study is submitted: `harness submit {path}`")
    settings = validate(Settings, document.value["search"], document.below(("search",)), ("search",))
    space = tuple(_parameter(document, path, entry) for path, entry in document.value["search"]["space"].items())
    for override in late:
        if override.path in {parameter.path for parameter in space}:
            raise SpecError(f"{override.mark}: {override.path} is searched; narrow search.space instead")
    metrics = tuple(_metrics(document))
    name = str(document.value.get("study"))
    search = Search(name, Path(path), settings, space, metrics, document, late, inception)
    _refuse_what_optuna_refuses(search)
    _try_corners(search)
    return search


def _place(path: str) -> Keys:
    return ("search", "space", path)


def _parameter(document: Document, path: str, entry: Any) -> Parameter:
    keys = _place(path)
    kinds = [kind for kind in ("float", "int", "choices") if isinstance(entry, dict) and kind in entry]
    if len(kinds) != 1:
        raise document.fail(keys, "say one of float: [low, high], int: [low, high] and choices: [...]")
    (kind,) = kinds
    known = (kind, "when") if kind == "choices" else (kind, "log", "step", "when")
    for key in entry:
        if key not in known:
            raise document.fail((*keys, key), f"unknown key; {did_you_mean(key, known)}")
    when = {}
    if not isinstance(entry.get("when", {}), dict):
        raise document.fail((*keys, "when"), "a mapping of paths to values: {objective.name: hybrid}")
    for about, wanted in entry.get("when", {}).items():
        when[about] = tuple(wanted) if isinstance(wanted, list) else (wanted,)
    if kind == "choices":
        return Parameter(path, kind, choices=_choices(document, path, entry["choices"]), when=when)
    numbers = (int,) if kind == "int" else (int, float)
    bounds, log, step = entry[kind], entry.get("log", False), entry.get("step")
    if not isinstance(bounds, list) or len(bounds) != 2 or any(type(one) not in numbers for one in bounds):
        raise document.fail((*keys, kind), f"two numbers, [low, high]{' without a point' if kind == 'int' else ''}")
    low, high = map(float if kind == "float" else int, bounds)
    if low >= high:
        raise document.fail((*keys, kind), f"low {low:g} must be less than high {high:g}")
    if type(log) is not bool:
        raise document.fail((*keys, "log"), f"true or false, not {log!r}")
    if log and low <= 0:
        raise document.fail((*keys, kind), f"a logarithmic range begins above 0, not at {low:g}")
    if step is not None and (type(step) not in numbers or not 0 < step <= high - low):
        raise document.fail((*keys, "step"), f"a number above 0 and at most {high - low:g}, not {step!r}")
    if log and step is not None:
        raise document.fail((*keys, "step"), "Optuna takes no step on a logarithmic range; drop one of them")
    return Parameter(path, kind, low, high, log, step, when=when)


def _choices(document: Document, path: str, values: Any) -> dict[Any, Any]:
    """Give each choice the name that Optuna knows it by: itself where it is plain, else a short label."""
    keys: Keys = (*_place(path), "choices")
    if not isinstance(values, list) or not values:
        raise document.fail(keys, f"a list of values, not {values!r}")
    plain = all(one is None or isinstance(one, (bool, int, float, str)) for one in values)
    names = values if plain else labels([path], [[one] for one in values])
    if len(set(map(str, names))) < len(names):
        raise document.fail(keys, "a value stands there twice")
    return dict(zip(names, values, strict=True))


def _metrics(document: Document) -> Iterator[Metric]:
    seen = set()
    for index, entry in enumerate(document.value["search"]["metrics"]):
        keys: Keys = ("search", "metrics", index)
        if len(entry) != 1:
            raise document.fail(keys, "one metric an entry: - {eval/nll_bpd: minimize}")
        for name, direction in entry.items():
            if name in seen:
                raise document.fail(keys, f"{name} stands there twice")
            seen.add(name)
            yield Metric(name, direction)


def _refuse_what_optuna_refuses(search: Search) -> None:
    settings, fail = search.settings, search.document.fail
    several = len(search.metrics) > 1
    sampler: Keys = ("search", "sampler")
    pruner: Keys = ("search", "pruner")
    if several and settings.pruner != "none":
        raise fail(pruner, "Optuna prunes by one objective only, and there are several metrics; take pruner: none")
    if several and settings.sampler == "cmaes":
        raise fail(sampler, "cmaes follows one objective only, and there are several metrics; take nsga2 or tpe")
    if settings.sampler == "cmaes":
        if any(parameter.kind == "choices" or parameter.when for parameter in search.space):
            raise fail(sampler, "cmaes moves in numbers that always take part; Optuna would draw the others at random")
        if len(search.space) < 2:
            raise fail(sampler, "cmaes needs two parameters at least; take tpe or gp")
    if settings.sampler == "grid":
        num_points = 1
        for parameter in search.space:
            points = parameter.points()
            if points is None:
                raise fail(_place(parameter.path), "a grid needs finitely many values: give a step, or choices")
            if parameter.when:
                raise fail(_place(parameter.path), "Optuna's grid knows no conditions; take another sampler")
            num_points *= len(points)
        if settings.trials > num_points:
            raise fail(("search", "trials"), f"the grid has {num_points} points, fewer than {settings.trials} trials")
    if settings.pruner == "wilcoxon" and settings.replicates < LEAST_REPLICATES:
        raise fail(
            pruner,
            "wilcoxon compares trials replicate by replicate, as its steps: give search.replicates of "
            f"{LEAST_REPLICATES} or more, or take median, hyperband or asha with an evaluation that has `every`",
        )


def _try_corners(search: Search) -> None:
    """Hold the space against the spec where it is widest, and the metrics against what would be measured there."""
    ends = {parameter.path: parameter.corners() for parameter in search.space}
    whole = math.prod(map(len, ends.values())) <= MAX_CORNERS
    if whole:
        corners: Iterable[dict[str, Any]] = (
            dict(zip(ends, corner, strict=True)) for corner in itertools.product(*ends.values())
        )
    else:
        first = {path: values[0] for path, values in ends.items()}
        corners = [first, *({**first, path: one} for path, values in ends.items() for one in values[1:])]
    reached, tried = set(), set()
    for corner in corners:
        point = search.choose(lambda parameter: corner[parameter.path])  # noqa: B023 (called at once)
        key = json.dumps(point)
        if key in tried:
            continue
        tried.add(key)
        reached |= set(point)
        run = search.trial(0, point).runs[0]
        for index, metric in enumerate(search.metrics):
            keys: Keys = ("search", "metrics", index)
            try:
                evaluation, stem = metric.find(run)
            except ValueError as error:
                raise search.document.fail(keys, str(error)) from None
            if search.settings.pruner in STEP_PRUNERS and not (evaluation.every and stem in _measured_in_training):
                raise search.document.fail(
                    ("search", "pruner"),
                    f"{search.settings.pruner} needs {metric.name} during training: give the evaluation `every: STEPS` "
                    f"and take one of {', '.join(f'{evaluation.name}/{name}' for name in _measured_in_training)}",
                )
    for parameter in search.space:
        if whole and parameter.path not in reached:
            raise search.document.fail(
                (*_place(parameter.path), "when"),
                "never holds; it may speak of parameters that stand above it, and of what the file says outright",
            )


_measured_in_training = ("nll_bpd", "nll_standard_error_bpd", "nll_images_standard_error_bpd", "L_0_bpd", "L_T_bpd")


# -------------------------------------------------------------------------------------------------------------- records


@dataclass
class TrialRecord:
    """What is kept of one trial: written when it is asked for, before it is started, and again when it ends.

    Attributes:
        point: path -> value, as it went into the spec.
        run_keys: of its replicates, in their order.
        served: those of them that were done before the trial was asked for.
        values: by metric: the mean over replicates; of a pruned trial what it had come to.
        replicate_values: by metric, each replicate's own.
        state: running, complete, pruned or failed.
    """

    number: int
    point: dict[str, Any]
    run_keys: list[str]
    served: list[str] = field(default_factory=list)
    state: str = "running"
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    replicate_values: dict[str, list[float]] = field(default_factory=dict)
    asked_seconds: float = field(default_factory=time.time)  # Unix time
    ended_seconds: float = 0.0

    @property
    def arm(self) -> str:
        return trial_name(self.number)

    def write(self, folder: Path) -> None:
        """Put it where a restarted coordinator and the figures find it."""
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        replace_file(folder / "trials" / f"{self.arm}.json", json.dumps(asdict(self), indent=2), durable=True)

    def half_width(self, metric: str, level: float = 0.95) -> float | None:
        """Return half of Student's interval of the mean over replicates, None of fewer than three."""
        found = self.replicate_values.get(metric, [])
        if len(found) < 3:
            return None
        from scipy.stats import t

        mean = sum(found) / len(found)
        variance = sum((value - mean) ** 2 for value in found) / (len(found) - 1)
        return float(t.ppf((1 + level) / 2, len(found) - 1)) * math.sqrt(variance / len(found))


def read_trials(folder: Path) -> list[TrialRecord]:
    """Return the trials of a search in the order of their numbers."""
    paths = sorted((folder / "trials").glob("trial-*.json"), key=lambda path: (len(path.name), path.name))
    return [TrialRecord(**json.loads(path.read_text())) for path in paths]


def front(trials: Sequence[TrialRecord], metrics: Sequence[Metric]) -> list[TrialRecord]:
    """Return the complete trials that no other one beats in every metric: the best one, or the Pareto front."""
    complete = [trial for trial in trials if trial.state == "complete"]

    def dominates(one: TrialRecord, other: TrialRecord) -> bool:
        pairs = [(metric, one.values[metric.name], other.values[metric.name]) for metric in metrics]
        return all(a == b or metric.better(a, b) for metric, a, b in pairs) and any(a != b for _, a, b in pairs)

    best = [trial for trial in complete if not any(dominates(other, trial) for other in complete)]
    return sorted(best, key=lambda trial: trial.values[metrics[0].name] * (-1) ** (metrics[0].direction == "maximize"))


def bests(trials: Sequence[TrialRecord], metrics: Sequence[Metric]) -> list[tuple[int, dict[str, float]]]:
    """Return, for each complete trial in the order in which they ended, its time in ms and the best values so far."""
    rows, best = [], dict[str, float]()
    for trial in sorted((one for one in trials if one.state == "complete"), key=lambda one: one.ended_seconds):
        for metric in metrics:
            value = trial.values[metric.name]
            if metric.name not in best or metric.better(value, best[metric.name]):
                best[metric.name] = value
        rows.append((round(1000 * trial.ended_seconds), {f"best/{name}": value for name, value in best.items()}))
    return rows


def eta_seconds(trials: Sequence[TrialRecord], settings: Settings) -> float | None:
    """Return how long the trials that are left will take at the pace of those that were computed; None before one."""
    took = [one.ended_seconds - one.asked_seconds for one in trials if one.state in FINISHED and not one.served]
    left = settings.trials - sum(one.state in FINISHED for one in trials)
    return sum(took) / len(took) * math.ceil(max(0, left) / settings.parallel) if took else None


def best_study(search: Search, trial: TrialRecord) -> str:
    """Return a trial as the YAML of a study of its own, whole, so that it stands when what it extends is edited."""
    import yaml

    (run, *_) = search.trial(trial.number, trial.point).runs
    spec = run.spec.model_dump(mode="json")
    study = {"study": f"{search.name}-best", **{key: value for key, value in spec.items() if value is not None}}
    study["evaluate"] = [one.model_dump(mode="json", exclude_none=True) for one in run.evaluations]
    study["replicates"] = search.settings.replicates
    study["resources"] = run.resources.model_dump(mode="json", exclude_none=True)
    study["records"] = run.records.model_dump(mode="json", exclude_none=True)
    if run.data_root:
        study["data_root"] = run.data_root
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)


# -------------------------------------------------------------------------------------------------------------- workers


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
        self._gpus = launch.visible_gpus()
        cores = launch.available_cores()
        self._jobs = min(jobs or len(self._gpus) or cores, parallel_runs)
        self._threads = max(1, cores // self._jobs)
        self._submissions: dict[int, tuple[str, launch.LocalSubmission]] = {}  # by their place

    def start(self, study: Study) -> None:
        self._forget_ended()
        (run,) = study.runs
        # One at a time knows nothing of the others, so its share of the cores is said here.
        shared = run.resources.model_copy(update={"threads": run.resources.threads or self._threads})
        alone = replace(study, runs=(replace(run, resources=shared),))
        place = next(index for index in itertools.count() if index not in self._submissions)
        with _on_gpu(self._gpus[place % len(self._gpus)] if len(self._gpus) > 1 else None):
            submission = launch.commit(launch.plan(alone, self._runs_folder), jobs=1, sync=False)
            assert isinstance(submission, launch.LocalSubmission)
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
        launch.commit(launch.plan(study, self._runs_folder), cluster="slurm", **self._options)
        self._busy.add(study.runs[0].run_key)

    def at_work(self, run_keys: set[str]) -> set[str]:
        from harness.cluster import queued_in_slurm

        queued = queued_in_slurm()
        asked = run_keys | self._busy  # jobs of trials that have ended leave their room
        self._busy = {key for key in asked if launch.job_of(self._runs_folder, key)[1] in queued}
        return run_keys & self._busy

    def room(self) -> int:
        return (self._jobs or 1_000_000) - len(self._busy)


# ---------------------------------------------------------------------------------------------------------- coordinator


@dataclass
class _Trial:
    """A trial that is under way."""

    record: TrialRecord
    study: Study
    optuna_trial: optuna.Trial
    starts: dict[str, tuple[int, int]] = field(default_factory=dict)  # run_key -> (step, starts from it)


class Coordinator:
    """Ask for trials, have them done, tell how they ended; one process a search.

    Args:
        workers: who does the runs.
        sync: whether to carry records to MLflow.
        carries_runs: whether that goes for the runs too, since workers do not.
        say: hears of what happens, a line at a time.
    """

    def __init__(
        self,
        search: Search,
        runs_folder: Path,
        workers: Workers,
        *,
        sync: bool = True,
        tracking_uri: str | None = None,
        say: Callable[[str], None] = print,
    ):
        self.search, self.runs_folder, self.workers = search, runs_folder, workers
        self.folder = search.folder(runs_folder)
        self.sync, self.tracking_uri, self.say = sync, tracking_uri, say
        self.running: list[_Trial] = []
        self._store_is_away = False

    def run(self) -> bool:
        """Go on until all trials have ended; return whether they have (else the time was up, or the grid).

        Raises:
            RecordError: another coordinator is at work on this search, or this is another search of the same name.
            LaunchError: too many trials failed in a row; the message names the last.
            KeyboardInterrupt: after asking the workers on this machine to write their checkpoints.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(self.folder / "lock", f"search {self.search.name}")
        lock.acquire()
        try:
            self._take_up()
            self._carry("running")
            try:
                return self._work()
            except KeyboardInterrupt:
                self.workers.stop()
                raise
            finally:
                self.carry()
        finally:
            lock.release()

    def _work(self) -> bool:
        deadline = time.monotonic() + self.search.settings.timeout_seconds
        while True:
            self._settle()
            wants_more = time.monotonic() < deadline and self._ask()
            if not self.running and not wants_more:
                self.workers.wait()
                return self._num_finished() >= self.search.settings.trials
            time.sleep(self.workers.every_seconds)

    def _num_finished(self) -> int:
        return sum(trial.state in FINISHED for trial in read_trials(self.folder))

    # -- taking up

    def _take_up(self) -> None:
        _quiet()
        stored = self.folder / "search.json"
        definition = self.search.definition()
        if stored.exists():
            found = differences(json.loads(stored.read_text())["definition"], definition)
            if found:
                more = "only trials, parallel, timeout, resources and records may change; else name the study anew"
                raise RecordError("\n  ".join([f"search {self.search.name} has begun otherwise ({more}):", *found]))
        about = {"study": self.search.name, "definition": definition, "trials": self.search.settings.trials}
        replace_file(stored, json.dumps(about, indent=2), durable=True)
        self.study = open_study(self.search, self.folder)
        records = {record.number: record for record in read_trials(self.folder)}
        for frozen in self.study.get_trials(deepcopy=False):
            record = records.get(frozen.number)
            # Without a record it was asked for and never started: _ask takes it up with the same number.
            if not frozen.state.is_finished() and record:
                self.running.append(self._under_way(record, frozen._trial_id))
        for trial in list(self.running):
            if trial.record.state != "running":  # it was recorded, and its coordinator died before it told Optuna
                self._tell(trial)

    def _under_way(self, record: TrialRecord, trial_id: int) -> _Trial:
        import optuna

        study = self.search.trial(record.number, record.point)
        if [run.run_key for run in study.runs] != record.run_keys:
            raise RecordError(
                f"{record.arm} means other runs now than when it was asked for: the spec's schema changed"
            )
        self.study.sampler = optuna.samplers.RandomSampler()  # Trial asks it what it thinks of a new trial: nothing
        return _Trial(record, study, optuna.Trial(self.study, trial_id))

    # -- asking

    def _ask(self) -> bool:
        """Ask for as many trials as there is room for; return whether more are wanted when there is."""
        settings = self.search.settings
        while True:
            trials = self.study.get_trials(deepcopy=False)
            names = [trial.state.name for trial in trials]
            finished = names.count("COMPLETE") + names.count("PRUNED")
            if finished + len(self.running) >= settings.trials:
                return False
            last = names[-MAX_FAILURES_IN_A_ROW:]
            if len(last) == MAX_FAILURES_IN_A_ROW and set(last) == {"FAIL"}:
                failed = read_trials(self.folder)[-1]
                raise LaunchError(
                    f"the last {len(last)} trials failed, so the search stops; the last one: {failed.reason}; "
                    f"`harness why {failed.run_keys[0]}` tells more"
                )
            lost = names.count("RUNNING") > len(self.running)
            if settings.sampler == "grid" and len(trials) >= _grid_size(self.search) and not lost:
                return False
            if len(self.running) >= settings.parallel or self.workers.room() <= 0:
                return True
            self._begin(self._next_trial())

    def _next_trial(self) -> _Trial:
        number, point, optuna_trial = suggest(self.search, self.study, {one.record.number for one in self.running})
        study = self.search.trial(number, point)
        keys = [run.run_key for run in study.runs]
        done = {planned.run_key for planned in launch.plan(study, self.runs_folder).runs if planned.state == "done"}
        record = TrialRecord(number, point, keys, [key for key in keys if key in done])
        optuna_trial.set_user_attr("run_keys", keys)
        record.write(self.folder)
        return _Trial(record, study, optuna_trial)

    def _begin(self, trial: _Trial) -> None:
        self.running.append(trial)
        record = trial.record
        self.say(f"{record.arm}: {' '.join(f'{path}={brief(value)}' for path, value in record.point.items())}")
        for key in record.served:
            self.say(f"{record.arm}: served by run {key}, which was done before")
        self._settle_one(trial, self.workers.at_work(set(record.run_keys)))

    # -- settling

    def _settle(self) -> None:
        keys = {key for trial in self.running for key in trial.record.run_keys}
        at_work = self.workers.at_work(keys)
        for trial in list(self.running):
            self._settle_one(trial, at_work)

    def _settle_one(self, trial: _Trial, at_work: set[str]) -> None:
        """See how far a trial's runs are: tell how it ended, prune it, or start what nobody is at work on."""
        planned = launch.plan(trial.study, self.runs_folder).runs
        if all(one.state == "done" for one in planned):
            return self._complete(trial, planned)
        ended = [one for one in planned if one.run_key not in at_work and one.state != "running"]
        for one in ended:
            if one.state == "failed" and one.run_key in trial.starts:
                return self._end(trial, "failed", f"run {one.run_key}: {one.status.reason}")
            if one.state == "pruned":
                return self._end(trial, "pruned", one.status.reason)
        pruning = trial.record.reason or self._prune_if_hopeless(trial, planned)
        if pruning:
            return self._end(trial, "pruned", pruning) if len(ended) == len(planned) else None
        for one in planned:
            if one in ended and one.state != "done":
                if self.workers.room() <= 0:
                    return None
                step, starts = trial.starts.get(one.run_key, (-1, 0))
                starts = starts + 1 if one.status.step <= step else 1
                if starts > MAX_STARTS_WITHOUT_PROGRESS:
                    why = f"run {one.run_key} ended {starts - 1} times at step {one.status.step}"
                    return self._end(trial, "failed", f"{why}: {one.status.reason}")
                if one.state == "interrupted":
                    self.say(f"{trial.record.arm}: run {one.run_key} goes on from step {one.status.step}")
                trial.starts[one.run_key] = (one.status.step, starts)
                self.workers.start(replace(trial.study, runs=(self._as_first_joined(one),)))
            if self.search.settings.pruner == "wilcoxon" and one.state != "done":
                return None  # one replicate after the other, since each may show that the rest is not worth it
        return None

    def _as_first_joined(self, planned: launch.PlannedRun) -> Run:
        """Let a run that is an earlier trial's as well stay where it is in the study."""
        studies = planned.directory.studies() if planned.path.exists() else {}
        joined = studies.get(self.search.name)
        return replace(planned.run, arm=joined["arm"], replicate=joined["replicate"]) if joined else planned.run

    def _complete(self, trial: _Trial, planned: Sequence[launch.PlannedRun]) -> None:
        for one in planned:  # those that were done before belong to the search too
            if self.search.name not in one.directory.studies():
                one.directory.join_study(self.search.name, one.run.facts())
        found = {metric.name: [self._value(metric, one.run) for one in planned] for metric in self.search.metrics}
        for name, values in found.items():
            if not all(map(math.isfinite, values)):
                return self._end(trial, "failed", f"{name} is {', '.join(map(str, values))}")
        trial.record.replicate_values = found
        trial.record.values = {name: sum(values) / len(values) for name, values in found.items()}
        return self._end(trial, "complete")

    def _value(self, metric: Metric, run: Run) -> float:
        """Return what a finished run gave: under the prefix that its job chose where two studies clashed."""
        directory = RunDirectory(self.runs_folder / run.run_key)
        evaluation, stem = metric.find(run)
        prefixes = [
            event.facts["prefix"]
            for event in directory.events("evaluation")
            if event.facts["key"] == evaluation.key and not event.fenced
        ]
        values = directory.history(f"{prefixes[-1]}/{stem}")[1] if prefixes else []
        return values[-1] if values else math.nan

    # -- pruning

    def _prune_if_hopeless(self, trial: _Trial, planned: Sequence[launch.PlannedRun]) -> str:
        """Report what is new to Optuna, one step at a time, and ask its pruner after each; return why it prunes."""
        pruner, record = self.search.settings.pruner, trial.record
        if pruner == "none":
            return ""
        known = self.study.get_trials(deepcopy=False)[record.number].intermediate_values
        for step, value in self._intermediate(planned):
            if step in known:
                continue
            trial.optuna_trial.report(value, step)
            if trial.optuna_trial.should_prune():
                name, at = self.search.metrics[0].name, "replicate" if pruner == "wilcoxon" else "step"
                record.reason = f"{name} {value:.6g} at {at} {step} ({pruner})"
                record.values = {name: value}
                record.write(self.folder)
                for one in planned:
                    if one.path.exists() and one.state != "done":
                        one.directory.request_pruning(record.reason)
                return record.reason
        return ""

    def _intermediate(self, planned: Sequence[launch.PlannedRun]) -> list[tuple[int, float]]:
        """Return (step, value): of training and averaged over replicates, or one step a replicate for Wilcoxon."""
        (metric,) = self.search.metrics
        if self.search.settings.pruner == "wilcoxon":
            return [(one.run.replicate, self._value(metric, one.run)) for one in planned if one.state == "done"]
        curves = []
        for one in planned:
            # A run that other studies want as well is theirs to finish.
            if not one.path.exists() or set(one.directory.studies()) - {self.search.name}:
                return []
            evaluation, stem = metric.find(one.run)
            curves.append(dict(zip(*one.directory.history(f"{evaluation.name}/{stem}"), strict=True)))
        steps = sorted(set.intersection(*map(set, curves)))
        last = planned[0].run.spec.train.steps
        return [(step, sum(curve[step] for curve in curves) / len(curves)) for step in steps if step < last]

    # -- telling

    def _end(self, trial: _Trial, state: str, reason: str = "") -> None:
        """Record first, then tell: a coordinator that dies in between tells when it is started again."""
        record = trial.record
        record.state, record.reason, record.ended_seconds = state, reason, time.time()
        record.write(self.folder)
        self._tell(trial)

    def _tell(self, trial: _Trial) -> None:
        import optuna

        record, state = trial.record, optuna.trial.TrialState
        told = {"complete": state.COMPLETE, "pruned": state.PRUNED, "failed": state.FAIL}[record.state]
        values = [record.values[metric.name] for metric in self.search.metrics] if record.state == "complete" else None
        # Of all samplers only the grid's does something after a trial: it stops an `optimize`, which there is none of.
        self.study.sampler = optuna.samplers.RandomSampler()
        self.study.tell(record.number, values=values, state=told)
        self.running.remove(trial)
        shown = ", ".join(f"{name} {value:.6g}" for name, value in record.values.items())
        self.say(f"{record.arm}: {record.state} {': '.join(filter(None, [shown, record.reason]))}".rstrip())
        self._carry("running", record.run_keys)

    # -- records elsewhere

    def carry(self) -> None:
        """Show MLflow the search as it stands, with the figures that lie in its folder."""
        self._carry("done" if self._num_finished() >= self.search.settings.trials else "interrupted")

    def _carry(self, state: str, run_keys: Sequence[str] = ()) -> None:
        """Show MLflow the search and the runs of a trial that has ended; a store that is away stops nothing."""
        if not self.sync:
            return
        from harness.tracking import sync_run, sync_search

        trials = read_trials(self.folder)
        best = front(trials, self.search.metrics)
        tags = {
            "finished": f"{sum(trial.state in FINISHED for trial in trials)} of {self.search.settings.trials}",
            "best_trial": ", ".join(trial.arm for trial in best[:20]),
            "best_run": best[0].run_keys[0] if best else "",
        }
        params = {f"space.{parameter.path}": parameter.spell() for parameter in self.search.space}
        params |= {f"search.{key}": str(value) for key, value in self.search.settings.model_dump().items()
                   if key not in ("space", "trials", "parallel", "timeout", "storage")}  # fmt: skip
        try:
            rows = bests(trials, self.search.metrics)
            sync_search(self.folder, params=params, tags=tags, bests=rows, state=state, tracking_uri=self.tracking_uri)
            for key in run_keys:
                sync_run(RunDirectory(self.runs_folder / key), tracking_uri=self.tracking_uri)
        except TrackingError as error:
            if not self._store_is_away:
                self.say(f"{error}; `harness sync` carries the runs later")
            self._store_is_away = True


def brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)


# --------------------------------------------------------------------------------------------------------------- optuna


def _quiet() -> None:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def open_study(search: Search, folder: Path | None) -> optuna.Study:
    """Open the search's record in Optuna, or make it; in memory when there is no folder.

    Raises:
        RecordError: the storage cannot be opened.
    """
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    url, storage = search.settings.storage, None
    if folder and url is None:
        path = folder / "journal.log"
        mend_journal(path)
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)  # of a coordinator that died: there is one at most
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(path), JournalFileOpenLock(str(path))))
    try:
        return optuna.create_study(
            storage=storage or (url if folder else None),
            study_name=search.name,
            directions=[metric.direction for metric in search.metrics],
            pruner=_pruner(search),
            load_if_exists=True,
        )
    except Exception as error:
        if url is None:
            raise
        raise RecordError(f"Optuna's storage {re.sub('//[^/@]*@', '//***@', url)}: {str(error)[:300]}") from error


def mend_journal(path: Path) -> int:
    """Cut off what a killed writer left of a last line, on which Optuna would raise; return its bytes."""
    if not path.exists():
        return 0
    with path.open("r+b") as file:
        content = file.read()
        end = len(content)
        while end:
            start = content.rfind(b"\n", 0, end - 1) + 1
            try:
                if content[end - 1 : end] == b"\n" and isinstance(json.loads(content[start:end]), dict):
                    break
            except ValueError:
                pass
            end = start
        file.truncate(end)
        os.fsync(file.fileno())
    return len(content) - end


def suggest(search: Search, study: optuna.Study, under_way: set[int]) -> tuple[int, dict[str, Any], optuna.Trial]:
    """Return the next trial: its number, its point, and Optuna's view of it.

    A trial that runs in Optuna's record and is not under way was asked for by a coordinator that died before it could
    write the point down. The sampler, seeded by its number, gives the same point once more.
    """
    import optuna

    trials = study.get_trials(deepcopy=False)
    lost = [one for one in trials if not one.state.is_finished() and one.number not in under_way]
    number = lost[0].number if lost else len(trials)
    study.sampler = _sampler(search, number)
    trial = optuna.Trial(study, lost[0]._trial_id) if lost else study.ask()
    point = search.choose(lambda parameter: parameter.suggest(trial))
    return number, point, trial


def _sampler(search: Search, number: int) -> optuna.samplers.BaseSampler:
    """Return a sampler whose draws are a function of the search's seed and the trial's number."""
    from optuna import samplers

    settings = search.settings
    seed = int.from_bytes(hashlib.sha256(f"{settings.seed} {number}".encode()).digest()[:4], "big")
    match settings.sampler:
        case "tpe":
            # Trials that run side by side are kept apart by supposing that they turn out badly.
            return samplers.TPESampler(seed=seed, constant_liar=True)
        case "gp":
            return samplers.GPSampler(seed=seed)
        case "cmaes":
            return samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
        case "nsga2":
            return samplers.NSGAIISampler(seed=seed)
        case "qmc":  # one sequence for all trials; Optuna counts how far it has come
            independent = samplers.RandomSampler(seed=seed)
            return samplers.QMCSampler(
                scramble=True, seed=settings.seed, independent_sampler=independent, warn_independent_sampling=False
            )
        case "grid":  # one order for all trials, and Optuna takes the trial's number as the place in it
            points = {parameter.path: parameter.points() or [] for parameter in search.space}
            return samplers.GridSampler(points, seed=settings.seed)
    return samplers.RandomSampler(seed=seed)


def _grid_size(search: Search) -> int:
    return math.prod(len(parameter.points() or []) for parameter in search.space)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    from optuna import pruners

    if search.settings.pruner == "none":
        return pruners.NopPruner()
    if search.settings.pruner == "wilcoxon":
        return pruners.WilcoxonPruner()
    point = search.choose(lambda parameter: parameter.corners()[0])
    run = search.trial(0, point).runs[0]
    every = search.metrics[0].find(run)[0].every or 1
    if search.settings.pruner == "hyperband":
        return pruners.HyperbandPruner(min_resource=every, max_resource=run.spec.train.steps)
    if search.settings.pruner == "asha":
        return pruners.SuccessiveHalvingPruner(min_resource=every)
    return pruners.MedianPruner()


def first_suggestions(search: Search, count: int) -> list[dict[str, Any]]:
    """Return the points that would be asked for before any trial has ended."""
    _quiet()
    study = open_study(search, None)
    under_way: set[int] = set()
    points = []
    for _ in range(count):
        number, point, _ = suggest(search, study, under_way)
        under_way.add(number)
        points.append(point)
    return points


NUM_RESAMPLES = 20


def importances(search: Search, study: optuna.Study) -> dict[str, Any]:
    """Return each parameter's share of the variance of each metric by fANOVA (Hutter et al. 2014), with its doubt.

    Only parameters that take part in every trial can be compared. `low` and `high` are the 10 % and 90 % quantiles over
    bootstrap samples of the trials: with few trials the shares are soft, and this says how soft.

    Raises:
        ValueError: fewer than four complete trials.
    """
    import optuna
    from numpy.random import default_rng

    complete = [one for one in study.get_trials(deepcopy=False) if one.state == optuna.trial.TrialState.COMPLETE]
    if len(complete) < 4:
        raise ValueError("importances need four complete trials at least")
    random = default_rng(search.settings.seed)

    def of(trials: Sequence[optuna.trial.FrozenTrial], index: int, num_trees: int) -> dict[str, float]:
        sample = optuna.create_study(directions=study.directions)
        sample.add_trials(trials)
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=num_trees, seed=search.settings.seed)
        return optuna.importance.get_param_importances(
            sample, evaluator=evaluator, target=lambda trial: trial.values[index]
        )

    found: dict[str, Any] = {"num_trials": len(complete), "metrics": {}}
    for index, metric in enumerate(search.metrics):
        shares = of(complete, index, 64)
        resampled = []
        for _ in range(NUM_RESAMPLES):
            picked = [complete[row] for row in random.integers(0, len(complete), len(complete))]
            with contextlib.suppress(ValueError, RuntimeError):
                resampled.append(of(picked, index, 16))
        rows = {}
        for path, share in shares.items():
            drawn = sorted(one.get(path, 0.0) for one in resampled)
            low, high = (drawn[len(drawn) // 10], drawn[-1 - len(drawn) // 10]) if drawn else (share, share)
            rows[path] = {"share": share, "low": low, "high": high}
        found["metrics"][metric.name] = rows
    return found


def write_importances(search: Search, folder: Path) -> None:
    """Leave the importances where the figures find them; where there are too few trials, or all are alike, none."""
    _quiet()
    with contextlib.suppress(ValueError, RuntimeError):
        found = importances(search, open_study(search, folder))
        replace_file(folder / "importances.json", json.dumps(found, indent=2), durable=False)
