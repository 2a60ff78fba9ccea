"""The rungs of a study against the records: who goes on, who waits, who is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from harness.launch.curves import measured_curve
from harness.records.directory import RunDirectory
from harness.records.manifest import read_manifest
from harness.records.status import Status
from harness.study.model import Run, Study
from harness.study.rungs import Progress, Rungs, Standing, decide, direction_of, metric_at_rungs

if TYPE_CHECKING:
    from harness.launch.planning import Plan, PlannedRun


DROP_SECONDS = 130.0  # a job that has paused may still upload its records; that of a host that died is stale then
RESTING = ("paused", "pruned", "done")


def state_at_rung(run: Run, status: Status) -> str:
    """Return the state of a run that pauses at rungs, or did: what is asked for further goes on."""
    goes_on = run.until is None or run.until > status.step
    return "interrupted" if status.cause == "rung" and goes_on else status.state


def mean_at_rungs(curves: Sequence[dict[int, float]], steps: Sequence[int]) -> dict[int, float]:
    """Return the mean over replicates at each rung but the last that all of them have reached."""
    return {
        step: sum(curve[step] for curve in curves) / len(curves)
        for step in steps[:-1]
        if all(step in curve for curve in curves)
    }


def with_rungs(study: Study, rungs: Rungs, planned_runs: Sequence[PlannedRun], runs_folder: Path) -> list[PlannedRun]:
    """Return a study's planned runs as its rungs have them: each with the step to which it trains for now."""
    of_arm: dict[str, list[PlannedRun]] = {}
    for planned in planned_runs:
        of_arm.setdefault(planned.run.arm, []).append(planned)
    _, name = metric_at_rungs(rungs.metric, planned_runs[0].run)
    standings = decide(
        {arm: _progress(study, rungs, runs, runs_folder) for arm, runs in of_arm.items()},
        rungs.steps,
        rungs.reduction_factor,
        metric=rungs.metric,
        direction=direction_of(name),
    )
    return [_at_rung(planned, standings[planned.run.arm]) for planned in planned_runs]


def _progress(study: Study, rungs: Rungs, planned_runs: Sequence[PlannedRun], runs_folder: Path) -> Progress:
    manifest = read_manifest(runs_folder, study.name)
    asked_for = manifest.runs if manifest else {}
    let_on = [asked_for.get(planned.run_key, {}).get("until", 0) for planned in planned_runs]
    trained = [planned.status.step for planned in planned_runs]
    curves = [
        measured_curve(planned.directory, planned.run, *metric_at_rungs(rungs.metric, planned.run))
        for planned in planned_runs
    ]
    statuses = [planned.status for planned in planned_runs]
    given_up = any(
        status.state == "failed" or (status.state, status.cause) == ("pruned", "pruned") for status in statuses
    )
    return Progress(
        mean_at_rungs(curves, rungs.steps),
        let_on=max(*let_on, *trained),
        rests_at=min(status.step if status.state in RESTING else 0 for status in statuses),
        ended=given_up or all(status.state == "done" for status in statuses),
    )


def _at_rung(planned: PlannedRun, standing: Standing) -> PlannedRun:
    run = replace(planned.run, until=standing.until)
    if planned.status.state not in ("paused", "pruned"):
        return replace(planned, run=run)
    state, status = state_at_rung(run, planned.status), planned.status
    if standing.dropped and state != "interrupted":
        state, status = "pruned", replace(status, state="pruned", reason=standing.dropped)
    return replace(planned, run=run, state=state, status=status)


def drop(directory: RunDirectory, reason: str) -> None:
    """End a run if it is paused: it is pruned, and its checkpoint is kept, so that it can still be let on.

    Raises:
        RecordError: a process is still working on it, or the directory cannot be written.
    """
    if directory.status().state != "paused":
        return
    with directory.lock(wait_seconds=DROP_SECONDS):
        status = directory.status()
        if status.state != "paused":
            return
        with directory.open_journal(resumed_from_step=status.step) as journal:
            journal.event("pruned", reason=reason, cause="rung")
        directory.set_status(replace(status, state="pruned", reason=reason, attempt=max(directory.attempts())))


def going_on(plan: Plan) -> Plan | None:
    """Return a plan with what goes on from a rung as all there is to do, None if nothing does.

    Others that are to do have just ended: they failed, or were interrupted.
    """
    if plan.study.rungs is None:
        return None
    let_on = {planned.run_key for planned in plan.to_do if planned.status.cause == "rung"}
    others = {planned.run_key for planned in plan.to_do} - let_on
    runs = tuple(replace(planned, state="skipped") if planned.run_key in others else planned for planned in plan.runs)
    return replace(plan, runs=runs) if let_on else None


def unsettled(plan: Plan) -> int:
    """Return how many runs of a study with rungs may still be let on."""
    ended = ("done", "failed", "pruned")
    return sum(planned.state not in ended for planned in plan.runs) if plan.study.rungs else 0
