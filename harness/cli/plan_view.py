"""What `harness plan` shows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.cli.tables import Table, state_counts
from harness.launch.inputs import data_notes, extractor_notes, recorded_data_notes
from harness.launch.planning import Plan, PlannedRun
from harness.spec.costs import network_evaluations
from harness.text import compute_time, count, device_time, duration, harness_command, printable, rounded_count, size


def show_plan(plan: Plan, *, limit: int | None = 40) -> None:
    """Print a plan: a summary by arm, the first `limit` runs, the warnings and the cost."""
    print(f"study {plan.study.name}: {count(len(plan.runs), 'run')}, {state_counts(p.state for p in plan.runs)}\n")
    _arms(plan).show()
    print()
    _runs(plan, plan.runs[:limit]).show()
    if limit is not None and len(plan.runs) > limit:
        print(f"... and {len(plan.runs) - limit} more (--all shows them)")
    print()
    _evaluations(plan).show()
    print()
    for warning in plan.study.warnings():
        print(f"warning: {printable(warning)}")
    for idle in plan.idle_gpus():
        print(f"warning: {printable(idle)}")
    for note in (*plan.notes(), *data_notes(plan), *recorded_data_notes(plan), *extractor_notes(plan.runs)):
        print(printable(note))
    print(total_cost(plan))


def _arms(plan: Plan) -> Table:
    arms: dict[str, list[PlannedRun]] = {}
    for planned in plan.runs:
        arms.setdefault(planned.run.arm, []).append(planned)
    rows = [
        (arm, str(len(members)), state_counts(p.state for p in members), *_cost(plan, members))
        for arm, members in arms.items()
    ]
    return Table(("arm", "runs", "state", *_COST_HEADERS), rows)


def _runs(plan: Plan, shown: Sequence[PlannedRun]) -> Table:
    rows = [
        (p.run_key, p.run.arm, str(p.run.replicate), _overrides(p.run.overrides), p.state, *_cost(plan, [p]))
        for p in shown
    ]
    return Table(("run", "arm", "replicate", "what differs", "state", *_COST_HEADERS), rows)


def _evaluations(plan: Plan) -> Table:
    """Return what each arm's runs are measured by, and its cost; arms with the same cost share a row."""
    arms: dict[tuple[str, ...], dict[str, None]] = {}
    for planned in plan.runs:
        for evaluation in planned.run.evaluations:
            counts = network_evaluations(evaluation, planned.run.spec)
            seconds = plan.evaluation_seconds(planned, evaluation)
            row = (
                evaluation.name,
                ", ".join(counts),
                _sum_known(list(counts.values()), rounded_count),
                "?" if seconds is None else f"about {duration(seconds)}",
            )
            arms.setdefault(row, {})[planned.run.arm] = None
    every = {planned.run.arm: None for planned in plan.runs}
    rows = [
        (name, "all" if names.keys() == every.keys() else ", ".join(names), *cells)
        for (name, *cells), names in arms.items()
    ]
    measured = {planned.run_key for planned in plan.runs if planned.run.evaluations}
    if left := [planned.run.arm for planned in plan.runs if planned.run_key not in measured]:
        unmeasured = dict.fromkeys(left)
        rows.append(("none", "all" if unmeasured.keys() == every.keys() else ", ".join(unmeasured), "-", "-", "-"))
    return Table(("evaluation", "arms", "measures", "network evaluations a run", "time a run"), rows)


def _overrides(overrides: Mapping[str, Any]) -> str:
    return " ".join(f"{path}={_brief(value)}" for path, value in overrides.items()) or "-"


def _brief(value: Any) -> str:
    if isinstance(value, dict) and "name" in value:
        parameters = ",".join(f"{key}={_brief(part)}" for key, part in value.items() if key != "name")
        return f"{value['name']}({parameters})" if parameters else str(value["name"])
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))


_COST_HEADERS = ("training left", "device time", "checkpoints")


def _cost(plan: Plan, members: Sequence[PlannedRun]) -> tuple[str, str, str]:
    return (
        _sum_known([plan.training_seconds(planned) for planned in members], duration),
        _sum_known([plan.device_hours(planned) for planned in members], compute_time),
        _sum_known([plan.checkpoint_bytes(planned) for planned in members], size),
    )


def _sum_known(amounts: Sequence[float | None], format_amount: Callable[[float], str]) -> str:
    """Format a sum, with `?` for unknown amounts: 40 min, ?, 40 min + ?, - for nothing."""
    known = sum(amount for amount in amounts if amount is not None)
    parts = [format_amount(known)] if known else []
    return " + ".join(parts + ["?"] * (None in amounts)) or "-"


def cost_sentence(plan: Plan, device: str | None = None) -> str:
    """Describe the remaining training in time of devices, by the device that each estimate was measured on."""
    hours: dict[tuple[str, str], float] = {}
    unknown = 0
    for planned in plan.runs:
        left, measured = plan.device_hours(planned, device), plan.measured(planned, device)
        if left is None:
            unknown += 1
        elif left and measured:
            kind_and_name = (measured.device, measured.device_name)
            hours[kind_and_name] = hours.get(kind_and_name, 0.0) + left
    parts = [
        f"{device_time(amount, 'GPU') if kind == 'cuda' else compute_time(amount)} on {name}"
        for (kind, name), amount in hours.items()
    ]
    if unknown:
        parts.append(f"an unknown time for {count(unknown, 'run')} (no similar run has been measured yet)")
    return ", ".join(parts)


def total_cost(plan: Plan) -> str:
    """Describe what is left to train and to evaluate, the budget and the disk space, in a line or two."""
    budget = plan.study.budget_gpu_hours
    limit = f"; budget: {budget:g} GPU hours" if budget is not None else ""
    sentence = cost_sentence(plan)
    evaluations = sum(map(plan.evaluation_hours, plan.runs))
    more = f"; evaluations: about {compute_time(evaluations)}" if evaluations else ", without evaluations"
    if evaluations and (uncounted := plan.uncounted_parts()):
        more += f", without {', '.join(uncounted)}"
    if not sentence:
        return f"training left: none{more if evaluations else ''}{limit}"
    disk = _sum_known([plan.checkpoint_bytes(planned) for planned in plan.runs], size)
    unknown = any(plan.device_hours(planned) is None for planned in plan.runs)
    calibrate = harness_command("calibrate", plan.study.path, runs_folder=plan.runs_folder, sets=plan.study.sets)
    hint = f"\n`{calibrate}` measures what is unknown" if unknown else ""
    return f"training left: {sentence}{more}{limit}\ncheckpoints will take: {disk}{hint}"
