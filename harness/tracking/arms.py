"""The arms of a study in MLflow: one parent run for each, with the mean of its replicates, which are nested beneath it.

All of it is a function of the records, so that a replay, a new store or another order of uploads gives the same. MLflow
cannot take a row back, so means are rows over time: whenever a replicate ends, one more. The newest row is what MLflow
shows, and counts the runs that the study asks for now.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from harness.errors import RecordError
from harness.records.directory import RunDirectory
from harness.records.journal import first_time_ms, is_measurement
from harness.records.manifest import Manifest
from harness.records.status import STATES, Status
from harness.tracking.described import is_constant, number_text
from harness.tracking.store import MAX_METRICS_PER_BATCH, MLFLOW_STATUS, tag_text
from harness.tracking.study_cursor import StudyCursor

ARM, STUDY, RUN = "arm", "study", "run"
"""Values of the tag `kind`, by which MLflow's pages are filtered."""

_BY_QUARTILE = re.compile(r".*_q[0-3]")
_MAX_DIGITS = 8


@dataclass(frozen=True)
class Member:
    """A run of an arm."""

    directory: RunDirectory
    replicate: int
    asked_for: bool

    @cached_property
    def status(self) -> Status:
        return self.directory.status()

    @property
    def began(self) -> bool:
        """Whether the run has records; one without is not in MLflow."""
        return bool(self.directory.attempts())


@dataclass
class Arm:
    """An arm of a study, with the runs that it has and had."""

    name: str
    members: list[Member] = field(default_factory=list)
    order: str | None = None

    @property
    def asked_for(self) -> list[Member]:
        return [member for member in self.members if member.asked_for]

    def stamp(self) -> list[Any]:
        """Return what changes whenever the arm's run in MLflow is to change."""
        stamps = []
        for member in sorted(self.members, key=lambda member: member.directory.key):
            sizes = [path.stat().st_size for path in member.directory.journal_paths()] if _has_result(member) else []
            stamps.append([member.directory.key, member.replicate, member.asked_for, member.status.state, sizes])
        return [VERSION, self.order, *stamps]


def order_text(manifest: Manifest, arm: str, replicate: int | None = None) -> str | None:
    """Return what sorts the arms of a study and their runs as its file does; None of an arm that it has no more."""
    if arm not in manifest.arms:
        return None
    position = list(manifest.arms).index(arm)
    return f"{position:05d}" if replicate is None else f"{position:05d}.{replicate:05d}"


VERSION = 2  # of what is sent: another one sends everything again


def _has_result(member: Member) -> bool:
    return member.asked_for and member.status.state == "done"


def arm_run_id(client: Any, cursor: StudyCursor, name: str, members: Sequence[RunDirectory]) -> str:
    """Return an arm's run in MLflow; the first caller creates it.

    Args:
        members: its runs, of which the first one's start is that of the arm.
    """
    return cursor.run_id(
        client, ARM, name, lambda: {"kind": ARM, "study": cursor.study, "arm": name}, lambda: started_ms(members)
    )


def started_ms(directories: Iterable[RunDirectory]) -> int | None:
    """Return when the first of some runs was started; None if none was."""
    times = [first_time_ms(paths[0]) for directory in directories if (paths := directory.journal_paths())]
    return min((time_ms for time_ms in times if time_ms is not None), default=None)


@dataclass(frozen=True)
class Final:
    """The last value of a metric in a run that is done."""

    value: float
    time_ms: int


def final_metrics(directory: RunDirectory) -> dict[str, Final]:
    """Return the last value over training of each metric of a run; not of curves over t or sampling steps."""
    last: dict[str, tuple[int, Final]] = {}
    over_others = set()
    for row in directory.rows():
        if row.key.startswith("system/") or _BY_QUARTILE.fullmatch(row.key):
            continue
        if row.x != row.train_step:
            over_others.add(row.key)
        elif row.key not in last or row.x >= last[row.key][0]:
            last[row.key] = row.x, Final(row.value, row.time_ms)
    return {key: final for key, (_, final) in last.items() if key not in over_others}


@dataclass(frozen=True)
class MeanRow:
    """A metric of an arm at a time."""

    key: str
    value: float
    time_ms: int


