"""Rungs: steps at which the runs of a study or of a search pause, and from which only the best go on.

This is successive halving (Jamieson and Talwalkar 2016), as within one bracket of Hyperband (Li et al. 2018): of the n
that compete at a rung, the best n // reduction_factor go on, at least one. A rung is decided when all that compete
there have been measured or have failed, so the decision does not depend on who was faster.

A run has its whole spec from the beginning, with `train.steps` of the last rung; so its run_key, its learning rates and
its bits are those of the run without rungs, and a rung is only a pause.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.spec.evaluation import Evaluation
from harness.spec.metrics import Direction, kind_name, metric_kind, part_outputs
from harness.study.document import Document, Keys, integer
from harness.study.model import Run, Study
from harness.text import did_you_mean

REDUCTION_FACTOR = 4
KEYS = ("rungs", "reduction_factor")


@dataclass(frozen=True)
class Rungs:
    """The rungs of a study.

    Attributes:
        steps: rising; the last one is train.steps.
        reduction_factor: of so many, one goes on.
        metric: that decides, such as `nll` or `eval/fid`.
    """

    steps: tuple[int, ...]
    reduction_factor: int
    metric: str


@dataclass(frozen=True)
class Progress:
    """How far an arm, or a trial, has come.

    Attributes:
        values: by the rung's step: the mean over its replicates.
        let_on: the step to which it was let on earlier; 0 if it was not.
        rests_at: the step at which it rests for now; 0 while it trains. What was not measured before will not be.
        ended: it is not waited for: it has failed, or is done without having been measured at the rungs.
    """

    values: Mapping[int, float] = field(default_factory=dict)
    let_on: int = 0
    rests_at: int = 0
    ended: bool = False


@dataclass(frozen=True)
class Standing:
    """What is decided about an arm, or a trial.

    Attributes:
        until: the step to which it trains for now.
        dropped: why it does not go on from there, for people; empty if it may.
    """

    until: int
    dropped: str = ""


def decide(
    progress: Mapping[str, Progress],
    steps: Sequence[int],
    reduction_factor: int,
    *,
    metric: str,
    direction: Direction,
    more_to_come: bool = False,
) -> dict[str, Standing]:
    """Decide who goes on from each rung; equal values in the order of `progress`.

    Args:
        progress: by name.
        metric: its name, for people.
        more_to_come: others will compete at the first rung, so that it is not decided yet.
    """
    standings: dict[str, Standing] = {}
    competing = list(progress)
    sign = -1 if direction == "maximize" else 1
    for number, step in enumerate(steps[:-1], 1):
        measured = [name for name in competing if step in progress[name].values]
        not_measured = [progress[name] for name in competing if step not in progress[name].values]
        is_waited_for = any(not of_one.ended and of_one.rests_at < step for of_one in not_measured)
        if is_waited_for or (more_to_come and number == 1):
            for name in competing:
                let_on = max(step, progress[name].let_on)
                standings[name] = Standing(next(rung for rung in steps if rung >= let_on))
            return standings
        finite = [name for name in measured if math.isfinite(progress[name].values[step])]
        ranked = sorted(finite, key=lambda name: sign * progress[name].values[step])
        best = ranked[: max(1, len(measured) // reduction_factor)]
        going_on = [name for name in competing if name in best or progress[name].let_on > step]
        for name in set(competing) - set(going_on):
            reason = f"it has no {metric} there"
            if step in progress[name].values:
                reason = (
                    f"{metric} {progress[name].values[step]:.6g} is not among the best {len(best)} of {len(measured)}"
                )
            standings[name] = Standing(step, f"rung {number} of {len(steps)}, step {step}: {reason}")
        competing = going_on
    return standings | {name: Standing(steps[-1]) for name in competing}


def numbers_at_rungs(count: int, num_rungs: int, reduction_factor: int) -> list[int]:
    """Return how many of `count` train to each rung."""
    numbers = [count]
    while len(numbers) < num_rungs:
        numbers.append(max(1, numbers[-1] // reduction_factor))
    return numbers


def training_with_rungs(numbers: Sequence[int], steps: Sequence[int], replicates: int = 1) -> dict[str, Any]:
    """Return how many train to which rung, and the steps that they compute in all, with rungs and without.

    Args:
        numbers: of those that train to each rung.
    """
    spans = [step - before for before, step in itertools.pairwise((0, *steps))]
    return {
        "at_rungs": [{"step": step, "number": number} for number, step in zip(numbers, steps, strict=True)],
        "steps": replicates * sum(number * span for number, span in zip(numbers, spans, strict=True)),
        "steps_without_rungs": replicates * numbers[0] * steps[-1],
    }


def describe_training(training: Mapping[str, Any]) -> str:
    """Describe what `training_with_rungs` returned: `8 to 1000, 2 to 4000; 34 % of the steps without rungs`."""
    shown = ", ".join(f"{rung['number']} to {rung['step']}" for rung in training["at_rungs"])
    return f"{shown}; {100 * training['steps'] / training['steps_without_rungs']:.0f} % of the steps without rungs"


def metric_at_rungs(metric: str, run: Run) -> tuple[Evaluation, str]:
    """Return the evaluation that measures a metric at the rungs, and its full name there without the prefix.

    Raises:
        ValueError: no evaluation, or more than one, measures it during training.
    """
    prefix, _, kind = metric.rpartition("/")
    candidates = [
        (evaluation, name)
        for evaluation in run.evaluations
        if evaluation.every
        for part in part_outputs(evaluation, run.spec).values()
        for name in part.during_training
        if prefix in ("", evaluation.name)
    ]
    matches = [(evaluation, name) for evaluation, name in candidates if name == kind or _kind(name) == kind]
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(f"{evaluation.name}/{name}" for evaluation, name in matches)
        raise ValueError(f"{metric} is measured more than once during training: {names}; name one")
    known = [f"{evaluation.name}/{name}" for evaluation, name in candidates]
    choices = did_you_mean(metric, known) if known else "no evaluation has `every`"
    raise ValueError(f"no evaluation measures {metric} during training, which decides at the rungs; {choices}")


def direction_of(metric: str) -> Direction:
    """Return in which direction a metric's full name, without its prefix, is better."""
    direction = metric_kind(metric).direction
    if direction is None:
        raise ValueError(f"{metric} is neither better when it is low nor when it is high, so no rung is decided by it")
    return direction


