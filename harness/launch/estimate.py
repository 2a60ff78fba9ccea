"""Estimate what a study costs on a cluster before it is submitted: from measured steps, else from a card's peak."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from harness.launch.arithmetic import Arithmetic, arithmetic_of
from harness.launch.planning import Plan, PlannedRun
from harness.records.throughput import Throughput
from harness.slurm.profile import Profile, pack_of, slurm_parameters
from harness.spec.cards import UTILISATION
from harness.spec.costs import network_evaluations
from harness.spec.resources import Resources
from harness.spec.run import RunSpec
from harness.study.rungs import numbers_at_rungs
from harness.text import device_time

LEAST_STEP_SECONDS = 0.02
"""What a step is assumed to take at least: that of a small network takes as long as its kernels take to launch."""


@dataclass(frozen=True)
class RunCost:
    """What is left of one run and what it will take; None where that is not known.

    Attributes:
        step_seconds: of all its processes together.
        measured: what the times come from; None: the card's peak.
        evaluations: network evaluations that are left, as far as their number is known.
        devices: that its job holds for it.
        during_training: the share of the evaluations that comes with the steps, since they have `every`.
    """

    planned: PlannedRun
    arithmetic: Arithmetic | None
    steps: int
    step_seconds: float | None
    measured: Throughput | None
    evaluations: int
    evaluation_seconds: float | None
    devices: float
    during_training: float = 0.0

    @property
    def training_seconds(self) -> float | None:
        return None if self.step_seconds is None else self.steps * self.step_seconds

    @property
    def seconds(self) -> float | None:
        """The time of training and evaluations."""
        if self.training_seconds is None or self.evaluation_seconds is None:
            return None
        return self.training_seconds + self.evaluation_seconds

    @property
    def device_hours(self) -> float | None:
        return None if self.seconds is None else self.seconds * self.devices / 3600

    @property
    def is_left(self) -> bool:
        return bool(self.steps or self.evaluations)

    def up_to(self, rung: int, before: int, *, last: bool) -> RunCost:
        """Return what is left of this between two rungs."""
        of_all = self.planned.run.spec.train.steps
        steps = max(0, rung - max(before, of_all - self.steps))
        share = self.during_training * steps / of_all + (1 - self.during_training if last else 0.0)
        seconds = None if self.evaluation_seconds is None else share * self.evaluation_seconds
        return replace(self, steps=steps, evaluations=round(share * self.evaluations), evaluation_seconds=seconds)


@dataclass(frozen=True)
class RungCost:
    """What is left of a study from one rung to the next.

    Attributes:
        step: at which the rung is.
        arms: that train to it.
        runs: of these arms.
        device_hours: expected, if those that may still go on are equally likely to; None if not known.
        wall_seconds: at most, if the longest of them go on; None if not known.
    """

    step: int
    arms: int
    runs: int
    device_hours: float | None
    wall_seconds: float | None


@dataclass(frozen=True)
class Estimate:
    """What a study costs on a cluster.

    Attributes:
        plan: on that cluster (`planning.on_cluster`).
        parallel: jobs that run at the same time.
        utilisation: of the card's peak that is assumed; None: `UTILISATION`.
    """

    plan: Plan
    parallel: int
    utilisation: float | None = None

    @cached_property
    def runs(self) -> list[RunCost]:
        arithmetic: dict[str, Arithmetic | None] = {}
        for planned in self.plan.runs:
            spec = planned.run.spec
            if spec.cost_key not in arithmetic:
                arithmetic[spec.cost_key] = arithmetic_of(spec)
        return [self._cost(planned, arithmetic[planned.run.spec.cost_key]) for planned in self.plan.runs]

    def _cost(self, planned: PlannedRun, arithmetic: Arithmetic | None) -> RunCost:
        spec, resources = planned.run.spec, planned.run.resources
        finished = planned.state in ("done", "evaluate", "pruned")
        left = self.plan.evaluations_left(planned)
        counts = [network_evaluations(evaluation, spec) for evaluation in left]
        evaluations = sum(number or 0 for of_one in counts for number in of_one.values())
        during = 0.0
        for evaluation, of_one in zip(left, counts, strict=True):
            if evaluation.every:  # each time costs the same, and once it is after the training
                share = 1 - 1 / (1 + spec.train.steps // evaluation.every)
                during += share * sum(of_one[part] or 0 for part in evaluation.during_training)
        measured = self.plan.measured(planned)
        step_seconds: float | None = None
        evaluation_seconds: float | None = 0.0
        if measured:
            step_seconds = measured.seconds_per_step
            evaluation_seconds = self.plan.evaluation_hours(planned) * 3600 / self.plan.devices(planned)
        elif (flops_per_second := self._flops_per_second(spec, resources)) and arithmetic:
            step_flops = 2 * arithmetic.step_multiply_adds * spec.train.batch_size
            step_seconds = max(LEAST_STEP_SECONDS, step_flops / flops_per_second / resources.num_processes)
            evaluation_seconds = 2 * arithmetic.forward_multiply_adds * evaluations / flops_per_second
        if step_seconds is None and evaluations:
            evaluation_seconds = None
        return RunCost(
            planned,
            arithmetic,
            0 if finished else spec.train.steps - planned.status.step,
            step_seconds,
            measured,
            evaluations,
            evaluation_seconds,
            self.plan.devices(planned),
            during / evaluations if evaluations else 0.0,
        )

    def _flops_per_second(self, spec: RunSpec, resources: Resources) -> float | None:
        """Return what one process is assumed to compute; None where its card is not known."""
        profile = self.plan.profile or Profile()
        if self.plan.card is None or resources.device == "cpu" or not profile.gpus(resources)[0]:
            return None
        share = self.utilisation or UTILISATION[spec.train.precision]
        packed = max(1.0, pack_of(resources, profile) / profile.gpus(resources)[0])
        return 1e12 * share * self.plan.card.peak_tflops(spec.train.precision) / packed

    @property
    def device_hours(self) -> float | None:
        return total(cost.device_hours for cost in self.runs)

    @property
    def wall_seconds(self) -> float | None:
        """The time from the first start to the last end, if jobs wait only for one of the `parallel` places."""
        return self._wall_seconds(self.runs)

    @cached_property
    def rungs(self) -> list[RungCost]:
        """What is left by rung; empty for a study without rungs."""
        rungs = self.plan.study.rungs
        if rungs is None:
            return []
        arms: dict[str, list[RunCost]] = {}
        for cost in self.runs:
            arms.setdefault(cost.planned.run.arm, []).append(cost)
        numbers = numbers_at_rungs(len(arms), len(rungs.steps), rungs.reduction_factor)
        standing = [costs for costs in arms.values() if any(cost.planned.state != "pruned" for cost in costs)]
        before, by_rung = 0, []
        for number, step in zip(numbers, rungs.steps, strict=True):
            parts = [
                (_let_on(costs) >= step, [cost.up_to(step, before, last=step == rungs.steps[-1]) for cost in costs])
                for costs in standing
            ]
            decided = [part for is_decided, part in parts if is_decided]
            undecided = sorted((part for is_decided, part in parts if not is_decided), key=_seconds_of, reverse=True)
            places = min(max(0, number - len(decided)), len(undecided))
            going_on = [*decided, *undecided[:places]]
            share = places / len(undecided) if undecided else 0.0
            hours, of_all = (_hours_of(group) for group in (decided, undecided))
            by_rung.append(
                RungCost(
                    step,
                    len(going_on),
                    sum(map(len, going_on)),
                    None if hours is None or of_all is None else hours + share * of_all,
                    self._wall_seconds([cost for part in going_on for cost in part]),
                )
            )
            before = step
        return by_rung

    def _wall_seconds(self, costs: Sequence[RunCost]) -> float | None:
        jobs = [self._job_seconds(job) for job in self._jobs(costs)]
        if any(seconds is None for seconds in jobs):
            return None
        return makespan([seconds for seconds in jobs if seconds is not None], self.parallel)

    def _jobs(self, costs: Sequence[RunCost]) -> list[list[RunCost]]:
        """Return the runs that are left by the jobs that would work on them, as `submit` shares them."""
        profile, classes = self.plan.profile or Profile(), dict[Resources, list[RunCost]]()
        for cost in costs:
            if cost.is_left:
                classes.setdefault(cost.planned.run.resources, []).append(cost)
        jobs = []
        for resources, members in classes.items():
            size = pack_of(resources, profile) * (profile.chain if resources.num_processes == 1 else 1)
            jobs += [members[first : first + size] for first in range(0, len(members), size)]
        return jobs

    def _job_seconds(self, job: Sequence[RunCost]) -> float | None:
        known = [cost.seconds for cost in job if cost.seconds is not None]
        if len(known) < len(job):
            return None
        return makespan(known, pack_of(job[0].planned.run.resources, self.plan.profile or Profile()))

    @property
    def most_time_limits(self) -> int:
        """How many time limits the longest job will take, 1 if it ends within the first."""
        profile, most = self.plan.profile or Profile(), 1
        for job in self._jobs(self.runs):
            parameters = slurm_parameters(job[0].planned.run.resources, profile)
            usable = 60 * parameters["timeout_min"] - parameters["slurm_signal_delay_s"]
            most = max(most, math.ceil((self._job_seconds(job) or 0) / usable))
        return most

    def _by_card(self) -> list[str]:
        """Compare the cards that were measured, where the profile names none."""
        if self.plan.card:
            return []
        on_cards = {name: replace(self, plan=replace(self.plan, card=card)) for name, card in self.plan.cards().items()}
        hours = {
            name: on_card.device_hours
            for name, on_card in on_cards.items()
            if all(cost.measured for cost in on_card.runs if cost.is_left)
        }
        each = [f"{device_time(amount, 'GPU')} on {name}" for name, amount in hours.items() if amount]
        return [f"by the card that was measured: {', '.join(each)}"] if len(each) > 1 else []

    def _any_card(self) -> list[str]:
        """Say that jobs may get different cards, where the profile leaves the choice to SLURM."""
        profile = self.plan.profile or Profile()
        choices = [f"partition {profile.partition}"] if "," in (profile.partition or "") else []
        choices += [f"constraint {profile.constraint}"] if "|" in (profile.constraint or "") else []
        gpus = any(profile.gpus(planned.run.resources)[0] for planned in self.plan.runs)
        if self.plan.card or not choices or not gpus:
            return []
        return [
            f"{' and '.join(choices)}: SLURM takes whatever starts a job first, so jobs may get different cards; "
            "gpus_per_node: h100:1 or constraint: h100 in the profile asks for one kind"
        ]

    def notes(self) -> list[str]:
        """Say what the figures rest on, and what is not in them."""
        left = [cost for cost in self.runs if cost.is_left]
        measured = {cost.measured.device_name: None for cost in left if cost.measured}
        assumed = [cost for cost in left if cost.measured is None and cost.step_seconds is not None]
        notes = [f"measured on {', '.join(measured)}", *self._by_card()] if measured else []
        if assumed and (card := self.plan.card):
            peaks = {cost.planned.run.spec.train.precision: None for cost in assumed}
            notes += [
                f"estimate, not measured: {100 * (self.utilisation or UTILISATION[precision]):.3g} % of the "
                f"{card.peak_tflops(precision):g} TFLOPS that {card.name} has in {precision} ({card.source})"
                for precision in peaks
            ]
        if any(cost.step_seconds == LEAST_STEP_SECONDS for cost in assumed):
            notes.append(
                f"of networks so small that a step is assumed to take {LEAST_STEP_SECONDS:g} s, for the launch of its "
                "kernels: `harness calibrate` measures them"
            )
        if any(cost.seconds is None for cost in left):
            notes.append(
                "?: `harness calibrate` measures it; of GPUs, --card or gpus_per_node: h100:1 in the profile give an "
                "estimate"
            )
        notes += self._any_card()
        notes.append("not counted: waiting in the queue, checkpoints, the start of each job, feature extractors")
        if uncounted := self.plan.uncounted_parts():
            notes.append(f"nor what is not known before: {', '.join(uncounted)}")
        return notes


def _let_on(costs: Sequence[RunCost]) -> int:
    """Return the step to which the runs of an arm train for now."""
    return max(cost.planned.run.until or cost.planned.run.spec.train.steps for cost in costs)


def _seconds_of(costs: Sequence[RunCost]) -> float:
    return total(cost.seconds for cost in costs) or 0.0


def _hours_of(arms: Iterable[Sequence[RunCost]]) -> float | None:
    return total(cost.device_hours for costs in arms for cost in costs)


def total(amounts: Iterable[float | None]) -> float | None:
    """Return a sum; None if a part of it is not known."""
    known = list(amounts)
    return None if None in known else sum(amount for amount in known if amount is not None)


def makespan(seconds: Sequence[float], places: int) -> float:
    """Return when the last of some jobs ends, if each starts in its order as soon as one of the places is free."""
    ends = [0.0] * max(1, min(places, len(seconds)))
    for duration in seconds:
        heapq.heapreplace(ends, ends[0] + duration)
    return max(ends)
