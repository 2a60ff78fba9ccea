"""The space, the metrics and the settings of a search."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.records.layout import SEARCH
from harness.spec.base import SpecModel
from harness.spec.evaluation import Evaluation
from harness.spec.metrics import Direction, part_outputs
from harness.spec.presentation import Presentation
from harness.study.axes import RUN_PARTS, conditions_hold, with_defaults
from harness.study.document import Document, Keys, SourceLocation, set_in
from harness.study.expand import expand
from harness.study.model import Override, Run, Study
from harness.study.plugins import load_plugins
from harness.study.presentation import KEYS as PRESENTATION_KEYS
from harness.study.rungs import REDUCTION_FACTOR, numbers_at_rungs, training_with_rungs
from harness.text import did_you_mean

LEARNS_AT_RUNGS = "tpe"
"""The one sampler that learns from trials which were dropped, and ranks them by rung first."""

RUNG_SETTINGS = ("rungs", "reduction_factor", "bracket_size")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Settings(SpecModel):
    """The part `search` of a file; its space and its metrics are validated in loading.py."""

    space: dict[str, Any] = Field(min_length=1)
    metrics: tuple[dict[str, Literal["minimize", "maximize"]], ...] = Field(min_length=1)
    sampler: Literal["tpe", "gp", "cmaes", "nsga2", "qmc", "grid", "random"] = "tpe"
    pruner: Literal["none", "median", "hyperband", "asha", "wilcoxon"] = "none"
    trials: int = Field(ge=1, le=100_000)  # complete or pruned ones
    parallel: int = Field(1, ge=1, le=1000)  # trials at a time
    replicates: int = Field(1, ge=1, le=100)  # runs per trial, which differ in their seed
    timeout: str | None = Field(None, pattern=r"^\d+(\.\d+)?[smhd]$")  # after which no more trials are suggested
    seed: int = Field(0, ge=0, lt=2**31)
    rungs: tuple[int, ...] | None = None  # steps at which trials pause, and from which only the best go on
    reduction_factor: int | None = Field(None, ge=2, le=1000)  # of so many trials at a rung, one goes on
    bracket_size: int | None = Field(None, ge=2, le=100_000)  # trials that a sampler that learns suggests together
    storage: str | None = None  # a database's URL for Optuna; None: a file beside the trials

    @property
    def keeps_one_of(self) -> int:
        return self.reduction_factor or REDUCTION_FACTOR

    @property
    def bracket(self) -> int | None:
        """The number of trials that compete at rungs with each other alone; None: all trials of the search.

        By default one of them trains to the end, as in the first bracket of Hyperband.
        """
        if self.rungs is None or self.sampler != LEARNS_AT_RUNGS:
            return None
        return self.bracket_size or self.keeps_one_of ** (len(self.rungs) - 1)

    @property
    def timeout_seconds(self) -> float:
        return float(self.timeout[:-1]) * _SECONDS[self.timeout[-1]] if self.timeout else math.inf


@dataclass(frozen=True)
class Parameter:
    """One dimension of the space: a range, or choices, which have labels in Optuna.

    Attributes:
        when: path -> the values for which this parameter is used; always if empty.
    """

    path: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None
    choices: Mapping[Any, Any] = field(default_factory=dict)
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def value(self, suggested: Any) -> Any:
        """Return the spec's value for Optuna's value: of a stepped range its own point, 0.3 for 0.30000000000000004.

        The point is what is hashed and printed, so two samplers that reach it give the same run.
        """
        if self.kind == "choices":
            return self.choices[suggested]
        return suggested if self.step is None else self._point(round((suggested - self.low) / self.step))

    def _point(self, index: int) -> Any:
        """Return a point of a stepped range, in decimal arithmetic: `low + index * step` as a person would write it."""
        step = 1 if self.step is None else self.step
        return type(self.low)(Decimal(str(self.low)) + index * Decimal(str(step)))

    def corners(self) -> list[Any]:
        return list(self.choices) if self.kind == "choices" else [self.low, self.high]

    def inner(self) -> Any:
        """Return a value between the ends; of a continuous range one that is no integer."""
        if self.kind == "choices":
            return next(iter(self.choices))
        return self.low if self.kind == "int" or self.step else self.low + (self.high - self.low) / math.pi

    def points(self) -> list[Any] | None:
        """Return all values, or None if there are infinitely many."""
        if self.kind == "choices":
            return list(self.choices)
        if self.log or (self.step is None and self.kind == "float"):
            return None
        count = round((self.high - self.low) / (1 if self.step is None else self.step)) + 1
        return [self._point(index) for index in range(count)]

    def as_dict(self) -> dict[str, Any]:
        """Return the parameter as plain values, for the records and the figures."""
        values: dict[str, Any] = {"path": self.path, "kind": self.kind}
        if self.kind == "choices":
            values["choices"] = dict(zip(map(str, self.choices), self.choices.values(), strict=True))
        else:
            values |= {"low": self.low, "high": self.high, "log": self.log, "step": self.step}
        return values | ({"when": {path: list(values) for path, values in self.when.items()}} if self.when else {})

    def describe(self) -> str:
        """Return a short description: `1e-05 to 0.1, log`."""
        text = " | ".join(map(str, self.choices)) if self.choices else f"{self.low:g} to {self.high:g}"
        text += ", log" if self.log else ""
        text += f", steps of {self.step:g}" if self.step else ""
        when = " and ".join(f"{path} is {' or '.join(map(str, values))}" for path, values in self.when.items())
        return f"{text}  (when {when})" if when else text


@dataclass(frozen=True)
class Metric:
    """An optimised metric: `eval/fid` means the only metric of evaluation `eval` that starts with `fid`."""

    name: str
    direction: Direction

    def find(self, run: Run) -> tuple[Evaluation, str]:
        """Return the evaluation that measures it, and its full name there without the prefix.

        Raises:
            ValueError: no evaluation measures it, or the name is ambiguous.
        """
        prefix, _, stem = self.name.partition("/")
        candidates = [
            (evaluation, name)
            for evaluation in run.evaluations
            for part in part_outputs(evaluation, run.spec).values()
            for name in part.metrics
        ]
        of_prefix = [(evaluation, name) for evaluation, name in candidates if evaluation.name == prefix]
        exact = [(evaluation, name) for evaluation, name in of_prefix if name == stem]
        matches = exact or [(evaluation, name) for evaluation, name in of_prefix if name.startswith(f"{stem}_")]
        if len(matches) == 1:
            return matches[0]
        if matches:
            names = ", ".join(f"{prefix}/{name}" for _, name in matches)
            raise ValueError(f"{self.name} is ambiguous; choices: {names}")
        if not candidates:
            raise ValueError(
                f"no evaluation measures {self.name}: the file has no evaluation with a number; add `evaluate`"
            )
        choices = [f"{evaluation.name}/{name}" for evaluation, name in candidates]
        raise ValueError(f"no evaluation measures {self.name}; {did_you_mean(self.name, choices)}")

    def better(self, value: float, other: float) -> bool:
        return value < other if self.direction == "minimize" else value > other


@dataclass(frozen=True)
class Search:
    """A search, as read from its file."""

    name: str
    path: Path
    settings: Settings
    space: tuple[Parameter, ...]
    metrics: tuple[Metric, ...]
    document: Document = field(repr=False)
    run_overrides: tuple[Override, ...] = ()
    inception: bool = False
    presentation: Presentation = field(default_factory=Presentation)

    def choose(self, pick: Callable[[Parameter], Any]) -> dict[str, Any]:
        """Return a point of the space: `pick` chooses each parameter that is used, in the file's order."""
        chosen: dict[str, Any] = {}
        value = self._base
        for parameter in self.space:
            if conditions_hold(value, parameter.when):
                new = parameter.value(pick(parameter))
                chosen[parameter.path] = new
                value = set_in(value, parameter.path.split("."), new, self.document.mark(space_keys(parameter.path)))
        return chosen

    @cached_property
    def _base(self) -> dict[str, Any]:
        """The file's values, and defaults for what it leaves open."""
        return with_defaults(self.document.value)

    def trial(self, number: int, chosen: Mapping[str, Any]) -> Study:
        """Return a trial's runs as a study with the search's name, in which the trial is an arm.

        Raises:
            SpecError: the runs are invalid; with the locations of the parameters in the file.
        """
        arm = trial_name(number)
        # A part before its fields: `objective`, then `objective.lambda_vlb`.
        overrides = dict(sorted(chosen.items(), key=lambda item: item[0].count(".")))
        value = {key: part for key, part in self.document.value.items() if key not in ("search", *PRESENTATION_KEYS)}
        value |= {"arms": {arm: overrides}, "replicates": self.settings.replicates}
        places: dict[Keys, SourceLocation] = {
            ("arms", arm, path): self.document.mark(space_keys(path)) for path in overrides
        }
        marks = {**self.document.marks, **places}
        document = replace(self.document, value=value, marks=marks)
        return expand(document, self.path, self.run_overrides, self.inception)

    def definition(self) -> dict[str, Any]:
        """Return everything that must not change while the search runs, as plain values."""
        value = self.document.value
        plugins = {plugin.name: plugin.digest for plugin in load_plugins(self.document)}
        rungs = {"rungs": self.settings.rungs, "reduction_factor": self.settings.keeps_one_of}
        rungs |= {"bracket_size": self.settings.bracket} if self.settings.bracket else {}
        return json.loads(
            json.dumps(
                {
                    "space": [parameter.as_dict() for parameter in self.space],
                    "metrics": [asdict(metric) for metric in self.metrics],
                    **self.settings.model_dump(include={"sampler", "pruner", "replicates", "seed"}),
                    "spec": {key: value[key] for key in RUN_PARTS if key in value},
                    "set": that_stay({override.path: override.value for override in self.run_overrides}),
                    "evaluate": value.get("evaluate", []),
                    "inception": self.inception,
                    **({"plugins": plugins} if plugins else {}),
                    **(rungs if self.settings.rungs else {}),
                }
            )
        )

    def training(self, steps: int) -> dict[str, Any]:
        """Return the steps that all trials compute, with rungs also how many train to which, and the steps without.

        Args:
            steps: of a run.
        """
        settings = self.settings
        if settings.rungs is None:
            return {"steps": settings.trials * settings.replicates * steps}
        size = settings.bracket or settings.trials
        numbers = numbers_at_rungs(size, len(settings.rungs), settings.keeps_one_of)
        of_all = [settings.trials // size * number for number in numbers]
        return training_with_rungs(of_all, settings.rungs, settings.replicates)

    def params(self) -> dict[str, str]:
        """Return the space and the settings that do not change, as params of MLflow."""
        left_out = {"space", "trials", "parallel", "timeout", "storage"}
        left_out |= set() if self.settings.rungs else set(RUNG_SETTINGS)
        params = {f"space.{parameter.path}": parameter.describe() for parameter in self.space}
        return params | {
            f"search.{key}": str(value) for key, value in self.settings.model_dump(exclude=left_out).items()
        }

    def folder(self, runs_folder: Path) -> Path:
        return runs_folder / SEARCH / self.name


def that_stay(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return the overrides that must not change while a search runs: none of resources and records."""
    return {path: value for path, value in overrides.items() if path.split(".")[0] not in ("resources", "records")}


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def space_keys(path: str) -> Keys:
    return ("search", "space", path)


def format_value(value: Any) -> str:
    """Format a parameter's value briefly; a part by its name. A short number is printed as it is hashed."""
    if isinstance(value, float):
        return f"{value:.4g}" if len(repr(value)) > 12 else repr(value)
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)