def _kind(name: str) -> str:
    """Return what `compare.metric` calls a metric: nll, fid, ..."""
    return kind_name(name).removesuffix("_bpd")


def with_limit(study: Study, step: int) -> Study:
    """Return a study whose runs train to a step for now."""
    return replace(study, runs=tuple(replace(run, until=step) for run in study.runs))


def read_rungs(document: Document, runs: Sequence[Run], metric: str | None) -> Rungs | None:
    """Return the rungs of a study's file; None if it has none.

    Args:
        metric: `compare.metric`, which decides.

    Raises:
        SpecError: with the location.
    """
    steps, factor = document.value.get("rungs"), integer(document.value.get("reduction_factor", REDUCTION_FACTOR))
    if steps is None:
        if "reduction_factor" in document.value:
            raise document.fail(("reduction_factor",), "is of rungs, and there are none: rungs: [1000, 4000, 16000]")
        return None
    steps = [integer(step) for step in steps] if isinstance(steps, list) else steps
    if not isinstance(steps, list) or any(type(step) is not int for step in steps):
        raise document.fail(("rungs",), f"a list of steps, such as [1000, 4000, 16000], not {steps!r}")
    if type(factor) is not int or not 2 <= factor <= 1000:
        raise document.fail(("reduction_factor",), f"a whole number from 2 to 1000, not {factor!r}")
    if metric is None:
        raise document.fail(("rungs",), "compare.metric decides who goes on: name one, such as compare: {metric: nll}")
    check_steps(document, ("rungs",), steps, runs)
    for run in runs:
        try:
            evaluation, name = metric_at_rungs(metric, run)
            direction_of(name)
        except ValueError as error:
            raise document.fail(("rungs",), f"arm {run.arm}: {error}") from None
        check_every(document, ("rungs",), steps, evaluation)
    return Rungs(tuple(steps), factor, metric)


def check_steps(document: Document, keys: Keys, steps: Sequence[int], runs: Sequence[Run]) -> None:
    """Refuse rungs that do not rise, or do not end where the runs do."""
    if len(steps) < 2 or steps[0] < 1 or any(first >= second for first, second in itertools.pairwise(steps)):
        raise document.fail(keys, f"two steps or more, each more than the one before, not {list(steps)}")
    for run in runs:
        if run.spec.train.steps != steps[-1]:
            raise document.fail(
                keys,
                f"the last rung, {steps[-1]}, is not the end of arm {run.arm}, which trains for "
                f"{run.spec.train.steps} steps: they must be equal",
            )


def check_every(document: Document, keys: Keys, steps: Sequence[int], evaluation: Evaluation) -> None:
    """Refuse rungs at which an evaluation is not measured."""
    assert evaluation.every is not None
    for step in steps[:-1]:
        if step % evaluation.every:
            raise document.fail(
                keys,
                f"{evaluation.name} is measured every {evaluation.every} steps and so not at step {step}: every rung "
                "but the last must be a multiple of its `every`",
            )


def asked_for(run: Run) -> dict[str, Any]:
    """Return a run's membership, as its study's manifest has it: with the step to which it trains for now."""
    return run.membership() | ({} if run.until is None else {"until": run.until})
