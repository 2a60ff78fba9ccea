"""The records of trials, and results derived from them: the Pareto front, the best so far, the time left."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import RecordError
from harness.records.files import replace_file
from harness.records.reading import Fields, read_json
from harness.search.space import Metric, Search, Settings, trial_name

FINISHED = ("complete", "pruned")
_STORED_AS = {"reused": "served"}  # fields that have an older name in the files


@dataclass
class TrialRecord:
    """The record of one trial: written when it is suggested, before it is started, and again when it ends.

    Attributes:
        point: path -> value, as it went into the spec.
        run_keys: of its replicates, in their order.
        reused: the run_keys that were done before the trial was suggested.
        values: by metric: the mean over replicates; of a pruned trial the last value that its pruner saw.
        replicate_values: by metric, each replicate's own.
        state: running, complete, pruned or failed.
        rung_values: by the step of a rung: the mean of the metric over replicates, as measured there.
    """

    number: int
    point: dict[str, Any]
    run_keys: list[str]
    reused: list[str] = field(default_factory=list)
    state: str = "running"
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    replicate_values: dict[str, list[float]] = field(default_factory=dict)
    asked_seconds: float = field(default_factory=time.time)  # Unix time
    ended_seconds: float = 0.0
    rung_values: dict[str, float] = field(default_factory=dict)

    @property
    def arm(self) -> str:
        return trial_name(self.number)

    def write(self, folder: Path) -> None:
        """Write the record, for a restarted coordinator and the figures."""
        (folder / "trials").mkdir(parents=True, exist_ok=True)
        stored = {_STORED_AS.get(name, name): value for name, value in asdict(self).items()}
        if not self.rung_values:  # a search without rungs has none
            del stored["rung_values"]
        replace_file(folder / "trials" / f"{self.arm}.json", json.dumps(stored, indent=2), durable=True)

    @classmethod
    def read(cls, path: Path) -> TrialRecord:
        """Read a record that `write` wrote.

        Raises:
            RecordError: it is damaged.
        """
        stored = read_json(path)
        record = Fields(stored, str(path))
        record.integer("number")
        for name in ("point", "values", "replicate_values", "rung_values"):
            record.fields(name, {})
        names = {stored_name: name for name, stored_name in _STORED_AS.items()}
        try:
            return cls(**{names.get(name, name): value for name, value in stored.items()})
        except TypeError as error:
            raise RecordError(f"{path}: is not the record of a trial: {error}") from None

    def half_width(self, metric: str, level: float = 0.95) -> float | None:
        """Return the half-width of Student's interval of the mean over replicates, None for fewer than three."""
        values = self.replicate_values.get(metric, [])
        if len(values) < 3:
            return None
        from scipy.stats import t

        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        return float(t.ppf((1 + level) / 2, len(values) - 1)) * math.sqrt(variance / len(values))


def read_trials(folder: Path) -> list[TrialRecord]:
    """Return the trials of a search in the order of their numbers."""
    paths = sorted((folder / "trials").glob("trial-*.json"), key=lambda path: (len(path.name), path.name))
    return [TrialRecord.read(path) for path in paths]


def num_counted(trials: Sequence[TrialRecord], settings: Settings) -> int:
    """Return how many trials that have ended count towards `trials`; each of the others is replaced by another one.

    Those that have failed do not count, unless the place that they had among those that compete at a rung stays empty:
    after the first rung, and in a bracket.
    """

    def counts(trial: TrialRecord) -> bool:
        keeps_its_place = settings.bracket is not None or (settings.rungs is not None and bool(trial.rung_values))
        return trial.state in FINISHED or (trial.state == "failed" and keeps_its_place)

    return sum(map(counts, trials))


def pareto_front(trials: Sequence[TrialRecord], metrics: Sequence[Metric]) -> list[TrialRecord]:
    """Return the complete trials that no other trial dominates; with one metric the best trials."""
    complete = [trial for trial in trials if trial.state == "complete"]

    def dominates(trial: TrialRecord, other: TrialRecord) -> bool:
        pairs = [(metric, trial.values[metric.name], other.values[metric.name]) for metric in metrics]
        return all(a == b or metric.better(a, b) for metric, a, b in pairs) and any(a != b for _, a, b in pairs)

    best = [trial for trial in complete if not any(dominates(other, trial) for other in complete)]
    return sorted(best, key=lambda trial: trial.values[metrics[0].name] * (-1) ** (metrics[0].direction == "maximize"))


def best_so_far(trials: Sequence[TrialRecord], metrics: Sequence[Metric]) -> list[tuple[int, dict[str, float]]]:
    """Return, for each complete trial in the order of their ends, its time in ms and the best values so far."""
    rows, best = [], dict[str, float]()
    for trial in sorted(
        (trial for trial in trials if trial.state == "complete"), key=lambda trial: trial.ended_seconds
    ):
        for metric in metrics:
            value = trial.values[metric.name]
            if metric.name not in best or metric.better(value, best[metric.name]):
                best[metric.name] = value
        rows.append((round(1000 * trial.ended_seconds), {f"best/{name}": value for name, value in best.items()}))
    return rows


def eta_seconds(trials: Sequence[TrialRecord], settings: Settings) -> float | None:
    """Estimate the time for the remaining trials from those computed so far; None before the first."""
    finished = [trial for trial in trials if trial.state in FINISHED]
    durations = [trial.ended_seconds - trial.asked_seconds for trial in finished if not trial.reused]
    num_left = max(0, settings.trials - num_counted(trials, settings))
    return sum(durations) / len(durations) * math.ceil(num_left / settings.parallel) if durations else None


def best_study(search: Search, trial: TrialRecord) -> str:
    """Return a trial as the YAML of a self-contained study."""
    import yaml

    (run, *_) = search.trial(trial.number, trial.point).runs
    spec = run.spec.model_dump(mode="json")
    study = {"study": f"{search.name}-best", **{key: value for key, value in spec.items() if value is not None}}
    evaluations = [evaluation.model_dump(mode="json", exclude_none=True) for evaluation in run.evaluations]
    study["evaluate"] = [{key: part for key, part in entry.items() if key != "plugins"} for entry in evaluations]
    study.pop("plugins", None)
    if search.document.plugins:  # relative to the search's own file
        folder = search.path.resolve().parent
        study["plugins"] = [
            os.path.relpath(source, folder) if isinstance(source, Path) else source
            for source in search.document.plugins
        ]
    study["replicates"] = search.settings.replicates
    study["resources"] = run.resources.model_dump(mode="json", exclude_none=True)
    study["records"] = run.records.model_dump(mode="json", exclude_none=True)
    if run.data_root:
        study["data_root"] = run.data_root
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
