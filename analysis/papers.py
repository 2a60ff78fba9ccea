"""What the papers published, matched with our measurements by resolved values, never by a name.

A row of reference/published_*.csv is a row of a paper's table. Its columns with a dot are conditions: values of a run's
spec, or of the evaluation after `evaluation.`, as they are resolved; an empty one may be anything. So a value is shown
beside a measurement of the same data, training and protocol alone: digits never get one of CIFAR-10.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from harness.analysis.runs import Measurement, RunRecord
from harness.analysis.settings import brief, flatten
from harness.spec.base import canonical_json

FOLDER = Path(__file__).parent / "reference"
COLOUR = "#767676"
"""Grey, of all that is not ours in a figure."""

_ABOUT = ("model", "source", "certainty")
_EVALUATION = "evaluation."
OF_SAMPLES = ("fid", "inception_score", "precision", "recall")
_NEIGHBOURS = ("precision", "recall")
_OF_NEIGHBOURS = "evaluation.fidelity.k"
_OF_NLL = "evaluation.split"
_OF_SAMPLES = "evaluation.fidelity."
_OF_DATA = ("data.name", "data.batches", "model.class_cond")


@dataclass(frozen=True)
class Published:
    """A row of a paper's table.

    Attributes:
        model: what the paper calls it.
        source: the paper and its table.
        certainty: how its numbers are known: paper, two readings, one reading, second-hand, unverified.
        conditions: resolved values by dotted path.
        values: the numbers by metric, as printed: `nll`, those of `OF_SAMPLES`, `network_evaluations` and `seconds` of
            a batch of 100; of a curve its x and its metrics.
    """

    model: str
    source: str
    certainty: str
    conditions: Mapping[str, str]
    values: Mapping[str, str]

    @property
    def is_an_arm(self) -> bool:
        """Whether its training is described, so that an arm of ours can be the same."""
        return any(not path.startswith((*_OF_DATA, _EVALUATION)) for path in self.conditions)

    @property
    def origin(self) -> str:
        """The source, and how sure it is where the paper itself was not read."""
        return self.source if self.certainty == "paper" else f"{self.source} ({self.certainty})"

    def mark(self, metric: str) -> str:
        """Return the label of its value in a figure: `paper: 3.17, IDDPM, table 2`."""
        return f"paper: {self.values[metric]}, {self.origin}"


@cache
def published() -> tuple[Published, ...]:
    """Return all rows of all tables, in the order of the papers' names."""
    rows = []
    for path in sorted(FOLDER.glob("published_*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                given = {column: text for column, text in row.items() if text and column not in _ABOUT}
                conditions = {column: text for column, text in given.items() if "." in column}
                values = {column: text for column, text in given.items() if "." not in column}
                rows.append(Published(row["model"], row["source"], row["certainty"], conditions, values))
    return tuple(rows)


@cache
def _by_data() -> dict[str, list[Published]]:
    rows: dict[str, list[Published]] = {}
    for row in published():
        rows.setdefault(row.conditions["data.name"], []).append(row)
    return rows


def of_training(spec: Mapping[str, Any]) -> list[Published]:
    """Return the rows whose data and training are those of a resolved spec."""
    rows = [row for row in _by_data().get(spec["data"]["name"], ()) if row.is_an_arm]
    settings = flatten(dict(spec)) if rows else {}
    return [row for row in rows if _hold(_of_spec(row), settings)]


def of_measurement(run: RunRecord, measurement: Measurement, metric: str) -> list[Published]:
    """Return the rows that have a metric of a run's data and training, measured by the same protocol."""
    if not measurement.trained or measurement.evaluation["weights"] != "ema":
        return []
    settings = flatten({"evaluation": measurement.evaluation})
    rows = (row for row in of_training(run.spec) if metric in row.values)
    return [row for row in rows if _hold(_of_protocol(row, metric), settings)]


def of_data(runs: Sequence[RunRecord]) -> list[Published]:
    """Return the rows whose data are those of a run, conditional on the class alike; whatever the model."""
    known = [run for run in runs if run.spec["data"]["name"] in _by_data()]
    distinct = {canonical_json([run.spec["data"], run.spec["model"]]): flatten(run.spec) for run in known}
    return [row for row in published() if any(_hold(_where(row, _OF_DATA), values) for values in distinct.values())]


def _of_spec(row: Published) -> dict[str, str]:
    return {path: text for path, text in row.conditions.items() if not path.startswith(_EVALUATION)}


def _of_protocol(row: Published, metric: str) -> dict[str, str]:
    """Return the conditions on an evaluation that decide about a metric."""
    if metric == "nll":
        return _where(row, (_OF_NLL,))
    if metric not in OF_SAMPLES:
        return _where(row, (_EVALUATION,))
    conditions = _where(row, (_OF_SAMPLES,))
    return conditions if metric in _NEIGHBOURS else {p: t for p, t in conditions.items() if p != _OF_NEIGHBOURS}


def _where(row: Published, prefixes: Iterable[str]) -> dict[str, str]:
    return {path: text for path, text in row.conditions.items() if path.startswith(tuple(prefixes))}


def _hold(conditions: Mapping[str, str], settings: Mapping[str, Any]) -> bool:
    return all(path in settings and _equal(settings[path], text) for path, text in conditions.items())


def _equal(value: Any, text: str) -> bool:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(text) == value
        except ValueError:
            return False
    return brief(value) == text
