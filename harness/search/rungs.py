"""The rungs of a search against the records of its trials: which trials go on, and which are dropped."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from harness.launch.curves import measured_curve
from harness.launch.planning import PlannedRun
from harness.launch.rungs import mean_at_rungs
from harness.search.space import Search
from harness.search.trials import TrialRecord
from harness.study.rungs import Progress, Standing, decide


def measured_at_rungs(search: Search, planned_runs: Sequence[PlannedRun]) -> dict[int, float]:
    """Return a trial's mean over its replicates at each rung that all of them have reached."""
    assert search.settings.rungs is not None
    (metric,) = search.metrics
    curves = [measured_curve(planned.directory, planned.run, *metric.find(planned.run)) for planned in planned_runs]
    return mean_at_rungs(curves, search.settings.rungs)


def standings_of(
    search: Search,
    trials: Sequence[TrialRecord],
    limits: Mapping[str, int],
    *,
    paused: Collection[str] = (),
    more_to_come: bool,
) -> dict[str, Standing]:
    """Decide who goes on from each rung: among all trials, or among those of the bracket that was suggested last.

    Args:
        limits: arm of a running trial -> the step to which it was let on.
        paused: arms of running trials that have come there.
        more_to_come: more trials will be suggested.
    """
    assert search.settings.rungs is not None
    (metric,) = search.metrics
    if bracket := search.settings.bracket:
        first = max((trial.number for trial in trials), default=0) // bracket * bracket
        trials, more_to_come = [trial for trial in trials if trial.number >= first], False
    progress = {trial.arm: _progress(trial, search.settings.rungs, limits, trial.arm in paused) for trial in trials}
    return decide(
        progress,
        search.settings.rungs,
        search.settings.keeps_one_of,
        metric=metric.name,
        direction=metric.direction,
        more_to_come=more_to_come,
    )


def _progress(trial: TrialRecord, steps: Sequence[int], limits: Mapping[str, int], paused: bool) -> Progress:
    values = {int(step): value for step, value in trial.rung_values.items()}
    ended_at = steps[-1] if trial.state == "complete" else max(values, default=0)
    let_on = limits.get(trial.arm, ended_at)
    return Progress(values, let_on, let_on if paused else 0, ended=trial.state != "running")
