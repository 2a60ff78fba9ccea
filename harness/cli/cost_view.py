"""What `harness plan --profile` and `--card` show: what a study would take there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from harness.cli.tables import Table
from harness.errors import LaunchError
from harness.launch.estimate import Estimate, RunCost, total
from harness.launch.planning import Plan, on_cluster
from harness.slurm.profile import Profile
from harness.spec.cards import CARDS, find_card
from harness.text import (
    compute_time,
    count,
    device_time,
    did_you_mean,
    duration,
    markdown,
    printable,
    rounded_count,
    step_time,
)

HEADERS = (
    *("arm", "runs left", "parameters", "multiply-adds a step", "steps", "time a step"),
    *("network evaluations", "to train", "to evaluate", "device time"),
)


def estimate_of(
    plan: Plan, profile: Profile | None, card: str | None, parallel: int | None, utilisation: float | None
) -> Estimate:
    """Return the estimate that the options ask for; a card without a profile means one of them for each run.

    Raises:
        LaunchError: no card of that name is known.
    """
    chosen = find_card(card)
    if card and chosen is None:
        raise LaunchError(f"--card {card}: not a card whose peak is known; {did_you_mean(card, list(CARDS))}")
    if parallel is None:
        parallel = profile.max_parallel if profile else 1
    profile = profile or Profile(gpus_per_node=1 if card else None)
    return Estimate(on_cluster(plan, profile, chosen), parallel, utilisation)


def show(estimate: Estimate, *, as_markdown: bool) -> None:
    """Print the cost by arm, the totals, and what they rest on."""
    rows = _rows(estimate)
    _show_table(HEADERS, rows, as_markdown=as_markdown)
    print()
    hours, wall = estimate.device_hours, estimate.wall_seconds
    said = f"{_or_unknown(hours, device_time)}; {_or_unknown(wall, duration)} with "
    said += f"{count(estimate.parallel, 'job')} at a time"
    if estimate.rungs:
        hours = _show_rungs(estimate, as_markdown=as_markdown)
        said = f"without rungs, as by arm above: {said}"
    print(said)
    if (budget := estimate.plan.study.budget_gpu_hours) is not None:
        print(f"budget_gpu_hours: {budget:g}" + (", which this is over" if hours and hours > budget else ""))
    if (limits := estimate.most_time_limits) > 1:
        print(f"the longest job takes {limits} time limits, and goes on after each")
    for note in (*estimate.plan.idle_gpus(), *estimate.notes()):
        print(f"- {markdown(note)}" if as_markdown else printable(note))


def _show_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, as_markdown: bool) -> None:
    if not as_markdown:
        Table(headers, rows).show()
        return
    for row in (headers, ("---", *["---:"] * (len(headers) - 1)), *rows):
        print(f"| {' | '.join(cell if cell.startswith('---') else markdown(cell) for cell in row)} |")


def _show_rungs(estimate: Estimate, *, as_markdown: bool) -> float | None:
    """Print what goes on from rung to rung and its cost; return the hours of devices that are expected."""
    rungs = estimate.rungs
    headers = ("rung", "to step", "arms", "runs", "device time", "at most")
    rows = [
        (
            *(str(number), str(rung.step), str(rung.arms), str(rung.runs)),
            _or_unknown(rung.device_hours, compute_time),
            _or_unknown(rung.wall_seconds, duration),
        )
        for number, rung in enumerate(rungs, 1)
    ]
    _show_table(headers, rows, as_markdown=as_markdown)
    print()
    hours, wall = total(rung.device_hours for rung in rungs), total(rung.wall_seconds for rung in rungs)
    print(
        f"with rungs: {_or_unknown(hours, device_time)} expected; {_or_unknown(wall, duration)} at most, with "
        f"{count(estimate.parallel, 'job')} at a time"
    )
    return hours


def as_json(estimate: Estimate) -> dict[str, Any]:
    card = estimate.plan.card
    return {
        "study": estimate.plan.study.name,
        "card": card.name if card else None,
        "parallel": estimate.parallel,
        "device_hours": estimate.device_hours,
        "wall_seconds": estimate.wall_seconds,
        "time_limits": estimate.most_time_limits,
        "notes": [*estimate.plan.idle_gpus(), *estimate.notes()],
        "rungs": [asdict(rung) for rung in estimate.rungs],
        "runs": [_run_json(cost) for cost in estimate.runs],
    }


def _run_json(cost: RunCost) -> dict[str, Any]:
    run = cost.planned.run
    return {
        "run_key": run.run_key,
        "arm": run.arm,
        "replicate": run.replicate,
        "parameters": cost.arithmetic and cost.arithmetic.parameters,
        "multiply_adds_per_step": _step_multiply_adds(cost),
        "steps": cost.steps,
        "step_seconds": cost.step_seconds,
        "measured_on": cost.measured and cost.measured.device_name,
        "network_evaluations": cost.evaluations,
        "evaluation_seconds": cost.evaluation_seconds,
        "devices": cost.devices,
        "device_hours": cost.device_hours,
    }


def _rows(estimate: Estimate) -> list[tuple[str, ...]]:
    arms: dict[str, list[RunCost]] = {}
    for cost in estimate.runs:
        arms.setdefault(cost.planned.run.arm, []).append(cost)
    rows = [(arm, *_cells(costs)) for arm, costs in arms.items()]
    if len(arms) > 1:
        sums = _cells(estimate.runs)
        rows.append(("all", sums[0], "", "", sums[3], "", *sums[5:]))
    return rows


def _cells(costs: Sequence[RunCost]) -> tuple[str, ...]:
    """Return the cells of some runs: what differs between them as a range, the rest as a sum."""
    training = total(_hours(cost.training_seconds if cost.steps else 0.0, cost) for cost in costs)
    evaluations = total(_hours(cost.evaluation_seconds, cost) for cost in costs)
    return (
        str(sum(cost.is_left for cost in costs)),
        _range([cost.arithmetic.parameters if cost.arithmetic else None for cost in costs], rounded_count),
        _range([_step_multiply_adds(cost) for cost in costs], rounded_count),
        rounded_count(sum(cost.steps for cost in costs)),
        _range([cost.step_seconds for cost in costs], step_time),
        rounded_count(sum(cost.evaluations for cost in costs)),
        _or_unknown(training, compute_time),
        _or_unknown(evaluations, compute_time),
        _or_unknown(total(cost.device_hours if cost.is_left else 0.0 for cost in costs), compute_time),
    )


def _hours(seconds: float | None, cost: RunCost) -> float | None:
    return None if seconds is None else seconds * cost.devices / 3600


def _step_multiply_adds(cost: RunCost) -> float | None:
    batch_size = cost.planned.run.spec.train.batch_size
    return cost.arithmetic.step_multiply_adds * batch_size if cost.arithmetic else None


def _range(values: Sequence[float | None], format_amount: Callable[[float], str]) -> str:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return "?"
    ends = dict.fromkeys(format_amount(value) for value in (min(known), max(known)))
    return " to ".join(ends)


def _or_unknown(amount: float | None, format_amount: Callable[[float], str]) -> str:
    return "?" if amount is None else format_amount(amount) if amount else "0"
