"""Compare MLflow's rows with the records."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from harness.records.directory import RunDirectory
from harness.records.journal import Row, is_measurement
from harness.text import count
from harness.tracking.store import experiment_of, import_mlflow, initialise_store, store_errors
from harness.tracking.sync import StudyMembership, durable_rows, memberships_of


@dataclass
class CheckReport:
    """Differences between MLflow and the journals by (key, step, value); all zero and empty if they agree."""

    num_rows_compared: int = 0
    num_rows_waiting: int = 0
    gaps: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # the studies in which MLflow has no such run

    @property
    def ok(self) -> bool:
        """Return whether nothing is missing, duplicated, contradictory or damaged."""
        return not self.lines()

    def lines(self) -> list[str]:
        """Return every difference, one a line."""
        return [*self.gaps, *self.duplicates, *self.conflicts, *self.problems]

    def summary(self) -> str:
        """Describe all differences in one line: how many of each kind, and the first; empty if there are none."""
        lines = self.lines()
        if self.absent:
            others = len(lines) - len(self.gaps)
            more = f"; and {count(others, 'other difference')}" if others else ""
            return f"not in MLflow: {count(len(self.gaps), 'row')} of {', '.join(self.absent)}: harness sync{more}"
        if len(lines) < 2:
            return "".join(lines)
        kinds = {
            "missing in MLflow": self.gaps,
            "too often in MLflow": self.duplicates,
            "contradicted by the journal": self.conflicts,
            "damaged in the records": self.problems,
        }
        counts = [f"{len(differences)} {kind}" for kind, differences in kinds.items() if differences]
        return f"{', '.join(counts)}; the first: {lines[0]}"


def check(run_directory: RunDirectory, *, tracking_uri: str | None = None) -> CheckReport:
    """Compare MLflow with the journals row by row, for every study of a run.

    Timings and system metrics differ between attempts: they may repeat, but must not be missing.

    Raises:
        TrackingError: the store cannot be reached.
    """
    uri = initialise_store(tracking_uri)
    report = CheckReport(problems=run_directory.problems())
    rows, report.num_rows_waiting = durable_rows(run_directory, run_directory.status())
    mlflow = import_mlflow()
    with store_errors(uri):
        client = mlflow.MlflowClient(tracking_uri=uri)
        for membership in memberships_of(run_directory, uri):
            _check_study(client, run_directory, membership, rows, report)
    return report


def _check_study(
    client: Any, run_directory: RunDirectory, membership: StudyMembership, rows: list[Row], report: CheckReport
) -> None:
    study = membership.study
    experiment = experiment_of(client, study)
    query = f"tags.run_key = '{run_directory.key}'"
    runs = client.search_runs([experiment.experiment_id], query) if experiment else []
    if not runs and not membership.values:
        return  # forgotten
    if not runs and rows:
        report.absent.append(study)
    if len(runs) > 1:
        report.duplicates.append(f"{study}: {len(runs)} MLflow runs have the run_key {run_directory.key}")
    stored: Counter[tuple[str, int, float | str]] = Counter()
    for run in runs[:1]:
        tag, asked_for = run.data.tags.get("asked_for", "true"), "true" if membership.asked_for else "false"
        if tag != asked_for:
            report.gaps.append(f"{study}: the tag asked_for is {tag} in MLflow, not {asked_for}")
        for key in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, key)
            stored.update((key, metric.step, _comparable(metric.value)) for metric in history)
    _compare(study, rows, stored, report)


def _compare(study: str, rows: list[Row], stored: Counter, report: CheckReport) -> None:
    journalled = Counter((row.key, row.x, _comparable(row.value)) for row in rows)
    journalled_points = {(key, step) for key, step, _ in journalled}
    report.num_rows_compared += len(journalled)
    for (key, step, value), times in journalled.items():
        if stored[key, step, value] < times:
            report.gaps.append(f"{study}: {key} at step {step}: {value} is not in MLflow")
    for (key, step, value), times in stored.items():
        expected = journalled[key, step, value]
        if is_measurement(key) or times == expected:
            continue
        point = f"{study}: {key} at step {step}: MLflow has {value}"
        if expected:
            report.duplicates.append(f"{point} {times} times")
        elif (key, step) in journalled_points:
            report.conflicts.append(f"{point}, the journal another value")
        else:
            report.conflicts.append(f"{point}, the journal nothing")


def _comparable(value: float) -> float | str:
    """Return the value as MLflow stores it: infinities as the largest float, NaN equal to itself."""
    if math.isnan(value):
        return "nan"
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value
