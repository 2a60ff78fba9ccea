"""The space, the metrics and the settings of a search."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from harness.records.layout import SEARCH
from harness.spec.base import SpecModel
from harness.spec.evaluation import Evaluation
from harness.spec.metrics import Direction, part_outputs
from harness.study.axes import RUN_PARTS
from harness.study.document import Document, Keys, SourceLocation
from harness.study.expand import expand
from harness.study.model import Override, Run, Study
from harness.study.plugins import load_plugins
from harness.text import did_you_mean

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
    storage: str | None = None  # a database's URL for Optuna; None: a file beside the trials

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

    def value(self, label: Any) -> Any:
        """Return the spec's value for Optuna's value."""
        return self.choices[label] if self.kind == "choices" else label

    def corners(self) -> list[Any]:
        return list(self.choices) if self.kind == "choices" else [self.low, self.high]

    def points(self) -> list[Any] | None:
        """Return all values, or None if there are infinitely many."""
        if self.kind == "choices":
            return list(self.choices)
        if self.log or (self.step is None and self.kind == "float"):
            return None
        step = self.step or 1
        count = int((self.high - self.low) / step + 1e-9) + 1
        return [type(self.low)(f"{self.low + index * step:.12g}") for index in range(count)]  # 0.3, not 0.3 + 4e-17

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

    def choose(self, pick: Callable[[Parameter], Any]) -> dict[str, Any]:
        """Return a point of the space: `pick` chooses each parameter that is used, in the file's order."""
        chosen: dict[str, Any] = {}
        for parameter in self.space:
            if all(self._value_at(path, chosen) in values for path, values in parameter.when.items()):
                chosen[parameter.path] = parameter.value(pick(parameter))
        return chosen

    def _value_at(self, path: str, chosen: Mapping[str, Any]) -> Any:
        """Return the current value at a path of the spec: the chosen one, else the file's."""
        keys = path.split(".")
        heads = [".".join(keys[:count]) for count in range(len(keys), 0, -1)]
        head = next((head for head in heads if head in chosen), None)
        value: Any = self.document.value if head is None else chosen[head]
        for key in keys[0 if head is None else head.count(".") + 1 :]:
            value = {"name": value} if isinstance(value, str) else value
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def trial(self, number: int, chosen: Mapping[str, Any]) -> Study:
        """Return a trial's runs as a study with the search's name, in which the trial is an arm.

        Raises:
            SpecError: the runs are invalid; with the locations of the parameters in the file.
        """
        arm = trial_name(number)
        # A part before its fields: `objective`, then `objective.lambda_vlb`.
        overrides = dict(sorted(chosen.items(), key=lambda item: item[0].count(".")))
        value = {key: part for key, part in self.document.value.items() if key != "search"}
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
        return json.loads(
            json.dumps(
                {
                    "space": [parameter.as_dict() for parameter in self.space],
                    "metrics": [asdict(metric) for metric in self.metrics],
                    **self.settings.model_dump(include={"sampler", "pruner", "replicates", "seed"}),
                    "spec": {key: value[key] for key in RUN_PARTS if key in value},
                    "set": {override.path: override.value for override in self.run_overrides},
                    "evaluate": value.get("evaluate", []),
                    "inception": self.inception,
                    **({"plugins": plugins} if plugins else {}),
                }
            )
        )

    def folder(self, runs_folder: Path) -> Path:
        return runs_folder / SEARCH / self.name


def trial_name(number: int) -> str:
    return f"trial-{number:04d}"


def space_keys(path: str) -> Keys:
    return ("search", "space", path)


def format_value(value: Any) -> str:
    """Format a parameter's value briefly; a part by its name."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value.get("name", value)) if isinstance(value, dict) else str(value)
