"""Compare MLflow's rows with the records."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import dataclass, field

from harness.records.directory import RunDirectory
from harness.records.journal import Row, is_measurement
from harness.tracking.store import import_mlflow, initialise_store, store_errors
from harness.tracking.sync import durable_rows


@dataclass
class CheckReport:
    """Differences between MLflow and the journals by (key, step, value); all zero and empty if they agree."""

    num_rows_compared: int = 0
    num_rows_waiting: int = 0
    gaps: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether nothing is missing, duplicated, contradictory or damaged."""
        return not (self.gaps or self.duplicates or self.conflicts or self.problems)


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
        for study in run_directory.studies():
            experiment = client.get_experiment_by_name(study)
            query = f"tags.run_key = '{run_directory.key}'"
            runs = client.search_runs([experiment.experiment_id], query) if experiment else []
            if len(runs) > 1:
                report.duplicates.append(f"{study}: {len(runs)} MLflow runs have the run_key {run_directory.key}")
            stored: Counter[tuple[str, int, float | str]] = Counter()
            for run in runs[:1]:
                for key in run.data.metrics:
                    history = client.get_metric_history(run.info.run_id, key)
                    stored.update((key, metric.step, _comparable(metric.value)) for metric in history)
            _compare(study, rows, stored, report)
    return report


def _compare(study: str, rows: list[Row], stored: Counter, report: CheckReport) -> None:
    journalled = Counter((row.key, row.x, _comparable(row.value)) for row in rows)
    journalled_points = {(key, step) for key, step, _ in journalled}
    report.num_rows_compared += len(journalled)
    for (key, step, value), count in journalled.items():
        if stored[key, step, value] < count:
            report.gaps.append(f"{study}: {key} at step {step}: {value} is not in MLflow")
    for (key, step, value), count in stored.items():
        expected = journalled[key, step, value]
        if is_measurement(key) or count == expected:
            continue
        point = f"{study}: {key} at step {step}: MLflow has {value}"
        if expected:
            report.duplicates.append(f"{point} {count} times")
        elif (key, step) in journalled_points:
            report.conflicts.append(f"{point}, the journal another value")
        else:
            report.conflicts.append(f"{point}, the journal nothing")


def _comparable(value: float) -> float | str:
    """Return the value as MLflow stores it: infinities as the largest float, NaN equal to itself."""
    if math.isnan(value):
        return "nan"
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value
