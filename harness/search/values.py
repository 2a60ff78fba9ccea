"""What Optuna is told of a trial: the final values of its runs, and those on the way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from harness.launch.curves import measured_curve, recorded_values
from harness.launch.planning import PlannedRun
from harness.records.directory import RunDirectory
from harness.records.manifest import Manifests
from harness.search.space import Metric, Search
from harness.study.model import Run


def final_value(metric: Metric, run: Run, runs_folder: Path) -> float:
    """Return a finished run's value of a metric; NaN if it has none."""
    directory = RunDirectory(runs_folder / run.run_key)
    evaluation, name = metric.find(run)
    prefixes = [
        event.fields["prefix"]
        for event in directory.events("evaluation")
        if event.fields["key"] == evaluation.key and not event.superseded
    ]
    values = recorded_values(directory, run, prefixes[-1], name) if prefixes else {}
    return list(values.values())[-1] if values else math.nan


def values_on_the_way(search: Search, planned_runs: Sequence[PlannedRun], runs_folder: Path) -> list[tuple[int, float]]:
    """Return (step, value): training steps averaged over replicates, or one step per replicate for Wilcoxon."""
    (metric,) = search.metrics
    if search.settings.pruner == "wilcoxon":
        done = [planned.run for planned in planned_runs if planned.state == "done"]
        return [(run.replicate, final_value(metric, run, runs_folder)) for run in done]
    curves = []
    for planned in planned_runs:
        # A run that belongs to other studies too is not pruned.
        asking = Manifests(runs_folder).memberships(planned.directory) if planned.path.exists() else {}
        if not planned.path.exists() or asking.keys() - {search.name}:
            return []
        curves.append(measured_curve(planned.directory, planned.run, *metric.find(planned.run)))
    steps = sorted(set.intersection(*map(set, curves)))
    last = planned_runs[0].run.spec.train.steps
    return [(step, sum(curve[step] for curve in curves) / len(curves)) for step in steps if step < last]