def mean_rows(results: Iterable[Mapping[str, Final]], *, asked_ms: int = 0) -> list[MeanRow]:
    """Return the mean of each metric over replicates, whenever one more was there.

    With the mean, under the metric's own name, go `<metric>.n`, and from two replicates on `.low` and `.high`: of two
    their range, of more the 95 % t-interval. Timings have their mean alone.

    Args:
        results: of each replicate.
        asked_ms: when the study began to ask for these replicates; what is older counts from then on.
    """
    from harness.analysis.statistics.intervals import summarise

    values: dict[str, list[Final]] = {}
    for result in results:
        for key, final in result.items():
            values.setdefault(key, []).append(final)
    rows = []
    for key, finals in values.items():
        if is_constant(key):
            continue
        finals.sort(key=lambda final: (final.time_ms, final.value))
        for time_ms, n in _times(finals, asked_ms):
            # In an order that does not depend on which run ended first, since a sum of floats does.
            summary = summarise(sorted(final.value for final in finals[:n]))
            numbers = {key: summary.mean}
            if not is_measurement(key):
                numbers[f"{key}.n"] = float(summary.n)
            if not is_measurement(key) and summary.n > 1:
                numbers |= {f"{key}.low": summary.low, f"{key}.high": summary.high}
            rows += [MeanRow(name, value, time_ms) for name, value in numbers.items()]
    return rows


def _times(finals: Sequence[Final], asked_ms: int) -> list[tuple[int, int]]:
    """Return each time at which there was another mean, and over how many values; times increase."""
    numbers: dict[int, int] = {}
    for n, final in enumerate(finals, 1):
        numbers[max(final.time_ms, asked_ms)] = n
    return list(numbers.items())


def text_of(values: Sequence[float]) -> str:
    """Return replicates' values as `1.941 ± 0.012 (n = 3)`, with as many digits as the mean needs."""
    from harness.analysis.statistics.intervals import format_values

    if len(set(values)) == 1 < len(values):
        return f"{number_text(values[0])} (n = {len(values)})"
    numbers = [abs(value) for value in values if math.isfinite(value)]
    largest = max(numbers, default=0.0)
    digits = min(_MAX_DIGITS, max(0, 3 - math.floor(math.log10(largest)))) if largest > 0 else 3
    return f"{format_values(sorted(values), digits)} (n = {len(values)})"


@dataclass(frozen=True)
class ArmContent:
    """What an arm's run in MLflow has: the means' rows, tags, the states of its replicates, and when they ended."""

    rows: list[MeanRow]
    tags: dict[str, str]
    states: Counter[str]
    ends_ms: list[int]


def content_of_arm(arm: Arm, study: str, asked_ms: int) -> ArmContent:
    """Return what an arm's run in MLflow has, from the records of its replicates."""
    results = []
    for member in arm.asked_for:
        if _has_result(member):
            try:
                results.append(final_metrics(member.directory))
            except RecordError:
                continue  # the run itself names what is wrong
    values: dict[str, list[float]] = {}
    for result in results:
        for key, final in result.items():
            values.setdefault(key, []).append(final.value)
    states = Counter(member.status.state for member in arm.asked_for)
    tags = {
        "kind": ARM,
        "study": study,
        "arm": arm.name,
        "order": arm.order,
        "asked_for": "true" if arm.asked_for else "false",
        "replicates": f"{states['done']} of {len(arm.asked_for)}",
        "state": state_of(states),
        **{key: text_of(of_key) for key, of_key in values.items() if is_result(key) or is_constant(key)},
    }
    texts = {name: tag_text(text) for name, text in tags.items() if text is not None}
    ends_ms = [final.time_ms for result in results for final in result.values()]
    return ArmContent(mean_rows(results, asked_ms=asked_ms), texts, states, ends_ms)


def sync_arm(client: Any, run_id: str, arm: Arm, study: str, asked_ms: int) -> None:
    """Send an arm's means, state and description to its run in MLflow."""
    from mlflow.entities import Metric, RunTag

    content = content_of_arm(arm, study, asked_ms)
    metrics = [Metric(row.key, row.value, row.time_ms, 0) for row in content.rows]
    for start in range(0, len(metrics), MAX_METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + MAX_METRICS_PER_BATCH])
    client.log_batch(run_id, tags=[RunTag(name, text) for name, text in content.tags.items()])
    set_run_status(client, run_id, arm.name, content.states, content.ends_ms)


def is_result(key: str) -> bool:
    """Return whether a metric is one of an evaluation, not of the training or of an evaluation's own error."""
    return key.startswith("eval") and "standard_error" not in key


def state_of(states: Mapping[str, int]) -> str:
    """Describe the states of several runs: `3 done, 1 failed`."""
    return ", ".join(f"{states[state]} {state}" for state in reversed(STATES) if states.get(state)) or "no runs"


def set_run_status(client: Any, run_id: str, name: str, states: Mapping[str, int], ends_ms: Iterable[int]) -> None:
    """Set a run's name, and MLflow's state for several runs: running while one is, failed if one has."""
    present = {state for state, number in states.items() if number}
    order = ("running", "queued", "new", "failed", "interrupted", "paused", "pruned", "done")
    status = MLFLOW_STATUS[next((state for state in order if state in present), "done")]
    if status in ("RUNNING", "SCHEDULED"):
        client.update_run(run_id, status=status, name=name)
    else:
        client.update_run(run_id, name=name)
        client.set_terminated(run_id, status, max(ends_ms, default=None))
