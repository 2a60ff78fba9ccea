"""The contrasts of a study: every arm against a baseline, all pairs of arms, or the main effect of one value.

Runs are paired by seed. The main effect of a value averages, within each seed, over all settings that differ in that
value alone, as in a factorial design; so each seed gives one difference, and the seeds stay the replicates.

The contrasts of one metric are one family: their p-values are corrected together (Holm).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness.analysis import results
from harness.analysis.comparison import MAX_FORECAST, Comparison, compare, correct
from harness.analysis.runs import RunRecord
from harness.analysis.settings import Labels, brief, settings_of
from harness.errors import RecordError
from harness.spec.base import canonical_json
from harness.text import count, device_time, did_you_mean


@dataclass(frozen=True)
class Quantity:
    """What is compared: a metric of one evaluation under one protocol.

    Attributes:
        metric: as in the results table: nll, fid, ..., or a plugin's.
        label: for people, with the feature extractor.
    """

    metric: str
    label: str
    evaluation: str
    protocol: str
    protocol_id: str

    @property
    def higher_is_better(self) -> bool:
        return results.kind_of(self.metric).direction == "maximize"


@dataclass(frozen=True)
class Contrast:
    """Two sides of a study in one quantity.

    Attributes:
        seeds: of the pairs, in order.
        left_out: seeds that one of the sides has no finite value of.
        seconds_per_pair: what one more pair would take on one device; None if it is not known.
    """

    quantity: Quantity
    ours: str
    other: str
    comparison: Comparison
    seeds: tuple[int, ...]
    left_out: tuple[int, ...] = ()
    seconds_per_pair: float | None = None

    @property
    def verdict(self) -> str:
        """The verdict in words, with what is missing where there is none."""
        verdict = self.comparison.verdict
        if verdict == "equivalent":
            return "equivalent within the noise of the evaluation"
        return verdict if verdict != "inconclusive" else f"inconclusive: {self.missing}"

    @property
    def missing(self) -> str:
        """What an undecided contrast lacks for a verdict."""
        pairs, hours, n = self.comparison.pairs_to_decide, self.hours_to_decide, self.comparison.n
        if pairs is None:
            return f"{MAX_FORECAST} seeds would not decide" if n > 1 else "one seed"
        cost = f", about {device_time(hours)}" if hours else ""
        return f"{count(pairs - n, 'more seed')} would decide{cost}"

    @property
    def hours_to_decide(self) -> float | None:
        """Forecast the device hours of the pairs that a verdict still takes."""
        pairs = self.comparison.pairs_to_decide
        if pairs is None or self.seconds_per_pair is None:
            return None
        return (pairs - self.comparison.n) * self.seconds_per_pair / 3600


def contrasts(
    runs: Sequence[RunRecord],
    *,
    baseline: str | None = None,
    metric: str | None = None,
    by: str | None = None,
    all_pairs: bool = False,
) -> list[Contrast]:
    """Compare the sides of a study in pairs, in each metric that has a better direction.

    Args:
        runs: of one study.
        baseline: the side that the others are compared with; the first by default.
        metric: only this one, such as fid.
        by: a value or part of the spec by dotted path, such as `diffusion.schedule`, whose main effect is asked for;
            the sides are its values. None: the sides are the arms.
        all_pairs: compare every side with every other, too.

    Raises:
        RecordError: no such side, metric or path; the message lists the choices.
    """
    if by is not None:
        _require_path(runs, by)
    sides = _sides(runs, by)
    names = list(dict.fromkeys(side for quantity in sides.values() for side in quantity))
    baseline = _choose(baseline, names, "value" if by else "arm") if baseline else None
    metrics = {quantity.metric for quantity in sides}
    if metric is not None:
        _choose(metric, sorted(metrics), "metric")
    result: list[Contrast] = []
    for quantity, measured in sides.items():
        if metric not in (None, quantity.metric):
            continue
        if metric is None and results.kind_of(quantity.metric).direction is None:
            continue
        family = [
            contrast
            for ours, other in _pairs_of_sides(list(measured), baseline, all_pairs)
            if (contrast := _contrast(quantity, measured[ours], measured[other]))
        ]
        corrected = correct([contrast.comparison for contrast in family])
        result += [
            replace(contrast, comparison=comparison) for contrast, comparison in zip(family, corrected, strict=True)
        ]
    return result


# -- what is measured


@dataclass
class _Value:
    value: float
    standard_error: float
    seconds: float


@dataclass
class _Side:
    """The values of one side, by context (what else differs within the side) and seed."""

    name: str
    values: dict[str, dict[int, _Value]] = field(default_factory=dict)


def _sides(runs: Sequence[RunRecord], by: str | None) -> dict[Quantity, dict[str, _Side]]:
    sides: dict[Quantity, dict[str, _Side]] = {}
    places, data_of = _places(runs, by), results.data_texts(runs)
    for run in runs:
        if run.run_key not in places:
            continue
        name, context = places[run.run_key]
        for measurement in run.measurements:
            for model, _, metric, protocol, value in results.measured_values(run, measurement, data_of[run.run_key]):
                if model != results.TRAINED:
                    continue
                kind = results.kind_of(metric)
                label = f"{kind.axis} ({protocol.extractor})" if protocol.extractor else kind.axis
                quantity = Quantity(metric, label, measurement.name, protocol.text, protocol.id)
                side = sides.setdefault(quantity, {}).setdefault(name, _Side(name))
                error = results.standard_error(run, measurement, metric)
                side.values.setdefault(context, {})[run.spec["seed"]] = _Value(value, error, _training_seconds(run))
    return sides


def _places(runs: Sequence[RunRecord], by: str | None) -> dict[str, tuple[str, str]]:
    """Return the side and the context of each run, by run_key."""
    if by is None:
        return {run.run_key: (run.arm, "") for run in runs}
    part, along = by.removesuffix(".name"), {*changes_along(runs, by)}
    places, labels = {}, Labels()
    for run in runs:
        settings = settings_of(run)
        own = {path: value for path, value in settings.items() if _is_within(path, part)}
        if own:
            rest = {path: value for path, value in settings.items() if path not in own and path not in along}
            name = str(own.get(f"{part}.name", "") if f"{part}.name" in own else brief(next(iter(own.values()))))
            places[run.run_key] = labels.add(name, own), canonical_json(rest)
    texts = labels.texts()
    return {run_key: (texts[key], context) for run_key, (key, context) in places.items()}


def changes_along(runs: Sequence[RunRecord], by: str) -> list[str]:
    """Return which other values of the spec change with a value, so that their effects cannot be told apart.

    L_simple's fixed variance is one, by `objective`. Each value of `by` has one value of theirs in all runs.
    """
    part = by.removesuffix(".name")
    seen: dict[str, dict[str, set[str]]] = {}
    all_settings = [settings_of(run) for run in runs]
    paths = dict.fromkeys(path for settings in all_settings for path in settings if not _is_within(path, part))
    for settings in all_settings:
        own = canonical_json({path: value for path, value in settings.items() if _is_within(path, part)})
        for path in paths:
            seen.setdefault(path, {}).setdefault(own, set()).add(canonical_json(settings.get(path)))
    return [
        path
        for path, by_own in seen.items()
        if all(len(values) == 1 for values in by_own.values()) and len(set.union(*by_own.values())) > 1
    ]


def _is_within(path: str, part: str) -> bool:
    return path == part or path.startswith(f"{part}.")


def _training_seconds(run: RunRecord) -> float:
    """Return how long the training took at its usual speed, on each device; NaN if that is not known."""
    _, speeds = run.history("perf/steps_per_second")
    return run.spec["train"]["steps"] / float(np.median(speeds)) if len(speeds) else math.nan


def _pairs_of_sides(names: list[str], baseline: str | None, all_pairs: bool) -> Iterator[tuple[str, str]]:
    if all_pairs:
        yield from ((ours, other) for other, ours in itertools.combinations(names, 2))
        return
    other = baseline or names[0]
    if other in names:
        yield from ((ours, other) for ours in names if ours != other)


def _contrast(quantity: Quantity, ours: _Side, other: _Side) -> Contrast | None:
    """Pair two sides by seed; None if they have no pair."""
    contexts = [context for context in ours.values if context in other.values]
    seeds = sorted({seed for side in (ours, other) for context in contexts for seed in side.values[context]})
    pairs: dict[int, list[list[_Value]]] = {}  # by seed: both sides, each in every context
    for seed in seeds:
        values = [
            [value for context in contexts if (value := side.values[context].get(seed)) and math.isfinite(value.value)]
            for side in (ours, other)
        ]
        if all(len(side) == len(contexts) for side in values):
            pairs[seed] = values
    if not pairs:
        return None
    means = [[np.mean([value.value for value in values[side]]) for values in pairs.values()] for side in (0, 1)]
    all_values = [value for values in pairs.values() for side in values for value in side]
    errors = [value.standard_error for value in all_values]
    seconds = [value.seconds for value in all_values]
    # Replicates are evaluated on the same images and noise, so their errors do not average out.
    floor = math.sqrt(2 * float(np.mean(np.square(errors))))
    return Contrast(
        quantity,
        ours.name,
        other.name,
        compare(means[0], means[1], floor=floor, higher_is_better=quantity.higher_is_better),
        tuple(pairs),
        tuple(seed for seed in seeds if seed not in pairs),
        None if np.isnan(seconds).any() else float(np.sum(seconds) / len(pairs)),
    )


# -- choices


def _choose(name: str, choices: Sequence[str], what: str) -> str:
    """Return a name that is one of the choices; else raise a RecordError with them."""
    if name not in choices:
        raise RecordError(f"no {what} {name!r} was measured: {did_you_mean(name, choices)}")
    return name


def _require_path(runs: Iterable[RunRecord], by: str) -> None:
    values: dict[str, set[str]] = {}
    for run in runs:
        for key, value in settings_of(run).items():
            values.setdefault(key, set()).add(canonical_json(value))
    varied = [key for key, different in values.items() if len(different) > 1]
    if not any(_is_within(path, by.removesuffix(".name")) for path in varied):
        choices = list(dict.fromkeys(path.removesuffix(".name") for path in varied))
        raise RecordError(f"no value {by!r} differs between the arms: {did_you_mean(by, choices)}")


def as_values(contrast: Contrast) -> dict[str, Any]:
    """Return a contrast as plain values, for JSON: numbers that are not known are None."""
    comparison, quantity = contrast.comparison, contrast.quantity
    numbers = {
        name: getattr(comparison, name)
        for name in (
            *("n", "ours", "other", "difference", "t_low", "t_high"),
            *("p", "p_holm", "p_flip", "effect_size", "correlation", "floor"),
        )
    }
    numbers["bca_low"], numbers["bca_high"] = comparison.bca
    known = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in numbers.items()}
    return {
        "metric": quantity.metric,
        "evaluation": quantity.evaluation,
        "protocol": quantity.protocol,
        "protocol_id": quantity.protocol_id,
        "ours_name": contrast.ours,
        "other_name": contrast.other,
        **known,
        "verdict": comparison.verdict,
        "pairs_to_decide": comparison.pairs_to_decide,
        "device_hours_to_decide": contrast.hours_to_decide,
        "seeds": list(contrast.seeds),
        "seeds_left_out": list(contrast.left_out),
    }
