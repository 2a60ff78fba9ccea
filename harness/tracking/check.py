"""Compare MLflow with the records: the rows of runs, and what the runs of arms and studies have of them."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.records.directory import RunDirectory
from harness.records.journal import Row, is_measurement
from harness.records.manifest import Manifests
from harness.text import count
from harness.tracking.arms import ARM, STUDY, Arm, MeanRow, content_of_arm
from harness.tracking.described import constants_of, is_constant
from harness.tracking.memberships import StudyMembership, memberships_of
from harness.tracking.store import experiment_of, import_mlflow, initialise_store, search_runs, store_errors
from harness.tracking.studies import arms_of, asked_ms, is_search, state_tags
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
        for name, text in constants_of(rows).items():
            if (there := run.data.tags.get(name)) != text:
                report.gaps.append(f"{study}: the tag {name} is {there!r} in MLflow, not {text!r}")
        for key in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, key)
            stored.update((key, metric.step, _comparable(metric.value)) for metric in history)
    _compare(study, rows, stored, report)


def _compare(study: str, rows: list[Row], stored: Counter, report: CheckReport) -> None:
    journalled = Counter((row.key, row.x, _comparable(row.value)) for row in rows if not is_constant(row.key))
    journalled_points = {(key, step) for key, step, _ in journalled}
    report.num_rows_compared += len(journalled)
    for (key, step, value), times in journalled.items():
        if stored[key, step, value] < times:
            report.gaps.append(f"{study}: {key} at step {step}: {value} is not in MLflow")
    for (key, step, value), times in stored.items():
        expected = journalled[key, step, value]
        if is_measurement(key) or is_constant(key) or times == expected:  # earlier versions sent constants too
            continue
        point = f"{study}: {key} at step {step}: MLflow has {value}"
        if expected:
            report.duplicates.append(f"{point} {times} times")
        elif (key, step) in journalled_points:
            report.conflicts.append(f"{point}, the journal another value")
        else:
            report.conflicts.append(f"{point}, the journal nothing")


def check_studies(
    run_directories: Sequence[RunDirectory], *, tracking_uri: str | None = None
) -> dict[tuple[str, str], CheckReport]:
    """Compare the runs of arms and studies in MLflow with the records; return a report by study and arm.

    The study's own run has the arm "". Studies of which nothing was run are left out, and searches, which have neither.

    Raises:
        TrackingError: the store cannot be reached.
    """
    uri = initialise_store(tracking_uri)
    reports: dict[tuple[str, str], CheckReport] = {}
    with store_errors(uri):
        client = import_mlflow().MlflowClient(tracking_uri=uri)
        for runs_folder in dict.fromkeys(directory.path.parent for directory in run_directories):
            manifests = Manifests(runs_folder)
            known = {directory.key: directory for directory in run_directories}
            studies = {study for directory in run_directories for study in manifests.memberships(directory)}
            for study in sorted(study for study in studies if not is_search(runs_folder, study)):
                arms = arms_of(manifests, study, known).values()
                begun = [arm for arm in arms if any(member.began for member in arm.members)]
                if begun:
                    since_ms = asked_ms(manifests.of(study))
                    reports |= {(study, name): report for name, report in _compare_arms(client, study, begun, since_ms)}
    return reports


def _compare_arms(client: Any, study: str, arms: Sequence[Arm], since_ms: int) -> Iterator[tuple[str, CheckReport]]:
    """Yield a report for each arm, then that of the study, which has the name ""."""
    experiment = experiment_of(client, study)
    stored: list[Any] = []
    for kind in (ARM, STUDY) if experiment else ():
        stored += search_runs(client, experiment.experiment_id, f"tags.kind = '{kind}'")
    for arm in arms:
        content = content_of_arm(arm, study, since_ms)
        yield arm.name, _compare_one(client, study, arm.name, ARM, stored, content.tags, content.rows)
    yield "", _compare_one(client, study, study, STUDY, stored, state_tags(study, arms), [])


def _compare_one(
    client: Any, study: str, name: str, kind: str, stored: list[Any], tags: dict[str, str], rows: list[MeanRow]
) -> CheckReport:
    """Compare an arm's run, or the study's: each mean at its time, and the tags that a page shows."""
    report = CheckReport(num_rows_compared=len(rows))
    runs = [run for run in stored if run.data.tags.get("kind") == kind and run.data.tags.get(kind) == name]
    if not runs:
        report.gaps.append(f"{study}: the run of the {kind} {name!r} is not in MLflow: harness sync")
        return report
    if len(runs) > 1:
        report.duplicates.append(f"{study}: {len(runs)} MLflow runs are of the {kind} {name!r}")
    for tag, text in tags.items():
        if (there := runs[0].data.tags.get(tag)) != text:
            report.gaps.append(f"{study}: the tag {tag} is {there!r} in MLflow, not {text!r}")
    there = {
        key: sorted(
            (row.timestamp, _comparable(row.value)) for row in client.get_metric_history(runs[0].info.run_id, key)
        )
        for key in dict.fromkeys(row.key for row in rows)
    }
    for row in rows:
        value, stored_rows = _comparable(row.value), there[row.key]
        # What a page shows is right too: of an arm that a changed study asks for as before, the time alone is another.
        if (row.time_ms, value) not in stored_rows and (not stored_rows or stored_rows[-1][1] != value):
            report.gaps.append(f"{study}: {row.key} of the {kind}: {row.value} is not in MLflow")
    return report


def _comparable(value: float) -> float | str:
    """Return the value as MLflow stores it: infinities as the largest float, NaN equal to itself."""
    if math.isnan(value):
        return "nan"
    return math.copysign(sys.float_info.max, value) if math.isinf(value) else value
